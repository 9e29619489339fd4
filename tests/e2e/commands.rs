//! `millrace dev` on SQLite, and commands run through it.

use std::time::{Duration, Instant};

use millrace_tests::suite::{Process, Suite, said};

/// A dev server and its suite.
pub(crate) struct Dev {
    pub(crate) suite: Suite,
    pub(crate) server: Process,
}

impl Dev {
    pub(crate) fn start(more: &[&str]) -> Self {
        let suite = Suite::without_database();
        let server = suite.dev(more);
        Self { suite, server }
    }

    /// Runs a client command; returns its exit code, stdout and stderr.
    pub(crate) fn client(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.suite.client(&self.server.endpoint, args.iter().copied()).output().expect("running millrace");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// Runs a client command that must succeed; returns its stdout.
    pub(crate) fn succeed(&self, args: &[&str]) -> String {
        let output = self.suite.client(&self.server.endpoint, args.iter().copied()).output().expect("running millrace");
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A client command's JSON.
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.succeed(&[args, &["--output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// The task's state, as soon as it is one of these.
    pub(crate) fn wait_state(&self, id: &str, wanted: &[&str]) -> serde_json::Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let task = self.json(&["task", "get", id]);
            let state = task["state"].as_str().unwrap_or_default();
            if wanted.contains(&state) {
                return task;
            }
            assert!(Instant::now() < deadline, "waited for {wanted:?}: {task}");
            millrace_tests::net::pause();
        }
    }
}

#[test]
fn a_command_runs_and_its_output_and_exit_code_come_back() {
    let dev = Dev::start(&[]);
    assert_eq!(
        dev.client(&["task", "run", "--", "sh", "-c", "echo hello; exit 3"]),
        (3, "hello\n".into(), String::new())
    );
    let (code, out, err) = dev.client(&["task", "run", "--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((code, out.as_str()), (0, "out\n"));
    assert!(err.contains("err\n"), "{err}");

    let (code, _, _) = dev.client(&["task", "run", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(code, 128 + 15);
    let (code, _, err) = dev.client(&["task", "run", "--timeout", "300ms", "--", "sleep", "60"]);
    assert_eq!(code, 124, "{err}");
    let (code, _, err) = dev.client(&["task", "run", "--", "/no/such/program"]);
    assert_eq!(code, 125);
    assert!(err.contains("/no/such/program"), "{err}");
    let (code, out, _) =
        dev.client(&["task", "run", "--env", "COLOUR=blue", "--", "sh", "-c", "echo $COLOUR $MILLRACE_ATTEMPT"]);
    assert_eq!((code, out.as_str()), (0, "blue 1\n"));
}

#[test]
fn long_output_arrives_whole_and_live() {
    let dev = Dev::start(&[]);
    let (code, out, err) = dev.client(&["task", "run", "--", "sh", "-c", "seq 1 20000"]);
    assert_eq!(code, 0, "{err}");
    let expected: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert!(out == expected, "got {} bytes of {}", out.len(), expected.len());
}

#[test]
fn several_commands_run_at_a_time() {
    let dev = Dev::start(&["--slots", "4"]);
    // Each waits for the other three: they end only if all four run together.
    let folder = dev.suite.folder().join("meet");
    std::fs::create_dir(&folder).unwrap();
    let meet = format!(
        "touch {0}/$MILLRACE_TASK_ID; until [ $(ls {0} | wc -l) -ge 4 ]; do sleep 0.05; done",
        folder.display()
    );
    let ids: Vec<String> = (0..4)
        .map(|_| dev.succeed(&["task", "submit", "--timeout", "20s", "--", "sh", "-c", &meet]).trim().to_owned())
        .collect();
    for id in ids {
        dev.wait_state(&id, &["TASK_STATE_SUCCEEDED"]);
    }
}

#[test]
fn a_waiting_task_is_cancelled_at_once_and_a_running_one_is_stopped() {
    // Nothing adds an agent for the one that waits.
    let dev = Dev::start(&["--slots", "1", "--without-scaler"]);
    let running = dev.succeed(&["task", "submit", "--", "sleep", "600"]).trim().to_owned();
    dev.wait_state(&running, &["TASK_STATE_RUNNING", "TASK_STATE_DISPATCHED"]);
    let waiting = dev.succeed(&["task", "submit", "--", "true"]).trim().to_owned();
    let explained = dev.succeed(&["task", "explain", &waiting]);
    assert!(explained.to_lowercase().contains("slots"), "{explained}");

    dev.succeed(&["task", "cancel", &waiting, "--reason", "not needed"]);
    let task = dev.wait_state(&waiting, &["TASK_STATE_CANCELLED"]);
    assert_eq!(task["outcome"]["message"], "not needed");
    dev.succeed(&["task", "cancel", &running]);
    let task = dev.wait_state(&running, &["TASK_STATE_CANCELLED"]);
    assert_eq!(task["outcome"]["kind"], "OUTCOME_KIND_CANCELLED");

    let (code, _, err) = dev.client(&["task", "cancel", "0190a0b0-0000-7000-8000-00000000002a"]);
    assert_eq!(code, 1);
    assert!(err.contains("no task"), "{err}");
}

#[test]
fn failures_are_tried_again_and_a_finished_task_can_be_retried() {
    let dev = Dev::start(&[]);
    let mark = dev.suite.folder().join("second-try");
    let script = format!("[ $MILLRACE_ATTEMPT -ge 2 ] || exit 7; touch {}", mark.display());
    let id = dev
        .succeed(&["task", "submit", "--max-attempts", "3", "--min-backoff", "10ms", "--", "sh", "-c", &script])
        .trim()
        .to_owned();
    let task = dev.wait_state(&id, &["TASK_STATE_SUCCEEDED"]);
    assert_eq!((task["attempt"].as_i64(), task["failures"].as_i64()), (Some(2), Some(1)));
    assert_eq!(task["attempts"][0]["outcome"]["exitCode"], 7);
    assert!(mark.exists());

    let id = dev.succeed(&["task", "submit", "--", "sh", "-c", "[ $MILLRACE_ATTEMPT -ge 2 ]"]).trim().to_owned();
    dev.wait_state(&id, &["TASK_STATE_FAILED"]);
    dev.succeed(&["task", "retry", &id]);
    dev.wait_state(&id, &["TASK_STATE_SUCCEEDED"]);
    let (code, _, err) = dev.client(&["task", "retry", &id]);
    assert_eq!(code, 1);
    assert!(err.contains("ALREADY_SUCCEEDED"), "{err}");
}

#[test]
fn moments_and_deadlines_are_kept() {
    let dev = Dev::start(&[]);
    let later = dev.succeed(&["task", "submit", "--not-before", "+1h", "--", "true"]).trim().to_owned();
    assert_eq!(dev.json(&["task", "get", &later])["state"], "TASK_STATE_SCHEDULED");
    let soon = dev.succeed(&["task", "submit", "--not-before", "+1s", "--", "true"]).trim().to_owned();
    let task = dev.wait_state(&soon, &["TASK_STATE_SUCCEEDED"]);
    assert!(task["dispatchTime"].as_str() >= task["createTime"].as_str());
    let expired = dev
        .succeed(&["task", "submit", "--not-before", "+1h", "--expire-after", "500ms", "--", "true"])
        .trim()
        .to_owned();
    let task = dev.wait_state(&expired, &["TASK_STATE_EXPIRED"]);
    assert_eq!(task["outcome"]["kind"], "OUTCOME_KIND_EXPIRED");
}

#[test]
fn everything_is_still_there_after_a_crash() {
    let mut dev = Dev::start(&["--slots", "1"]);
    let done = dev.succeed(&["task", "submit", "--", "true"]).trim().to_owned();
    dev.wait_state(&done, &["TASK_STATE_SUCCEEDED"]);
    let later = dev.succeed(&["task", "submit", "--not-before", "+1h", "--", "true"]).trim().to_owned();
    dev.succeed(&["queue", "create", "nightly"]);
    dev.server.kill();
    dev.server.start();
    dev.server.wait_serving();
    assert_eq!(dev.json(&["task", "get", &done])["state"], "TASK_STATE_SUCCEEDED");
    assert_eq!(dev.json(&["task", "get", &later])["state"], "TASK_STATE_SCHEDULED");
    assert_eq!(dev.client(&["task", "run", "--", "sh", "-c", "exit 5"]).0, 5);
    assert!(dev.succeed(&["queue", "list"]).contains("nightly"));
}

#[test]
fn a_file_of_tasks_is_submitted_once_however_often_it_is_sent() {
    let dev = Dev::start(&["--slots", "4"]);
    let ran = dev.suite.folder().join("ran");
    let line = |number: u32| {
        let script = format!("echo {number} >> {}", ran.display());
        serde_json::json!({"executor": "process", "command": {"argv": ["sh", "-c", script]}}).to_string()
    };
    let file = dev.suite.folder().join("jobs.jsonl");
    std::fs::write(&file, (1..=20).map(|number| line(number) + "\n").collect::<String>()).unwrap();
    let file = file.to_str().unwrap();
    dev.succeed(&["task", "submit", "--file", file, "--wait"]);
    dev.succeed(&["task", "submit", "--file", file, "--wait"]);
    let mut numbers: Vec<u32> =
        std::fs::read_to_string(&ran).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort();
    assert_eq!(numbers, (1..=20).collect::<Vec<u32>>());

    std::fs::write(file, format!("{}\n{{\"executor\":\"nobody\",\"command\":{{\"argv\":[\"x\"]}}}}\n", line(21)))
        .unwrap();
    let (code, _, err) = dev.client(&["task", "submit", "--file", file, "--wait"]);
    assert_eq!(code, 1);
    assert!(err.contains("2") && err.contains("NO_ROUTE"), "{err}");
    assert!(std::fs::read_to_string(&ran).unwrap().contains("21"), "the good line was still submitted");
}
