//! An orchestrator's stream: hello, then whatever it sends, until it leaves or this replica does.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use millrace_core::{
    held::LeaseRef,
    id::{SessionId, is_name},
    retry::OutcomeKind,
    served::LEASE_SLACK,
};
use millrace_proto::distributor::v1::{
    self as wire, completion_result::Status as Report, connect_orchestrator_request::Message,
};
use millrace_runtime::{
    failpoint,
    status::{Fault, Violations},
};
use millrace_store::{Dispatch, NewSession, Resumed, SessionRow};
use tokio::sync::oneshot;
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::Answers;
use crate::{
    beats::Beat,
    claims::assignable,
    convert, ends,
    ends::{End, Recorded},
    notices,
    output::MAX_CHUNK,
    sessions::Session,
    shared::Shared,
    spec,
};

/// How long an orchestrator may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

/// Completions in one message.
const MAX_COMPLETIONS: usize = 1000;

const SHORTEST_LEASE: Duration = Duration::from_secs(5);
const LONGEST_LEASE: Duration = Duration::from_secs(600);
const DEFAULT_LEASE: Duration = Duration::from_secs(15);
const MAX_QUEUES: usize = 64;
const MAX_SLOTS: i32 = 100_000;

type Inbound = Streaming<wire::ConnectOrchestratorRequest>;

pub(super) async fn connect(
    shared: &Arc<Shared>,
    mut inbound: Inbound,
) -> Result<Answers<wire::ConnectOrchestratorResponse>, Status> {
    if shared.context.shutdown.is_draining() {
        return Err(Fault::unavailable("this replica is stopping", Duration::from_millis(500)).into());
    }
    if shared.sessions.len() >= shared.settings.max_sessions {
        let message = "this replica has as many orchestrators as it takes";
        return Err(Fault::exhausted("TOO_MANY_SESSIONS", message, Duration::from_secs(5)).into());
    }
    let first = tokio::time::timeout(HELLO, inbound.message()).await;
    let hello = match first.map_err(|_| Fault::of(tonic::Code::DeadlineExceeded, "no Hello within 10 s"))?? {
        Some(wire::ConnectOrchestratorRequest { message: Some(Message::Hello(hello)) }) => hello,
        _ => return Err(Fault::precondition("HELLO_FIRST", "the first message must be a Hello").into()),
    };
    let (session, welcome) = greet(shared, hello).await?;
    tokio::spawn(serve(shared.clone(), session.clone(), inbound));
    if shared.context.shutdown.is_draining() {
        // The drain may have passed before this session was there to be asked.
        session.go_away(notices::go_away("this replica is stopping", shared.other_replica()));
    }
    let welcome = wire::ConnectOrchestratorResponse {
        message: Some(wire::connect_orchestrator_response::Message::Welcome(welcome)),
    };
    let guard = Leaving { shared: shared.clone(), session };
    let messages = stream::unfold(guard, |guard| async move {
        guard.session.next().await.map(|messages| (stream::iter(messages), guard))
    });
    Ok(Box::pin(stream::once(async { Ok(welcome) }).chain(messages.flatten())))
}

/// Ends the session's stay when the answer stream is dropped, which is how a lost connection shows.
struct Leaving {
    shared: Arc<Shared>,
    session: Arc<Session>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        leave(&self.shared, &self.session);
    }
}

fn leave(shared: &Shared, session: &Session) {
    session.end(None);
    if shared.sessions.leave(session) {
        // What it goes on to write comes through another replica, or here again after a resume.
        for lease in session.leases() {
            shared.outputs.ended(lease.task, shared.now());
        }
    }
    shared.links.demand(session.receiver, &session.queues);
}

