//! The flags that make up a task, and the task that they make.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ::bytes::Bytes;
use millrace_proto::common::v1::{Command, RetryPolicy, TaskSpec, task_spec};
use prost::Message;

use crate::exit::Failure;
use crate::json;
use crate::output::bytes;
use crate::time::{parse_duration, parse_moment, to_proto};

/// The spec's name in the contracts.
pub(crate) const SPEC: &str = "millrace.common.v1.TaskSpec";

/// A flag for every field of a TaskSpec. The services check the bounds, so that there is one place that knows them.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "The task")]
pub(crate) struct SpecFlags {
    /// Who pays for the task. Without it the tenant "default".
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// The class of executor that runs it; routes decide by it which queue it joins. Without it "process".
    #[arg(long, value_name = "NAME")]
    executor: Option<String>,
    /// The size of machine wanted, as routes name it.
    #[arg(long, value_name = "NAME")]
    resource_class: Option<String>,
    /// A label; may be given many times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_pair)]
    labels: Vec<(String, String)>,
    /// Higher is dispatched first, from -1000 to 1000. Without it 0.
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Tasks of a tenant that share a key share its cap.
    #[arg(long, value_name = "KEY")]
    concurrency_key: Option<String>,
    /// Not dispatched before this: RFC 3339, or +5m from now by this machine's clock.
    #[arg(long, value_name = "TIME", value_parser = parse_not_before)]
    not_before: Option<prost_types::Timestamp>,
    /// Ends as EXPIRED when it has waited this long.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    expire_after: Option<Duration>,
    /// How long one attempt may run.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// The agent stops an attempt before its lease can expire, so that two do not overlap while agents live.
    #[arg(long)]
    exclusive: bool,
    /// How many attempts may fail by the task's own doing. Without it 1, which is no retry.
    #[arg(long, value_name = "NUMBER")]
    max_attempts: Option<i32>,
    /// How many attempts may be lost with their machine. Without it 2.
    #[arg(long, value_name = "NUMBER")]
    max_losses: Option<i32>,
    /// The wait before the first retry; it doubles from there. Without it 1s.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    min_backoff: Option<Duration>,
    /// The longest wait before a retry. Without it 5m.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max_backoff: Option<Duration>,
    /// A variable of the command's environment; KEY alone takes the value it has here. May be given many times.
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = parse_env)]
    env: Vec<(String, String)>,
    /// The command's working directory on the machine that runs it. Without it a fresh temporary one.
    #[arg(long, value_name = "DIR")]
    working_dir: Option<String>,
    /// A file with the command's standard input; `-` reads it from here.
    #[arg(long, value_name = "FILE")]
    stdin_file: Option<PathBuf>,
    /// A file with a TaskSpec as protobuf JSON to start from; `-` reads it from here. Flags and CMD take precedence
    /// over it.
    #[arg(long, value_name = "FILE.json")]
    spec: Option<PathBuf>,
}

/// How large a task may be.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct SizeFlag {
    /// The largest task that the service takes, standard input included; a larger one is not sent. Set it as the
    /// distributor's flag of that name is set.
    #[arg(long, env = "MILLRACE_MAX_SPEC_BYTES", value_name = "BYTES", default_value_t = 256 * 1024)]
    #[arg(help_heading = "Submission")]
    max_spec_bytes: usize,
}

impl SizeFlag {
    /// Refuses a size that the service would refuse.
    pub(crate) fn check(self, size: usize) -> Result<(), String> {
        match size > self.max_spec_bytes {
            true => Err(format!("it has {}, and {}", bytes(size), self.rule())),
            false => Ok(()),
        }
    }

    fn rule(self) -> String {
        let most = bytes(self.max_spec_bytes);
        format!("a task has at most {most}, standard input included (--max-spec-bytes): let it fetch what is larger")
    }
}

