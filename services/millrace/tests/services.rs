//! The commands that configure and run services, as an operator meets them.

mod fake;

use std::process::Stdio;

use fake::{Ran, millrace, run};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStderr};

/// Where no client command of these tests goes.
const NOWHERE: &str = "http://127.0.0.1:1";
/// A database that is not there.
const NO_DATABASE: &str = "postgres://me:secret@127.0.0.1:1/millrace";

/// A process that runs, and what it writes to standard error.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Process {
    fn start(args: &[&str]) -> Process {
        let mut child = millrace(NOWHERE, args).stdout(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Process { child, lines }
    }

    /// Reads until a line has this text, and gives that line.
    async fn line_with(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        while let Some(line) = self.lines.next_line().await.unwrap() {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("no line with {text:?} in {seen:#?}");
    }

    /// Sends SIGTERM and gives the exit code.
    async fn stop(mut self) -> i32 {
        let pid = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        // What it still writes must not fill the pipe.
        while let Ok(Some(_)) = self.lines.next_line().await {}
        self.child.wait().await.unwrap().code().unwrap_or(-1)
    }
}

#[tokio::test]
async fn migrations_go_up_and_down_and_say_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("m.db").display());
    let migrate = async |args: &[&str]| run(NOWHERE, &[&["migrate"], args, &["--database-url", &url]].concat()).await;
    let before = migrate(&["status"]).await;
    assert!(before.code == 1 && before.stderr.contains("migrate up"), "{}", before.stderr);
    assert_eq!(migrate(&["up"]).await.code, 0);
    assert_eq!(migrate(&["up"]).await.stdout, "the schema is up to date\n");
    let after = migrate(&["status", "--output", "json"]).await;
    assert!(after.code == 0 && after.stdout.contains(r#""applied":true"#), "{}", after.stdout);
    assert_eq!(migrate(&["down"]).await.code, 64);
    let down = migrate(&["down", "--yes"]).await;
    assert!(down.code == 0 && down.stdout.contains("taken back"), "{}", down.stdout);
    assert!(migrate(&["status"]).await.stdout.contains("pending"));
    while migrate(&["down", "--yes"]).await.stdout != "there is nothing to take back\n" {}
    assert_eq!(migrate(&["status"]).await.code, 1);
}

#[tokio::test]
async fn a_database_that_is_not_there_is_69_without_its_password() {
    let ran = run(NOWHERE, &["migrate", "up", "--database-url", NO_DATABASE]).await;
    assert_eq!(ran.code, 69);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("postgres://me:***@127.0.0.1:1") && !ran.stderr.contains("secret"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_wrong_configuration_is_64_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    let path = file.to_str().unwrap();
    for (text, said) in [
        ("no_such_key = 1", "no_such_key"),
        ("[distributor]\nretention = \"soon\"", "retention"),
        ("[distributor]\nlisten = 7", "listen"),
        ("not toml", "TOML"),
    ] {
        std::fs::write(&file, text).unwrap();
        for args in [
            &["config", "check", "distributor", "--config", path][..],
            &["distributor", "--database-url", NO_DATABASE, "--config", path],
        ] {
            let ran = run(NOWHERE, args).await;
            assert_eq!(ran.code, 64, "{text}: {}", ran.stderr);
            assert!(ran.stderr.contains(said) || text.contains("listen"), "{text}: {}", ran.stderr);
        }
    }
    for args in [
        &["distributor"][..],
        &["queue"],
        &["distributor", "--database-url", "mysql://x"],
        &["distributor", "--database-url", NO_DATABASE, "--listen", "nowhere"],
        &["distributor", "--database-url", NO_DATABASE, "--listen", "0.0.0.0:0", "--http-listen", "127.0.0.1:0"],
        &["config", "check", "queue", "--", "--no-such-flag"],
        &["orchestrator", "--labels", "x"],
    ] {
        let ran = run(NOWHERE, args).await;
        assert_eq!(ran.code, 64, "{args:?}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn what_a_service_would_not_start_with_is_what_a_check_finds() {
    let distributor = ["distributor", "--database-url", NO_DATABASE];
    let queue = ["queue", "--database-url", NO_DATABASE];
    let scaler = ["scaler", "--database-url", NO_DATABASE];
    for (service, flags, said) in [
        (&["orchestrator"][..], &["--slots", "0"][..], "--slots: "),
        (&["orchestrator"], &["--endpoint", "nowhere"], "--endpoint: "),
        (&["orchestrator"], &["--queues", "No Name"], "--queues: "),
        (&["orchestrator"], &["--executors", ""], "--executors: "),
        (&["orchestrator"], &["--lease-ttl", "1s"], "--lease-ttl: "),
        (&["orchestrator"], &["--state-dir", "/dev/null"], "--state-dir: "),
        (&["orchestrator"], &["--scaler-endpoint", "nowhere"], "--scaler-endpoint: "),
        (&["orchestrator"], &["--node-id", "seven"], "--node-id: "),
        (&["orchestrator"], &["--instance-id", "i-1"], "--instance-id: "),
        (&["dev"], &["--slots", "0"], "--slots: "),
        (&["dev"], &["--data-dir", "/dev/null"], "--data-dir: "),
        (&["dev"], &["--database-url", "mysql://x"], "--database-url: "),
        (&distributor, &["--max-batch", "0"], "max-batch"),
        (&distributor, &["--max-spec-bytes", "99999999"], "max-message-bytes"),
        (&distributor, &["--listen", "nowhere"], "--listen: "),
        (&distributor, &["--http-listen", "127.0.0.1"], "--http-listen: "),
        (&distributor, &["--listen", "0.0.0.0:7601"], "--advertise"),
        (&distributor, &["--advertise", "https://x:1"], "--advertise: "),
        (&distributor, &["--max-connections", "0"], "--max-connections"),
        (&distributor, &["--statement-timeout", "0s"], "--statement-timeout"),
        (&["distributor"], &["--database-url", "mysql://me:secret@x"], "mysql://me:***@x"),
        (&scaler, &["--provider", "cloud"], "--provider"),
        (&scaler, &["--provider", "a=process,a=process"], "a provider a already"),
        (&scaler, &["--scaler-lease", "1s"], "--scaler-lease"),
        (&["queue"], &[], "--database-url"),
        (&queue, &["--queue-window", "10"], "--queue-window"),
        (&queue, &["--queue-people-reads", "0"], "--queue-people-reads"),
    ] {
        let check = [&["config", "check", service[0], "--"], &service[1..], flags].concat();
        for args in [check, [service, flags].concat()] {
            let ran = run(NOWHERE, &args).await;
            assert_eq!(ran.code, 64, "{args:?}: {}", ran.stderr);
            assert!(ran.stderr.contains(said) && ran.stdout.is_empty(), "{args:?}: {}", ran.stderr);
        }
    }
    for variable in ["MILLRACE_LOG", "MILLRACE_FAILPOINTS"] {
        let mut command = millrace(NOWHERE, &["config", "check", "orchestrator"]);
        command.env(variable, "a=b=c");
        let ran: Ran = command.output().await.unwrap().into();
        assert_eq!(ran.code, 64, "{variable}: {}", ran.stderr);
    }
    for (service, flags) in [("distributor", distributor), ("scaler", scaler)] {
        let good = [&["config", "check", service, "--"], &flags[1..]].concat();
        assert_eq!(run(NOWHERE, &good).await.code, 0, "{service}");
    }
    for service in ["dev", "orchestrator"] {
        assert_eq!(run(NOWHERE, &["config", "check", service]).await.code, 0, "{service}");
    }
}

#[tokio::test]
async fn the_values_in_force_are_shown_with_their_source() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    std::fs::write(&file, format!("database_url = \"{NO_DATABASE}\"\n[distributor]\nretention = \"3d\"\n")).unwrap();
    let args =
        ["config", "check", "distributor", "-o", "json", "--config", file.to_str().unwrap(), "--", "--max-batch", "7"];
    let mut command = millrace(NOWHERE, &args);
    command.env("MILLRACE_MAX_SESSIONS", "9");
    let ran: Ran = command.output().await.unwrap().into();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let settings: Vec<serde_json::Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |flag: &str| settings.iter().find(|setting| setting["flag"] == flag).unwrap().clone();
    assert_eq!((of("max-batch")["value"].as_str(), of("max-batch")["source"].as_str()), (Some("7"), Some("flag")));
    assert_eq!(of("max-sessions")["source"], "variable MILLRACE_MAX_SESSIONS");
    assert!(of("retention")["source"].as_str().unwrap().starts_with("file ") && of("retention")["value"] == "3d");
    assert_eq!(of("max-watchers")["source"], "default");
    assert!(!ran.stdout.contains("secret"), "{}", ran.stdout);
}

#[tokio::test]
async fn a_port_in_use_is_69_and_names_the_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for args in [
        &["distributor", "--database-url", NO_DATABASE, "--listen", &address][..],
        &["queue", "--database-url", NO_DATABASE, "--listen", "127.0.0.1:0", "--http-listen", &address],
        &["dev", "--data-dir", data.to_str().unwrap(), "--listen", &address],
    ] {
        let ran = run(NOWHERE, args).await;
        assert_eq!(ran.code, 69, "{args:?}: {}", ran.stderr);
        let last = ran.stderr.lines().last().unwrap();
        assert!(last.contains("the port is in use") && last.contains("listen"), "{last}");
    }
}

#[tokio::test]
async fn a_service_waits_for_its_database_and_says_so() {
    let args =
        ["distributor", "--database-url", NO_DATABASE, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let mut process = Process::start(&args);
    let started: serde_json::Value = serde_json::from_str(&process.line_with("starting").await).unwrap();
    let waits = process.line_with("the database does not answer").await;
    assert!(!waits.contains("secret"), "{waits}");
    let mut http = TcpStream::connect(started["http"].as_str().unwrap().trim_start_matches("http://")).await.unwrap();
    http.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    http.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("the database does not answer"), "{answer}");
    // Clients are turned away rather than left to wait.
    let mut grpc = TcpStream::connect(started["listen"].as_str().unwrap()).await.unwrap();
    let mut nothing = Vec::new();
    let closed = grpc.read_to_end(&mut nothing).await;
    assert!(closed.is_err() || nothing.is_empty());
    assert_eq!(process.stop().await, 0);
}

#[tokio::test]
async fn a_database_without_the_schema_is_64_and_says_what_to_run() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", dir.path().join("m.db").display());
    let down = ["migrate", "down", "--yes", "--database-url", &url];
    assert_eq!(run(NOWHERE, &["migrate", "up", "--database-url", &url]).await.code, 0);
    // The first step back takes the tables of fleets, without which the scaler alone does not work.
    assert_eq!(run(NOWHERE, &down).await.code, 0);
    for service in ["scaler", "distributor", "queue"] {
        let args = [service, "--database-url", &url, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
        let ran = run(NOWHERE, &args).await;
        assert_eq!(ran.code, 64, "{}", ran.stderr);
        assert!(ran.stderr.lines().last().unwrap().contains("migrate up"), "{}", ran.stderr);
        while service == "scaler" && run(NOWHERE, &down).await.stdout != "there is nothing to take back\n" {}
    }
}

/// `millrace dev` on a directory, with an agent of one slot.
struct Dev {
    child: Child,
    endpoint: String,
    /// What it writes to standard error; read on, so that the logs never fill the pipe.
    log: tokio::task::JoinHandle<Vec<String>>,
}

impl Dev {
    async fn start(data: &std::path::Path, flags: &[&str]) -> Dev {
        let own =
            ["dev", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
        let mut dev = Process::start(&[&own[..], flags].concat());
        let line = dev.line_with("gRPC").await;
        let endpoint = line.split_whitespace().last().unwrap().to_owned();
        assert!(dev.line_with("millrace task run").await.contains(&endpoint));
        let Process { child, mut lines } = dev;
        let log = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                all.push(line);
            }
            all
        });
        Dev { child, endpoint, log }
    }

    /// The figures of the pool `default` at the first moment that this is true of them.
    async fn pool(&self, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let mut watch = millrace(&self.endpoint, &["pool", "watch", "--interval", "200ms", "-o", "json"]);
        let mut watch = watch.spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        loop {
            let line = lines.next_line().await.unwrap().expect("the watch goes on");
            let figures: serde_json::Value = serde_json::from_str(&line).unwrap();
            if let Some(pool) = figures["pools"].as_array().and_then(|pools| pools.first()).filter(|pool| wanted(pool))
            {
                return pool.clone();
            }
        }
    }

    /// Sends SIGTERM and waits for its end, which must be a good one.
    async fn stop(self) {
        let pid = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let ended = self.child.wait_with_output().await.unwrap();
        let log = self.log.await.unwrap();
        assert_eq!(ended.status.code(), Some(0), "{log:#?}");
    }
}

