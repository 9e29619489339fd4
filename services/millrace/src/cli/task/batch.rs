//! `task submit --file`: many tasks, each accepted or refused by itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use millrace_proto::common::v1::TaskState;
use millrace_proto::distributor::v1::batch_submit_result::Result as Item;
use millrace_proto::distributor::v1::{BatchSubmitResult, BatchSubmitTasksRequest, Refusal, Task};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::flags::read_input;
use super::follow::{Following, follow};
use super::jobs::{self, Job};
use super::outcome::{describe, state_name};
use super::submit::SubmitArgs;
use super::{TASK, readable};
use crate::client::{Backoff, Client};
use crate::endpoint::Service;
use crate::exit::{Failure, one_line};
use crate::output::{self, Format, count, printable};
use crate::status::{is_transient, next_step};

/// Tasks in one call.
const BATCH: usize = 500;
/// Bytes in one call, half of what a service takes in one message.
const BATCH_BYTES: usize = 2 << 20;
/// Calls at a time: enough to hide a round trip, few enough that one client does not fill a service's limits.
const CALLS: usize = 4;
/// Tasks waited for at a time.
const WATCHES: usize = 32;
/// Refusals and failures that are listed; the rest is counted.
const LISTED: usize = 50;

/// Submits the lines of a file, and waits for them when that is asked.
pub(crate) async fn submit_file(args: &SubmitArgs, path: &Path) -> Result<(), Failure> {
    let name = path.display();
    let jobs = jobs::parse(&read_input(path)?, args.idempotency_key.as_deref(), args.size)
        .map_err(|complaints| Failure::Usage(format!("{name}: {}; nothing was submitted", complaints.join("; "))))?;
    if jobs.is_empty() {
        return Err(Failure::Usage(format!("{name} has no tasks")));
    }
    let repeats = jobs::repeats(&jobs);
    for (line, first) in repeats.iter().take(LISTED) {
        eprintln!(
            "millrace: line {line} has the requestId of line {first}; one key makes one task: give each line its own"
        );
    }
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let mut sum = Sum { repeats, ..Sum::default() };
    let sent = send_all(&client, args, &jobs, &mut sum).await;
    sum.report(jobs.len());
    sent?;
    if args.wait {
        wait_all(&client, args.client.output, &sum.ids, &mut sum.unsuccessful).await?;
    }
    match (sum.refused, sum.unsuccessful) {
        (0, 0) => Ok(()),
        (0, unsuccessful) => {
            Err(Failure::Request(format!("{unsuccessful} of {} did not succeed", count(jobs.len(), "task"))))
        }
        (refused, 0) => Err(Failure::Request(format!("{refused} of {}", were_refused(jobs.len(), refused)))),
        (refused, unsuccessful) => Err(Failure::Request(format!(
            "{} and {} did not succeed",
            were_refused(refused, refused),
            count(unsuccessful, "task")
        ))),
    }
}

/// `1 line was refused`, `3 lines were refused`; the verb goes with another number than the lines in `1 of 3 lines was`.
fn were_refused(lines: usize, refused: usize) -> String {
    format!("{} {} refused", count(lines, "line"), if refused == 1 { "was" } else { "were" })
}

/// What became of the lines.
#[derive(Default)]
struct Sum {
    /// Ids of accepted lines, in the file's order.
    ids: Vec<String>,
    /// Lines with the key of an earlier line, and that line.
    repeats: BTreeMap<usize, usize>,
    existing: usize,
    refused: usize,
    unsuccessful: usize,
}

impl Sum {
    /// Takes the result of one line in and prints it.
    fn take(&mut self, args: &SubmitArgs, job: &Job, result: &BatchSubmitResult) -> Result<(), Failure> {
        match &result.result {
            Some(Item::TaskId(id)) => {
                self.ids.push(id.clone());
                self.existing += usize::from(result.existing);
            }
            Some(Item::Refusal(refusal)) => self.refuse(job, refusal),
            None => self.refuse(
                job,
                &Refusal { message: "the service gave no answer for it".to_owned(), ..Default::default() },
            ),
        }
        // With --wait the tasks are printed when they have ended.
        match (args.client.output, &result.result) {
            (Format::Json, _) if !args.wait => output::json_line("millrace.distributor.v1.BatchSubmitResult", result),
            (Format::Table, Some(Item::TaskId(id))) if !args.wait => output::line(id),
            _ => Ok(()),
        }
    }

