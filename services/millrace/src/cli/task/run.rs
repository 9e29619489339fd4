//! `task run`: submits a command, shows its output live, and ends as it ended.

use std::pin::pin;

use millrace_proto::distributor::v1::watch_task_response::Event;
use millrace_proto::distributor::v1::{CancelTaskRequest, SubmitTaskRequest, Task, WatchTaskResponse};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::flags::{SizeFlag, SpecFlags};
use super::follow::{Following, Printer, follow};
use super::outcome::{state_name, verdict};
use crate::client::{Client, ClientArgs, request_id};
use crate::endpoint::Service;
use crate::exit::{Failure, NOT_THE_COMMANDS};
use crate::output::{self, Format};

/// The name of the event in the contracts.
pub(crate) const WATCH_EVENT: &str = "millrace.distributor.v1.WatchTaskResponse";

/// Flags of `task run`.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    spec: SpecFlags,
    #[command(flatten)]
    size: SizeFlag,
    /// Makes repeats harmless for 24 h: the same key with the same task follows the task that it first stored.
    #[arg(long, value_name = "KEY", help_heading = "Submission")]
    idempotency_key: Option<String>,
    /// Says on standard error what becomes of the task, and not only at its end.
    #[arg(long, short, help_heading = "Submission")]
    verbose: bool,
    /// The command and its arguments; no shell is involved.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs it. Wrong flags are exit code 64 as ever; whatever else is not the command's own end is 125, so that a script
/// can tell.
pub(crate) async fn run(args: RunArgs) -> Result<(), Failure> {
    let spec = args.spec.encode(args.command, args.size)?;
    let request = SubmitTaskRequest { request_id: args.idempotency_key.unwrap_or_else(request_id), spec };
    let ended = submit_and_follow(&args.client, request, args.verbose).await;
    ended.map_err(|failure| match failure {
        Failure::Request(text) | Failure::Unavailable(text) => Failure::Ended(NOT_THE_COMMANDS, Some(text)),
        other => other,
    })
}

async fn submit_and_follow(args: &ClientArgs, request: SubmitTaskRequest, verbose: bool) -> Result<(), Failure> {
    let client = Client::connect(args, Service::Distributor).await?;
    // Listening starts before the task exists: a Ctrl-C in between must not leave it behind.
    let mut interrupts = Interrupts::new()?;
    let task = submit(&client, &request, &mut interrupts).await?;
    if verbose {
        eprintln!("millrace: task {} joined queue {}", task.id, output::printable(&task.queue));
    }
    let mut show = Show::new(args.output, verbose);
    let ended = follow_to_end(&client, &task.id, &mut show, &mut interrupts).await?;
    if args.output == Format::Table {
        show.printer.rest(&ended)?;
    }
    verdict(&ended)
}

/// Submits the task. An interrupt is kept for when the task is known: what was sent cannot be taken back before.
async fn submit(client: &Client, request: &SubmitTaskRequest, interrupts: &mut Interrupts) -> Result<Task, Failure> {
    let mut submitted = pin!(client.change(|| {
        let (mut calls, request) = (client.distributor(), request.clone());
        async move { calls.submit_task(request).await }
    }));
    loop {
        tokio::select! {
            answer = &mut submitted => return Ok(answer?.task.unwrap_or_default()),
            () = interrupts.wait() => match interrupts.seen {
                1 => eprintln!("millrace: the task will be cancelled once it is known; press Ctrl-C again to leave it"),
                _ => return Err(left("left before the task was acknowledged; it may have been stored".to_owned())),
            }
        }
    }
}

/// Follows the task to its end; the first interrupt cancels it, the second leaves it.
async fn follow_to_end(
    client: &Client,
    id: &str,
    show: &mut Show,
    interrupts: &mut Interrupts,
) -> Result<Task, Failure> {
    let mut on_event = |event: &WatchTaskResponse| show.event(event);
    let following = Following { id, without_output: false, quietly: false, known: true };
    let mut following = pin!(follow(client, following, &mut on_event));
    let mut cancelling = pin!(cancel(client, id));
    let mut cancelled = false;
    loop {
        tokio::select! {
            ended = &mut following => return ended,
            () = interrupts.wait() => match interrupts.seen {
                1 => eprintln!("millrace: cancelling task {id}; press Ctrl-C again to leave it"),
                _ => return Err(left(format!("left task {id}, which may still run; see `millrace task get {id}`"))),
            },
            outcome = &mut cancelling, if interrupts.seen > 0 && !cancelled => {
                cancelled = true;
                // A task that ended first refuses to be cancelled; its end is on its way here.
                if let Err(failure) = outcome {
                    eprintln!("millrace: {failure}");
                }
            }
        }
    }
}

fn left(text: String) -> Failure {
    Failure::Ended(NOT_THE_COMMANDS, Some(text))
}

/// Asks for the task to be stopped.
async fn cancel(client: &Client, id: &str) -> Result<(), Failure> {
    let reason = "interrupted at the terminal that ran it".to_owned();
    let request = CancelTaskRequest { request_id: request_id(), id: id.to_owned(), reason };
    let cancelled = client.change(|| {
        let (mut calls, request) = (client.distributor(), request.clone());
        async move { calls.cancel_task(request).await }
    });
    cancelled.await.map(drop)
}

/// Shows the events of a task.
pub(crate) struct Show {
    format: Format,
    states: bool,
    last: Option<(i32, i32)>,
    /// Where the output goes.
    pub(crate) printer: Printer,
}

impl Show {
    /// `states` also tells of changes of state, on standard error.
    pub(crate) fn new(format: Format, states: bool) -> Self {
        Show { format, states, last: None, printer: Printer::default() }
    }

    /// Shows one event.
    pub(crate) fn event(&mut self, event: &WatchTaskResponse) -> Result<(), Failure> {
        if self.format == Format::Json {
            return output::json_line(WATCH_EVENT, &super::readable_event(event));
        }
        match &event.event {
            Some(Event::Output(chunk)) => self.printer.output(chunk),
            Some(Event::Task(task)) => {
                let now = (task.state, task.attempt);
                if self.states && self.last.replace(now) != Some(now) {
                    eprintln!("millrace: {}", state_line(task));
                }
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// What there is to say about the state that a task is in.
pub(crate) fn state_line(task: &Task) -> String {
    let mut text = format!("task {} is {}", task.id, state_name(task.state));
    if task.attempt > 0 {
        text.push_str(&format!(", attempt {}", task.attempt));
    }
    if !task.session_id.is_empty() && !task.orchestrator.is_empty() {
        text.push_str(&format!(", on {}", output::printable(&task.orchestrator)));
    }
    if let Some(outcome) = &task.outcome {
        text.push_str(&format!(" ({})", super::outcome::describe(outcome)));
    }
    text
}

/// Ctrl-C, and the TERM by which others stop a process.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    /// How many have come.
    seen: u32,
}

impl Interrupts {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::Request(format!("cannot listen for signals: {error}")));
        Ok(Interrupts {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            seen: 0,
        })
    }

    /// Waits for the next one. Dropping the wait loses none.
    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        self.seen += 1;
    }
}
