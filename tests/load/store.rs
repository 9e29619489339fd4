//! What the store crate can do without gRPC, matching and streams: the same lives by its own calls from four threads.
//! Between the ceiling and the whole life it tells the cost of the store's client side from that of the services.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use bytes::Bytes;
use millrace_core::{
    held::LeaseRef,
    id::{SessionId, TaskId},
    lease::Token,
    retry::OutcomeKind,
    task::State,
};
use millrace_store::{
    Claim, Claimed, Completed, Completion, Envelope, NewSession, NewTask, OpenOptions, Outcome, Store, Submitted,
};
use uuid::Uuid;

use crate::{
    ceiling::{self, Ceiling},
    payload::Kind,
    plan::BATCH,
    postgres::Server,
    usage::{self, Watched},
};

/// Measures lives for a time.
pub(crate) async fn lives(server: &Server, watched: &[Watched], time: Duration) -> Result<Ceiling> {
    let database = ceiling::own_database(server, "store").await?;
    let url = database.url();
    let snapshot = usage::snapshot(watched);
    let seconds = tokio::task::spawn_blocking(move || drive(&url, time)).await??;
    let done = u64::try_from(database.number("SELECT count(*) FROM finished_tasks").await?)?;
    Ok(Ceiling { per_s: done as f64 / seconds, used: usage::since(watched, &snapshot, done) })
}

/// Runs the four threads and returns the seconds that they took.
fn drive(url: &str, time: Duration) -> Result<f64> {
    let store = millrace_store::open(url, &OpenOptions::default())?;
    let session = open_session(&*store)?;
    let life = Arc::new(Life { incarnation: store.cluster()?.incarnation, session, spec: Kind::of("store").spec() });
    let begin = Instant::now();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (store, life) = (Arc::clone(&store), Arc::clone(&life));
            thread::spawn(move || -> Result<()> {
                while begin.elapsed() < time {
                    life.one_batch(&*store)?;
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    Ok(begin.elapsed().as_secs_f64())
}

fn open_session(store: &dyn Store) -> Result<SessionId> {
    let id = SessionId(Uuid::now_v7());
    store.open_session(&NewSession {
        id,
        name: "store".into(),
        queues: vec!["default".into()],
        slots: 1,
        labels: Default::default(),
        ttl_ms: 600_000,
        replica: String::new(),
        build: String::new(),
    })?;
    Ok(id)
}

/// What every task of the measurement has in common.
struct Life {
    incarnation: i16,
    session: SessionId,
    spec: Bytes,
}

impl Life {
    fn one_batch(&self, store: &dyn Store) -> Result<()> {
        let tasks: Vec<NewTask> = (0..BATCH).map(|_| self.task()).collect();
        let stored = store.submit(&tasks, false)?;
        if !stored.iter().all(|one| matches!(one, Submitted::Stored { .. })) {
            bail!("a task was not stored");
        }
        let claims: Vec<Claim> = tasks.iter().map(|task| self.claim(task.envelope.id)).collect();
        let claimed = store.claim(&claims)?.into_iter().map(|one| match one {
            Claimed::Won(dispatch) => Ok(dispatch.lease),
            other => bail!("a claim was not won: {other:?}"),
        });
        let completions = claimed.map(|lease| lease.map(completion)).collect::<Result<Vec<_>>>()?;
        match store.complete(&completions)?.iter().all(|one| *one == Completed::Recorded) {
            true => Ok(()),
            false => Err(anyhow::anyhow!("a completion was not recorded")),
        }
    }

    fn task(&self) -> NewTask {
        NewTask {
            envelope: Envelope {
                id: TaskId(Uuid::now_v7()),
                tenant: "store".into(),
                queue: "default".into(),
                rank: 0,
                executor: "process".into(),
                resource_class: String::new(),
                concurrency_key: String::new(),
                exclusive: false,
                timeout_ms: None,
                trace_context: String::new(),
                format: millrace_core::ROW_FORMAT,
                min_reader: millrace_core::ROW_FORMAT,
            },
            spec: self.spec.to_vec(),
            request: Some(Uuid::new_v4()),
            not_before: None,
            expire_after: None,
            route_version: 1,
        }
    }

    fn claim(&self, task: TaskId) -> Claim {
        Claim {
            task,
            queue: "default".into(),
            epoch: 0,
            session: self.session,
            generation: 1,
            token: Token::new(self.incarnation, Uuid::new_v4().as_u64_pair().1),
        }
    }
}

fn completion(lease: LeaseRef) -> Completion {
    let outcome = Outcome {
        kind: OutcomeKind::Succeeded,
        exit_code: None,
        signal: None,
        message: String::new(),
        output_tail: Vec::new(),
        output_bytes: 0,
        started_at_us: Some(1),
        ended_at_us: Some(1),
    };
    Completion { lease, state: State::Succeeded, outcome, failures: 0, losses: 0 }
}
