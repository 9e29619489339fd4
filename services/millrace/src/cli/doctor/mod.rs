//! `millrace doctor`: one screen that says whether work moves, and if not, why.

mod diagnosis;
mod fleet;
mod probe;

use std::time::{Duration, SystemTime};

use comfy_table::{Cell, Color};
use millrace_proto::distributor::v1::GetStatusResponse;
use millrace_proto::queue::v1::Queue;
use serde_json::{Value, json};

use self::diagnosis::{Health, Verdict, remarks, verdict};
use self::fleet::{Fleets, on_the_way, scalers};
use self::probe::{Probe, Told, distributors, queue_services};
use super::queue::{depth, table};
use crate::client::ClientArgs;
use crate::exit::Failure;
use crate::json;
use crate::output::{self, Format, count, printable};
use crate::time::{ago, newest, short, short_proto};

/// Sessions that fit the screen; the others are counted.
const SESSIONS: usize = 12;

/// Flags of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace doctor
  MILLRACE_DISTRIBUTOR_ENDPOINT=10.0.0.1:7601,10.0.0.3:7601 MILLRACE_QUEUE_ENDPOINT=10.0.0.2:7602 \\
    millrace doctor
  millrace doctor --output json | jq .stuck

Every endpoint is asked and has its line; the figures come from the first of each service that
answers. Of a scaler, where there is one, the pools are shown and what keeps them back; it never
changes the exit code, since work goes on without it. Exit code: 0 when work moves or none waits, 1 when work waits that nothing will move (a
paused queue with work counts) or the database does not answer, 69 when no endpoint of a service
answers.")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    client: ClientArgs,
}

/// What one look found.
struct Findings {
    distributors: Vec<Probe<Told>>,
    queue_services: Vec<Probe<Vec<Queue>>>,
    /// None where there is no scaler.
    scalers: Vec<Probe<Fleets>>,
}

/// What follows from it, when both services answer.
struct Diagnosis {
    queues: Vec<(Queue, Verdict)>,
    remarks: Vec<String>,
}

impl Diagnosis {
    fn stuck(&self) -> usize {
        self.queues.iter().filter(|(_, verdict)| verdict.health == Health::Stuck).count()
    }
}

impl Findings {
    /// What the first distributor that answers tells.
    fn told(&self) -> Option<&Told> {
        self.distributors.iter().find_map(|probe| probe.answer.as_ref().ok()).map(|(told, _)| told)
    }

    /// What the first queue service that answers tells.
    fn queues(&self) -> Option<&Vec<Queue>> {
        self.queue_services.iter().find_map(|probe| probe.answer.as_ref().ok()).map(|(queues, _)| queues)
    }

    /// What the first scaler that answers tells.
    fn fleets(&self) -> Option<&Fleets> {
        self.scalers.iter().find_map(|probe| probe.answer.as_ref().ok()).map(|(fleets, _)| fleets)
    }

    fn diagnosis(&self) -> Option<Diagnosis> {
        let (told, queues) = (self.told()?, self.queues()?);
        let pools = self.fleets().map_or(&[][..], |fleets| &fleets.pools);
        let verdicts = queues.iter().map(|queue| {
            let coming = on_the_way(pools, &queue.name);
            (queue.clone(), verdict(queue, &told.status, coming))
        });
        let mut remarks = remarks(queues, &told.status);
        match self.fleets() {
            Some(fleets) => remarks.extend(fleet::remarks(fleets)),
            None if !self.scalers.is_empty() => remarks.push("no scaler answers: fleets stay as they are".to_owned()),
            None => {}
        }
        Some(Diagnosis { queues: verdicts.collect(), remarks })
    }

    /// Why there is no diagnosis: what the first endpoint of a service said, when no other of them answers either.
    fn missing(self) -> Option<Failure> {
        let told = self.told().is_some();
        let distributor = self.distributors.into_iter().find_map(|probe| probe.answer.err()).filter(|_| !told);
        let listed = self.queue_services.iter().any(|probe| probe.answer.is_ok());
        let queue = self.queue_services.into_iter().find_map(|probe| probe.answer.err()).filter(|_| !listed);
        distributor.or(queue).map(|wrong| wrong.failure)
    }
}

