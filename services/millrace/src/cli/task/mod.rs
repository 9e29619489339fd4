//! `millrace task`: submit, run, read and steer tasks.

mod batch;
mod flags;
mod follow;
mod jobs;
mod outcome;
mod read;
mod run;
mod steer;
mod submit;

use millrace_proto::common::v1::{TaskSpec, task_spec};
use millrace_proto::distributor::v1::watch_task_response::Event;
use millrace_proto::distributor::v1::{Task, WatchTaskResponse};
use prost::Message;

use crate::exit::Failure;
use crate::output::{self, Format};

pub(crate) use flags::{label_map, parse_pair, read_spec};
pub(crate) use outcome::state_name;

/// The task's name in the contracts.
const TASK: &str = "millrace.distributor.v1.Task";

/// Commands about tasks.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum TaskCommand {
    /// Submit one task, or a file of them, and print the id
    #[command(after_help = "\
Examples:
  millrace task submit -- make test
  millrace task submit --timeout 10m --max-attempts 3 --label branch=main -- ./ci.sh
  millrace task submit --not-before +5m --stdin-file input.bin -- ./import
  millrace task submit --spec task.json --priority 10
  millrace task submit --file jobs.jsonl --wait
  millrace task submit --idempotency-key build-4711 -- make

A file has one TaskSpec as protobuf JSON a line, or {\"requestId\": …, \"spec\": …}. It is read whole
first: when a line is no such JSON, or larger than a task may be, nothing is submitted, each such
line is named with the field that is wrong, and the exit code is 64. What the service refuses (no
route takes it, a bound is broken) is refused line by line: such lines are listed and make the exit
code 1, and the others are submitted all the same. Running the file again within 24 h submits nothing
twice: request ids are made of the file's content, or of --idempotency-key, and the line number.")]
    Submit(Box<submit::SubmitArgs>),
    /// Submit a command, show its output live, and exit as it exits
    #[command(after_help = "\
Examples:
  millrace task run -- sh -c 'echo hello; exit 3'
  millrace task run --timeout 10m --env CI=1 --env GITHUB_SHA -- ./ci.sh
  tar c . | millrace task run --stdin-file - -- tar t

Exit code: the command's own; 128 + signal when it was killed; 124 when it ran past --timeout;
125 for every other end (cancelled, expired, lost, not started, not submitted), and standard error
says which. Wrong flags are 64.
Ctrl-C cancels the task, a second one leaves it. A connection that breaks is made again; the task
goes on meanwhile.")]
    Run(Box<run::RunArgs>),
    /// Show one task with its attempts
    #[command(after_help = "\
Examples:
  millrace task get 0197f2a0-5c1e-7bd4-9d3c-0f3a1c2b4d5e
  millrace task get ID --output json | jq -r .outcome.outputTail | base64 -d")]
    Get(read::GetArgs),
    /// List tasks, newest first
    #[command(after_help = "\
Examples:
  millrace task list
  millrace task list --state queued --state running --queue builds
  millrace task list --tenant team-a --label branch=main --limit 0 --output json")]
    List(read::ListArgs),
    /// Follow a task until it ends: its states and its output
    #[command(after_help = "\
Examples:
  millrace task watch ID
  millrace task watch ID --no-output

States go to standard error and the command's output where it belongs; with --no-output states go
to standard output. The exit code is 0 however the task ends; `task run` exits as its command does.")]
    Watch(read::WatchArgs),
    /// Stop a task, waiting or running
    #[command(after_help = "\
Examples:
  millrace task cancel ID --reason 'superseded by a newer commit'
  millrace task list --state queued --label branch=old --limit 0 -o json | jq -r .id \\
    | xargs millrace task cancel")]
    Cancel(steer::CancelArgs),
    /// Queue a finished task again under its own id
    #[command(after_help = "\
Examples:
  millrace task retry ID
  millrace task retry ID ID ID")]
    Retry(steer::RetryArgs),
    /// Tell why a task is not running now
    #[command(after_help = "\
Examples:
  millrace task explain ID")]
    Explain(read::ExplainArgs),
}

impl TaskCommand {
    /// Runs the command.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            TaskCommand::Submit(args) => submit::submit(*args).await,
            TaskCommand::Run(args) => run::run(*args).await,
            TaskCommand::Get(args) => read::get(args).await,
            TaskCommand::List(args) => read::list(args).await,
            TaskCommand::Watch(args) => read::watch(args).await,
            TaskCommand::Cancel(args) => steer::cancel(args).await,
            TaskCommand::Retry(args) => steer::retry(args).await,
            TaskCommand::Explain(args) => read::explain(args).await,
        }
    }
}

/// A task whose JSON can be written: a spec that does not decode, as a damaged row may have, is left out and not the
/// whole task.
pub(crate) fn readable(task: &Task) -> Task {
    let mut task = task.clone();
    if TaskSpec::decode(task.spec.clone()).is_err() {
        eprintln!("millrace: the spec of task {} does not decode and is left out", task.id);
        task.spec.clear();
    }
    task
}

/// `readable` for an event of a watch.
fn readable_event(event: &WatchTaskResponse) -> WatchTaskResponse {
    let event = match &event.event {
        Some(Event::Task(task)) => Some(Event::Task(readable(task))),
        other => other.clone(),
    };
    WatchTaskResponse { event }
}

/// Prints a task that a command got: JSON, or what `text` makes of it.
fn print_task(format: Format, task: &Task, text: impl FnOnce(&Task) -> String) -> Result<(), Failure> {
    match format {
        Format::Json => output::json_line(TASK, &readable(task)),
        Format::Table => output::line(&text(task)),
    }
}

/// What a task runs, in the length of a column.
fn summary(spec: &TaskSpec, most: usize) -> String {
    let text = match &spec.payload {
        Some(task_spec::Payload::Command(command)) => command.argv.join(" "),
        Some(task_spec::Payload::Custom(any)) => any.type_url.clone(),
        None => "(no payload that this release knows)".to_owned(),
    };
    output::cut(&output::printable(&text), most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_spec_does_not_hide_its_task() {
        let task = Task { id: "t".into(), spec: vec![0xff, 0xff].into(), ..Default::default() };
        assert!(crate::json::to_value(TASK, &task).is_err());
        let json = crate::json::to_value(TASK, &readable(&task)).unwrap();
        assert_eq!(json["id"], "t");
    }

    #[test]
    fn summaries_fit_a_column() {
        let command =
            millrace_proto::common::v1::Command { argv: vec!["echo".into(), "a\nb".into()], ..Default::default() };
        let spec = TaskSpec { payload: Some(task_spec::Payload::Command(command)), ..Default::default() };
        assert_eq!(summary(&spec, 40), "echo a\\nb");
        assert_eq!(summary(&spec, 6), "echo a…");
    }
}