/// Opens or resumes the session.
async fn greet(shared: &Arc<Shared>, mut hello: wire::Hello) -> Result<(Arc<Session>, wire::Welcome), Status> {
    let (named, unreadable) = convert::leases(std::mem::take(&mut hello.held));
    let named: BTreeSet<LeaseRef> = named.into_iter().collect();
    let (row, held) = match hello.session_id.as_str() {
        "" => (open(shared, &hello).await?, Vec::new()),
        id => resume(shared, convert::session_id(id, "session_id")?, hello.generation).await?,
    };
    let revoked: Vec<wire::LeaseRef> = {
        let known: BTreeSet<LeaseRef> = held.iter().map(|dispatch| dispatch.lease).collect();
        if let Some(first) = unreadable.first() {
            let (task, count) = (&first.task_id, unreadable.len());
            tracing::warn!(session = %row.session.id, task, count, "an orchestrator holds attempts that cannot be any");
        }
        named.difference(&known).copied().map(convert::lease_ref).chain(unreadable).collect()
    };
    let entered =
        shared.sessions.enter(row.session.id, row.generation, row.session.name.clone(), row.session.queues.clone());
    let Some(session) = entered else { return Err(notices::session_moved()) };
    session.restore(&held, &named, shared.now());
    let missing: Vec<Dispatch> = held.into_iter().filter(|dispatch| !named.contains(&dispatch.lease)).collect();
    if !missing.is_empty() {
        session.send_again(missing, shared.now());
    }
    tracing::info!(session = %session.id, name = session.name, generation = row.generation, "an orchestrator is here");
    // Told what it asked for: what the database adds to it is the margin that R16 needs.
    let ttl = Duration::from_millis(u64::try_from(row.session.ttl_ms).unwrap_or(0)).saturating_sub(LEASE_SLACK);
    let welcome = wire::Welcome {
        session_id: row.session.id.to_string(),
        generation: row.generation,
        heartbeat_interval: Some(convert::span(ttl / 3)),
        lease_ttl: Some(convert::span(ttl)),
        revoked,
        replica_id: shared.id().to_string(),
    };
    Ok((session, welcome))
}

async fn open(shared: &Arc<Shared>, hello: &wire::Hello) -> Result<SessionRow, Fault> {
    let ttl = judge(hello)?;
    let table = shared.routing.refresh(shared).await?;
    if let Some(missing) = hello.queues.iter().find(|queue| !table.queues.contains_key(*queue)) {
        return Err(Fault::precondition("NO_SUCH_QUEUE", format!("there is no queue {missing} to serve")));
    }
    if !hello.previous_session_id.is_empty() {
        let previous = convert::session_id(&hello.previous_session_id, "previous_session_id")?;
        let closed = shared.write(move |store| store.close_session(previous, None)).await?;
        if closed {
            tracing::info!(session = %previous, "an orchestrator has restarted; its previous session is closed");
            if let Some(here) = shared.sessions.by_id(previous) {
                here.end(Some(notices::session_gone()));
            }
            shared.reap.notify_one();
        }
    }
    let session = NewSession {
        id: SessionId(Uuid::now_v7()),
        name: hello.name.clone(),
        queues: hello.queues.clone(),
        slots: hello.slots,
        labels: hello.labels.clone(),
        ttl_ms: i64::try_from((ttl + LEASE_SLACK).as_millis()).unwrap_or(i64::MAX),
        replica: shared.context.endpoint.clone(),
        build: convert::cut(&hello.build, 128),
    };
    shared.write(move |store| store.open_session(&session)).await
}

fn judge(hello: &wire::Hello) -> Result<Duration, Fault> {
    let mut broken = Violations::new();
    let named = (1..=128).contains(&hello.name.len()) && !hello.name.contains('\0');
    broken.require(named, "name", "must have 1 to 128 bytes, none of them NUL");
    broken.require(
        (1..=MAX_QUEUES).contains(&hello.queues.len()) && hello.queues.iter().all(|queue| is_name(queue)),
        "queues",
        "must name 1 to 64 queues",
    );
    broken.require((0..=MAX_SLOTS).contains(&hello.slots), "slots", format!("must lie between 0 and {MAX_SLOTS}"));
    broken.require(!hello.build.contains('\0'), "build", "holds a NUL byte");
    spec::labels(&mut broken, "labels", &hello.labels);
    let ttl = match hello.lease_ttl {
        None => Some(DEFAULT_LEASE),
        Some(span) => Duration::try_from(span).ok().filter(|ttl| (SHORTEST_LEASE..=LONGEST_LEASE).contains(ttl)),
    };
    broken.require(ttl.is_some(), "lease_ttl", "must lie between 5 s and 10 min");
    broken.finish()?;
    Ok(ttl.unwrap_or(DEFAULT_LEASE))
}

