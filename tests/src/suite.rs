//! Real processes of the suite, on ports and folders of their own, ended with the test.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{binary, net};

/// How long a process may take to serve.
const START: Duration = Duration::from_secs(60);

/// Processes that share a database.
pub struct Suite {
    url: String,
    binary: PathBuf,
    folder: Arc<tempfile::TempDir>,
    number: Arc<AtomicU32>,
}

/// A process of the suite. Dropping it kills it.
pub struct Process {
    name: String,
    binary: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
    /// Where it serves gRPC; empty for an agent.
    pub endpoint: String,
    /// Where it serves HTTP; empty for an agent.
    pub http: String,
    folder: Arc<tempfile::TempDir>,
}

impl Suite {
    /// A suite on this database, which is migrated.
    pub fn new(url: &str) -> Self {
        let suite = Self::on(url);
        suite.migrate();
        suite
    }

    /// A suite on this database as it is.
    pub fn on(url: &str) -> Self {
        Self { url: url.to_owned(), ..Self::without_database() }
    }

    /// A suite for [`Suite::dev`], which brings its own database.
    pub fn without_database() -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        Self { url: String::new(), binary: binary::millrace(), folder, number: Arc::default() }
    }

    /// The same suite, on the same database and in the same folder, whose processes run another release's binary.
    pub fn release(&self, binary: &Path) -> Self {
        let (folder, number) = (self.folder.clone(), self.number.clone());
        Self { url: self.url.clone(), binary: binary.to_owned(), folder, number }
    }

    /// Migrates the suite's database with its binary.
    pub fn migrate(&self) {
        let migrated = self.cli(["migrate", "up", "--database-url", &self.url]).output().expect("running millrace");
        assert!(migrated.status.success(), "migrate up: {}", said(&migrated));
    }

    /// A folder of the suite's own, removed with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A replica of the distributor, serving.
    pub fn distributor(&self, more: &[&str]) -> Process {
        self.service("distributor", more)
    }

    /// A queue service, serving.
    pub fn queue(&self, more: &[&str]) -> Process {
        self.service("queue", more)
    }

    /// A scaler, serving.
    pub fn scaler(&self, more: &[&str]) -> Process {
        self.service("scaler", more)
    }

    /// An agent that knows these distributors.
    pub fn agent(&self, endpoints: &[&str], more: &[&str]) -> Process {
        let mut args = vec!["orchestrator".to_owned(), "--log-format".into(), "json".into()];
        for endpoint in endpoints {
            args.extend(["--endpoint".to_owned(), (*endpoint).to_owned()]);
        }
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let mut process = self.process("agent", args, String::new(), String::new());
        process.start();
        process
    }

    /// The suite in one process, on SQLite in the suite's folder. Needs no database of the suite.
    pub fn dev(&self, more: &[&str]) -> Process {
        let (port, http) = (net::free_port(), net::free_port());
        let data = self.folder().join("dev");
        let mut args: Vec<String> = ["dev", "--log-format", "json", "--data-dir"].map(String::from).to_vec();
        args.push(data.to_str().expect("a path in UTF-8").to_owned());
        args.extend(["--listen".to_owned(), format!("127.0.0.1:{port}")]);
        args.extend(["--http-listen".to_owned(), format!("127.0.0.1:{http}")]);
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let (endpoint, http) = (format!("http://127.0.0.1:{port}"), format!("127.0.0.1:{http}"));
        let mut process = self.process("dev", args, endpoint, http);
        process.start();
        process.wait_serving();
        process
    }

    /// A command of the CLI that talks to this endpoint.
    pub fn client<'a>(&self, endpoint: &str, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.cli(args);
        command.env("MILLRACE_ENDPOINT", endpoint);
        command
    }

    /// A command of the CLI, untouched by the caller's MILLRACE_* variables.
    pub fn cli<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = clean(&self.binary, self.folder());
        command.args(args).current_dir(self.folder());
        command
    }

    fn service(&self, kind: &str, more: &[&str]) -> Process {
        let (port, http) = (net::free_port(), net::free_port());
        let mut args: Vec<String> =
            [kind, "--log-format", "json", "--database-url", &self.url].map(String::from).to_vec();
        args.extend(["--listen".to_owned(), format!("127.0.0.1:{port}")]);
        args.extend(["--http-listen".to_owned(), format!("127.0.0.1:{http}")]);
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let (endpoint, http) = (format!("http://127.0.0.1:{port}"), format!("127.0.0.1:{http}"));
        let mut process = self.process(kind, args, endpoint, http);
        process.start();
        process.wait_serving();
        process
    }

    fn process(&self, kind: &str, args: Vec<String>, endpoint: String, http: String) -> Process {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let name = format!("{kind}-{number}");
        let log = self.folder().join(format!("{name}.log"));
        let (binary, folder) = (self.binary.clone(), self.folder.clone());
        Process { name, binary, args, env: Vec::new(), log, child: None, endpoint, http, folder }
    }
}

impl Process {
    /// Sets a variable for the next start.
    pub fn set_env(&mut self, key: &str, value: &str) {
        self.env.push((key.to_owned(), value.to_owned()));
    }

    /// Runs another release's binary from the next start on, at the same ports.
    pub fn set_binary(&mut self, binary: &Path) {
        self.binary = binary.to_owned();
    }

    /// Starts it; its log goes on where it was.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).expect("the log's file");
        let mut command = clean(&self.binary, self.folder.path());
        command
            .args(&self.args)
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .current_dir(self.log.parent().expect("the log lies in a folder"));
        self.child = Some(command.spawn().expect("starting millrace"));
    }

    /// Waits until /healthz says that it serves.
    ///
    /// # Panics
    /// When it ends first, or does not serve in time; with its log.
    pub fn wait_serving(&mut self) {
        self.wait_health(true);
    }

    /// Waits until /healthz says that it does not serve.
    pub fn wait_not_serving(&mut self) {
        self.wait_health(false);
    }

    fn wait_health(&mut self, wanted: bool) {
        let deadline = Instant::now() + START;
        while net::is_healthy(&self.http) != wanted {
            let ended = self.child.as_mut().map(|child| child.try_wait().expect("looking at a child"));
            if let Some(Some(status)) = ended {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            assert!(Instant::now() < deadline, "{} is not ready:\n{}", self.name, self.log());
            net::pause();
        }
    }

    /// Kills it as a crash would: SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal by number.
    pub fn signal(&self, signal: i32) {
        if let Some(child) = &self.child {
            let status = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status();
            assert!(status.expect("running kill").success(), "kill -{signal} {}", self.name);
        }
    }

    /// Asks it to stop and waits; returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(15);
        self.child.take().and_then(|mut child| child.wait().expect("waiting for a child").code())
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let end = log.lines().rev().take(40).collect::<Vec<_>>();
            eprintln!("── the end of {}'s log", self.name);
            for line in end.into_iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// What a command wrote and how it ended, for assertions.
pub fn said(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The binary, without the caller's MILLRACE_* variables, and with its temporary files in the suite's folder: what a killed
/// process leaves goes with it.
fn clean(binary: &Path, folder: &Path) -> Command {
    let mut command = Command::new(binary);
    command.env("TMPDIR", folder);
    for (key, _) in std::env::vars_os() {
        if key.to_str().is_some_and(|key| key.starts_with("MILLRACE_") || key.starts_with("OTEL_")) {
            command.env_remove(key);
        }
    }
    command
}
