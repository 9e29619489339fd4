//! Which queues are ours (R5): one loop that renews, takes and gives up, and reads pauses on the way.
//!
//! A round is idempotent and takes everything from the database. When the database fails, the round fails and nothing changes: matchers go
//! on with what they have, since no claim under a lost epoch can commit, and the next round that succeeds mends the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use millrace_runtime::background;
use millrace_store::{MemberKind, MemberRow, OwnerRow, QueueRow, Store, StoreError};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Figures, OwnedQueues, Shared,
    actor::Actor,
    inputs::Inputs,
    mailbox::{Mailbox, Owned},
    policy::{Policy, Seen, Stance},
};

/// How long a round goes on taking queues before it renews again. Well below any lease.
const TAKING: Duration = Duration::from_secs(1);

/// The state of the loop.
pub(super) struct Ownership {
    shared: Arc<Shared>,
    policy: Policy,
    /// Raised with each matcher.
    number: u64,
    /// The host has given everything up for good.
    left: bool,
    /// Queues that were given up while the database could not be told; they are not taken before it has been.
    unreleased: BTreeSet<String>,
    /// The queues that could not be taken in the last round; each is logged once while it stays so.
    refused: BTreeSet<String>,
}

/// What one round reads.
struct Snapshot {
    members: Vec<MemberRow>,
    owners: Vec<OwnerRow>,
    queues: Vec<QueueRow>,
}

impl Ownership {
    /// Starts the loop, and what ends it in order.
    pub(super) fn run(shared: &Arc<Shared>) {
        let ownership = Arc::new(tokio::sync::Mutex::new(Ownership {
            shared: shared.clone(),
            policy: Policy::new(shared.kind, &shared.settings),
            number: 0,
            left: false,
            unreleased: BTreeSet::new(),
            refused: BTreeSet::new(),
        }));
        let rounds = ownership.clone();
        background::every(
            "queue ownership",
            shared.settings.round,
            shared.nudge.clone(),
            &shared.shutdown,
            move || {
                let ownership = rounds.clone();
                async move { ownership.lock().await.round().await }
            },
        );
        let shutdown = shared.shutdown.clone();
        shared.shutdown.spawn("queue ownership ends", async move {
            shutdown.draining().await;
            // Waits for a round in flight.
            ownership.lock().await.leave().await;
        });
    }

    async fn round(&mut self) -> Result<(), StoreError> {
        if self.left {
            return Ok(());
        }
        if !self.shared.clock.has_ticked() {
            // A matcher needs the database's time from its first feed on (R3).
            self.shared.tick().await?;
        }
        self.give_up_dead().await?;
        self.release().await?;
        self.renew().await?;
        let pauses = self.shared.pauses.load(Ordering::SeqCst);
        let snapshot = self.shared.call(Snapshot::read).await?;
        let stance = self.policy.next(self.shared.clock.now(), self.seen(&snapshot));
        self.shared.holding_back.store(stance == Stance::HoldBack, Ordering::Relaxed);
        match stance {
            Stance::GiveUp | Stance::HoldBack => self.give_up_all(stance).await,
            Stance::Keep => {
                self.apply(&snapshot, pauses);
                Ok(())
            }
            Stance::Take => {
                self.apply(&snapshot, pauses);
                self.take(&snapshot).await
            }
        }
    }

    fn seen(&self, snapshot: &Snapshot) -> Seen {
        let lives = |kind| snapshot.members.iter().any(|member| member.kind == kind);
        Seen {
            queue_service: lives(MemberKind::Queue),
            distributor: lives(MemberKind::Distributor),
            streams: self.shared.streams.load(Ordering::Relaxed),
            owns: !self.shared.owned.borrow().is_empty(),
        }
    }

    /// Renews every lease with one call, and drops the matchers of those that are no longer ours.
    async fn renew(&mut self) -> Result<(), StoreError> {
        let owned = self.shared.owned.borrow().clone();
        if owned.is_empty() {
            return Ok(());
        }
        let leases: Vec<(String, i64)> = owned.iter().map(|(queue, owned)| (queue.to_string(), owned.epoch)).collect();
        let (member, ttl_ms) = (self.shared.member, self.ttl_ms());
        let lost = self.shared.call(move |store| store.renew_queues(member, &leases, ttl_ms)).await?;
        self.drop_matchers(&lost, "the lease is another's");
        Ok(())
    }

