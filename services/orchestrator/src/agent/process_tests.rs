//! What commands experience, tried with real processes.

use std::{collections::BTreeMap, path::Path, time::Duration};

use bytes::Bytes;
use millrace_proto::common::v1::{Command, OutcomeKind, OutputChunk, OutputStream, TaskSpec, task_spec::Payload};
use tokio::{io::AsyncReadExt, net::unix::pipe};
use uuid::Uuid;

use super::{ProcessExecutor, ProcessOptions};
use crate::{Attempt, AttemptHandle, Executor, Outcome, Remote, StopReason};

const RING: usize = 64 * 1024;

fn executor() -> ProcessExecutor {
    let (kill_grace, linger) = (Duration::from_millis(50), Duration::from_millis(50));
    ProcessExecutor::new(ProcessOptions { kill_grace, linger, ..ProcessOptions::default() })
}

/// An executor whose grace does not end while a test runs.
fn patient() -> ProcessExecutor {
    let (kill_grace, linger) = (Duration::from_secs(600), Duration::from_millis(50));
    ProcessExecutor::new(ProcessOptions { kill_grace, linger, ..ProcessOptions::default() })
}

fn command(argv: &[&str]) -> Command {
    Command { argv: argv.iter().map(|part| (*part).to_owned()).collect(), ..Command::default() }
}

fn shell(script: &str) -> Command {
    command(&["/bin/sh", "-c", script])
}

fn attempt(command: Command) -> (AttemptHandle, Remote) {
    let spec = TaskSpec { executor: "process".into(), payload: Some(Payload::Command(command)), ..TaskSpec::default() };
    let attempt = Attempt {
        task_id: Uuid::from_u128(42),
        attempt: 3,
        queue: "default".into(),
        spec,
        spec_bytes: Bytes::new(),
        timeout: None,
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        dispatch_time: None,
    };
    AttemptHandle::detached(attempt, RING)
}

/// Runs to the end and returns the outcome with what of the output the ring still holds.
async fn run(executor: &ProcessExecutor, command: Command) -> (Outcome, Vec<OutputChunk>) {
    let (handle, remote) = attempt(command);
    let outcome = executor.run(handle).await;
    (outcome, remote.take_output())
}

fn text(chunks: &[OutputChunk]) -> String {
    chunks.iter().map(|chunk| String::from_utf8_lossy(&chunk.data)).collect()
}

/// A pipe with a name: whoever opens it for writing and lives keeps it from ending.
struct LifeLine {
    _dir: tempfile::TempDir,
    path: String,
    pipe: pipe::Receiver,
}

