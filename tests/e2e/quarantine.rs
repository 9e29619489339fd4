//! Rows that nobody can read, from the moment they are met to their end, by the operator's commands on real services.

use std::{
    process::Output,
    time::{Duration, Instant},
};

use millrace_tests::{
    net,
    postgres::{self, Database},
    suite::{Process, Suite, said},
};
use serde_json::Value;

/// A distributor, a queue service and an agent on a database of their own.
struct Site {
    database: Database,
    suite: Suite,
    distributor: Process,
    queue: Process,
    _agent: Process,
}

impl Site {
    fn start() -> Self {
        let database = postgres::fresh_database();
        let suite = Suite::new(&database.url());
        let queue = suite.queue(&[]);
        let distributor = suite.distributor(&[]);
        let agent = suite.agent(&[&distributor.endpoint], &["--slots", "4"]);
        Self { database, suite, distributor, queue, _agent: agent }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = self.suite.client(&self.distributor.endpoint, args.iter().copied());
        command.env("MILLRACE_QUEUE_ENDPOINT", &self.queue.endpoint).output().expect("running millrace")
    }

    fn succeed(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = self.succeed(&[args, &["--output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// Tasks that wait in the paused queue.
    fn waiting(&self, count: usize) -> Vec<String> {
        self.succeed(&["queue", "pause", "default", "--reason", "the test"]);
        (0..count).map(|number| self.succeed(&["task", "submit", "--", "echo", &number.to_string()])).collect()
    }

    fn resume(&self) {
        self.succeed(&["queue", "resume", "default"]);
    }

    fn wait_state(&self, id: &str, wanted: &str) -> Value {
        let late = Instant::now() + Duration::from_secs(60);
        loop {
            let task = self.json(&["task", "get", id]);
            if task["state"] == wanted {
                return task;
            }
            assert!(Instant::now() < late, "{id} is {}, not {wanted}: {task}", task["state"]);
            net::pause();
        }
    }
}

#[test]
fn r10_bad_rows_are_set_aside_alone_and_mended_released_or_discarded_by_an_operator() {
    let site = Site::start();
    let ids = site.waiting(8);
    let (cut, gone, lost) = (&ids[0], &ids[1], &ids[2]);
    site.database.execute(&format!("UPDATE tasks SET spec = substr(spec, 1, length(spec) - 3) WHERE id = '{cut}'"));
    site.database.execute(&format!("UPDATE tasks SET queue = 'gone' WHERE id IN ('{gone}', '{lost}')"));
    site.resume();
    for good in &ids[3..] {
        site.wait_state(good, "TASK_STATE_SUCCEEDED");
    }
    for bad in [cut, gone, lost] {
        let task = site.wait_state(bad, "TASK_STATE_QUARANTINED");
        assert!(!task["quarantine"]["defect"]["column"].is_null(), "{task}");
    }
    let listed = site.succeed(&["quarantine", "list"]);
    assert!([cut, gone, lost].iter().all(|id| listed.contains(id.as_str())), "{listed}");
    assert!(site.succeed(&["quarantine", "show", gone]).contains("gone"));
    let doctor = site.run(&["doctor"]);
    assert!(said(&doctor).contains("3 rows"), "{}", said(&doctor));

    // What cannot be read is not released, and a repair that does not mend it changes nothing.
    assert!(!site.run(&["quarantine", "release", "--task", gone]).status.success());
    assert!(!site.run(&["quarantine", "repair", gone, "--column", "queue=nowhere"]).status.success());
    site.succeed(&["quarantine", "repair", gone, "--column", "queue=default"]);
    site.wait_state(gone, "TASK_STATE_SUCCEEDED");

    let spec = site.suite.folder().join("spec.json");
    std::fs::write(&spec, r#"{"executor": "process", "command": {"argv": ["echo", "mended"]}}"#).expect("a file");
    site.succeed(&["quarantine", "repair", cut, "--spec", spec.to_str().expect("a path")]);
    site.wait_state(cut, "TASK_STATE_SUCCEEDED");

    assert!(!site.run(&["quarantine", "discard", "--task", lost]).status.success(), "a reason is required");
    site.succeed(&["quarantine", "discard", "--task", lost, "--reason", "its queue is history"]);
    let ended = site.wait_state(lost, "TASK_STATE_CANCELLED");
    assert!(ended["outcome"]["message"].as_str().is_some_and(|why| why.contains("history")), "{ended}");
    assert_eq!(site.succeed(&["quarantine", "list", "--output", "json"]), "");
}

#[test]
fn r10_an_attempt_that_cannot_be_one_takes_no_neighbour_with_it() {
    let site = Site::start();
    let ids = site.waiting(8);
    let (below, beyond, traced) = (&ids[0], &ids[1], &ids[2]);
    site.database.execute(&format!("UPDATE tasks SET attempt = -3 WHERE id = '{below}'"));
    site.database.execute(&format!("UPDATE tasks SET attempt = 2147483647 WHERE id = '{beyond}'"));
    site.database.execute(&format!("UPDATE tasks SET trace_context = repeat('x', 300000) WHERE id = '{traced}'"));
    site.resume();
    for good in &ids[2..] {
        site.wait_state(good, "TASK_STATE_SUCCEEDED");
    }
    for bad in [below, beyond] {
        let task = site.wait_state(bad, "TASK_STATE_QUARANTINED");
        assert_eq!(task["quarantine"]["defect"]["column"], "attempt", "{task}");
        assert_eq!(task["tenant"], "default", "{task}");
    }
    // What does not mend it is told before it is done.
    let tried = site.run(&["quarantine", "repair", below, "--column", "attempt=-1", "--dry-run"]);
    assert!(!tried.status.success() && said(&tried).contains("attempt"), "{}", said(&tried));
    for bad in [below, beyond] {
        site.succeed(&["quarantine", "repair", bad, "--column", "attempt=0"]);
        site.wait_state(bad, "TASK_STATE_SUCCEEDED");
    }
    // The agent has kept its session all along: nothing was lost with it.
    for id in &ids {
        let task = site.json(&["task", "get", id]);
        assert!(task["losses"].is_null() && task["attempt"] == 1, "{task}");
    }
}

#[test]
fn r9_a_row_whose_queue_comes_back_is_released_on_request_with_a_dry_run_first() {
    let site = Site::start();
    let ids = site.waiting(3);
    site.database.execute("UPDATE tasks SET queue = 'later'");
    for id in &ids {
        site.wait_state(id, "TASK_STATE_QUARANTINED");
    }
    site.resume();
    site.succeed(&["queue", "create", "later"]);
    let counted = site.run(&["quarantine", "release", "--queue", "later", "--dry-run"]);
    assert!(counted.status.success() && said(&counted).contains('3'), "{}", said(&counted));
    assert_eq!(site.json(&["task", "get", &ids[0]])["state"], "TASK_STATE_QUARANTINED");
    site.succeed(&["quarantine", "release", "--queue", "later"]);
    for id in &ids {
        site.wait_state(id, "TASK_STATE_QUEUED");
    }
}
