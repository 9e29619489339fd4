//! `task get`, `list`, `watch` and `explain`.

use std::time::SystemTime;

use comfy_table::{Cell, Color};
use millrace_proto::common::v1::{TaskSpec, TaskState};
use millrace_proto::distributor::v1::{
    Defect, ExplainTaskRequest, ExplainTaskResponse, GetTaskRequest, ListTasksRequest, Task, WatchTaskResponse,
    explanation::Reason, watch_task_response::Event,
};
use prost::Message;

use super::flags::{label_map, parse_pair};
use super::follow::{Following, follow};
use super::outcome::{describe, state_name};
use super::run::{Show, state_line};
use super::{TASK, readable, summary};
use crate::client::{Client, ClientArgs};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::output::{self, Format};
use crate::time::{ago, between, short, short_proto};

/// The most that one page of a list holds.
const PAGE: usize = 1000;

/// Flags of `task get`.
#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The task.
    #[arg(value_name = "ID")]
    id: String,
}

/// Flags of `task explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The task.
    #[arg(value_name = "ID")]
    id: String,
}

/// Flags of `task watch`.
#[derive(Debug, clap::Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The task.
    #[arg(value_name = "ID")]
    id: String,
    /// Only states, no output.
    #[arg(long)]
    no_output: bool,
}

/// Flags of `task list`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Only this tenant's.
    #[arg(long, value_name = "NAME", default_value = "")]
    tenant: String,
    /// Only this queue's.
    #[arg(long, value_name = "NAME", default_value = "")]
    queue: String,
    /// Only in this state; may be given many times.
    #[arg(long = "state", value_name = "STATE", value_parser = parse_state)]
    states: Vec<TaskState>,
    /// Only with this label; may be given many times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_pair)]
    labels: Vec<(String, String)>,
    /// How many at most; 0 means all.
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    limit: usize,
}

fn parse_state(text: &str) -> Result<TaskState, String> {
    let name = format!("TASK_STATE_{}", text.to_ascii_uppercase());
    TaskState::from_str_name(&name).filter(|state| *state != TaskState::Unspecified).ok_or_else(|| {
        let known =
            (1..=10).filter_map(|number| TaskState::try_from(number).ok()).map(|state| state_name(state.into()));
        format!("there is no state '{text}'; there are {}", known.collect::<Vec<_>>().join(", "))
    })
}

/// Shows one task.
pub(crate) async fn get(args: GetArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let request = GetTaskRequest { id: args.id };
    let answer = client.read(|| {
        let (mut calls, request) = (client.distributor(), request.clone());
        async move { calls.get_task(request).await }
    });
    let answer = answer.await?;
    let task = answer.task.unwrap_or_default();
    match args.client.output {
        Format::Json => output::json_line(TASK, &readable(&task)),
        Format::Table => print_one(&task),
    }
}