impl LifeLine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alive");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let pipe = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        Self { _dir: dir, path: path.to_str().unwrap().to_owned(), pipe }
    }

    /// Resolves when nobody who held it lives. Somebody must have opened it before.
    async fn all_dead(mut self) {
        assert_eq!(self.pipe.read(&mut [0; 8]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn exit_codes_and_signals_are_told() {
    let (outcome, _) = run(&executor(), shell("exit 0")).await;
    assert_eq!((outcome.kind, outcome.exit_code, outcome.signal), (OutcomeKind::Succeeded, Some(0), None));
    let (outcome, _) = run(&executor(), shell("exit 7")).await;
    assert_eq!((outcome.kind, outcome.exit_code, outcome.signal), (OutcomeKind::Failed, Some(7), None));
    let (outcome, _) = run(&executor(), shell("kill -9 $$")).await;
    assert_eq!((outcome.kind, outcome.exit_code, outcome.signal), (OutcomeKind::Failed, None, Some(9)));
}

#[tokio::test]
async fn nothing_is_lost_of_a_fast_exit() {
    for _ in 0..50 {
        let (outcome, chunks) = run(&executor(), command(&["/bin/sh", "-c", "printf hello; printf oops >&2"])).await;
        assert_eq!(outcome.kind, OutcomeKind::Succeeded);
        let of = |stream: OutputStream| -> String {
            let chunks: Vec<_> = chunks.iter().filter(|chunk| chunk.stream == stream as i32).cloned().collect();
            text(&chunks)
        };
        assert_eq!((of(OutputStream::Stdout), of(OutputStream::Stderr)), ("hello".into(), "oops".into()));
    }
}

#[tokio::test]
async fn output_is_seen_while_the_command_runs() {
    let (handle, remote) = attempt(shell("echo one; sleep 1000"));
    let executor = patient();
    tokio::select! {
        outcome = executor.run(handle) => panic!("ended: {outcome:?}"),
        chunks = remote.next_output() => assert_eq!(text(&chunks), "one\n"),
    }
}

#[tokio::test]
async fn a_command_that_ignores_sigterm_is_killed_after_the_grace() {
    let (handle, remote) = attempt(shell("trap '' TERM; echo ready; sleep 1000"));
    let executor = executor();
    let stop = async {
        remote.next_output().await;
        remote.stop(StopReason::TimedOut, None);
    };
    let (outcome, ()) = tokio::join!(executor.run(handle), stop);
    assert_eq!((outcome.kind, outcome.signal), (OutcomeKind::TimedOut, Some(9)));
}

#[tokio::test]
async fn r16_a_deadline_comes_before_the_grace() {
    let (handle, remote) = attempt(shell("trap '' TERM; echo ready; sleep 1000"));
    let executor = patient();
    let stop = async {
        remote.next_output().await;
        remote.stop(StopReason::LeaseExpiring, Some(tokio::time::Instant::now()));
    };
    let (outcome, ()) = tokio::join!(executor.run(handle), stop);
    assert_eq!((outcome.kind, outcome.signal), (OutcomeKind::HandedBack, Some(9)));
}

#[tokio::test]
async fn a_cancelled_command_can_clean_up() {
    let script = "trap 'echo bye; exit 3' TERM; echo ready; sleep 1000 & wait";
    let (handle, remote) = attempt(shell(script));
    let executor = patient();
    let stop = async {
        assert_eq!(text(&remote.next_output().await), "ready\n");
        remote.stop(StopReason::Cancelled, None);
    };
    let (outcome, ()) = tokio::join!(executor.run(handle), stop);
    assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Cancelled, Some(3)));
    assert_eq!(text(&remote.take_output()), "bye\n");
}

#[tokio::test]
async fn input_is_fed_and_closed() {
    let input = Bytes::from(vec![b'x'; 1 << 20]);
    let (outcome, chunks) = run(&executor(), Command { stdin: input.clone(), ..command(&["wc", "-c"]) }).await;
    assert_eq!((outcome.kind, text(&chunks).trim()), (OutcomeKind::Succeeded, "1048576"));
    let (outcome, chunks) = run(&executor(), command(&["wc", "-c"])).await;
    assert_eq!((outcome.kind, text(&chunks).trim()), (OutcomeKind::Succeeded, "0"));
}

#[tokio::test]
async fn a_command_that_reads_no_input_does_not_hang() {
    let input = Bytes::from(vec![b'x'; 1 << 20]);
    let (outcome, _) = run(&patient(), Command { stdin: input.clone(), ..command(&["true"]) }).await;
    assert_eq!(outcome.kind, OutcomeKind::Succeeded);
    let closes = Command { stdin: input, ..shell("exec <&-; echo closed") };
    assert_eq!(text(&run(&patient(), closes).await.1), "closed\n");
}

#[tokio::test]
async fn the_environment_is_clean() {
    let given = BTreeMap::from([("COLOUR".to_owned(), "red".to_owned()), ("LANG".to_owned(), "de".to_owned())]);
    let (_, chunks) = run(&executor(), Command { env: given, ..command(&["env"]) }).await;
    let text = text(&chunks);
    let env: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let keys: Vec<_> = env.keys().copied().collect();
    assert_eq!(keys, ["COLOUR", "HOME", "LANG", "MILLRACE_ATTEMPT", "MILLRACE_TASK_ID", "PATH", "TRACEPARENT"]);
    assert_eq!((env["COLOUR"], env["LANG"], env["MILLRACE_ATTEMPT"]), ("red", "de", "3"));
    assert_eq!(env["MILLRACE_TASK_ID"], Uuid::from_u128(42).to_string());
}

#[tokio::test]
async fn a_fresh_directory_is_removed_and_a_given_one_stays() {
    let protected = shell("pwd; mkdir -p a/b; echo x > a/b/file; chmod 500 a/b a");
    let (_, chunks) = run(&executor(), protected).await;
    let fresh = text(&chunks);
    assert!(fresh.trim().starts_with('/') && !Path::new(fresh.trim()).exists(), "{fresh}");

    let given = tempfile::tempdir().unwrap();
    let path = given.path().canonicalize().unwrap();
    let working_dir = path.to_str().unwrap().to_owned();
    let (_, chunks) = run(&executor(), Command { working_dir, ..shell("pwd; echo x > file") }).await;
    assert_eq!(Path::new(text(&chunks).trim()), path);
    assert!(path.join("file").exists());
}

#[tokio::test]
async fn what_a_command_leaves_behind_is_killed() {
    // With the output held open by the process that stays, and without.
    for redirection in ["", ">/dev/null 2>&1"] {
        let life = LifeLine::new();
        let script = format!("exec 3>'{}'; sleep 1000 {redirection} & echo done", life.path);
        let (outcome, chunks) = run(&executor(), shell(&script)).await;
        assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Succeeded, Some(0)));
        assert_eq!(text(&chunks), "done\n");
        life.all_dead().await;
    }
}

