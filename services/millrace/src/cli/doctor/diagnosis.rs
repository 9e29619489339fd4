//! Decides from one look at the services whether work moves, and if not, why. Pure: a snapshot goes in, a diagnosis
//! comes out.

use std::time::Duration;

use millrace_proto::distributor::v1::{ColumnDrift, GetStatusResponse, SessionStatus};
use millrace_proto::queue::v1::Queue;

use crate::cli::queue::{depth, pause_text};
use crate::output::count;
use crate::time::short;

/// A task that has waited this long while slots are free should have been dispatched long ago.
const LONG: Duration = Duration::from_secs(30);
/// A trivial query that takes this long means a database in trouble.
const SLOW_DATABASE: Duration = Duration::from_secs(1);

/// How a queue does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// Nothing waits.
    Idle,
    /// Work waits and moves.
    Moving,
    /// Every slot is taken; what waits moves as they become free.
    Busy,
    /// Work waits and nothing will move it.
    Stuck,
}

/// How a queue does, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// How.
    pub(crate) health: Health,
    /// Why, for people.
    pub(crate) why: String,
}

/// The verdict about one queue. `coming` tells of nodes that are made for it.
pub(crate) fn verdict(queue: &Queue, status: &GetStatusResponse, coming: Option<String>) -> Verdict {
    let say = |health, why: String| Verdict { health, why };
    let stats = queue.stats.clone().unwrap_or_default();
    if stats.depth == 0 {
        let why = if queue.pause.is_some() { "nothing waits, and it is paused" } else { "nothing waits" };
        return say(Health::Idle, why.to_owned());
    }
    if let Some(pause) = &queue.pause {
        return say(Health::Stuck, format!("{}; `millrace queue resume {}`", pause_text(pause), queue.name));
    }
    let owned = !stats.owner.is_empty()
        || status.owners.iter().any(|owner| owner.queue == queue.name && !owner.owner_id.is_empty());
    if !owned {
        return say(Health::Stuck, "nobody owns it: no queue service or distributor matches its tasks".to_owned());
    }
    let serving: Vec<&SessionStatus> =
        status.sessions.iter().filter(|session| session.queues.contains(&queue.name)).collect();
    if serving.is_empty() {
        if let Some(coming) = coming {
            return say(Health::Moving, coming);
        }
        return say(
            Health::Stuck,
            format!("no orchestrator serves it; `millrace orchestrator --queues {}` starts one", queue.name),
        );
    }
    let slots: i64 = serving.iter().map(|session| i64::from(session.slots)).sum();
    let held: i64 = serving.iter().map(|session| i64::from(session.held)).sum();
    if slots > 0 && held >= slots {
        return say(Health::Busy, taken(held, slots, serving.len()));
    }
    let oldest = stats.oldest_age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
    // The rate is the owner's own; when another process answered, age alone has to do.
    let dispatches = stats.dispatch_rate.is_some_and(|rate| rate > 0.0);
    if oldest < LONG || dispatches {
        return say(Health::Moving, taken(held, slots, serving.len()));
    }
    let free = match slots - held {
        1 => "1 slot is free".to_owned(),
        free => format!("{free} slots are free"),
    };
    match stats.demand {
        Some(0) => say(
            Health::Stuck,
            format!("{free}, but no orchestrator asks for work: do their health checks fail, or do they drain?"),
        ),
        _ => say(
            Health::Stuck,
            format!("{free}, and the oldest task has waited for {}; see `millrace task explain`", short(oldest)),
        ),
    }
}

/// How many of the slots are taken.
fn taken(held: i64, slots: i64, orchestrators: usize) -> String {
    let of = format!("{} of {}", count(slots, "slot"), count(orchestrators, "orchestrator"));
    let verb = if held == 1 { "is" } else { "are" };
    match held >= slots && slots > 1 {
        true => format!("all {of} {verb} taken"),
        false => format!("{held} of {of} {verb} taken"),
    }
}

