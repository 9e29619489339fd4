//! Finds the queues' owners and keeps a link to each.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use millrace_core::{id::MemberId, owners::Reach};
use millrace_runtime::{background, status::Fault};
use millrace_store::MemberKind;

use crate::{
    links, notices,
    shared::{Shared, lock},
};

const PERIOD: Duration = Duration::from_millis(500);

/// Owners to which a link is being kept, and those out of reach.
type Known = Mutex<Reach<MemberId>>;

pub(super) fn start(shared: &Arc<Shared>) {
    let stop = shared.context.shutdown.clone();
    let worker = shared.clone();
    let known = Arc::new(Known::default());
    background::every("owners", PERIOD, shared.look_for_owners.clone(), &stop, move || {
        step(worker.clone(), known.clone())
    });
}

async fn step(shared: Arc<Shared>, known: Arc<Known>) -> Result<(), Fault> {
    if shared.cluster().is_err() {
        return Ok(());
    }
    let (owners, members) = shared.blocking(|store| Ok((store.owners()?, store.members()?))).await?;
    let kinds: HashMap<MemberId, MemberKind> = members.iter().map(|member| (member.id, member.kind)).collect();
    *lock(&shared.members) = members;
    let mut queues: HashMap<(MemberId, String), Vec<String>> = HashMap::new();
    for row in owners {
        if let Some(owner) = row.owner {
            queues.entry(owner).or_default().push(row.queue);
        }
    }
    lock(&known).keep(&queues.keys().map(|(owner, _)| *owner).collect());
    for ((owner, endpoint), queues) in queues {
        if let Some(kind) = kinds.get(&owner).copied() {
            link(&shared, &known, owner, endpoint, kind);
        }
        cut_off(&shared, &known, owner, &queues);
    }
    Ok(())
}

fn link(shared: &Arc<Shared>, known: &Arc<Known>, owner: MemberId, endpoint: String, kind: MemberKind) {
    if !lock(known).dial(owner) {
        return;
    }
    let (shared, known) = (shared.clone(), known.clone());
    let stop = shared.context.shutdown.clone();
    stop.clone().spawn("link", async move {
        let (end, ended) = tokio::select! {
            // Running work is reported and claimed until the end, so the link goes last; none is opened after it.
            () = stop.grace_over() => return,
            () = left(&shared) => return,
            ended = links::serve(&shared, owner, &endpoint, kind) => ended,
        };
        if let Err(status) = ended {
            tracing::debug!(%owner, endpoint, ?end, %status, "the exchange with a queue's owner has ended");
        }
        if lock(&known).ended(owner, end) {
            shared.look_for_owners.notify_one();
        }
    });
}

/// Completes when this replica drains and every orchestrator has left.
async fn left(shared: &Shared) {
    shared.context.shutdown.draining().await;
    while shared.sessions.len() > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends the orchestrators of queues whose live owner cannot be reached from here to another replica.
fn cut_off(shared: &Shared, known: &Known, owner: MemberId, queues: &[String]) {
    if !lock(known).is_cut_off(owner, shared.links.reaches(owner), shared.now()) {
        return;
    }
    let Some(other) = shared.other_replica() else { return };
    for session in shared.sessions.all() {
        if session.queues.iter().any(|queue| queues.contains(queue)) {
            session.go_away(notices::go_away("the owner of a queue cannot be reached from here", Some(other.clone())));
        }
    }
}