impl SpecFlags {
    /// The encoded spec that the flags and the command after `--` describe.
    pub(crate) fn encode(self, argv: Vec<String>, size: SizeFlag) -> Result<Bytes, Failure> {
        let spec = self.build(argv, size)?.encode_to_vec();
        size.check(spec.len()).map_err(|why| Failure::Usage(format!("the task is too large: {why}")))?;
        Ok(spec.into())
    }

    fn build(self, argv: Vec<String>, size: SizeFlag) -> Result<TaskSpec, Failure> {
        let is_stdin = |path: &Option<PathBuf>| path.as_deref() == Some(Path::new("-"));
        if is_stdin(&self.spec) && is_stdin(&self.stdin_file) {
            return Err(Failure::Usage("--spec and --stdin-file cannot both read standard input".to_owned()));
        }
        let mut spec = match &self.spec {
            Some(path) => read_spec(path)?,
            None => TaskSpec::default(),
        };
        self.apply_command(&mut spec, argv, size)?;
        self.apply_retry(&mut spec);
        if spec.executor.is_empty() {
            spec.executor = "process".to_owned();
        }
        set(&mut spec.tenant, self.tenant);
        set(&mut spec.executor, self.executor);
        set(&mut spec.resource_class, self.resource_class);
        set(&mut spec.concurrency_key, self.concurrency_key);
        spec.labels.extend(self.labels);
        spec.priority = self.priority.or(spec.priority);
        spec.not_before = self.not_before.or(spec.not_before);
        spec.expire_after = self.expire_after.map(to_proto).or(spec.expire_after);
        spec.timeout = self.timeout.map(to_proto).or(spec.timeout);
        spec.exclusive |= self.exclusive;
        Ok(spec)
    }

    /// The command: from `--`, or from the file, with the environment and so on that the flags add.
    fn apply_command(&self, spec: &mut TaskSpec, argv: Vec<String>, size: SizeFlag) -> Result<(), Failure> {
        let mut command = match spec.payload.take() {
            Some(task_spec::Payload::Command(command)) => command,
            Some(custom) if argv.is_empty() && !self.shapes_a_command() => {
                spec.payload = Some(custom);
                return Ok(());
            }
            _ if argv.is_empty() => {
                return Err(Failure::Usage(
                    "nothing to run: give a command after `--`, or --spec FILE.json; see `millrace task submit --help`"
                        .to_owned(),
                ));
            }
            _ => Command::default(),
        };
        if !argv.is_empty() {
            command.argv = argv;
        }
        command.env.extend(self.env.iter().cloned());
        set(&mut command.working_dir, self.working_dir.clone());
        if let Some(path) = &self.stdin_file {
            command.stdin = read_stdin(path, size)?.into();
        }
        spec.payload = Some(task_spec::Payload::Command(command));
        Ok(())
    }

    /// Whether a flag is given that has a meaning for commands only.
    fn shapes_a_command(&self) -> bool {
        !self.env.is_empty() || self.working_dir.is_some() || self.stdin_file.is_some()
    }

    fn apply_retry(&self, spec: &mut TaskSpec) {
        let given = RetryPolicy {
            max_attempts: self.max_attempts,
            max_losses: self.max_losses,
            min_backoff: self.min_backoff.map(to_proto),
            max_backoff: self.max_backoff.map(to_proto),
        };
        if given != RetryPolicy::default() {
            let from_file = spec.retry.take().unwrap_or_default();
            spec.retry = Some(RetryPolicy {
                max_attempts: given.max_attempts.or(from_file.max_attempts),
                max_losses: given.max_losses.or(from_file.max_losses),
                min_backoff: given.min_backoff.or(from_file.min_backoff),
                max_backoff: given.max_backoff.or(from_file.max_backoff),
            });
        }
    }
}

fn set(field: &mut String, given: Option<String>) {
    if let Some(value) = given {
        *field = value;
    }
}

