//! The leader: one of the scaler's processes decides and calls providers, under a lease with an epoch in the database.
//!
//! - [`lease`]: who leads, and until when this process may act as the leader.
//! - [`rounds`]: what a leader does while it leads: the engine's steps, its calls, the nodes' streams.
//! - [`calls`], [`streams`]: the calls under way and the nodes that are attached.
//! - [`desk`]: how the rest of the process reaches it.
//!
//! A process that no longer leads drops its books: the next leader loads them from the database.

mod calls;
mod clock;
mod desk;
mod lease;
mod rounds;
mod streams;

use std::{sync::Arc, time::Duration};

use millrace_core::id::MemberId;
use millrace_runtime::Context;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use calls::Providers;
pub(crate) use desk::{Arrival, Desk, Fact};
pub(crate) use streams::{OUTBOX, go_away};

use self::{
    calls::REPLIES,
    clock::DatabaseClock,
    desk::FACTS,
    lease::{LEASE, Lease, Standing},
    rounds::Rounds,
};
use crate::{
    Settings,
    engine::{Engine, Term},
    keda::Figures,
    metrics::ScalerMetrics,
};

/// How long a call to a provider may take. A leader calls only while its lease outlives the call.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);

/// Between two terms of this process, and two attempts to load the books.
const PAUSE: Duration = Duration::from_secs(1);

/// What a leader works with.
#[derive(Clone)]
pub(crate) struct Leader {
    context: Context,
    settings: Settings,
    providers: Providers,
    standing: watch::Receiver<Option<Standing>>,
    clock: DatabaseClock,
    lease: Arc<Notify>,
    desk: Desk,
    figures: Figures,
    metrics: Arc<ScalerMetrics>,
}

/// Starts the lease and the leader; both end with the context's shutdown, the lease last.
pub(crate) fn start(
    context: &Context,
    settings: &Settings,
    member: MemberId,
    providers: Providers,
    figures: Figures,
    metrics: Arc<ScalerMetrics>,
) -> Desk {
    let (sender, standing) = watch::channel(None);
    let (clock, nudge, stopped) = (DatabaseClock::default(), Arc::new(Notify::new()), CancellationToken::new());
    let desk = Desk::new(standing.clone(), clock.clone());
    let lease = Lease {
        context: context.clone(),
        member,
        ttl: settings.scaler_lease,
        clock: clock.clone(),
        standing: sender,
        nudge: nudge.clone(),
        stopped: stopped.clone(),
    };
    let leader = Leader {
        context: context.clone(),
        settings: settings.clone(),
        providers,
        standing,
        clock,
        lease: nudge,
        desk: desk.clone(),
        figures,
        metrics,
    };
    context.shutdown.spawn_critical("scaler lease", lease.run());
    context.shutdown.spawn_critical("scaler leader", async move {
        // However it ends, also by a panic: the lease must not outlive its leader.
        let _stopped = stopped.drop_guard();
        leader.run().await;
    });
    desk
}

impl Leader {
    /// Leads whenever the lease is this process's, until it drains.
    async fn run(mut self) {
        let shutdown = self.context.shutdown.clone();
        loop {
            let led = self.standing.wait_for(|standing| standing.as_ref().is_some_and(Standing::may_act));
            let epoch = tokio::select! {
                biased;
                () = shutdown.draining() => return,
                standing = led => match standing {
                    Ok(standing) => standing.as_ref().map(|standing| standing.epoch),
                    // The lease has ended, so the process is about to.
                    Err(_) => return,
                },
            };
            if let Some(epoch) = epoch {
                self.lead(Term { lease: LEASE.into(), epoch }).await;
            }
            // A moment to hear who leads now, and not to load the books as fast as a database can refuse them.
            tokio::select! {
                () = shutdown.draining() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Leads for one term.
    async fn lead(&self, term: Term) {
        let Some(engine) = self.load().await else { return };
        let (pools, nodes) = (engine.fleet().pool_names().count(), engine.fleet().nodes().count());
        tracing::info!(epoch = term.epoch, pools, nodes, "leading");
        self.assign(&engine);
        let (facts, incoming) = mpsc::channel(FACTS);
        let (replies, answered) = mpsc::channel(REPLIES);
        self.desk.open(facts);
        self.metrics.leads(true);
        let end = Rounds::new(self.clone(), term, engine, replies).run(incoming, answered).await;
        self.desk.close();
        self.metrics.leads(false);
        tracing::info!(why = end, "leading no longer");
    }

    /// The engine with everything that is stored.
    async fn load(&self) -> Option<Engine> {
        let mut engine = Engine::new(self.settings.engine());
        let now = self.clock.now()?;
        for provider in self.providers.names() {
            engine.set_provider(provider, self.settings.budget(now));
        }
        let loaded = self.context.call(move |store| engine.load(store, now).map(|()| engine)).await;
        loaded.inspect_err(|error| tracing::warn!(%error, "the books could not be loaded; trying on")).ok()
    }

    /// Tells providers which pools there are.
    fn assign(&self, engine: &Engine) {
        let fleet = engine.fleet();
        let pools: Vec<_> = fleet.pool_names().filter_map(|name| fleet.pool(name)).cloned().collect();
        self.providers.assign(&pools);
    }
}