async fn resume(
    shared: &Arc<Shared>,
    session: SessionId,
    generation: i64,
) -> Result<(SessionRow, Vec<Dispatch>), Status> {
    let replica = shared.context.endpoint.clone();
    let resumed = shared.write(move |store| store.resume_session(session, generation, &replica)).await?;
    if failpoint::hit("resume.after_commit").is_some() {
        return Err(Fault::unavailable("fail point", Duration::ZERO).into());
    }
    match resumed {
        Resumed::Yes { session, held } => Ok((session, assignable(shared, held))),
        Resumed::Gone => Err(notices::session_gone()),
    }
}

/// Takes what the orchestrator sends until its stream ends.
async fn serve(shared: Arc<Shared>, session: Arc<Session>, mut inbound: Inbound) {
    let status = loop {
        match inbound.message().await {
            Ok(Some(wire::ConnectOrchestratorRequest { message: Some(message) })) => {
                match take(&shared, &session, message).await {
                    Ok(true) if session.has_overflowed() => {
                        tracing::warn!(session = %session.id, "an orchestrator does not read its stream, which ends");
                        shared.metrics.unread_streams.inc();
                        break None;
                    }
                    Ok(true) => {}
                    Ok(false) => break None,
                    Err(fault) => break Some(fault.into()),
                }
            }
            // A message of a later release.
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(status) => {
                tracing::debug!(session = %session.id, %status, "an orchestrator's stream broke");
                break None;
            }
        }
    };
    session.end(status);
    leave(&shared, &session);
}

/// Takes one message; false when it was the last. Only what is no message of the protocol is an error, and ends the stream: an attempt
/// that cannot be one must not take the others with it, now and after every resume.
async fn take(shared: &Arc<Shared>, session: &Arc<Session>, message: Message) -> Result<bool, Fault> {
    match message {
        Message::Hello(_) => return Err(Fault::precondition("HELLO_TWICE", "a stream has one Hello")),
        Message::Grant(grant) => {
            if session.grant(grant) {
                shared.links.demand(session.receiver, &session.queues);
            }
        }
        Message::Accepted(accepted) => {
            let (leases, unreadable) = convert::leases(accepted.leases);
            session.accept(leases);
            session.refuse(unreadable);
        }
        Message::Progress(progress) => {
            if progress.chunks.iter().any(|chunk| chunk.data.len() > MAX_CHUNK) {
                return Err(Fault::invalid("progress.chunks", "hold at most 64 KiB each"));
            }
            let named = progress.lease.unwrap_or_default();
            match convert::lease(&named) {
                Ok(lease) if session.holds(lease) => {
                    shared.outputs.push(lease.task, lease.attempt, progress.chunks);
                }
                Ok(_) => {}
                Err(_) => session.refuse(vec![named]),
            }
        }
        Message::Completions(completions) => complete(shared, session, completions).await?,
        Message::Heartbeat(beat) => {
            session.check_digest(beat.held_count, beat.held_digest);
            let item = Beat::new(session.clone(), beat.seq);
            if shared.beats.put(item).await.is_err() {
                return Err(stopping());
            }
        }
        Message::Held(held) => {
            let (leases, unreadable) = convert::leases(held.leases);
            session.refuse(unreadable);
            let (shared, session) = (shared.clone(), session.clone());
            tokio::spawn(async move { compare(&shared, &session, leases).await });
        }
        Message::Goodbye(_) => {
            goodbye(shared, session).await?;
            return Ok(false);
        }
    }
    Ok(true)
}

fn stopping() -> Fault {
    Fault::unavailable("this replica is stopping", Duration::from_millis(500))
}

async fn complete(shared: &Arc<Shared>, session: &Arc<Session>, message: wire::Completions) -> Result<(), Fault> {
    if message.completions.len() > MAX_COMPLETIONS {
        return Err(Fault::invalid("completions", format!("holds more than {MAX_COMPLETIONS}")));
    }
    for completion in message.completions {
        let named = completion.lease.unwrap_or_default();
        match convert::lease(&named) {
            Ok(lease) => {
                // An outcome that cannot be read is still an end: holding on to the attempt would help nobody.
                let outcome = convert::outcome(completion.outcome.unwrap_or_default()).unwrap_or_else(|fault| {
                    tracing::warn!(session = %session.id, task = named.task_id, %fault, "an outcome is not valid");
                    let message = format!("its orchestrator reported an outcome that is not valid: {}", fault.message);
                    ends::own_outcome(OutcomeKind::Failed, &message)
                });
                let end = End { session: session.clone(), named, lease, outcome, told: None };
                if shared.ends.put(end).await.is_err() {
                    return Err(stopping());
                }
            }
            Err(fault) => {
                tracing::warn!(session = %session.id, task = named.task_id, %fault, "a completion is not valid");
                let result = wire::CompletionResult { lease: Some(named), status: Report::Invalid as i32 };
                session.finish([(None, result)], shared.now());
            }
        }
    }
    Ok(())
}

