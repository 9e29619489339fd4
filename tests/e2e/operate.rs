//! What an operator does: queues, routes, doctor.

use crate::commands::Dev;

#[test]
fn a_paused_queue_dispatches_nothing_and_takes_tasks() {
    let dev = Dev::start(&[]);
    dev.succeed(&["queue", "pause", "default", "--reason", "maintenance"]);
    let id = dev.succeed(&["task", "submit", "--", "true"]).trim().to_owned();
    let explained = dev.json(&["task", "explain", &id]);
    assert_eq!(explained["explanations"][0]["reason"], "REASON_QUEUE_PAUSED");
    assert!(explained["explanations"][0]["message"].as_str().unwrap().contains("maintenance"), "{explained}");
    let queue = dev.json(&["queue", "get", "default"]);
    assert_eq!(queue["pause"]["reason"], "maintenance");
    assert_eq!(queue["stats"]["depth"], "1");
    assert_eq!(dev.json(&["task", "get", &id])["state"], "TASK_STATE_QUEUED");
    let (code, out, _) = dev.client(&["doctor"]);
    assert_eq!(code, 1, "work waits and does not move: {out}");
    dev.succeed(&["queue", "resume", "default"]);
    dev.wait_state(&id, &["TASK_STATE_SUCCEEDED"]);
    let (code, out, err) = dev.client(&["doctor"]);
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn a_pause_ends_by_itself_at_its_time() {
    let dev = Dev::start(&[]);
    dev.succeed(&["queue", "pause", "default", "--reason", "a moment", "--until", "+1s"]);
    let id = dev.succeed(&["task", "submit", "--", "true"]).trim().to_owned();
    dev.wait_state(&id, &["TASK_STATE_SUCCEEDED"]);
    assert!(dev.json(&["queue", "get", "default"])["pause"].is_null());
}

#[test]
fn routes_change_without_a_restart_and_an_unroutable_task_is_refused_with_the_reason() {
    let dev = Dev::start(&[]);
    let (code, _, err) = dev.client(&["task", "submit", "--executor", "docker", "--", "true"]);
    assert_eq!(code, 1);
    assert!(err.contains("NO_ROUTE") && err.contains("docker"), "{err}");
    let (code, _, err) = dev.client(&["route", "set", "gpu", "--executor", "docker", "--queue", "gpu"]);
    assert_eq!(code, 1);
    assert!(err.contains("NO_SUCH_QUEUE"), "{err}");
    dev.succeed(&["queue", "create", "gpu"]);
    dev.succeed(&["route", "set", "gpu", "--executor", "docker", "--queue", "gpu"]);
    let id = dev.succeed(&["task", "submit", "--executor", "docker", "--", "true"]).trim().to_owned();
    let task = dev.json(&["task", "get", &id]);
    assert_eq!(task["queue"], "gpu");
    let explained = dev.json(&["task", "explain", &id]);
    let reasons: Vec<&str> =
        explained["explanations"].as_array().unwrap().iter().filter_map(|one| one["reason"].as_str()).collect();
    assert!(reasons.contains(&"REASON_NO_ORCHESTRATOR"), "{explained}");
    dev.succeed(&["route", "delete", "gpu"]);
    assert_eq!(dev.client(&["task", "submit", "--executor", "docker", "--", "true"]).0, 1);
    assert!(dev.succeed(&["route", "list"]).contains("default"));
}

#[test]
fn a_queue_is_deleted_only_as_its_mode_allows() {
    let dev = Dev::start(&[]);
    dev.succeed(&["queue", "create", "old"]);
    dev.succeed(&["queue", "create", "new"]);
    dev.succeed(&["route", "set", "r", "--executor", "docker", "--queue", "old"]);
    let id = dev.succeed(&["task", "submit", "--executor", "docker", "--", "true"]).trim().to_owned();
    let (code, _, err) = dev.client(&["queue", "delete", "old"]);
    assert_eq!(code, 1);
    assert!(err.contains("QUEUE_ROUTED"), "{err}");
    dev.succeed(&["route", "delete", "r"]);
    let (code, _, err) = dev.client(&["queue", "delete", "old"]);
    assert_eq!(code, 1);
    assert!(err.contains("QUEUE_NOT_EMPTY"), "{err}");
    dev.succeed(&["queue", "delete", "old", "--mode", "move", "--move-to", "new"]);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while dev.json(&["task", "get", &id])["queue"] != "new" || dev.succeed(&["queue", "list"]).contains("old") {
        assert!(std::time::Instant::now() < deadline, "{}", dev.succeed(&["queue", "list"]));
        millrace_tests::net::pause();
    }
}
