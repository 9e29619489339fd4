//! The PostgreSQL server: databases of the run, psql and pgbench.

use std::{
    path::{Path, PathBuf},
    process::{Command as BlockingCommand, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{io::AsyncWriteExt, process::Command};

/// A server in which databases may be created.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// The URL without a database, `postgres://user@host:port`.
    base: String,
    /// The database that the URL named; it is only used to create others.
    home: String,
    psql: PathBuf,
    pgbench: PathBuf,
}

/// A database of the run, dropped with this value.
#[derive(Debug)]
pub(crate) struct Database {
    server: Server,
    name: String,
}

impl Server {
    /// The server at a URL, with the programs to talk to it.
    ///
    /// # Errors
    /// No such URL, or psql or pgbench cannot be found.
    pub(crate) fn find(url: Option<&str>) -> Result<Self> {
        let url = url.context(
            "no PostgreSQL: run `make bench`, which starts one, or give --postgres or MILLRACE_TEST_POSTGRES",
        )?;
        let (base, home) = url
            .rsplit_once('/')
            .filter(|(base, _)| base.contains("://"))
            .with_context(|| format!("{url} is not a URL of the form postgres://USER@HOST:PORT/DATABASE"))?;
        Ok(Self { base: base.into(), home: home.into(), psql: program("psql")?, pgbench: program("pgbench")? })
    }

    /// Creates a database.
    pub(crate) async fn create(&self, name: &str) -> Result<Database> {
        let name = format!("millrace_bench_{}_{name}", std::process::id());
        self.psql(&self.home, &format!("CREATE DATABASE {name}")).await?;
        Ok(Database { server: self.clone(), name })
    }

    /// A setting as the server shows it.
    pub(crate) async fn setting(&self, name: &str) -> Result<String> {
        self.psql(&self.home, &format!("SELECT current_setting('{name}')")).await
    }

    /// The process id of the server's first process, if it runs on this machine.
    pub(crate) async fn postmaster(&self) -> Result<Option<u32>> {
        let child = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
        let child = self.psql(&self.home, child).await?.parse::<u32>().ok();
        let is_server = |pid: &u32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim() == "postgres")
        };
        Ok(child.filter(is_server).and_then(crate::usage::parent_of))
    }

    async fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut child = Command::new(&self.psql)
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(format!("{}/{database}", self.base))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.psql.display()))?;
        let mut stdin = child.stdin.take().context("psql has no standard input")?;
        let sql_bytes = sql.as_bytes().to_vec();
        // What psql does not read it has refused, and says so.
        let feed = async move { drop(stdin.write_all(&sql_bytes).await) };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        let output = output.context("waiting for psql")?;
        if !output.status.success() {
            let start: String = sql.chars().take(200).collect();
            bail!("psql failed: {}\nat: {start}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Database {
    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("{}/{}", self.server.base, self.name)
    }

    /// Runs SQL by psql and returns what it prints, unaligned and without headers.
    pub(crate) async fn psql(&self, sql: &str) -> Result<String> {
        self.server.psql(&self.name, sql).await
    }

    /// Runs SQL that gives one number.
    pub(crate) async fn number(&self, sql: &str) -> Result<i64> {
        let text = self.psql(sql).await?;
        text.parse().with_context(|| format!("`{text}` is no number; asked for by {sql}"))
    }

    /// Runs a script on four connections for a time, under pgbench. Returns the seconds for which it really ran, which
    /// pgbench counts without its connecting.
    pub(crate) async fn pgbench(&self, script: &Path, time: Duration) -> Result<f64> {
        let output = Command::new(&self.server.pgbench)
            .args(["-n", "-M", "prepared", "-c", "4", "-j", "2", "-T", &time.as_secs().max(1).to_string(), "-f"])
            .arg(script)
            .arg(self.url())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("starting {}", self.server.pgbench.display()))?;
        let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() || errors.contains("ERROR") {
            bail!("pgbench failed: {}", errors.trim());
        }
        ran_for(&text).with_context(|| format!("pgbench says something unknown:\n{text}"))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A server that is gone has taken the database with it.
        let _ = BlockingCommand::new(&self.server.psql)
            .args(["-X", "-q", "-d", &format!("{}/{}", self.server.base, self.server.home), "-c"])
            .arg(format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// The seconds of a run, by pgbench's report.
fn ran_for(report: &str) -> Option<f64> {
    let after = |start: &str| report.lines().find_map(|line| line.strip_prefix(start));
    let transactions: f64 =
        after("number of transactions actually processed: ")?.split('/').next()?.trim().parse().ok()?;
    let tps: f64 = after("tps = ")?.split_whitespace().next()?.parse().ok()?;
    (tps > 0.0).then(|| transactions / tps)
}

/// A client program of PostgreSQL: in the folder that MILLRACE_POSTGRES_BIN names, where Debian keeps it, or on the PATH.
fn program(name: &str) -> Result<PathBuf> {
    let mut folders: Vec<PathBuf> = std::env::var_os("MILLRACE_POSTGRES_BIN").map(PathBuf::from).into_iter().collect();
    let mut debian: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    debian.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    folders.extend(debian.into_iter().map(|(_, folder)| folder));
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let found = folders.into_iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("found no {name}: install PostgreSQL (Debian's package `postgresql` has it)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read_from_the_report() {
        let report = "scaling factor: 1\nnumber of transactions actually processed: 300\nlatency average = 1 ms\n\
            tps = 50.0 (without initial connection time)\n";
        assert_eq!(ran_for(report), Some(6.0));
        assert_eq!(ran_for("nothing"), None);
    }
}
