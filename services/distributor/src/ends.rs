//! How attempts end: successes in one statement, every other end by the rules of `core::retry`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use millrace_core::{
    held::LeaseRef,
    retry::{OutcomeKind, Spent, Verdict, after_attempt},
    task::State,
};
use millrace_proto::distributor::v1::{self as wire, completion_result::Status as Report};
use millrace_runtime::failpoint;
use millrace_store::{Completed, Completion, HeldRow, Outcome, Requeue, Requeued, StoreError, Waiting};

use tokio::sync::oneshot;

use crate::{convert, sessions::Session, shared::Shared, spec};

/// How long a task waits whose row is held and cannot be read by this build.
const UNREADABLE_WAIT: Duration = Duration::from_secs(60);

/// A completion on its way into the database.
pub(crate) struct End {
    pub(crate) session: Arc<Session>,
    pub(crate) named: wire::LeaseRef,
    pub(crate) lease: LeaseRef,
    pub(crate) outcome: Outcome,
    /// Whoever waits for what became of it, beside the session.
    pub(crate) told: Option<oneshot::Sender<Recorded>>,
}

/// What became of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// In the database, by this call or an earlier one.
    Yes,
    /// The lease is another's now.
    Stale,
    /// The database did not answer.
    Unavailable,
}

/// The completion gate.
pub(crate) fn run(shared: &Arc<Shared>, ends: Vec<End>) {
    let ended: Vec<(LeaseRef, Outcome)> = ends.iter().map(|end| (end.lease, end.outcome.clone())).collect();
    let recorded = record(shared, &ended);
    if failpoint::hit("complete.before_answer").is_some() {
        return;
    }
    let mut by_session: HashMap<u64, (Arc<Session>, Vec<_>)> = HashMap::new();
    for (end, recorded) in ends.into_iter().zip(recorded) {
        let status = match recorded {
            Recorded::Yes => Report::Recorded,
            Recorded::Stale => Report::StaleLease,
            Recorded::Unavailable => Report::Unavailable,
        };
        if let Some(told) = end.told {
            // Whoever asked may have gone.
            let _ = told.send(recorded);
        }
        let over = (recorded != Recorded::Unavailable).then_some(end.lease);
        let result = wire::CompletionResult { lease: Some(end.named), status: status as i32 };
        by_session.entry(end.session.receiver).or_insert_with(|| (end.session, Vec::new())).1.push((over, result));
    }
    for (session, results) in by_session.into_values() {
        session.finish(results, shared.now());
    }
}

/// Records how attempts ended, in the order given. Blocks its thread.
pub(crate) fn record(shared: &Shared, ended: &[(LeaseRef, Outcome)]) -> Vec<Recorded> {
    let mut recorded = vec![Recorded::Unavailable; ended.len()];
    let (good, other): (Vec<usize>, Vec<usize>) =
        (0..ended.len()).partition(|&index| ended[index].1.kind == OutcomeKind::Succeeded);
    let completions: Vec<Completion> = good
        .iter()
        .map(|&index| {
            let (lease, outcome) = ended[index].clone();
            Completion { lease, state: State::Succeeded, outcome, failures: 0, losses: 0 }
        })
        .collect();
    complete(shared, &completions, &good, &mut recorded);
    if !other.is_empty() {
        record_others(shared, ended, other, &mut recorded);
    }
    for (index, (lease, outcome)) in ended.iter().enumerate() {
        if recorded[index] == Recorded::Yes {
            shared.metrics.attempt_ended(outcome.kind);
            shared.outputs.ended(lease.task, shared.now());
            shared.watches.nudge(lease.task);
        }
    }
    recorded
}

/// Ends that are not successes: each is decided by its row. A row that changes between the look and the write (someone
/// cancels it) is decided once more.
fn record_others(shared: &Shared, ended: &[(LeaseRef, Outcome)], mut open: Vec<usize>, recorded: &mut [Recorded]) {
    for _ in 0..3 {
        let leases: Vec<LeaseRef> = open.iter().map(|&index| ended[index].0).collect();
        let Ok(rows) = shared.persist("read_held", leases.len(), |store, _| store.held_rows(&leases)) else { return };
        // By the whole lease: a late end of an earlier attempt must not be taken for one of the current.
        let rows: HashMap<LeaseRef, HeldRow> = rows.into_iter().map(|row| (row.lease, row)).collect();
        let (mut finish, mut finish_at, mut again, mut again_at) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for &index in &open {
            let (lease, outcome) = &ended[index];
            match rows.get(lease) {
                Some(row) => match decide(row, outcome) {
                    Decision::Finish(completion) => {
                        finish.push(*completion);
                        finish_at.push(index);
                    }
                    Decision::Again(requeue) => {
                        again.push(*requeue);
                        again_at.push(index);
                    }
                },
                // Not held any more, or recorded by an earlier try, which the writes tell. A row that is held and cannot
                // be read waits instead of ending.
                None => {
                    again.push(requeue(*lease, outcome.clone(), UNREADABLE_WAIT, Spent::default()));
                    again_at.push(index);
                }
            }
        }
        complete(shared, &finish, &finish_at, recorded);
        open = requeue_all(shared, &again, &again_at, &rows, recorded);
        // What is not held and was not put back before may have been ended before.
        let ended_before: Vec<usize> = again_at
            .into_iter()
            .filter(|&index| recorded[index] == Recorded::Stale && !rows.contains_key(&ended[index].0))
            .collect();
        let looked_up: Vec<Completion> = ended_before
            .iter()
            .map(|&index| completion(ended[index].0, State::Failed, ended[index].1.clone(), Spent::default()))
            .collect();
        complete(shared, &looked_up, &ended_before, recorded);
        if open.is_empty() {
            return;
        }
    }
}

