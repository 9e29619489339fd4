//! `millrace doctor`: one screen that says whether work moves, and if not, why.

mod diagnosis;

use std::time::{Duration, SystemTime};

use comfy_table::{Cell, Color};
use millrace_proto::distributor::v1::{GetStatusRequest, GetStatusResponse};
use millrace_proto::queue::v1::Queue;
use serde_json::json;
use tonic::Code;

use self::diagnosis::{Health, Verdict, remarks, verdict};
use super::queue::{all, depth};
use crate::client::{Client, ClientArgs};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::json;
use crate::output::{self, Format, printable};
use crate::time::{ago, short, short_proto};

/// Sessions that fit the screen; the others are counted.
const SESSIONS: usize = 12;

/// Flags of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace doctor
  MILLRACE_DISTRIBUTOR_ENDPOINT=10.0.0.1:7601 MILLRACE_QUEUE_ENDPOINT=10.0.0.2:7602 \\
    millrace doctor
  millrace doctor --output json | jq .stuck

Exit code: 0 when work moves or none waits, 1 when work waits that nothing will move (a paused
queue with work counts), 69 when a service cannot be reached.")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    client: ClientArgs,
}

/// What one look found.
struct Findings {
    endpoint: String,
    status: GetStatusResponse,
    queues: Vec<(Queue, Verdict)>,
    remarks: Vec<String>,
}

impl Findings {
    fn stuck(&self) -> usize {
        self.queues.iter().filter(|(_, verdict)| verdict.health == Health::Stuck).count()
    }
}

/// Looks, tells, and says by the exit code whether work moves.
pub(crate) async fn doctor(args: DoctorArgs) -> Result<(), Failure> {
    let distributor = Client::connect(&args.client, Service::Distributor).await?;
    let status = match distributor.distributor().get_status(GetStatusRequest {}).await {
        Ok(answer) => answer.into_inner(),
        // The distributor is there and cannot work: that is an answer.
        Err(status) if status.code() == Code::Unavailable && std::error::Error::source(&status).is_none() => {
            return Err(Failure::Request(format!(
                "nothing moves: the distributor at {} answers, and its database does not: {}",
                distributor.endpoint(),
                status.message()
            )));
        }
        Err(status) => return Err(distributor.failure(&status)),
    };
    let queues = match Client::connect(&args.client, Service::Queue).await {
        Ok(client) => all(&client).await,
        Err(failure) => Err(failure),
    };
    let (queues, missing) = match queues {
        Ok(queues) => (queues, None),
        Err(failure) => (Vec::new(), Some(failure)),
    };
    let remarks = if missing.is_some() { Vec::new() } else { remarks(&queues, &status) };
    let queues = queues
        .into_iter()
        .map(|queue| {
            let verdict = verdict(&queue, &status);
            (queue, verdict)
        })
        .collect();
    let findings = Findings { endpoint: distributor.endpoint().to_owned(), status, queues, remarks };
    match args.client.output {
        Format::Json => print_json(&findings)?,
        Format::Table => print_screen(&findings)?,
    }
    match (missing, findings.stuck()) {
        // Without the queue service's figures there is no telling; what the distributor knows was printed.
        (Some(failure), _) => Err(failure),
        (None, 0) => Ok(()),
        (None, 1) => Err(Failure::Request("work is stuck in 1 queue".to_owned())),
        (None, stuck) => Err(Failure::Request(format!("work is stuck in {stuck} queues"))),
    }
}

fn health_name(health: Health) -> &'static str {
    match health {
        Health::Idle => "idle",
        Health::Moving => "moving",
        Health::Busy => "busy",
        Health::Stuck => "stuck",
    }
}

/// The contracts' own messages, and the diagnosis beside them.
fn print_json(findings: &Findings) -> Result<(), Failure> {
    let status =
        json::to_value("millrace.distributor.v1.GetStatusResponse", &findings.status).map_err(output::unprintable)?;
    let mut queues = Vec::new();
    for (queue, verdict) in &findings.queues {
        let queue = json::to_value("millrace.queue.v1.Queue", queue).map_err(output::unprintable)?;
        queues.push(json!({"queue": queue, "health": health_name(verdict.health), "why": verdict.why}));
    }
    let report =
        json!({"stuck": findings.stuck() > 0, "status": status, "queues": queues, "remarks": findings.remarks});
    output::line(&report.to_string())
}

fn print_screen(findings: &Findings) -> Result<(), Failure> {
    let status = &findings.status;
    let now = SystemTime::now();
    let latency = status.database_latency.and_then(|latency| Duration::try_from(latency).ok());
    output::print_fields(&[
        ("distributor", format!("{} {}", findings.endpoint, printable(&status.build))),
        ("database", latency.map(|latency| format!("answers in {}", short(latency))).unwrap_or_default()),
        ("schema", printable(&status.schema_version)),
    ])?;

    output::line("\nservices")?;
    let mut members = output::table(&["KIND", "ENDPOINT", "BUILD", "SEEN", "OWNS"]);
    for member in &status.members {
        let owns: Vec<_> = status
            .owners
            .iter()
            .filter(|owner| owner.owner_id == member.id)
            .map(|owner| owner.queue.as_str())
            .collect();
        let seen = member.seen_time.as_ref().map(|seen| format!("{} ago", ago(seen, now))).unwrap_or_default();
        members.add_row(vec![
            printable(&member.kind),
            printable(&member.endpoint),
            printable(&member.build),
            seen,
            owns.join(","),
        ]);
    }
    output::print_table(&members)?;

    output::line("\norchestrators")?;
    let mut sessions = output::table(&["NAME", "QUEUES", "SLOTS", "HELD", "REPLICA", "SEEN"]);
    for session in status.sessions.iter().take(SESSIONS) {
        sessions.add_row(vec![
            printable(&session.name),
            session.queues.join(","),
            session.slots.to_string(),
            session.held.to_string(),
            printable(&session.replica),
            session.seen_time.as_ref().map(|seen| format!("{} ago", ago(seen, now))).unwrap_or_default(),
        ]);
    }
    match status.sessions.len() {
        0 => output::line("none is connected")?,
        _ => output::print_table(&sessions)?,
    }
    if status.sessions.len() > SESSIONS {
        output::line(&format!("and {} more", status.sessions.len() - SESSIONS))?;
    }

    output::line("\nqueues")?;
    output::print_table(&queues_table(&findings.queues))?;
    if !findings.remarks.is_empty() {
        output::line("")?;
    }
    findings.remarks.iter().try_for_each(|remark| output::line(&format!("note: {}", printable(remark))))
}

fn queues_table(queues: &[(Queue, Verdict)]) -> comfy_table::Table {
    let mut table = output::table(&["QUEUE", "VERDICT", "WAITING", "OLDEST", "RUNNING", "WHY"]);
    for (queue, verdict) in queues {
        let stats = queue.stats.clone().unwrap_or_default();
        let colour = match verdict.health {
            Health::Idle => None,
            Health::Moving => Some(Color::Green),
            Health::Busy => Some(Color::Yellow),
            Health::Stuck => Some(Color::Red),
        };
        table.add_row(vec![
            Cell::new(printable(&queue.name)),
            output::coloured(health_name(verdict.health), colour),
            Cell::new(depth(&stats)),
            Cell::new(stats.oldest_age.as_ref().map(short_proto).unwrap_or_default()),
            Cell::new(stats.running),
            Cell::new(printable(&verdict.why)),
        ]);
    }
    table
}