    fn refuse(&mut self, job: &Job, refusal: &Refusal) {
        self.refused += 1;
        if self.refused <= LISTED {
            eprintln!("line {}: {}", job.line, refusal_line(refusal, self.repeats.get(&job.line)));
        }
    }

    fn report(&self, all: usize) {
        if self.refused > LISTED {
            let more = self.refused - LISTED;
            eprintln!("and {more} more {}", if more == 1 { "line was refused" } else { "lines were refused" });
        }
        let new = self.ids.len() - self.existing;
        let mut text = format!("{new} submitted");
        if self.existing > 0 {
            text.push_str(&format!(", {} submitted earlier", self.existing));
        }
        if self.refused > 0 {
            text.push_str(&format!(", {} refused", self.refused));
        }
        let unknown = all - self.ids.len() - self.refused;
        if unknown > 0 {
            text.push_str(&format!(", {unknown} not known; running the same command again goes on from here"));
        }
        eprintln!("millrace: {text}");
    }
}

/// A refusal on one line. `first` is the line whose key this one has.
fn refusal_line(refusal: &Refusal, first: Option<&usize>) -> String {
    let mut text = one_line(&refusal.message);
    if !refusal.field.is_empty() && !text.contains(&refusal.field) {
        text = format!("{}: {text}", refusal.field);
    }
    if !refusal.reason.is_empty() {
        text.push_str(&format!(" ({})", refusal.reason));
    }
    let hint = match first.filter(|_| refusal.reason == "REQUEST_ID_REUSED") {
        Some(first) => Some(format!("line {first} has the same requestId: give each line its own")),
        None => next_step(Code::from(refusal.code), &refusal.reason, Service::Distributor),
    };
    match hint {
        Some(hint) => printable(&format!("{text}; {hint}")),
        None => printable(&text),
    }
}