/// What is not well apart from single queues. Not all of it stops work.
pub(crate) fn remarks(queues: &[Queue], status: &GetStatusResponse) -> Vec<String> {
    let mut remarks = Vec::new();
    let latency = status.database_latency.and_then(|latency| Duration::try_from(latency).ok()).unwrap_or_default();
    if latency >= SLOW_DATABASE {
        remarks.push(format!("the database is slow: a trivial query took {}", short(latency)));
    }
    if status.clock_frozen {
        remarks.push("the lease clock stands still after an outage, so that nobody loses work to it".to_owned());
    }
    if status.quarantined > 0 {
        let set_aside = match status.quarantined {
            1 => "1 row is set aside because it".to_owned(),
            rows => format!("{rows} rows are set aside because they"),
        };
        remarks.push(format!("{set_aside} could not be read; `millrace quarantine list` shows them"));
    }
    for suspect in &status.suspects {
        let since = suspect.since.as_ref().map(|since| format!(" since {since}")).unwrap_or_default();
        let rows = count(suspect.rows_per_minute, "row");
        remarks.push(format!(
            "the deploy of {} is suspect{since}: up to {rows} a minute could not be read; nothing was stopped for it",
            suspect.build
        ));
    }
    remarks.extend(status.drift.iter().map(drifted));
    if let Some(left) = &status.left {
        let example = left.examples.first().map(|row| format!(", such as {}", row.task_id)).unwrap_or_default();
        if left.too_new > 0 {
            let rows = count(u64::try_from(left.too_new).unwrap_or(0), "row");
            remarks.push(format!("{rows} can only be run by a later release{example}"));
        }
        if left.held > 0 {
            let rows = count(u64::try_from(left.held).unwrap_or(0), "row");
            remarks.push(format!("{rows} cannot be read, and an orchestrator has them{example}"));
        }
    }
    if !status.members.is_empty() && !status.members.iter().any(|member| member.kind == "queue") {
        remarks.push("no queue service is a member; a distributor matches in its place".to_owned());
    }
    let mut builds: Vec<&str> = status.members.iter().map(|member| member.build.as_str()).collect();
    builds.sort_unstable();
    builds.dedup();
    if builds.len() > 1 {
        remarks.push(format!("several builds run side by side: {}", builds.join(", ")));
    }
    if queues.is_empty() {
        remarks.push("there is no queue; `millrace queue create` adds one".to_owned());
    }
    for queue in queues.iter().filter(|queue| queue.draining) {
        let stats = queue.stats.clone().unwrap_or_default();
        remarks.push(format!("queue {} drains: {} wait, {} run", queue.name, depth(&stats), stats.running));
    }
    remarks
}

/// What a column is and what it should be.
fn drifted(drift: &ColumnDrift) -> String {
    let ColumnDrift { table, column, expected, found } = drift;
    match found.as_str() {
        "" => format!("the column {table}.{column} is missing; only what needs it suffers"),
        found => format!("the column {table}.{column} is {found}, not {expected}; only what needs it suffers"),
    }
}

#[cfg(test)]
mod tests {
    use millrace_proto::distributor::v1::{Member, QueueOwner, SuspectDeploy};
    use millrace_proto::queue::v1::{Pause, QueueStats};

    use super::*;

    /// A queue in which 5 tasks wait, the oldest for 2 minutes, and which has an owner.
    fn waiting() -> Queue {
        let stats = QueueStats {
            depth: 5,
            oldest_age: Some(prost_types::Duration { seconds: 120, nanos: 0 }),
            owner: "http://q".into(),
            dispatch_rate: Some(0.0),
            demand: Some(1),
            ..Default::default()
        };
        Queue { name: "q".into(), stats: Some(stats), ..Default::default() }
    }

    fn served(slots: i32, held: i32) -> GetStatusResponse {
        let session = SessionStatus { queues: vec!["q".into()], slots, held, ..Default::default() };
        GetStatusResponse { sessions: vec![session], ..Default::default() }
    }

    fn with(change: impl FnOnce(&mut Queue, &mut QueueStats)) -> Queue {
        let mut queue = waiting();
        let mut stats = queue.stats.take().unwrap();
        change(&mut queue, &mut stats);
        queue.stats = Some(stats);
        queue
    }

    fn verdict(queue: &Queue, status: &GetStatusResponse) -> Verdict {
        super::verdict(queue, status, None)
    }