/// Makes the orchestrator's list of attempts and the database's equal (R1).
pub(crate) async fn compare(shared: &Arc<Shared>, session: &Arc<Session>, theirs: Vec<LeaseRef>) {
    let (id, read_at) = (session.id, shared.now());
    match shared.write(move |store| store.held_by(id)).await {
        Ok(database) => {
            let database = assignable(shared, database);
            let patience = shared.settings.accept_patience;
            let missing: BTreeSet<LeaseRef> =
                session.reconcile(&database, &theirs, read_at, shared.now(), patience).into_iter().collect();
            let again: Vec<Dispatch> =
                database.into_iter().filter(|dispatch| missing.contains(&dispatch.lease)).collect();
            if !again.is_empty() {
                tracing::info!(session = %id, attempts = again.len(), "attempts are sent again");
                session.send_again(again, shared.now());
            }
        }
        Err(fault) => {
            tracing::debug!(session = %id, %fault, "lists cannot be compared now; the next heartbeat tries again");
            session.may_ask_again();
        }
    }
}

/// How long an orchestrator that leaves waits for claims that are being made for it. Past it they end as lost.
const CLAIMS_UNDER_WAY: Duration = Duration::from_secs(5);

/// What it still holds is handed back, then the session is closed.
async fn goodbye(shared: &Arc<Shared>, session: &Arc<Session>) -> Result<(), Fault> {
    // What is being claimed for it must be handed back as well, or it would count as lost: so nothing more is taken, and the claims
    // under way are waited for.
    let patience = tokio::time::Instant::now() + CLAIMS_UNDER_WAY;
    while session.take_no_more() > 0 && tokio::time::Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut answers = Vec::new();
    for lease in session.leases() {
        let (told, answer) = oneshot::channel();
        let outcome = ends::own_outcome(OutcomeKind::HandedBack, "its orchestrator left");
        let named = convert::lease_ref(lease);
        // Through the same gate as its completions, so that one that came before is recorded before.
        let end = End { session: session.clone(), named, lease, outcome, told: Some(told) };
        if shared.ends.put(end).await.is_err() {
            return Err(stopping());
        }
        answers.push(answer);
    }
    for answer in answers {
        if !matches!(answer.await, Ok(Recorded::Yes | Recorded::Stale)) {
            // The session stays open, and its lease ends by itself.
            return Err(Fault::unavailable("what is held could not be handed back", Duration::from_secs(1)));
        }
    }
    let (id, generation) = (session.id, session.generation);
    shared.write(move |store| store.close_session(id, Some(generation))).await?;
    shared.reap.notify_one();
    tracing::info!(session = %id, name = session.name, "an orchestrator has left");
    Ok(())
}

#[cfg(test)]
mod tests {
    use millrace_store::Store;

    use super::*;
    use crate::fixture;

    fn hello(lease_ttl: Option<Duration>) -> wire::Hello {
        let lease_ttl = lease_ttl.map(convert::span);
        wire::Hello { name: "one".into(), queues: vec!["default".into()], lease_ttl, ..Default::default() }
    }

    #[tokio::test]
    async fn output_of_a_session_that_has_moved_away_does_not_stay() {
        let replica = fixture::replica();
        let shared = &replica.shared;
        let push = |session: &Session| {
            session.assign(fixture::dispatch(7), Duration::ZERO);
            let chunk = wire_chunk(b"output");
            shared.outputs.push(fixture::dispatch(7).lease.task, 1, vec![chunk]);
        };
        let later = || shared.outputs.tidy(shared.now() + Duration::from_secs(120));
        let session = replica.session(&["default"], 1);
        push(&session);
        // Resumed here: the earlier stream's end is not the end of the attempt.
        let again = shared.sessions.enter(session.id, 2, "one".into(), Vec::new()).unwrap();
        again.restore(&[fixture::dispatch(7)], &BTreeSet::new(), Duration::ZERO);
        leave(shared, &session);
        later();
        assert_eq!(shared.outputs.bytes(), 6);
        leave(shared, &again);
        later();
        assert_eq!(shared.outputs.bytes(), 0);
    }