enum Decision {
    Finish(Box<Completion>),
    Again(Box<Requeue>),
}

fn decide(row: &HeldRow, outcome: &Outcome) -> Decision {
    let mut spent = Spent {
        failures: u32::try_from(row.failures).unwrap_or(0),
        losses: u32::try_from(row.losses).unwrap_or(0),
        unsupported: u32::try_from(row.unsupported).unwrap_or(0),
    };
    let policy = spec::retry_policy(&row.spec);
    let lease = row.lease;
    match after_attempt(row.state, outcome.kind, &policy, &mut spent, rand::random()) {
        Ok(Verdict::Finish(state)) => Decision::Finish(Box::new(completion(lease, state, outcome.clone(), spent))),
        Ok(Verdict::Again(wait)) => Decision::Again(Box::new(requeue(lease, outcome.clone(), wait, spent))),
        Err(illegal) => {
            // An orchestrator cannot name the kinds for which this happens; end the task rather than hold it for ever.
            tracing::error!(task = %lease.task, %illegal, "an end that cannot be; the task is failed");
            Decision::Finish(Box::new(completion(lease, State::Failed, outcome.clone(), spent)))
        }
    }
}

fn completion(lease: LeaseRef, state: State, outcome: Outcome, spent: Spent) -> Completion {
    Completion { lease, state, outcome, failures: spent.failures as i32, losses: spent.losses as i32 }
}

fn requeue(lease: LeaseRef, outcome: Outcome, wait: Duration, spent: Spent) -> Requeue {
    Requeue {
        lease,
        outcome,
        wait,
        failures: spent.failures as i32,
        losses: spent.losses as i32,
        unsupported: spent.unsupported as i32,
    }
}

fn complete(shared: &Shared, completions: &[Completion], at: &[usize], recorded: &mut [Recorded]) {
    if completions.is_empty() {
        return;
    }
    let written = shared.persist("complete", completions.len(), |store, _| {
        let written = store.complete(completions);
        match failpoint::hit("complete.after_commit") {
            Some(_) if written.is_ok() => Err(StoreError::UnknownOutcome("fail point".into())),
            _ => written,
        }
    });
    let written = match written {
        Ok(written) => written,
        // One row that makes the server itself fail must not hold up its neighbours (R8).
        Err(error) if !error.is_transient() && completions.len() > 1 => {
            let half = completions.len() / 2;
            complete(shared, &completions[..half], &at[..half], recorded);
            complete(shared, &completions[half..], &at[half..], recorded);
            return;
        }
        Err(_) => return,
    };
    for (index, result) in at.iter().zip(written) {
        recorded[*index] = match result {
            Completed::Recorded => Recorded::Yes,
            Completed::Stale => Recorded::Stale,
        };
    }
}

/// Puts tasks back, offers them, and returns those that are being cancelled and must be decided again.
fn requeue_all(
    shared: &Shared,
    requeues: &[Requeue],
    at: &[usize],
    rows: &HashMap<LeaseRef, HeldRow>,
    recorded: &mut [Recorded],
) -> Vec<usize> {
    let mut undecided = Vec::new();
    if requeues.is_empty() {
        return undecided;
    }
    let written = shared.persist("requeue", requeues.len(), |store, _| store.requeue(requeues));
    for ((requeue, index), result) in requeues.iter().zip(at).zip(written.unwrap_or_default()) {
        match result {
            Requeued::Waiting { ready_at_us } => {
                recorded[*index] = Recorded::Yes;
                if let (Some(ready_at_us), Some(row)) = (ready_at_us, rows.get(&requeue.lease)) {
                    let waiting = Waiting {
                        id: row.lease.task,
                        tenant: row.tenant.clone(),
                        rank: row.rank,
                        ready_at_us,
                        expires_at_us: row.expires_at_us,
                        min_reader: row.min_reader,
                    };
                    shared.links.offer(&row.queue, std::iter::once(convert::offer(&waiting)));
                }
            }
            Requeued::Stale => recorded[*index] = Recorded::Stale,
            Requeued::Cancelling => undecided.push(*index),
        }
    }
    undecided
}

/// An outcome that the distributor itself reports.
pub(crate) fn own_outcome(kind: OutcomeKind, message: &str) -> Outcome {
    Outcome {
        kind,
        exit_code: None,
        signal: None,
        message: message.to_owned(),
        output_tail: Vec::new(),
        output_bytes: 0,
        started_at_us: None,
        ended_at_us: None,
    }
}