#[tokio::test]
async fn dev_runs_a_command_and_stops_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), &["--slots", "2", "--without-scaler"]).await;
    let endpoint = &dev.endpoint;
    let ran = run(endpoint, &["task", "run", "--", "sh", "-c", "echo hello; echo oops >&2; exit 3"]).await;
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (3, "hello\n", "oops\n"));
    let listed = run(endpoint, &["task", "list", "-o", "json"]).await;
    let task: serde_json::Value = serde_json::from_str(listed.stdout.lines().next().unwrap()).unwrap();
    assert_eq!((task["state"].as_str(), &task["outcome"]["exitCode"]), (Some("TASK_STATE_FAILED"), &3.into()));
    assert_eq!(task["spec"]["command"]["argv"][0], "sh");
    let well = run(endpoint, &["doctor"]).await;
    assert_eq!(well.code, 0, "{}{}", well.stdout, well.stderr);
    assert!(!well.stdout.contains("scaler"), "{}", well.stdout);
    let queues = run(endpoint, &["queue", "list"]).await;
    assert!(queues.code == 0 && queues.stdout.contains("default"), "{}", queues.stdout);
    let none = run(endpoint, &["pool", "list"]).await;
    assert!(none.code == 1 && none.stderr.contains("does not serve the scaler"), "{}", none.stderr);
    dev.stop().await;
}

