//! Exit codes 64 and 69, and help, as a user meets them.

mod fake;

use fake::run;

/// Nothing listens here: the port of a listener that is closed again could be taken by another, and port 1 needs root.
const NOWHERE: &str = "http://127.0.0.1:1";

#[tokio::test]
async fn wrong_command_lines_are_64() {
    for args in [
        &[][..],
        &["no-such-command"],
        &["task"],
        &["task", "submit"],
        &["task", "submit", "--timeout", "soon", "--", "true"],
        &["task", "submit", "--label", "x", "--", "true"],
        &["task", "submit", "--file", "jobs.jsonl", "--", "true"],
        &["task", "submit", "--file", "jobs.jsonl", "--tenant", "t"],
        &["task", "submit", "--file", "/no/such/file.jsonl"],
        &["task", "submit", "--spec", "/no/such/file.json"],
        &["task", "run"],
        &["task", "run", "true"],
        &["task", "get"],
        &["task", "list", "--state", "sleeping"],
        &["task", "list", "--output", "xml"],
        &["task", "list", "--endpoint", "https://example.com:1"],
        &["task", "list", "--endpoint", "nowhere"],
        &["queue", "pause", "q"],
        &["queue", "update", "q"],
        &["queue", "delete", "q", "--mode", "move"],
        &["queue", "delete", "q", "--move-to", "other"],
        &["queue", "pause", "q", "--reason", "r", "--until", "later"],
        &["pool", "create", "p"],
        &["pool", "create", "p", "--provider", "x"],
        &["pool", "create", "p", "--provider", "x", "--queue", "q", "--schedule", "always=5"],
        &["pool", "create", "p", "--provider", "x", "--queue", "q", "--template", "image"],
        &["pool", "create", "p", "--provider", "x", "--queue", "q", "--target-wait", "soon"],
        &["pool", "create", "p", "--provider", "x", "--queue", "q", "--min", "5", "--max", "3"],
        &["pool", "create", "p", "--provider", "x", "--queue", "q", "--slots", "0"],
        &["pool", "update", "p"],
        &["pool", "update", "p", "--min", "1", "--clear", "min"],
        &["pool", "override", "p", "--for", "1h", "--reason", "r", "--owner", "o"],
        &["pool", "override", "p", "--nodes", "3", "--reason", "r", "--owner", "o"],
        &["pool", "override", "p", "--nodes", "3", "--for", "1h", "--owner", "o"],
        &["node", "list", "--state", "asleep"],
        &["node", "drain", "x"],
        &["node", "drain", "x", "--reason", " "],
        &["route", "set", "r"],
        &["quarantine", "release"],
        &["quarantine", "release", "--all", "--queue", "q"],
        &["quarantine", "discard", "--all"],
        &["quarantine", "repair", "ID"],
        &["quarantine", "repair", "ID", "--column", "attempt"],
        &["quarantine", "repair", "ID", "--spec", "/no/such/file.json"],
        &["quarantine", "list", "--before", "later"],
    ] {
        let ran = run(NOWHERE, args).await;
        assert_eq!(ran.code, 64, "{args:?}: {}", ran.stderr);
        assert!(!ran.stderr.is_empty() && ran.stdout.is_empty(), "{args:?}");
    }
}

#[tokio::test]
async fn services_that_are_not_there_are_69_and_one_clear_line() {
    for args in [
        &["task", "submit", "--", "true"][..],
        &["task", "get", "x"],
        &["task", "list"],
        &["task", "watch", "x"],
        &["task", "cancel", "x"],
        &["task", "retry", "x"],
        &["task", "explain", "x"],
        &["queue", "list"],
        &["queue", "watch"],
        &["queue", "create", "q"],
        &["pool", "list"],
        &["pool", "watch"],
        &["pool", "explain", "p"],
        &["node", "get", "x"],
        &["route", "list"],
        &["quarantine", "list"],
        &["quarantine", "discard", "--task", "x", "--reason", "r"],
        &["doctor"],
    ] {
        let ran = run(NOWHERE, args).await;
        assert_eq!(ran.code, 69, "{args:?}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("error: cannot reach the "), "{}", ran.stderr);
        assert!(ran.stderr.contains("`millrace dev` starts everything"), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn run_keeps_its_own_codes_for_what_is_not_the_commands_end() {
    let ran = run(NOWHERE, &["task", "run", "--", "true"]).await;
    assert_eq!(ran.code, 125);
    assert!(ran.stderr.contains("cannot reach the distributor"), "{}", ran.stderr);
}

#[tokio::test]
async fn endpoints_come_from_the_closest_word() {
    let ran = run(NOWHERE, &["task", "list", "--endpoint", "127.0.0.1:2"]).await;
    assert!(ran.stderr.contains("http://127.0.0.1:2"), "{}", ran.stderr);
    let mut own = fake::millrace(NOWHERE, &["queue", "list"]);
    own.env("MILLRACE_QUEUE_ENDPOINT", "127.0.0.1:3");
    let ran: fake::Ran = own.output().await.unwrap().into();
    assert!(ran.stderr.contains("the queue service at http://127.0.0.1:3"), "{}", ran.stderr);
}

#[tokio::test]
async fn every_command_has_help_with_examples() {
    for (group, commands) in [
        ("task", &["submit", "run", "get", "list", "watch", "cancel", "retry", "explain"][..]),
        ("queue", &["create", "get", "update", "delete", "list", "pause", "resume", "watch"]),
        ("pool", &["create", "get", "list", "update", "delete", "override", "clear-override", "explain", "watch"]),
        ("node", &["list", "get", "drain"]),
        ("route", &["list", "set", "delete"]),
        ("quarantine", &["list", "show", "repair", "release", "discard"]),
    ] {
        for command in commands {
            let ran = run(NOWHERE, &[group, command, "--help"]).await;
            assert_eq!(ran.code, 0);
            assert!(ran.stdout.contains("Examples:\n  millrace "), "{group} {command}: {}", ran.stdout);
        }
    }
    let ran = run(NOWHERE, &["--version"]).await;
    assert!(ran.code == 0 && ran.stdout.starts_with("millrace 0."), "{}", ran.stdout);
}
