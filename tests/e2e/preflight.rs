//! `millrace preflight` and `millrace migrate activate` on a real PostgreSQL.

use std::{
    fs,
    process::{Child, Output, Stdio},
};

use diesel::connection::SimpleConnection;
use millrace_tests::{
    net,
    postgres::{self, Database},
    suite::{Suite, said},
    tools,
};
use serde_json::Value;

/// Tasks that wait, as SQL: two that every release reads, one that is too new, one whose queue is not there.
const TASKS: &str =
    "INSERT INTO tasks (id, tenant, queue, state, rank, executor, resource_class, concurrency_key, exclusive,
        attempt, failures, losses, unsupported, created_at_us, ready_at_us, trace_context, format, min_reader, spec)
    SELECT gen_random_uuid(), 'default', CASE number WHEN 3 THEN 'gone' ELSE 'default' END,
        CASE number WHEN 4 THEN 42 ELSE 2 END, 0, 'process', '', '', FALSE, 0, 0, 0, 0, 1, 1, '', 1, 1,
        '\\x2207 70726f63657373 6a06 0a04 74727565'
    FROM generate_series(1, 4) AS number";

fn preflight(database: &Database, more: &[&str]) -> (Output, Value) {
    let suite = Suite::without_database();
    let url = database.url();
    let args = [&["preflight", "--output", "json", "--database-url", &url], more].concat();
    let output = suite.cli(args).output().expect("running millrace");
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, report)
}

#[test]
fn preflight_counts_what_this_release_cannot_read_names_examples_and_writes_nothing() {
    let database = postgres::fresh_database();
    let (output, report) = preflight(&database, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(report["passed"], true);

    database.connect().batch_execute(TASKS).expect("inserting tasks");
    let before = database.content();
    let (output, report) = preflight(&database, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!((&report["live"]["rows"], &report["live"]["too_new"]), (&4.into(), &1.into()), "{report}");
    assert_eq!(report["live"]["errors"][0]["column"], "queue");
    assert_eq!(report["live"]["errors"][0]["examples"].as_array().map(Vec::len), Some(1));
    assert_eq!(database.content(), before);

    let (output, report) = preflight(&database, &["--allow", "1"]);
    assert_eq!((output.status.code(), &report["passed"]), (Some(0), &true.into()), "{}", said(&output));
}

#[test]
fn preflight_says_that_a_schema_is_out_of_range() {
    let database = postgres::fresh_database();
    database
        .connect()
        .batch_execute("ALTER TABLE cluster ADD needs_schema TEXT NOT NULL DEFAULT '99999999999999'")
        .expect("raising the need");
    let (output, report) = preflight(&database, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(report["schema"]["detail"].as_str().is_some_and(|why| why.contains("99999999999999")), "{report}");
}

#[test]
fn preflight_sees_a_proxy_that_pools_by_transaction_and_not_one_that_pools_by_session() {
    let database = postgres::fresh_database();
    for (mode, code) in [("transaction", 1), ("session", 0)] {
        let proxy = Pooling::start(&database, mode);
        let args = ["preflight", "--output", "json", "--database-url", &proxy.url];
        let output = Suite::without_database().cli(args).output().expect("running millrace");
        assert_eq!(output.status.code(), Some(code), "{mode}: {}", said(&output));
        let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
        assert_eq!(report["connection"]["fits"], code == 0, "{report}");
    }
}

#[test]
fn r14_a_format_that_this_release_cannot_write_is_not_activated() {
    let database = postgres::fresh_database();
    let activate = |format: &str| {
        let url = database.url();
        let args = ["migrate", "activate", format, "--rollback-reads", "9", "--database-url", &url];
        Suite::without_database().cli(args).output().expect("running millrace")
    };
    let refused = activate("9");
    assert_eq!(refused.status.code(), Some(64), "{}", said(&refused));
    let there = activate("1");
    assert_eq!(there.status.code(), Some(0), "{}", said(&there));
    assert!(said(&there).contains("already"), "{}", said(&there));
}

/// A real pgbouncer before a test's database.
struct Pooling {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Pooling {
    fn start(database: &Database, mode: &str) -> Self {
        let url = database.url();
        let (server, name) = url.rsplit_once('/').expect("a URL with a database");
        let (user, address) = server.rsplit_once("//").and_then(|(_, rest)| rest.split_once('@')).expect("a user");
        let (host, port) = address.rsplit_once(':').expect("a port");
        let folder = tempfile::tempdir().expect("a folder");
        let listen = net::free_port();
        let settings = format!(
            "[databases]\n{name} = host={host} port={port} dbname={name} user={user}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {listen}\nauth_type = any\npool_mode = {mode}\nunix_socket_dir =\n"
        );
        let file = folder.path().join("pgbouncer.ini");
        fs::write(&file, settings).expect("writing the settings");
        let child = tools::pgbouncer(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("pgbouncer");
        let proxy = Self { child, url: format!("postgres://{user}@127.0.0.1:{listen}/{name}"), _folder: folder };
        net::wait_listening(listen);
        proxy
    }
}

impl Drop for Pooling {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
