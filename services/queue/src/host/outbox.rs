//! What waits to go out on one exchange stream.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::Stream;
use millrace_proto::queue::v1::{ExchangeResponse, Match, Matches, Ownership, exchange_response::Message};
use millrace_runtime::status::Fault;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Matches that go out in one message. About 60 KB on the wire.
const MATCHES_PER_MESSAGE: usize = 2_000;

/// What waits to go out on one exchange stream. Matches of the same queue join the message that waits already, so a
/// stream that is read a little late gets fewer, larger messages. Bounded by the number of matches; a stream that lets more
/// than that wait is closed, and its matches return to their windows.
#[derive(Debug)]
pub(super) struct Outbox {
    state: Mutex<State>,
    limit: usize,
    /// The stream is over, for whichever reason.
    gone: CancellationToken,
}

/// What became of matches that were to go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// They wait to go out.
    Waits,
    /// There was no room, so the stream is closed now.
    Full,
    /// The stream was over.
    Gone,
}

#[derive(Debug, Default)]
struct State {
    /// A newer one replaces an older one that has not gone out.
    ownership: Option<Ownership>,
    matches: VecDeque<Matches>,
    /// How many single matches `matches` holds.
    waiting: usize,
    end: Option<End>,
    reader: Option<Waker>,
}

#[derive(Debug)]
enum End {
    /// What waits still goes out, then the stream ends.
    Finished,
    /// The error is the next and last item.
    Failed(Box<Status>),
    /// The last item has gone out.
    Over,
}

impl Outbox {
    /// An empty outbox for at most `limit` matches.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), limit, gone: CancellationToken::new() })
    }

    /// The stream that empties it. Dropping the stream closes the outbox.
    pub(super) fn responses(self: &Arc<Self>) -> Responses {
        Responses { outbox: self.clone() }
    }

    /// Says which queues are ours, before any match that waits.
    pub(super) fn announce(&self, ownership: Ownership) {
        self.change(|state| state.ownership = Some(ownership));
    }

    /// Adds matches of one queue.
    pub(super) fn push(&self, queue: &str, epoch: i64, matches: Vec<Match>) -> Pushed {
        if self.gone.is_cancelled() {
            return Pushed::Gone;
        }
        let fits = self.change(|state| {
            state.waiting += matches.len();
            if state.waiting > self.limit {
                return false;
            }
            state.add(queue, epoch, matches);
            true
        });
        if fits {
            return Pushed::Waits;
        }
        let fault = Fault::exhausted("EXCHANGE_STALLED", "matches are not being read", Duration::from_secs(1));
        self.fail(fault.into());
        Pushed::Full
    }

    /// Ends the stream once what waits has gone out.
    pub(super) fn finish(&self) {
        self.change(|state| {
            state.end.get_or_insert(End::Finished);
        });
    }

    /// Ends the stream with an error; what waits is dropped.
    pub(super) fn fail(&self, status: Status) {
        self.change(|state| {
            *state = State {
                end: Some(state.end.take().unwrap_or_else(|| End::Failed(Box::new(status)))),
                reader: state.reader.take(),
                ..State::default()
            };
        });
        self.gone.cancel();
    }

    /// Completes when nobody reads the stream any more. Cancel-safe.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, queue: &str, epoch: i64, matches: Vec<Match>) {
        if let Some(last) = self.matches.back_mut()
            && last.queue == queue
            && last.epoch == epoch
            && last.matches.len() + matches.len() <= MATCHES_PER_MESSAGE
        {
            last.matches.extend(matches);
            return;
        }
        self.matches.push_back(Matches { queue: queue.to_owned(), epoch, matches });
    }

    fn next(&mut self) -> Option<Option<Result<Message, Status>>> {
        if let Some(ownership) = self.ownership.take() {
            return Some(Some(Ok(Message::Ownership(ownership))));
        }
        if let Some(matches) = self.matches.pop_front() {
            self.waiting -= matches.matches.len();
            return Some(Some(Ok(Message::Matches(matches))));
        }
        match self.end.replace(End::Over) {
            Some(End::Failed(status)) => Some(Some(Err(*status))),
            Some(End::Finished | End::Over) => Some(None),
            None => {
                self.end = None;
                None
            }
        }
    }
}

/// The responses of one exchange.
#[derive(Debug)]
pub(super) struct Responses {
    outbox: Arc<Outbox>,
}

impl Stream for Responses {
    type Item = Result<ExchangeResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.outbox.lock();
        match state.next() {
            Some(item) => Poll::Ready(item.map(|item| item.map(|message| ExchangeResponse { message: Some(message) }))),
            None => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Responses {
    fn drop(&mut self) {
        self.outbox.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    fn matches(count: u64) -> Vec<Match> {
        (1..=count).map(|seq| Match { seq, ..Match::default() }).collect()
    }

    #[tokio::test]
    async fn matches_that_wait_go_out_together_behind_the_ownership() {
        let outbox = Outbox::new(10_000);
        let mut responses = outbox.responses();
        for (queue, epoch, count) in [("a", 1, 2), ("a", 1, 3), ("b", 7, 1)] {
            assert_eq!(outbox.push(queue, epoch, matches(count)), Pushed::Waits);
        }
        outbox.announce(Ownership::default());
        outbox.announce(Ownership { owner_id: "me".into(), queues: Vec::new() });
        outbox.finish();
        let mut seen = Vec::new();
        while let Some(item) = responses.next().await {
            seen.push(match item.unwrap().message.unwrap() {
                Message::Ownership(ownership) => format!("ownership of {}", ownership.owner_id),
                Message::Matches(message) => format!("{} {} {}", message.queue, message.epoch, message.matches.len()),
            });
        }
        assert_eq!(seen, ["ownership of me", "a 1 5", "b 7 1"]);
    }

    #[tokio::test]
    async fn a_message_has_a_bound() {
        let outbox = Outbox::new(10_000);
        outbox.push("a", 1, matches(1_500));
        outbox.push("a", 1, matches(1_500));
        assert_eq!(outbox.lock().matches.len(), 2);
    }

    #[tokio::test]
    async fn a_full_outbox_closes_its_stream() {
        let outbox = Outbox::new(3);
        let mut responses = outbox.responses();
        assert_eq!(outbox.push("a", 1, matches(3)), Pushed::Waits);
        assert_eq!(outbox.push("a", 1, matches(1)), Pushed::Full);
        assert_eq!(outbox.push("a", 1, matches(1)), Pushed::Gone);
        outbox.gone().await;
        let status = responses.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(responses.next().await.is_none());
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_and_a_dropped_stream_is_noticed() {
        let outbox = Outbox::new(3);
        let mut responses = outbox.responses();
        assert!(responses.next().now_or_never().is_none());
        let waiting = tokio::spawn(async move { responses.next().await });
        tokio::task::yield_now().await;
        outbox.push("a", 1, matches(1));
        assert!(waiting.await.unwrap().unwrap().is_ok());
        outbox.gone().await;
        assert_eq!(outbox.push("a", 1, matches(1)), Pushed::Gone);
    }
}