/// Sends every batch, several at a time, and takes the results in the file's order.
async fn send_all(client: &Client, args: &SubmitArgs, jobs: &[Job], sum: &mut Sum) -> Result<(), Failure> {
    let bar = progress(jobs.len(), "submitted");
    let calls = jobs::batches(jobs, BATCH, BATCH_BYTES)
        .into_iter()
        .map(|batch| async move { (batch, send(client, batch).await) });
    let mut results = futures::stream::iter(calls).buffered(CALLS);
    while let Some((batch, answer)) = results.next().await {
        let results = answer.map_err(|status| client.failure(&status)).inspect_err(|_| bar.finish_and_clear())?;
        bar.suspend(|| batch.iter().zip(&results).try_for_each(|(job, result)| sum.take(args, job, result)))?;
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Sends one batch until each of its lines is accepted or refused for good, or the budget for trying is spent.
async fn send(client: &Client, batch: &[Job]) -> Result<Vec<BatchSubmitResult>, Status> {
    let deadline = Instant::now() + client.retry_for();
    let mut backoff = Backoff::default();
    let mut results: Vec<Option<BatchSubmitResult>> = vec![None; batch.len()];
    loop {
        let open: Vec<usize> =
            (0..batch.len()).filter(|index| results[*index].as_ref().is_none_or(refused_for_now)).collect();
        if open.is_empty() {
            break;
        }
        let request =
            BatchSubmitTasksRequest { requests: open.iter().map(|index| batch[*index].request.clone()).collect() };
        let answer = client.try_change(|| {
            let (mut calls, request) = (client.distributor(), request.clone());
            async move { calls.batch_submit_tasks(request).await }
        });
        match answer.await {
            Ok(answer) => open.iter().zip(answer.results).for_each(|(index, result)| results[*index] = Some(result)),
            // A line that is alone in its batch and is refused as a whole, being too large for a message, is one
            // refused line.
            Err(status) if batch.len() == 1 && !is_transient(&status) => results[0] = Some(refused_whole(&status)),
            Err(status) => return Err(status),
        }
        let delay = backoff.next(None).unwrap_or(Duration::from_secs(5));
        if !results.iter().any(|result| result.as_ref().is_none_or(refused_for_now))
            || Instant::now() + delay >= deadline
        {
            break;
        }
        tokio::time::sleep(delay).await;
    }
    Ok(results.into_iter().map(Option::unwrap_or_default).collect())
}

/// Whether a line was refused for a cause that passes.
fn refused_for_now(result: &BatchSubmitResult) -> bool {
    match &result.result {
        Some(Item::Refusal(refusal)) => {
            matches!(Code::from(refusal.code), Code::Unavailable | Code::ResourceExhausted | Code::Aborted)
        }
        _ => false,
    }
}

fn refused_whole(status: &Status) -> BatchSubmitResult {
    let refusal = Refusal { code: status.code() as i32, message: status.message().to_owned(), ..Default::default() };
    BatchSubmitResult { result: Some(Item::Refusal(refusal)), existing: false }
}

/// Waits until all tasks have ended, and says how many ended how.
async fn wait_all(client: &Client, format: Format, ids: &[String], unsuccessful: &mut usize) -> Result<(), Failure> {
    let bar = progress(ids.len(), "ended");
    let watches = ids.iter().map(|id| async move {
        follow(client, Following { id, without_output: true, quietly: true, known: true }, &mut |_| Ok(())).await
    });
    let mut ended = futures::stream::iter(watches).buffer_unordered(WATCHES);
    let mut counts = BTreeMap::<String, usize>::new();
    while let Some(task) = ended.next().await {
        let task = task.inspect_err(|_| bar.finish_and_clear())?;
        *counts.entry(state_name(task.state)).or_default() += 1;
        *unsuccessful += usize::from(!succeeded(&task));
        bar.suspend(|| print_ended(format, &task, *unsuccessful))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let counts: Vec<_> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    eprintln!("millrace: {}", counts.join(", "));
    Ok(())
}

/// Prints a task that has ended: as JSON each, for people those that did not succeed.
fn print_ended(format: Format, task: &Task, unsuccessful: usize) -> Result<(), Failure> {
    match format {
        Format::Json => output::json_line(TASK, &readable(task)),
        Format::Table if succeeded(task) || unsuccessful > LISTED => Ok(()),
        Format::Table => {
            let how = task.outcome.as_ref().map(describe).unwrap_or_default();
            output::line(&format!("{} {} {how}", task.id, state_name(task.state)))
        }
    }
}

/// Whether a task ended well.
pub(crate) fn succeeded(task: &Task) -> bool {
    task.state == i32::from(TaskState::Succeeded)
}

/// A bar on standard error when that is a terminal, and nothing otherwise.
fn progress(length: usize, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length as u64), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} {per_sec} {eta}") {
        bar.set_style(style);
    }
    bar.with_message(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_field_reason_and_next_step() {
        let refusal = Refusal {
            code: Code::FailedPrecondition as i32,
            reason: "NO_ROUTE".into(),
            message: "no route takes\nexecutor vm".into(),
            field: "spec.executor".into(),
        };
        let line = refusal_line(&refusal, None);
        assert!(
            line.starts_with("spec.executor: no route takes executor vm (NO_ROUTE); `millrace route list`"),
            "{line}"
        );
    }

    #[test]
    fn a_key_of_another_line_is_told_as_such() {
        let refusal =
            Refusal { reason: "REQUEST_ID_REUSED".into(), message: "another content".into(), ..Default::default() };
        assert!(refusal_line(&refusal, Some(&3)).ends_with("line 3 has the same requestId: give each line its own"));
        assert!(refusal_line(&refusal, None).contains("--idempotency-key"));
        assert_eq!(
            (were_refused(3, 1), were_refused(1, 1)),
            ("3 lines was refused".into(), "1 line was refused".into())
        );
    }

    #[test]
    fn only_passing_refusals_are_sent_again() {
        let refused = |code: Code| BatchSubmitResult {
            result: Some(Item::Refusal(Refusal { code: code as i32, ..Default::default() })),
            existing: false,
        };
        assert!(refused_for_now(&refused(Code::Unavailable)));
        assert!(refused_for_now(&refused(Code::ResourceExhausted)));
        assert!(!refused_for_now(&refused(Code::InvalidArgument)));
        assert!(!refused_for_now(&BatchSubmitResult { result: Some(Item::TaskId("t".into())), existing: false }));
        assert!(!refused_for_now(&refused_whole(&Status::out_of_range("too large"))));
    }
}
