//! The metrics of matchers and exchange streams.

use millrace_core::matcher::Answer;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::mailbox::Verdict;

/// Labels of a matcher's series. Queues exist in the database, so the set is closed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    queue: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    queue: String,
    verdict: &'static str,
}

/// The metrics of all hosts of a process.
#[derive(Debug)]
pub(super) struct HostMetrics {
    offers: Family<QueueLabels, Counter>,
    dropped: Family<QueueLabels, Counter>,
    recovered: Family<QueueLabels, Counter>,
    matches: Family<QueueLabels, Counter>,
    answers: Family<AnswerLabels, Counter>,
    window: Family<QueueLabels, Gauge>,
    demand: Family<QueueLabels, Gauge>,
    unanswered: Family<QueueLabels, Gauge>,
    /// Queues that are owned.
    pub(super) owned: Gauge,
    /// Exchange streams that are open.
    pub(super) streams: Gauge,
    /// Streams closed because their matches were not read.
    pub(super) stalled: Counter,
    /// Items of the exchange that could not be understood.
    pub(super) unreadable: Counter,
}

impl HostMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            offers: Family::default(),
            dropped: Family::default(),
            recovered: Family::default(),
            matches: Family::default(),
            answers: Family::default(),
            window: Family::default(),
            demand: Family::default(),
            unanswered: Family::default(),
            owned: Gauge::default(),
            streams: Gauge::default(),
            stalled: Counter::default(),
            unreadable: Counter::default(),
        };
        registry.register("matcher_offers", "Tasks offered by distributors", metrics.offers.clone());
        registry.register("matcher_offers_dropped", "Offers dropped for want of room", metrics.dropped.clone());
        registry.register("matcher_recovered", "Tasks that only the sweep found", metrics.recovered.clone());
        registry.register("matcher_matches", "Matches sent", metrics.matches.clone());
        registry.register("matcher_answers", "Answers to matches, by verdict", metrics.answers.clone());
        registry.register("matcher_window", "Tasks in the window", metrics.window.clone());
        registry.register("matcher_demand", "Credits that wait for work", metrics.demand.clone());
        registry.register("matcher_unanswered", "Matches without an answer", metrics.unanswered.clone());
        registry.register("matcher_queues", "Queues owned", metrics.owned.clone());
        registry.register("exchange_streams", "Exchange streams open", metrics.streams.clone());
        registry.register("exchange_stalled", "Exchange streams closed unread", metrics.stalled.clone());
        registry.register("exchange_unreadable", "Exchange items not understood", metrics.unreadable.clone());
        metrics
    }

    /// The series of one queue, looked up once so that counting costs an addition.
    pub(super) fn of(&self, queue: &str) -> QueueMetrics {
        let labels = QueueLabels { queue: queue.to_owned() };
        let verdict = |verdict| self.answers.get_or_create_owned(&AnswerLabels { queue: queue.to_owned(), verdict });
        QueueMetrics {
            offers: self.offers.get_or_create_owned(&labels),
            dropped: self.dropped.get_or_create_owned(&labels),
            recovered: self.recovered.get_or_create_owned(&labels),
            matches: self.matches.get_or_create_owned(&labels),
            window: self.window.get_or_create_owned(&labels),
            demand: self.demand.get_or_create_owned(&labels),
            unanswered: self.unanswered.get_or_create_owned(&labels),
            verdicts: VERDICTS.map(verdict),
        }
    }

    /// Drops the series of a queue that exists no longer.
    pub(super) fn forget(&self, queue: &str) {
        let labels = QueueLabels { queue: queue.to_owned() };
        for counters in [&self.offers, &self.dropped, &self.recovered, &self.matches] {
            counters.remove(&labels);
        }
        for gauges in [&self.window, &self.demand, &self.unanswered] {
            gauges.remove(&labels);
        }
        for verdict in VERDICTS {
            self.answers.remove(&AnswerLabels { queue: queue.to_owned(), verdict });
        }
    }
}

const VERDICTS: [&str; 5] = ["claimed", "stale", "returned", "refused", "overdue"];

/// The series of one queue.
#[derive(Debug)]
pub(super) struct QueueMetrics {
    pub(super) offers: Counter,
    /// Counted by those who offer.
    pub(super) dropped: Counter,
    pub(super) recovered: Counter,
    pub(super) matches: Counter,
    pub(super) window: Gauge,
    pub(super) demand: Gauge,
    pub(super) unanswered: Gauge,
    verdicts: [Counter; VERDICTS.len()],
}

impl QueueMetrics {
    /// Counts an answer.
    pub(super) fn answered(&self, verdict: Verdict) {
        let index = match verdict {
            Verdict::Answer(Answer::Claimed) => 0,
            Verdict::Answer(Answer::Stale) => 1,
            Verdict::Answer(Answer::Returned) => 2,
            Verdict::Refused => 3,
        };
        self.verdicts[index].inc();
    }

    /// Shows that there is no matcher any more.
    pub(super) fn clear(&self) {
        for gauge in [&self.window, &self.demand, &self.unanswered] {
            gauge.set(0);
        }
    }

    /// Counts matches whose answers did not come in time.
    pub(super) fn overdue(&self, matches: usize) {
        self.verdicts[4].inc_by(matches as u64);
    }
}