    #[test]
    fn an_empty_queue_is_idle_even_when_nobody_serves_it() {
        let queue = with(|_, stats| stats.depth = 0);
        assert_eq!(verdict(&queue, &GetStatusResponse::default()).health, Health::Idle);
    }

    #[test]
    fn a_paused_queue_with_work_is_stuck_and_says_why() {
        let queue = with(|queue, _| queue.pause = Some(Pause { reason: "upgrade".into(), ..Default::default() }));
        let verdict = verdict(&queue, &served(4, 0));
        assert_eq!(verdict.health, Health::Stuck);
        assert!(verdict.why.contains("paused: upgrade") && verdict.why.contains("queue resume q"), "{}", verdict.why);
    }

    #[test]
    fn a_queue_without_owner_is_stuck_whoever_knows() {
        let queue = with(|_, stats| stats.owner.clear());
        let mut status = served(4, 0);
        assert!(verdict(&queue, &status).why.contains("nobody owns it"));
        status.owners = vec![QueueOwner { queue: "q".into(), ..Default::default() }];
        assert!(verdict(&queue, &status).why.contains("nobody owns it"));
        status.owners[0].owner_id = "m".into();
        assert!(!verdict(&queue, &status).why.contains("nobody owns it"));
    }

    #[test]
    fn a_queue_that_no_orchestrator_serves_is_stuck() {
        let mut status = served(4, 0);
        status.sessions[0].queues = vec!["other".into()];
        let verdict = verdict(&waiting(), &status);
        assert_eq!(verdict.health, Health::Stuck);
        assert!(verdict.why.contains("no orchestrator serves it"), "{}", verdict.why);
        let coming = super::verdict(&waiting(), &status, Some("nodes are on the way".into()));
        assert_eq!((coming.health, coming.why.as_str()), (Health::Moving, "nodes are on the way"));
    }

    #[test]
    fn full_slots_are_busy_and_not_stuck() {
        let verdict = verdict(&waiting(), &served(4, 4));
        assert_eq!((verdict.health, verdict.why.as_str()), (Health::Busy, "all 4 slots of 1 orchestrator are taken"));
        assert_eq!(taken(1, 1, 1), "1 of 1 slot of 1 orchestrator is taken");
    }

    #[test]
    fn free_slots_and_old_work_are_stuck_unless_something_is_dispatched() {
        assert!(
            verdict(&waiting(), &served(4, 1))
                .why
                .contains("3 slots are free, and the oldest task has waited for 2m00s")
        );
        let no_demand = with(|_, stats| stats.demand = Some(0));
        assert!(verdict(&no_demand, &served(4, 1)).why.contains("no orchestrator asks for work"));
        let dispatching = with(|_, stats| stats.dispatch_rate = Some(0.5));
        assert_eq!(verdict(&dispatching, &served(4, 1)).health, Health::Moving);
        let young = with(|_, stats| stats.oldest_age = Some(prost_types::Duration { seconds: 2, nanos: 0 }));
        assert_eq!(verdict(&young, &served(4, 1)).health, Health::Moving);
        let not_the_owner = with(|_, stats| (stats.dispatch_rate, stats.demand) = (None, None));
        assert_eq!(verdict(&not_the_owner, &served(4, 1)).health, Health::Stuck);
    }

    #[test]
    fn remarks_tell_what_an_operator_should_know() {
        let member = |kind: &str, build: &str| Member { kind: kind.into(), build: build.into(), ..Default::default() };
        let status = GetStatusResponse {
            members: vec![member("distributor", "1"), member("distributor", "2")],
            clock_frozen: true,
            quarantined: 3,
            suspects: vec![SuspectDeploy { build: "2".into(), rows_per_minute: 40, ..Default::default() }],
            drift: vec![ColumnDrift {
                table: "tasks".into(),
                column: "rank".into(),
                expected: "integer".into(),
                found: "text".into(),
            }],
            database_latency: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            ..Default::default()
        };
        let text = remarks(&[], &status).join("\n");
        let suspect = "the deploy of 2 is suspect: up to 40 rows a minute";
        let drift = "tasks.rank is text, not integer";
        for part in
            ["slow", "stands still", "3 rows", suspect, drift, "no queue service", "several builds", "no queue;"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(remarks(&[waiting()], &GetStatusResponse::default()).is_empty());
    }
}
