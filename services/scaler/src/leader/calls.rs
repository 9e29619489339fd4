//! Calls to providers: made beside the leader's rounds, a bounded number for each provider, and each with an end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use millrace_core::fleet::{
    Pool,
    books::{Call, Work},
};
use millrace_runtime::failpoint;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, timeout_at},
};

use super::CALL_LIMIT;
use crate::{
    engine::{Provider, Reply, method, perform, point},
    metrics::ScalerMetrics,
    provider::Opened,
};

/// Calls to one provider that are under way at a time. More wait for their turn within the time that a call has; one whose turn does not
/// come counts as a call whose end is not known.
const AT_A_TIME: usize = 32;

/// How long a listing may take, all its pages together. It changes nothing, so it may outlive the lease.
const LIST_LIMIT: Duration = Duration::from_secs(60);

/// Replies that wait for the leader. While it does not take them, calls wait to hand theirs over.
pub(crate) const REPLIES: usize = 1_024;

/// The providers of this process.
#[derive(Clone)]
pub(crate) struct Providers {
    providers: Arc<BTreeMap<String, Hand>>,
    metrics: Arc<ScalerMetrics>,
}

/// A provider, and whose turn it is.
struct Hand {
    service: Arc<dyn Provider>,
    turns: Semaphore,
    /// Set for one that was opened from the settings: it may have to know its pools.
    opened: Option<Opened>,
}

impl Providers {
    /// Those that the settings name, and others that are called in this process.
    pub(crate) fn new(
        opened: Vec<Opened>,
        others: BTreeMap<String, Arc<dyn Provider>>,
        metrics: Arc<ScalerMetrics>,
    ) -> Self {
        let hand = |service, opened| Hand { service, turns: Semaphore::new(AT_A_TIME), opened };
        let mut providers: BTreeMap<String, Hand> =
            others.into_iter().map(|(name, service)| (name, hand(service, None))).collect();
        for one in opened {
            providers.insert(one.name.clone(), hand(one.service.clone(), Some(one)));
        }
        Self { providers: Arc::new(providers), metrics }
    }

    /// Their names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.providers.keys().map(String::as_str)
    }

    /// Whether this process has a provider of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.providers.contains_key(name)
    }

    /// Tells those that must know which pools there are.
    pub(crate) fn assign(&self, pools: &[Pool]) {
        self.opened().for_each(|opened| opened.assign(pools));
    }

    /// Those that were opened from the settings.
    pub(crate) fn opened(&self) -> impl Iterator<Item = &Opened> {
        self.providers.values().filter_map(|hand| hand.opened.as_ref())
    }

    /// Makes a call in a task of its own. Its reply comes whatever happens, unless nobody takes replies any more.
    pub(crate) fn make(&self, call: Call, replies: mpsc::Sender<Reply>) {
        let this = self.clone();
        tokio::spawn(async move {
            let (provider, method) = (call.provider.clone(), method(&call.work));
            let reply = this.reply(call).await;
            this.metrics.called(&provider, method, reply.result());
            // Whoever led has stopped; the next leader lists before it calls.
            let _ = replies.send(reply).await;
        });
    }

    async fn reply(&self, call: Call) -> Reply {
        let Some(Hand { service, turns, .. }) = self.providers.get(&call.provider) else {
            return Reply::unknown(call, "this process has no such provider");
        };
        let limit = if call.work == Work::List { LIST_LIMIT } else { CALL_LIMIT };
        let (end, lost) = (Instant::now() + limit, call.clone());
        let made = async {
            let _turn = turns.acquire().await;
            passed(&call, "before_call").await?;
            // A panic of a provider in this process is its own: the call ends without an answer.
            let (task, service) = (call.clone(), service.clone());
            let reply = Stopped(tokio::spawn(async move { perform(service.as_ref(), task).await })).await?;
            passed(&call, "after_call").await?;
            Some(reply)
        };
        match timeout_at(end, made).await {
            Ok(Some(reply)) => reply,
            Ok(None) => Reply::unknown(lost, "the call ended without an answer"),
            Err(_) => Reply::unknown(lost, &format!("no answer within {} s", limit.as_secs())),
        }
    }
}

/// Passes a fail point; none when the step is lost there.
async fn passed(call: &Call, step: &str) -> Option<()> {
    let end = match call.work {
        Work::List => return Some(()),
        Work::Request { .. } => false,
        Work::Terminate { .. } => true,
    };
    failpoint::hit_async(&point(end, step)).await.is_none().then_some(())
}

/// A task that is stopped when nobody waits for it any more.
struct Stopped<T>(tokio::task::JoinHandle<T>);

impl<T> Future for Stopped<T> {
    type Output = Option<T>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<T>> {
        std::pin::Pin::new(&mut self.0).poll(context).map(Result::ok)
    }
}

impl<T> Drop for Stopped<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
