//! Clients that are not ours: the lines of the README through grpcurl, and a Python program.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use millrace_tests::{
    net,
    suite::{Suite, said},
    tools::{python, repository},
};

use crate::commands::Dev;

/// The first of the README's two commands, on ports and in a folder of its own, with what is built already.
#[test]
fn make_run_builds_and_serves_the_whole_suite() {
    let suite = Suite::without_database();
    let (listen, http) = (net::free_port(), net::free_port());
    let mut make = Command::new("make")
        .args(["run", "RUN_TARGETS=--all-targets"])
        .current_dir(repository())
        .env("MILLRACE_LISTEN", format!("127.0.0.1:{listen}"))
        .env("MILLRACE_HTTP_LISTEN", format!("127.0.0.1:{http}"))
        .env("MILLRACE_DATA_DIR", suite.folder().join("run"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("make");
    let late = Instant::now() + Duration::from_secs(300);
    while !net::is_healthy(&format!("127.0.0.1:{http}")) {
        let ended = make.try_wait().expect("looking at make");
        assert!(ended.is_none() && Instant::now() < late, "`make run` does not serve: {ended:?}");
        net::pause();
    }
    let endpoint = format!("http://127.0.0.1:{listen}");
    let run =
        suite.client(&endpoint, ["task", "run", "--", "sh", "-c", "echo hello; exit 3"]).output().expect("running");
    let group = i32::try_from(make.id()).expect("a process id");
    let ended = Command::new("kill").args(["-TERM", "--", &format!("-{group}")]).status();
    assert!(ended.is_ok_and(|status| status.success()));
    make.wait().expect("make ends");
    assert_eq!((run.status.code(), &run.stdout[..]), (Some(3), &b"hello\n"[..]), "{}", said(&run));
}

/// Every shell block of the README that calls grpcurl is run as it stands, against a server of the test's own.
#[test]
fn the_readme_s_grpcurl_lines_work() {
    let dev = Dev::start(&[]);
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let blocks: Vec<&str> = readme
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .filter(|block| block.contains("grpcurl"))
        .collect();
    assert!(!blocks.is_empty(), "the README shows grpcurl");
    let tools = repository().join("target/tools");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
    for block in blocks {
        let script = block.replace("127.0.0.1:7600", dev.server.endpoint.trim_start_matches("http://"));
        let output =
            Command::new("bash").args(["-euo", "pipefail", "-c", &script]).env("PATH", &path).output().unwrap();
        assert!(output.status.success(), "{block}\n{}", said(&output));
        for expected in block.lines().filter_map(|line| line.strip_prefix("# prints ")) {
            let out = String::from_utf8_lossy(&output.stdout);
            assert!(out.contains(expected), "{block}\nlacks {expected}: {}", said(&output));
        }
    }
}

#[test]
fn a_python_program_submits_and_works_as_an_orchestrator() {
    let dev = Dev::start(&["--without-agent"]);
    let folder = dev.suite.folder().join("python");
    std::fs::create_dir(&folder).unwrap();
    let program = repository().join("tests/interop/python/orchestrator.py");
    let output = python()
        .arg(program)
        .arg(dev.server.endpoint.trim_start_matches("http://"))
        .arg(repository().join("proto"))
        .arg(&folder)
        .args(["--tasks", "200"])
        .output()
        .expect("running Python");
    assert!(output.status.success(), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("200 tasks succeeded"), "{}", said(&output));
}
