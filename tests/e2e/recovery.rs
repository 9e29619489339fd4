//! Databases and ports that are not there, and come back.

use std::{process::Command, time::Duration};

use millrace_tests::{
    net, postgres,
    proxy::Proxy,
    suite::{Suite, said},
};

#[test]
fn a_port_in_use_and_bad_configuration_are_one_clear_line() {
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = suite
        .cli(["distributor", "--database-url", &database.url(), "--listen", &address, "--http-listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("in use"), "{}", said(&output));
    let output = suite.cli(["distributor", "--database-url", "mysql://x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    let output = suite.cli(["distributor", "--database-url", &database.url(), "--max-batch", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    let output = suite.cli(["task", "get"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    let nobody = format!("http://127.0.0.1:{}", net::free_port());
    let output = suite.client(&nobody, ["task", "list"]).output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
}

#[test]
fn a_schema_that_is_older_or_newer_is_one_clear_line() {
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let serve = || {
        suite
            .cli([
                "distributor",
                "--database-url",
                &database.url(),
                "--listen",
                "127.0.0.1:0",
                "--http-listen",
                "127.0.0.1:0",
            ])
            .output()
            .unwrap()
    };
    database.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101000000')");
    // A later release that only added something is no hindrance; one that took something away says so.
    suite.distributor(&[]).stop();
    database.execute("ALTER TABLE cluster ADD needs_schema TEXT NOT NULL DEFAULT '99990101000000'");
    let newer = serve();
    assert_eq!(newer.status.code(), Some(64), "{}", said(&newer));
    assert!(String::from_utf8_lossy(&newer.stderr).contains("newer"), "{}", said(&newer));
    database.execute("DELETE FROM __diesel_schema_migrations");
    let older = serve();
    assert_eq!(older.status.code(), Some(64), "{}", said(&older));
    assert!(String::from_utf8_lossy(&older.stderr).contains("migrate up"), "{}", said(&older));
}

#[test]
fn a_database_outage_stops_no_running_task_and_is_recovered_from() {
    let database = postgres::fresh_database();
    let proxy = Proxy::start(&database.address());
    let suite = Suite::new(&database.url_through(proxy.port()));
    let queue = suite.queue(&[]);
    let distributor = suite.distributor(&[]);
    let agent = suite.agent(&[&distributor.endpoint], &["--slots", "2", "--lease-ttl", "5s"]);
    let go_on = suite.folder().join("go-on");
    let script = format!("until [ -e {} ]; do sleep 0.05; done; echo done", go_on.display());
    let client = |args: &[&str]| {
        let mut command: Command = suite.client(&distributor.endpoint, args.iter().copied());
        command.env("MILLRACE_QUEUE_ENDPOINT", &queue.endpoint);
        command.output().expect("running millrace")
    };
    let id = client(&["task", "submit", "--", "sh", "-c", &script]);
    let id = String::from_utf8_lossy(&id.stdout).trim().to_owned();
    let state = |wanted: &str| {
        let deadline = std::time::Instant::now() + Duration::from_secs(40);
        loop {
            let text = String::from_utf8_lossy(&client(&["task", "get", &id, "--output", "json"]).stdout).into_owned();
            if text.contains(wanted) {
                return text;
            }
            assert!(std::time::Instant::now() < deadline, "waited for {wanted}: {text}\n{}", agent.log());
            net::pause();
        }
    };
    state("TASK_STATE_RUNNING");
    proxy.cut();
    // The leases' five seconds pass while nobody can renew them.
    let outage = std::time::Instant::now();
    let refused = client(&["task", "submit", "--retry-for", "0s", "--", "true"]);
    assert_ne!(refused.status.code(), Some(0), "{}", said(&refused));
    while outage.elapsed() < Duration::from_secs(8) {
        net::pause();
    }
    std::fs::write(&go_on, "").unwrap();
    proxy.mend();
    let text = state("TASK_STATE_SUCCEEDED");
    let task: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(task["attempt"], 1, "r7: the outage aged no lease: {text}");
}