    /// Follows the rows of the queues that are ours: their pauses, another epoch in the gate, their deletion.
    fn apply(&self, snapshot: &Snapshot, pauses: u64) {
        let rows: BTreeMap<&str, &QueueRow> = snapshot.queues.iter().map(|row| (row.name.as_str(), row)).collect();
        let owned = self.shared.owned.borrow().clone();
        let (mut moved, mut deleted) = (Vec::new(), Vec::new());
        // A pause that this process has set since the snapshot began is newer than the snapshot.
        let overtaken = self.shared.pauses.load(Ordering::SeqCst) != pauses;
        for (queue, owned) in owned.iter() {
            match rows.get(&**queue) {
                None => deleted.push(queue.to_string()),
                Some(row) if row.epoch != owned.epoch => moved.push(queue.to_string()),
                Some(row) if !overtaken => owned.set_paused(row.pause.is_some()),
                Some(_) => {}
            }
        }
        if overtaken {
            self.shared.nudge.notify_one();
        }
        self.drop_matchers(&moved, "the gate has another epoch");
        self.drop_matchers(&deleted, "the queue is gone");
        for queue in &deleted {
            self.shared.metrics.forget(queue);
        }
    }

    /// Takes the queues that nobody owns, and those that are ours by a call whose answer was lost.
    async fn take(&mut self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let owned = self.shared.owned.borrow().clone();
        let owners: BTreeMap<&str, &OwnerRow> = snapshot.owners.iter().map(|row| (row.queue.as_str(), row)).collect();
        let started = Instant::now();
        let (mut refused, mut failure) = (BTreeSet::new(), None);
        for row in &snapshot.queues {
            let owner = owners.get(row.name.as_str()).and_then(|row| row.owner.as_ref());
            let free = owner.is_none_or(|(member, _)| *member == self.shared.member);
            if !free || owned.contains_key(row.name.as_str()) {
                continue;
            }
            if started.elapsed() >= TAKING || self.shared.shutdown.is_draining() {
                self.shared.nudge.notify_one();
                break;
            }
            match self.own(row).await {
                Ok(()) => {}
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                // One queue's gate may be locked by a long claim; the others do not wait for it.
                Err(error) => {
                    if !self.refused.contains(&row.name) {
                        tracing::warn!(queue = row.name, %error, "the queue could not be taken; it will be tried again");
                    }
                    refused.insert(row.name.clone());
                    failure = Some(error);
                }
            }
        }
        self.refused = refused;
        failure.map_or(Ok(()), Err)
    }

    async fn own(&mut self, row: &QueueRow) -> Result<(), StoreError> {
        let (member, endpoint, ttl_ms) = (self.shared.member, self.shared.endpoint.clone(), self.ttl_ms());
        let queue = row.name.clone();
        let taken = self.shared.call(move |store| store.own_queue(&queue, member, &endpoint, ttl_ms)).await?;
        if let Some(epoch) = taken {
            self.start_matcher(row, epoch);
        }
        Ok(())
    }

    fn start_matcher(&mut self, row: &QueueRow, epoch: i64) {
        tracing::info!(queue = row.name, epoch, "queue taken");
        self.number += 1;
        let queue: Arc<str> = row.name.as_str().into();
        let metrics = self.shared.metrics.of(&queue);
        let (commands, command_inbox) = mpsc::channel(self.shared.settings.mailbox);
        let (offers, offer_inbox) = mpsc::channel(self.shared.settings.mailbox);
        let paused = watch::Sender::new(row.pause.is_some());
        let figures = Figures { epoch, window_capacity: self.shared.settings.limits.window, ..Figures::default() };
        let owned = Owned {
            epoch,
            number: self.number,
            mailbox: Mailbox { commands, offers, dropped: metrics.dropped.clone() },
            figures: Arc::new(Mutex::new(figures)),
            stop: CancellationToken::new(),
            paused,
        };
        let inputs = Inputs::new(command_inbox, offer_inbox, owned.paused.subscribe(), owned.stop.clone());
        let actor = Actor::new(self.shared.clone(), queue.clone(), epoch, inputs, owned.figures.clone(), metrics);
        self.shared.shutdown.spawn("matcher", actor.run());
        self.publish(|queues| {
            queues.insert(queue, owned);
        });
    }

