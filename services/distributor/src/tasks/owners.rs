//! Finds the queues' owners and keeps a link to each.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use millrace_core::id::MemberId;
use millrace_runtime::{background, status::Fault};
use millrace_store::MemberKind;

use crate::{
    links, notices,
    shared::{Shared, lock},
};

const PERIOD: Duration = Duration::from_millis(500);

/// How long an owner may be out of reach before the orchestrators of its queues are sent to another replica (R5).
const CUT_OFF: Duration = Duration::from_secs(5);

/// Owners to which a link is being kept, and since when each has been out of reach.
#[derive(Default)]
struct Known {
    linking: HashSet<MemberId>,
    unreached: HashMap<MemberId, Duration>,
}

pub(super) fn start(shared: &Arc<Shared>) {
    let stop = shared.context.shutdown.clone();
    let worker = shared.clone();
    let known = Arc::new(Mutex::new(Known::default()));
    background::every("owners", PERIOD, shared.look_for_owners.clone(), &stop, move || {
        step(worker.clone(), known.clone())
    });
}

async fn step(shared: Arc<Shared>, known: Arc<Mutex<Known>>) -> Result<(), Fault> {
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
    lock(&known).unreached.retain(|owner, _| queues.keys().any(|(id, _)| id == owner));
    for ((owner, endpoint), queues) in queues {
        if let Some(kind) = kinds.get(&owner).copied() {
            link(&shared, &known, owner, endpoint, kind);
        }
        cut_off(&shared, &known, owner, &queues);
    }
    Ok(())
}

fn link(shared: &Arc<Shared>, known: &Arc<Mutex<Known>>, owner: MemberId, endpoint: String, kind: MemberKind) {
    if !lock(known).linking.insert(owner) {
        return;
    }
    let (shared, known) = (shared.clone(), known.clone());
    let stop = shared.context.shutdown.clone();
    stop.clone().spawn("link", async move {
        let ended = tokio::select! {
            // Running work is reported and claimed until the end, so the link goes last.
            () = stop.grace_over() => Ok(()),
            () = left(&shared) => Ok(()),
            ended = links::serve(&shared, owner, &endpoint, kind) => ended,
        };
        if let Err(status) = ended {
            tracing::debug!(%owner, endpoint, %status, "the exchange with a queue's owner has ended");
        }
        lock(&known).linking.remove(&owner);
        shared.look_for_owners.notify_one();
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
fn cut_off(shared: &Shared, known: &Mutex<Known>, owner: MemberId, queues: &[String]) {
    let now = shared.now();
    let since = {
        let mut known = lock(known);
        if shared.links.reaches(owner) {
            known.unreached.remove(&owner);
            return;
        }
        *known.unreached.entry(owner).or_insert(now)
    };
    let Some(other) = shared.other_replica().filter(|_| now.saturating_sub(since) >= CUT_OFF) else { return };
    for session in shared.sessions.all() {
        if session.queues.iter().any(|queue| queues.contains(queue)) {
            session.go_away(notices::go_away("the owner of a queue cannot be reached from here", Some(other.clone())));
        }
    }
}