/// Lists tasks, page by page.
pub(crate) async fn list(args: ListArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let mut request = ListTasksRequest {
        tenant: args.tenant,
        queue: args.queue,
        states: args.states.into_iter().map(Into::into).collect(),
        labels: label_map(args.labels),
        ..Default::default()
    };
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let mut shown = 0;
    let mut table = tasks_table();
    while shown < limit {
        request.page_size = i32::try_from(PAGE.min(limit - shown)).unwrap_or(0);
        let page = client.read(|| {
            let (mut calls, request) = (client.distributor(), request.clone());
            async move { calls.list_tasks(request).await }
        });
        let page = page.await?;
        for task in &page.tasks {
            match args.client.output {
                Format::Json => output::json_line(TASK, &readable(task))?,
                Format::Table => add_row(&mut table, task),
            }
        }
        shown += page.tasks.len();
        // Whole pages are printed as they come: a list of everything need not fit in memory.
        if args.client.output == Format::Table && table.row_count() >= PAGE {
            output::print_table(&table)?;
            table = tasks_table();
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    if args.client.output == Format::Table {
        finish_list(&table, shown, !request.page_token.is_empty())?;
    }
    Ok(())
}

fn finish_list(table: &comfy_table::Table, shown: usize, more: bool) -> Result<(), Failure> {
    if shown == 0 {
        eprintln!("no task matches");
    } else if table.row_count() > 0 {
        output::print_table(table)?;
    }
    if more {
        eprintln!("there may be more; --limit 0 lists all");
    }
    Ok(())
}

fn tasks_table() -> comfy_table::Table {
    output::table(&["ID", "STATE", "QUEUE", "TENANT", "AGE", "ATTEMPT", "END", "WHAT"])
}

fn add_row(table: &mut comfy_table::Table, task: &Task) {
    let spec = TaskSpec::decode(task.spec.clone()).unwrap_or_default();
    let age = task.create_time.as_ref().map(|time| ago(time, SystemTime::now())).unwrap_or_default();
    let end = match (&task.outcome, &task.quarantine) {
        (Some(outcome), _) => describe(outcome),
        (None, Some(quarantine)) => defect(quarantine.defect.as_ref()),
        (None, None) => String::new(),
    };
    let end = output::cut(&end, 40);
    let tenant = tenant_of(task, &spec);
    table.add_row(vec![
        Cell::new(&task.id),
        output::coloured(&state_name(task.state), state_colour(task.state)),
        Cell::new(output::printable(&task.queue)),
        Cell::new(output::printable(tenant)),
        Cell::new(age),
        Cell::new(if task.attempt > 0 { task.attempt.to_string() } else { String::new() }),
        Cell::new(end),
        Cell::new(summary(&spec, 48)),
    ]);
}

/// The tenant as the row has it: the spec may be unreadable, and an older service does not say.
fn tenant_of<'a>(task: &'a Task, spec: &'a TaskSpec) -> &'a str {
    let named = [task.tenant.as_str(), spec.tenant.as_str()];
    named.into_iter().find(|tenant| !tenant.is_empty()).unwrap_or("default")
}

/// Green for what goes well, red for what needs a look, none for what waits.
fn state_colour(state: i32) -> Option<Color> {
    match TaskState::try_from(state) {
        Ok(TaskState::Succeeded) => Some(Color::Green),
        Ok(TaskState::Running | TaskState::Dispatched) => Some(Color::Cyan),
        Ok(TaskState::Failed | TaskState::Expired | TaskState::Quarantined) => Some(Color::Red),
        Ok(TaskState::Cancelled | TaskState::Cancelling) => Some(Color::Yellow),
        _ => None,
    }
}

/// Prints a task in full.
fn print_one(task: &Task) -> Result<(), Failure> {
    let spec = TaskSpec::decode(task.spec.clone()).unwrap_or_default();
    let now = SystemTime::now();
    let at = |time: &Option<prost_types::Timestamp>| match time {
        Some(time) => format!("{time} ({})", ago(time, now)),
        None => String::new(),
    };
    let duration = |value: &Option<prost_types::Duration>| value.as_ref().map(short_proto).unwrap_or_default();
    let count = |value: i32| if value > 0 { value.to_string() } else { String::new() };
    let ran = between(task.start_time.as_ref(), task.finish_time.as_ref()).map(short).unwrap_or_default();
    output::print_fields(&[
        ("id", task.id.clone()),
        ("state", state_name(task.state)),
        ("set aside", task.quarantine.as_ref().map(|quarantine| at(&quarantine.since)).unwrap_or_default()),
        ("because", task.quarantine.as_ref().map(|quarantine| defect(quarantine.defect.as_ref())).unwrap_or_default()),
        ("ignored", task.ignored.iter().map(|one| defect(Some(one))).collect::<Vec<_>>().join("; ")),
        ("outcome", task.outcome.as_ref().map(describe).unwrap_or_default()),
        ("runs", summary(&spec, 200)),
        ("queue", output::printable(&task.queue)),
        ("tenant", output::printable(tenant_of(task, &spec))),
        ("executor", output::printable(&spec.executor)),
        ("resource class", output::printable(&spec.resource_class)),
        ("labels", output::printable(&output::labels(&spec.labels))),
        ("priority", spec.priority.map(|priority| priority.to_string()).unwrap_or_default()),
        ("concurrency key", output::printable(&spec.concurrency_key)),
        ("timeout", duration(&spec.timeout)),
        ("exclusive", if spec.exclusive { "yes".to_owned() } else { String::new() }),
        ("attempt", count(task.attempt)),
        ("failures", count(task.failures)),
        ("losses", count(task.losses)),
        ("orchestrator", output::printable(&task.orchestrator)),
        ("session", task.session_id.clone()),
        ("created", at(&task.create_time)),
        ("waits until", at(&task.wake_time)),
        ("ready", at(&task.ready_time)),
        ("expires", at(&task.expire_time)),
        ("dispatched", at(&task.dispatch_time)),
        ("started", at(&task.start_time)),
        ("finished", at(&task.finish_time)),
        ("ran for", ran),
        ("traceparent", output::printable(&task.traceparent)),
    ])?;
    print_attempts(task)?;
    print_tail(task)
}

/// What cannot be read of a row.
fn defect(defect: Option<&Defect>) -> String {
    defect.map(|Defect { column, error }| output::printable(&format!("{column} {error}"))).unwrap_or_default()
}

fn print_attempts(task: &Task) -> Result<(), Failure> {
    if task.attempts.is_empty() {
        return Ok(());
    }
    output::line("\nearlier attempts")?;
    let mut table = output::table(&["ATTEMPT", "ORCHESTRATOR", "DISPATCHED", "TOOK", "END"]);
    for attempt in &task.attempts {
        table.add_row(vec![
            attempt.attempt.to_string(),
            output::printable(&attempt.orchestrator),
            attempt.dispatch_time.as_ref().map(ToString::to_string).unwrap_or_default(),
            between(attempt.dispatch_time.as_ref(), attempt.end_time.as_ref()).map(short).unwrap_or_default(),
            attempt.outcome.as_ref().map(describe).unwrap_or_default(),
        ]);
    }
    output::print_table(&table)
}

/// Prints the kept end of the output, with control characters escaped, as it is shown and not run.
fn print_tail(task: &Task) -> Result<(), Failure> {
    let Some(outcome) = task.outcome.as_ref().filter(|outcome| !outcome.output_tail.is_empty()) else { return Ok(()) };
    let kept = outcome.output_tail.len();
    output::line(&format!("\noutput (the last {kept} of {})", output::count(outcome.output_bytes, "byte")))?;
    for text in String::from_utf8_lossy(&outcome.output_tail).lines() {
        output::line(&output::printable(text))?;
    }
    Ok(())
}

/// Follows a task.
pub(crate) async fn watch(args: WatchArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let mut show = Show::new(args.client.output, true);
    let only_states = args.no_output && args.client.output == Format::Table;
    let mut last = None;
    let mut on_event = |event: &WatchTaskResponse| match &event.event {
        Some(Event::Task(task)) if only_states => {
            let now = (task.state, task.attempt);
            if last.replace(now) == Some(now) { Ok(()) } else { output::line(&state_line(task)) }
        }
        _ => show.event(event),
    };
    let following = Following { id: &args.id, without_output: args.no_output, quietly: false, known: false };
    let ended = follow(&client, following, &mut on_event).await?;
    if args.client.output == Format::Table && !args.no_output {
        show.printer.rest(&ended)?;
    }
    Ok(())
}

/// Tells why a task is not running.
pub(crate) async fn explain(args: ExplainArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let request = ExplainTaskRequest { id: args.id };
    let answer = client.read(|| {
        let (mut calls, request) = (client.distributor(), request.clone());
        async move { calls.explain_task(request).await }
    });
    let mut answer = answer.await?;
    if args.client.output == Format::Json {
        answer.task = answer.task.as_ref().map(readable);
        return output::json_line("millrace.distributor.v1.ExplainTaskResponse", &answer);
    }
    for line in explanation_lines(&answer) {
        output::line(&line)?;
    }
    Ok(())
}

/// The state first, then each reason, the most decisive first.
fn explanation_lines(answer: &ExplainTaskResponse) -> Vec<String> {
    let task = answer.task.clone().unwrap_or_default();
    let reasons = answer.explanations.iter().map(|explanation| {
        let message = output::printable(&explanation.message);
        match Reason::try_from(explanation.reason) {
            Ok(reason) => {
                let name = reason.as_str_name().trim_start_matches("REASON_").to_ascii_lowercase().replace('_', " ");
                format!("  {name}: {message}")
            }
            Err(_) => format!("  {message}"),
        }
    });
    std::iter::once(state_line(&task)).chain(reasons).collect()
}

#[cfg(test)]
mod tests {
    use millrace_proto::distributor::v1::Explanation;

    use super::*;

    #[test]
    fn states_are_named_as_they_are_shown() {
        assert_eq!(parse_state("queued"), Ok(TaskState::Queued));
        assert_eq!(parse_state("Running"), Ok(TaskState::Running));
        let error = parse_state("unspecified").unwrap_err();
        assert!(error.contains("scheduled, queued, dispatched"), "{error}");
    }

    #[test]
    fn an_explanation_names_its_reason() {
        let explanation = |reason, message: &str| Explanation { reason, message: message.into() };
        let answer = ExplainTaskResponse {
            task: Some(Task { id: "t".into(), state: TaskState::Queued.into(), ..Default::default() }),
            explanations: vec![explanation(2, "queue default is paused: upgrade"), explanation(99, "something new")],
        };
        assert_eq!(
            explanation_lines(&answer),
            ["task t is queued", "  queue paused: queue default is paused: upgrade", "  something new"]
        );
    }

    #[test]
    fn a_task_without_anything_has_a_row() {
        let mut table = tasks_table();
        add_row(&mut table, &Task::default());
        assert_eq!(table.row_count(), 1);
    }
}