/// Looks, tells, and says by the exit code whether work moves.
pub(crate) async fn doctor(args: DoctorArgs) -> Result<(), Failure> {
    // At the same time: one that is silent must not make what another told look old.
    let (distributors, queue_services, scalers) =
        tokio::try_join!(distributors(&args.client), queue_services(&args.client), scalers(&args.client))?;
    let findings = Findings { distributors, queue_services, scalers };
    let diagnosis = findings.diagnosis();
    match args.client.output {
        Format::Json => print_json(&findings, diagnosis.as_ref())?,
        Format::Table => print_screen(&findings, diagnosis.as_ref())?,
    }
    match diagnosis.as_ref().map(Diagnosis::stuck) {
        Some(0) => Ok(()),
        Some(stuck) => Err(Failure::Request(format!("work is stuck in {}", count(stuck, "queue")))),
        None => findings.missing().map_or(Ok(()), Err),
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

/// The contracts' own messages, and the diagnosis beside them; null is what is not known.
fn print_json(findings: &Findings, diagnosis: Option<&Diagnosis>) -> Result<(), Failure> {
    let services: Vec<Value> = findings.distributors.iter().map(Probe::json).collect();
    let queue_services = findings.queue_services.iter().map(Probe::json).collect();
    let services = [services, queue_services, findings.scalers.iter().map(Probe::json).collect()].concat();
    let status = findings.told().map(|told| json::to_value("millrace.distributor.v1.GetStatusResponse", &told.status));
    let mut queues = Vec::new();
    for queue in findings.queues().into_iter().flatten() {
        let of = diagnosis.and_then(|all| all.queues.iter().find(|(one, _)| one.name == queue.name));
        let (health, why) =
            of.map_or((None, None), |(_, verdict)| (Some(health_name(verdict.health)), Some(&verdict.why)));
        let queue = json::to_value("millrace.queue.v1.Queue", queue).map_err(output::unprintable)?;
        queues.push(json!({"queue": queue, "health": health, "why": why}));
    }
    let report = json!({
        "stuck": diagnosis.map(|diagnosis| diagnosis.stuck() > 0),
        "services": services,
        "status": status.transpose().map_err(output::unprintable)?,
        "queues": queues,
        "pools": findings.fleets().map(pools_json).transpose()?,
        "providers": findings.fleets().map(providers_json).transpose()?,
        "remarks": diagnosis.map(|diagnosis| &diagnosis.remarks),
    });
    output::line(&report.to_string())
}

/// The pools in the contracts' own form.
fn pools_json(fleets: &Fleets) -> Result<Vec<Value>, Failure> {
    let pools = fleets.pools.iter().map(|pool| json::to_value(super::pool::POOL, pool));
    pools.map(|pool| pool.map_err(output::unprintable)).collect()
}

/// The providers in the contracts' own form.
fn providers_json(fleets: &Fleets) -> Result<Vec<Value>, Failure> {
    let providers = fleets.providers.values();
    let providers = providers.map(|provider| json::to_value("millrace.scaler.v1.ProviderStatus", provider));
    providers.map(|provider| provider.map_err(output::unprintable)).collect()
}

fn print_screen(findings: &Findings, diagnosis: Option<&Diagnosis>) -> Result<(), Failure> {
    let mut services = output::table(&["SERVICE", "ENDPOINT", "ANSWER"]);
    let mut add = |service: &str, endpoint: &str, (text, well): (String, bool)| {
        let colour = if well { Color::Green } else { Color::Red };
        let answer = output::coloured(&printable(&text), Some(colour));
        services.add_row(vec![Cell::new(service), Cell::new(endpoint), answer]);
    };
    findings
        .distributors
        .iter()
        .for_each(|one| add(one.service.name(), &one.endpoint, (one.text(), one.answer.is_ok())));
    findings
        .queue_services
        .iter()
        .for_each(|one| add(one.service.name(), &one.endpoint, (one.text(), one.answer.is_ok())));
    findings.scalers.iter().for_each(|one| add(one.service.name(), &one.endpoint, (one.text(), one.answer.is_ok())));
    output::print_table(&services)?;
    if let Some(told) = findings.told() {
        print_status(told)?;
    }
    if let Some(fleets) = findings.fleets().filter(|fleets| !fleets.pools.is_empty()) {
        output::line("\npools")?;
        output::print_table(&super::pool::table(&fleets.pools))?;
    }
    match (diagnosis, findings.queues()) {
        (Some(diagnosis), _) => {
            output::line("\nqueues")?;
            output::print_table(&queues_table(&diagnosis.queues))?;
            if !diagnosis.remarks.is_empty() {
                output::line("")?;
            }
            diagnosis.remarks.iter().try_for_each(|remark| output::line(&format!("note: {}", printable(remark))))
        }
        // Without a distributor there is no telling whether they move.
        (None, Some(queues)) => {
            output::line("\nqueues")?;
            output::print_table(&table(queues))
        }
        (None, None) => Ok(()),
    }
}

/// What the distributor tells of the cluster.
fn print_status(told: &Told) -> Result<(), Failure> {
    let status = &told.status;
    let latency = status.database_latency.and_then(|latency| Duration::try_from(latency).ok());
    output::line("")?;
    output::print_fields(&[
        ("database", latency.map(|latency| format!("answers in {}", short(latency))).unwrap_or_default()),
        ("schema", printable(&status.schema_version)),
        ("build", printable(&status.build)),
    ])?;
    let now = now_there(told);
    print_members(status, now)?;
    print_sessions(status, now)
}

/// The moment of the answer, to which ages count. The times in it are the database's own: where this machine's clock is
/// behind, the newest of them is the best that is known of the database's.
fn now_there(told: &Told) -> SystemTime {
    let members = told.status.members.iter().filter_map(|member| member.seen_time.as_ref());
    let sessions = told.status.sessions.iter().filter_map(|session| session.seen_time.as_ref());
    newest(members.chain(sessions)).map_or(told.at, |newest| newest.max(told.at))
}

fn print_members(status: &GetStatusResponse, now: SystemTime) -> Result<(), Failure> {
    output::line("\nmembers")?;
    let mut members = output::table(&["KIND", "ENDPOINT", "BUILD", "SEEN", "OWNS"]);
    for member in &status.members {
        let owns = status.owners.iter().filter(|owner| owner.owner_id == member.id).map(|owner| owner.queue.as_str());
        members.add_row(vec![
            printable(&member.kind),
            printable(&member.endpoint),
            printable(&member.build),
            member.seen_time.as_ref().map(|seen| format!("{} ago", ago(seen, now))).unwrap_or_default(),
            printable(&owns.collect::<Vec<_>>().join(",")),
        ]);
    }
    output::print_table(&members)
}

fn print_sessions(status: &GetStatusResponse, now: SystemTime) -> Result<(), Failure> {
    output::line("\norchestrators")?;
    let mut sessions = output::table(&["NAME", "QUEUES", "SLOTS", "HELD", "REPLICA", "SEEN"]);
    for session in status.sessions.iter().take(SESSIONS) {
        sessions.add_row(vec![
            printable(&session.name),
            printable(&session.queues.join(",")),
            session.slots.to_string(),
            session.held.to_string(),
            printable(&session.replica),
            session.seen_time.as_ref().map(|seen| format!("{} ago", ago(seen, now))).unwrap_or_default(),
        ]);
    }
    match status.sessions.len() {
        0 => output::line("none is connected"),
        all if all > SESSIONS => {
            output::print_table(&sessions)?;
            output::line(&format!("and {} more", all - SESSIONS))
        }
        _ => output::print_table(&sessions),
    }
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

#[cfg(test)]
mod tests {
    use millrace_proto::distributor::v1::Member;

    use super::*;

    #[test]
    fn ages_count_to_the_answer_and_never_lie_ahead() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let told = |seen: i64| {
            let seen_time = Some(prost_types::Timestamp { seconds: seen, nanos: 0 });
            let member = Member { seen_time, ..Default::default() };
            Told { status: GetStatusResponse { members: vec![member], ..Default::default() }, at }
        };
        assert_eq!(now_there(&told(997)), at);
        // The database's clock is a minute ahead of this machine's.
        assert_eq!(now_there(&told(1060)), at + Duration::from_secs(60));
    }
}