    /// A matcher that has ended by a defect takes its queue's ownership along: the next one gets a new epoch, so that
    /// distributors grant it their demand anew.
    async fn give_up_dead(&mut self) -> Result<(), StoreError> {
        let owned = self.shared.owned.borrow().clone();
        let dead: Vec<String> =
            owned.iter().filter(|(_, owned)| owned.is_dead()).map(|(queue, _)| queue.to_string()).collect();
        self.give_up(dead, "its matcher has failed").await
    }

    async fn give_up_all(&mut self, stance: Stance) -> Result<(), StoreError> {
        let why = match stance {
            Stance::HoldBack => "no distributor reaches this process",
            _ => "a queue service lives",
        };
        let all = self.shared.owned.borrow().keys().map(|queue| queue.to_string()).collect();
        self.give_up(all, why).await
    }

    async fn give_up(&mut self, queues: Vec<String>, why: &'static str) -> Result<(), StoreError> {
        if queues.is_empty() {
            return Ok(());
        }
        // Matching stops first; the release lets others take over before the lease ends.
        self.drop_matchers(&queues, why);
        self.unreleased.extend(queues);
        self.release().await
    }

    async fn release(&mut self) -> Result<(), StoreError> {
        if self.unreleased.is_empty() {
            return Ok(());
        }
        let (member, queues): (_, Vec<String>) = (self.shared.member, self.unreleased.iter().cloned().collect());
        self.shared.call(move |store| store.release_queues(member, &queues)).await?;
        self.unreleased.clear();
        Ok(())
    }

    /// Gives everything up when the process drains, then lets the streams end.
    async fn leave(&mut self) {
        self.left = true;
        let all = self.shared.owned.borrow().keys().map(|queue| queue.to_string()).collect();
        if let Err(error) = self.give_up(all, "this process stops").await {
            tracing::warn!(%error, "queues could not be given up; others take them when the leases end");
        }
        self.shared.closing.cancel();
    }

    fn drop_matchers(&self, queues: &[String], why: &'static str) {
        if queues.is_empty() {
            return;
        }
        self.publish(|owned| {
            for queue in queues {
                if let Some(owned) = owned.remove(queue.as_str()) {
                    owned.stop.cancel();
                    tracing::info!(queue, epoch = owned.epoch, why, "queue given up");
                }
            }
        });
    }

    fn publish(&self, change: impl FnOnce(&mut OwnedQueues)) {
        let mut more = 0;
        self.shared.owned.send_modify(|owned| {
            let before = owned.len() as i64;
            change(Arc::make_mut(owned));
            more = owned.len() as i64 - before;
        });
        // Another host of this process may count in the same series.
        self.shared.metrics.owned.inc_by(more);
    }

    fn ttl_ms(&self) -> i64 {
        i64::try_from(self.shared.settings.lease_ttl.as_millis()).unwrap_or(i64::MAX)
    }
}

impl Snapshot {
    /// Three small reads. They need not be of one moment: what matters is decided by the calls that follow.
    fn read(store: &dyn Store) -> Result<Self, StoreError> {
        Ok(Self { members: store.members()?, owners: store.owners()?, queues: store.routing()?.queues })
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::{id::MemberId, time::Timestamp};
    use millrace_runtime::{metrics::Metrics, shutdown::Shutdown};
    use millrace_store::MemoryStore;
    use uuid::Uuid;

    use super::*;
    use crate::{Host, HostContext, HostSettings};

    #[tokio::test(start_paused = true)]
    async fn r5_a_matcher_that_fails_is_followed_by_one_with_a_new_epoch() {
        let (store, _clock) = MemoryStore::settable(Timestamp(1_700_000_000_000_000));
        let context = HostContext {
            store: Arc::new(store),
            member_id: MemberId(Uuid::from_u128(1)),
            kind: MemberKind::Queue,
            endpoint: "http://one".into(),
            shutdown: Shutdown::new(Duration::from_secs(1)),
            metrics: Metrics::new(),
        };
        let host = Host::start(HostSettings::default(), context);
        let owned = host.wait_owned(|owned| !owned.is_empty()).await;
        assert_eq!(owned, Some(vec![("default".to_owned(), 1)]));
        // Its end without an order is what a panic would look like.
        host.shared.owned.borrow()["default"].stop.cancel();
        let owned = host.wait_owned(|owned| owned.iter().any(|(_, epoch)| *epoch > 1)).await;
        assert_eq!(owned, Some(vec![("default".to_owned(), 2)]));
        assert!(!host.shared.owned.borrow()["default"].is_dead());
    }
}