/// Reads a TaskSpec from a JSON file.
pub(crate) fn read_spec(path: &Path) -> Result<TaskSpec, Failure> {
    let wrong = |why: String| Failure::Usage(format!("{}: {why}", path.display()));
    let value = serde_json::from_slice(&read_input(path)?).map_err(|error| wrong(format!("not JSON: {error}")))?;
    let bytes = json::to_bytes(SPEC, value).map_err(|error| wrong(format!("not a TaskSpec: {error}")))?;
    TaskSpec::decode(bytes).map_err(|error| wrong(error.to_string()))
}

/// Reads a file whole, or standard input for `-`.
pub(crate) fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    read_up_to(path, u64::MAX)
}

/// Reads a command's standard input, and no more of it than a task can hold: it may be without end.
fn read_stdin(path: &Path, size: SizeFlag) -> Result<Vec<u8>, Failure> {
    let most = size.max_spec_bytes;
    let read = read_up_to(path, (most as u64).saturating_add(1))?;
    if read.len() > most {
        let what = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
        return Err(Failure::Usage(format!("{what} is too large: {}", size.rule())));
    }
    Ok(read)
}

/// Reads a file or standard input, at most this many bytes of it.
fn read_up_to(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = match path {
        path if path == Path::new("-") => std::io::stdin().lock().take(most).read_to_end(&mut bytes),
        path => std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)),
    };
    read.map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))?;
    Ok(bytes)
}

/// Reads KEY=VALUE.
pub(crate) fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is not KEY=VALUE")),
    }
}

/// Reads KEY=VALUE, or KEY, which takes the value of this process's own variable.
fn parse_env(text: &str) -> Result<(String, String), String> {
    if text.contains('=') {
        return parse_pair(text);
    }
    match std::env::var(text) {
        Ok(value) if !text.is_empty() => Ok((text.to_owned(), value)),
        _ => Err(format!("'{text}' is not KEY=VALUE, and no variable of that name is set here")),
    }
}

fn parse_not_before(text: &str) -> Result<prost_types::Timestamp, String> {
    parse_moment(text, SystemTime::now())
}

