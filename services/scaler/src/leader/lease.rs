//! The lease of the leader: who leads, and for how long this process may still act as the leader.

use std::{sync::Arc, time::Duration};

use millrace_core::id::MemberId;
use millrace_runtime::Context;
use millrace_store::{Lead, StoreError};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{CALL_LIMIT, clock::DatabaseClock};

/// The lease's name in the database.
pub(crate) const LEASE: &str = "scaler";

/// After a failure the lease is tried again this soon.
const RETRY: Duration = Duration::from_secs(1);

/// Who leads, as this process last heard.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    /// The leader.
    pub(crate) owner: MemberId,
    /// Where it is reached.
    pub(crate) endpoint: String,
    /// Its epoch.
    pub(crate) epoch: i64,
    /// It is this process.
    pub(crate) mine: bool,
    /// The lease lasts at least until then by this process's clock, if it is this process's; otherwise about until then.
    pub(crate) until: Instant,
}

impl Standing {
    /// Whether this process may decide and call: a call that begins now has ended before anyone else can lead.
    pub(crate) fn may_act(&self) -> bool {
        self.mine && Instant::now() + CALL_LIMIT < self.until
    }

    /// Whether the lease has surely, or about, ended.
    pub(crate) fn has_ended(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// Takes and renews the lease, until the process drains and its leader has stopped.
pub(crate) struct Lease {
    pub(crate) context: Context,
    pub(crate) member: MemberId,
    pub(crate) ttl: Duration,
    pub(crate) clock: DatabaseClock,
    pub(crate) standing: watch::Sender<Option<Standing>>,
    /// Tries again at once.
    pub(crate) nudge: Arc<Notify>,
    /// The leader has stopped, and with it every call.
    pub(crate) stopped: CancellationToken,
}

impl Lease {
    /// Runs until the leader has stopped, then gives the lease up.
    pub(crate) async fn run(self) {
        let mut failures = 0_u32;
        loop {
            let next = match self.try_once().await {
                Ok(next) => {
                    if failures > 0 {
                        tracing::info!(failures, "the leader's lease can be renewed again");
                    }
                    failures = 0;
                    next
                }
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(%error, "the leader's lease could not be renewed");
                    }
                    failures = failures.saturating_add(1);
                    Instant::now() + RETRY.min(self.ttl / 3)
                }
            };
            tokio::select! {
                () = self.stopped.cancelled() => break,
                () = self.nudge.notified() => {}
                () = sleep_until(next) => {}
            }
        }
        self.resign().await;
    }

    /// Takes or renews the lease, or learns who has it; when to do so again.
    async fn try_once(&self) -> Result<Instant, StoreError> {
        let draining = self.context.shutdown.is_draining();
        let mine = self.standing.borrow().as_ref().is_some_and(|standing| standing.mine);
        let asked = Instant::now();
        let lead = match draining && !mine {
            // A process that stops takes nothing any more.
            true => self.context.call(|store| store.leader(LEASE)).await?,
            false => {
                let (owner, endpoint) = (self.member, self.context.endpoint.clone());
                let ttl_ms = i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX);
                Some(self.context.call(move |store| store.lead(LEASE, owner, &endpoint, ttl_ms)).await?)
            }
        };
        Ok(self.heard(lead, asked))
    }

    fn heard(&self, lead: Option<Lead>, asked: Instant) -> Instant {
        let now = Instant::now();
        let Some(lead) = lead else {
            self.standing.send_replace(None);
            return now + self.ttl / 3;
        };
        self.clock.set(lead.now_us, now);
        let mine = lead.owner == self.member;
        let left = Duration::from_micros(u64::try_from(lead.expires_at_us.saturating_sub(lead.now_us)).unwrap_or(0));
        // From before the call was made: the database counted from a later moment, so the lease does not end earlier.
        let until = if mine { asked + left.min(self.ttl) } else { now + left };
        let before = self.standing.send_replace(Some(Standing {
            owner: lead.owner,
            endpoint: lead.endpoint.clone(),
            epoch: lead.epoch,
            mine,
            until,
        }));
        if before.is_none_or(|before| (before.owner, before.epoch) != (lead.owner, lead.epoch)) {
            tracing::info!(leader = %lead.owner, endpoint = lead.endpoint, epoch = lead.epoch, mine, "a scaler leads");
        }
        match mine {
            true => now + self.ttl / 3,
            // A moment after its end, if it is not renewed.
            false => now + (left + Duration::from_millis(50)).min(self.ttl / 3),
        }
    }

    async fn resign(&self) {
        let mine = self.standing.borrow().as_ref().is_some_and(|standing| standing.mine);
        self.standing.send_replace(None);
        let member = self.member;
        if mine && let Err(error) = self.context.call(move |store| store.resign(LEASE, member)).await {
            tracing::warn!(%error, "the leader's lease could not be given up; it runs out");
        }
    }
}