    #[tokio::test]
    async fn an_attempt_that_cannot_be_one_is_revoked_and_ends_no_stream() {
        let replica = fixture::replica();
        let shared = &replica.shared;
        let (session, welcome) = greet(shared, hello(None)).await.unwrap();
        session.assign(fixture::dispatch(7), Duration::ZERO);
        let good = convert::lease_ref(fixture::dispatch(7).lease);
        let bad = [
            wire::LeaseRef { attempt: -2, ..good.clone() },
            wire::LeaseRef { task_id: "seven".into(), ..good.clone() },
            wire::LeaseRef { lease_token: String::new(), ..good.clone() },
            wire::LeaseRef::default(),
        ];
        let next = async || {
            let messages = session.next().await.unwrap().into_iter().map(Result::unwrap);
            messages.filter_map(|one| one.message).collect::<Vec<_>>()
        };
        next().await;
        let mixed = || bad.iter().cloned().chain([good.clone()]).collect::<Vec<_>>();
        let progress = |lease: &wire::LeaseRef| {
            let chunks = vec![wire_chunk(b"output")];
            Message::Progress(wire::Progress { lease: Some(lease.clone()), chunks })
        };
        let completion = |lease: &wire::LeaseRef| wire::Completion { lease: Some(lease.clone()), outcome: None };
        let completions = wire::Completions { completions: bad.iter().map(completion).collect() };
        for message in [
            Message::Accepted(wire::Accepted { leases: mixed() }),
            progress(&bad[0]),
            progress(&good),
            Message::Held(wire::Held { leases: mixed() }),
            Message::Completions(completions),
        ] {
            assert!(take(shared, &session, message).await.unwrap(), "the stream goes on");
        }
        assert_eq!(session.take_accepted(), [fixture::dispatch(7).lease], "its neighbour runs");
        assert_eq!(shared.outputs.bytes(), 6);
        let (mut revoked, mut results) = (Vec::new(), Vec::new());
        for message in next().await {
            match message {
                wire::connect_orchestrator_response::Message::RevokeAttempts(told) => revoked.extend(told.leases),
                wire::connect_orchestrator_response::Message::CompletionResults(told) => results.extend(told.results),
                _ => {}
            }
        }
        for bad in &bad {
            assert!(revoked.contains(bad), "{bad:?}: {revoked:?}");
        }
        assert!(results.iter().all(|result| result.status == Report::Invalid as i32) && results.len() == bad.len());
        // What it was told before this release is not what it resumes with for ever.
        let resume = wire::Hello {
            session_id: welcome.session_id,
            generation: welcome.generation,
            held: bad.to_vec(),
            ..hello(None)
        };
        let (_, welcome) = greet(shared, resume).await.unwrap();
        assert_eq!(welcome.revoked, bad);
    }

    fn wire_chunk(data: &'static [u8]) -> millrace_proto::common::v1::OutputChunk {
        millrace_proto::common::v1::OutputChunk { stream: 1, offset: 0, data: data.into() }
    }

    #[tokio::test]
    async fn r16_a_lease_lasts_longer_than_its_orchestrator_is_told() {
        let replica = fixture::replica();
        for asked in [None, Some(SHORTEST_LEASE), Some(LONGEST_LEASE)] {
            let (session, welcome) = greet(&replica.shared, hello(asked)).await.unwrap();
            let told = asked.unwrap_or(DEFAULT_LEASE);
            assert_eq!(welcome.lease_ttl, Some(convert::span(told)));
            assert_eq!(welcome.heartbeat_interval, Some(convert::span(told / 3)));
            let stored = || {
                let rows = replica.store.sessions(10).unwrap();
                rows.iter().find(|row| row.session.id == session.id).unwrap().session.ttl_ms
            };
            let slack_ms = LEASE_SLACK.as_millis() as i64;
            assert_eq!(stored(), told.as_millis() as i64 + slack_ms);
            // A resume tells the same, and adds nothing.
            let resume = wire::Hello { session_id: welcome.session_id, generation: welcome.generation, ..hello(None) };
            let (_, welcome) = greet(&replica.shared, resume).await.unwrap();
            assert_eq!(welcome.lease_ttl, Some(convert::span(told)));
            assert_eq!(stored(), told.as_millis() as i64 + slack_ms);
        }
    }
}