/// Labels given as flags.
pub(crate) fn label_map(labels: Vec<(String, String)>) -> BTreeMap<String, String> {
    labels.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: SpecFlags,
        #[arg(last = true)]
        command: Vec<String>,
    }

    fn build(args: &[&str]) -> Result<TaskSpec, Failure> {
        let line = Line::try_parse_from([&["x"], args].concat()).map_err(|error| Failure::Usage(error.to_string()))?;
        line.flags.build(line.command, SizeFlag { max_spec_bytes: 1000 })
    }

    fn command(spec: &TaskSpec) -> &Command {
        match &spec.payload {
            Some(task_spec::Payload::Command(command)) => command,
            other => panic!("no command but {other:?}"),
        }
    }

    #[test]
    fn a_command_alone_is_a_process_task() {
        let spec = build(&["--", "sh", "-c", "exit 3"]).unwrap();
        assert_eq!(spec.executor, "process");
        assert_eq!(command(&spec).argv, ["sh", "-c", "exit 3"]);
        assert_eq!((spec.priority, spec.retry, spec.timeout), (None, None, None));
    }

    #[test]
    fn every_flag_reaches_its_field() {
        let args = "--tenant t --executor e --resource-class r --label a=1 --label b=x=y --priority -5 --concurrency-key k \
                    --not-before 2027-01-31T08:00:00Z --expire-after 1h --timeout 90s --exclusive --max-attempts 3 --max-losses 4 \
                    --min-backoff 2s --max-backoff 1m --env A=1 --env B= --working-dir /w -- true";
        let spec = build(&args.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!((spec.tenant.as_str(), spec.executor.as_str(), spec.resource_class.as_str()), ("t", "e", "r"));
        assert_eq!(spec.labels, [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "x=y".to_owned())].into());
        assert_eq!((spec.priority, spec.concurrency_key.as_str(), spec.exclusive), (Some(-5), "k", true));
        assert_eq!(spec.not_before.unwrap().to_string(), "2027-01-31T08:00:00Z");
        assert_eq!((spec.expire_after.unwrap().seconds, spec.timeout.unwrap().seconds), (3600, 90));
        let retry = spec.retry.unwrap();
        assert_eq!((retry.max_attempts, retry.max_losses), (Some(3), Some(4)));
        assert_eq!((retry.min_backoff.unwrap().seconds, retry.max_backoff.unwrap().seconds), (2, 60));
        assert_eq!(command(&spec).env, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), String::new())].into());
        assert_eq!(command(&spec).working_dir, "/w");
    }

    #[test]
    fn flags_take_precedence_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec.json");
        let json = r#"{"executor": "docker", "priority": 7, "retry": {"maxAttempts": 5}, "command": {"argv": ["a"], "env": {"X": "1"}}}"#;
        std::fs::write(&path, json).unwrap();
        let path = path.to_str().unwrap();
        let spec = build(&["--spec", path, "--max-losses", "9", "--env", "Y=2", "--", "b"]).unwrap();
        assert_eq!((spec.executor.as_str(), spec.priority), ("docker", Some(7)));
        assert_eq!(spec.retry.unwrap().max_attempts, Some(5));
        assert_eq!(command(&spec).argv, ["b"]);
        assert_eq!(command(&spec).env.len(), 2);
    }

    #[test]
    fn a_custom_payload_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec.json");
        std::fs::write(&path, r#"{"executor": "vm", "custom": {"@type": "x/acme.Vm", "value": "AQID"}}"#).unwrap();
        let spec = build(&["--spec", path.to_str().unwrap(), "--priority", "1"]).unwrap();
        match spec.payload {
            Some(task_spec::Payload::Custom(any)) => {
                assert_eq!((any.type_url.as_str(), any.value), ("x/acme.Vm", vec![1, 2, 3]))
            }
            other => panic!("{other:?}"),
        }
        assert!(build(&["--spec", path.to_str().unwrap(), "--env", "A=1"]).is_err());
    }

    #[test]
    fn what_cannot_be_right_is_a_usage_error() {
        for args in [
            &["--label", "nokey", "--", "x"][..],
            &["--env", "=v", "--", "x"],
            &["--env", "SURELY_NOT_SET_ANYWHERE", "--", "x"],
            &["--timeout", "soon", "--", "x"],
            &["--not-before", "later", "--", "x"],
            &["--spec", "-", "--stdin-file", "-"],
            &["--spec", "/no/such/file"],
            &[],
        ] {
            let failure = build(args).unwrap_err();
            assert_eq!(failure.code(), 64, "{args:?}: {failure}");
        }
    }

    #[test]
    fn a_task_that_is_too_large_is_refused_here() {
        let size = SizeFlag { max_spec_bytes: 1024 };
        let encode = |args: &[&str]| {
            let line = Line::parse_from([&["x"], args].concat());
            line.flags.encode(line.command, size)
        };
        assert!(encode(&["--", "true"]).is_ok());
        // Standard input without end is read as far as it can be of use.
        let failure = encode(&["--stdin-file", "/dev/zero", "--", "cat"]).unwrap_err();
        assert_eq!(failure.code(), 64);
        assert!(failure.to_string().contains("/dev/zero is too large: a task has at most 1 KiB"), "{failure}");
        let failure = encode(&["--", &"x".repeat(2000)]).unwrap_err();
        assert!(failure.to_string().contains("the task is too large: it has 20"), "{failure}");
    }

    #[test]
    fn standard_input_is_read_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        std::fs::write(&path, b"\x00\xffbytes").unwrap();
        let spec = build(&["--stdin-file", path.to_str().unwrap(), "--", "cat"]).unwrap();
        assert_eq!(&command(&spec).stdin[..], b"\x00\xffbytes");
    }
}