#[tokio::test]
async fn dev_adds_agents_when_tasks_wait_and_ends_them_with_itself() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let gate = dir.path().join("gate");
    assert!(std::process::Command::new("mkfifo").arg(&gate).status().unwrap().success());
    let dev = Dev::start(&data, &["--slots", "1"]).await;
    dev.pool(|pool| pool["name"] == "default").await;
    // Tasks that wait for the gate: the built-in agent has one, and the others ask for nodes.
    let wait = format!("read line < {}", gate.display());
    for _ in 0..3 {
        let ran = run(&dev.endpoint, &["task", "submit", "--", "sh", "-c", &wait]).await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    let pool = dev.pool(|pool| pool["status"]["running"] == "2").await;
    assert!(pool["status"]["readySlots"].as_str().unwrap().parse::<i32>().unwrap() >= 2, "{pool}");
    let nodes = run(&dev.endpoint, &["node", "list", "--state", "ready", "-o", "json"]).await;
    let node: serde_json::Value = serde_json::from_str(nodes.stdout.lines().next().unwrap()).unwrap();
    assert_eq!((&node["pool"], &node["attached"], &node["healthy"]), (&"default".into(), &true.into(), &true.into()));
    let well = run(&dev.endpoint, &["doctor"]).await;
    assert!(well.code == 0 && well.stdout.contains("scaler") && well.stdout.contains("pools"), "{}", well.stdout);
    // The nodes hand back what they run, and have ended before this process ends.
    dev.stop().await;
    let left: Vec<_> = std::fs::read_dir(data.join("nodes/local/nodes")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    // A pool that was deleted stays deleted.
    let dev = Dev::start(&data, &["--slots", "1"]).await;
    let deleted = run(&dev.endpoint, &["pool", "delete", "default", "--drain"]).await;
    assert_eq!(deleted.code, 0, "{}", deleted.stderr);
    dev.stop().await;
    let dev = Dev::start(&data, &["--slots", "1"]).await;
    let list = run(&dev.endpoint, &["pool", "list", "-o", "json"]).await;
    let live = list.stdout.lines().filter(|line| !line.contains("\"deleting\":true")).count();
    assert_eq!((list.code, live), (0, 0), "{}", list.stdout);
    dev.stop().await;
}