#[tokio::test]
async fn a_process_that_left_the_group_does_not_hold_the_attempt() {
    let (outcome, chunks) = run(&executor(), shell("setsid sleep 5 & echo started")).await;
    assert_eq!((outcome.kind, text(&chunks).as_str()), (OutcomeKind::Succeeded, "started\n"));
}

#[tokio::test]
async fn a_dropped_attempt_kills_its_group() {
    let life = LifeLine::new();
    let (handle, remote) = attempt(shell(&format!("exec 3>'{}'; sleep 1000 & echo ready; wait", life.path)));
    let executor = patient();
    let mut running = executor.run(handle);
    tokio::select! {
        _ = &mut running => panic!("ended"),
        _ = remote.next_output() => {}
    }
    drop(running);
    life.all_dead().await;
}

#[tokio::test]
async fn huge_output_is_bounded_and_counted() {
    let (handle, remote) = attempt(command(&["head", "-c", "20000000", "/dev/zero"]));
    let outcome = executor().run(handle.clone()).await;
    assert_eq!((outcome.kind, handle.output_bytes()), (OutcomeKind::Succeeded, 20_000_000));
    let chunks = remote.take_output();
    assert_eq!(chunks.iter().map(|chunk| chunk.data.len()).sum::<usize>(), RING);
    assert_eq!(chunks[0].offset, 20_000_000 - RING as u64);
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let message = async |command| {
        let (outcome, _) = run(&executor(), command).await;
        assert_eq!(outcome.kind, OutcomeKind::NotStarted, "{}", outcome.message);
        outcome.message
    };
    assert_eq!(message(command(&["no-such-program"])).await, "no such program: `no-such-program`");
    let nowhere = Command { working_dir: "/no/such/dir".into(), ..command(&["true"]) };
    assert_eq!(message(nowhere).await, "working directory `/no/such/dir`: does not exist");
    let file = Command { working_dir: "/etc/passwd".into(), ..command(&["true"]) };
    assert_eq!(message(file).await, "working directory `/etc/passwd`: is not a directory");
    assert!(message(command(&["/etc/passwd"])).await.contains("may not be executed"));
    assert!(message(command(&[])).await.contains("cannot be started"));
    assert!(message(command(&["true", "a\0b"])).await.contains("cannot be started"));
}

#[tokio::test]
async fn programs_are_found_on_the_commands_own_path() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/echo", dir.path().join("say")).unwrap();
    let env = BTreeMap::from([("PATH".to_owned(), dir.path().to_str().unwrap().to_owned())]);
    let (_, chunks) = run(&executor(), Command { env, ..command(&["say", "hi"]) }).await;
    assert_eq!(text(&chunks), "hi\n");
}

#[tokio::test]
async fn several_run_at_a_time() {
    // Each waits until all have started, which they can only if none waits for another's end.
    let (executor, count) = (patient(), 12);
    let (handles, remotes): (Vec<_>, Vec<_>) = (0..count).map(|_| attempt(shell("echo ready; sleep 1000"))).unzip();
    let runs = futures::future::join_all(handles.into_iter().map(|handle| executor.run(handle)));
    let stops = async {
        for remote in &remotes {
            remote.next_output().await;
        }
        for remote in &remotes {
            remote.stop(StopReason::Cancelled, None);
        }
    };
    let (outcomes, ()) = tokio::join!(runs, stops);
    assert!(outcomes.iter().all(|outcome| outcome.kind == OutcomeKind::Cancelled));
}

#[tokio::test]
async fn the_health_command_decides() {
    let check = async |command: &str| {
        let health_command = Some(command.to_owned());
        ProcessExecutor::new(ProcessOptions { health_command, ..ProcessOptions::default() }).check().await
    };
    assert_eq!(check("true").await, Ok(()));
    assert_eq!(
        check("echo disk full >&2; exit 2").await,
        Err("the health command failed (exit status: 2): disk full".into())
    );
    assert_eq!(executor().check().await, Ok(()));
}

#[test]
fn only_commands_of_its_executors_are_supported() {
    let spec = |executor: &str, payload| TaskSpec { executor: executor.into(), payload, ..TaskSpec::default() };
    let executor = executor();
    assert!(executor.supports(&spec("process", Some(Payload::Command(command(&["true"]))))).is_ok());
    assert!(executor.supports(&spec("docker", Some(Payload::Command(command(&["true"]))))).is_err());
    assert!(executor.supports(&spec("process", Some(Payload::Custom(prost_types::Any::default())))).is_err());
    assert!(executor.supports(&spec("process", None)).is_err());
}
