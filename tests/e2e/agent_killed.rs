//! An agent that is killed takes with it what it runs.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use millrace_tests::{net, suite::Process};

use crate::commands::Dev;

/// Whether a process of this id runs; one that has ended and was not waited for yet does not.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state stands behind the name, which is in brackets.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn wait_until(what: &str, agent: &Process, limit: Duration, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "waited until {what}\n{}", agent.log());
        net::pause();
    }
}

/// Runs a shell with a child of its own and gives both ids.
fn start_family(dev: &Dev, agent: &Process) -> (String, Vec<String>) {
    let file = dev.suite.folder().join("pids");
    let script = format!("sleep 1000 & echo $$ $! > {0}.new; mv {0}.new {0}; wait", file.display());
    let id = dev.succeed(&["task", "submit", "--", "sh", "-c", &script]).trim().to_owned();
    wait_until("the command runs", agent, Duration::from_secs(30), || file.exists());
    let pids: Vec<_> = std::fs::read_to_string(&file).unwrap().split_whitespace().map(str::to_owned).collect();
    std::fs::remove_file(&file).unwrap();
    assert!(pids.len() == 2 && pids.iter().all(|pid| runs(pid)), "{pids:?}");
    (id, pids)
}

/// The ids of the agent's children whose command line has this text.
fn children_with(agent: &Process, text: &str) -> Vec<String> {
    let of = |path: &Path| {
        let children = std::fs::read_to_string(path.join("children")).unwrap_or_default();
        children.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let threads = std::fs::read_dir(format!("/proc/{}/task", agent.id())).unwrap();
    let children = threads.flat_map(|thread| of(&thread.unwrap().path()));
    children
        .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(text)))
        .collect()
}

#[test]
fn a_killed_agent_leaves_no_command_behind_and_its_task_is_tried_again() {
    let dev = Dev::start(&["--without-agent"]);
    let mut agent = dev.suite.agent(&[&dev.server.endpoint], &["--slots", "1", "--lease-ttl", "5s"]);
    let (id, pids) = start_family(&dev, &agent);
    agent.kill();
    // The lease's five seconds have nothing to do with it.
    wait_until("all of the command is gone", &agent, Duration::from_secs(3), || !pids.iter().any(|pid| runs(pid)));
    let _second = dev.suite.agent(&[&dev.server.endpoint], &["--slots", "1", "--lease-ttl", "5s"]);
    let deadline = Instant::now() + Duration::from_secs(40);
    while dev.json(&["task", "get", &id])["attempt"] != 2 {
        assert!(Instant::now() < deadline, "no second attempt");
        net::pause();
    }
    dev.succeed(&["task", "cancel", &id]);
}

#[test]
fn a_command_dies_with_its_agent_also_when_the_helper_that_watches_is_killed_first() {
    let dev = Dev::start(&["--without-agent"]);
    let mut agent = dev.suite.agent(&[&dev.server.endpoint], &["--slots", "1"]);
    let (id, pids) = start_family(&dev, &agent);
    let wardens = children_with(&agent, "millrace-warden");
    assert_eq!(wardens.len(), 1, "{wardens:?}");
    for pid in wardens {
        assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    }
    agent.kill();
    wait_until("the command is gone", &agent, Duration::from_secs(3), || !runs(&pids[0]));
    // Nobody is left to end what the command had started; the test is.
    assert!(std::process::Command::new("kill").args(["-9", &pids[1]]).status().unwrap().success());
    dev.succeed(&["task", "cancel", &id]);
}
