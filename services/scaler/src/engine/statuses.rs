//! Statuses of pools: stored when they change, so that any replica can answer for them.

use std::collections::BTreeMap;

use millrace_core::{fleet::books::PoolReport, time::Timestamp};
use millrace_proto::scaler::v1::ExplainPoolResponse;
use millrace_store::PoolStatusRow;
use prost::Message;

use super::{Engine, Shares};
use crate::convert::{self, status::Asked};

/// What was stored of each pool.
#[derive(Debug, Default)]
pub(super) struct Statuses {
    sent: BTreeMap<String, Sent>,
    /// What is being stored, without its time.
    sending: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug)]
struct Sent {
    at: Timestamp,
    /// The status without its time, to tell a change by.
    content: Vec<u8>,
}

impl Statuses {
    /// A pool that is no more.
    pub(super) fn forget(&mut self, pool: &str) {
        self.sent.remove(pool);
    }

    /// These are stored.
    pub(super) fn sent(&mut self, rows: &[PoolStatusRow], now: Timestamp) {
        for row in rows {
            if let Some(content) = self.sending.remove(&row.pool) {
                self.sent.insert(row.pool.clone(), Sent { at: now, content });
            }
        }
    }
}

impl Engine {
    /// The statuses that are to be stored now.
    pub(super) fn statuses_due(&mut self, now: Timestamp) -> Vec<PoolStatusRow> {
        let explained = self.explained(now);
        self.statuses.sending.clear();
        let mut rows = Vec::new();
        for (pool, mut response) in explained {
            let content = response.encode_to_vec();
            let due = self.statuses.sent.get(&pool).is_none_or(|sent| {
                let passed = now.since(sent.at);
                let changed = sent.content != content && passed >= self.settings.status_every;
                changed || passed >= self.settings.status_at_least
            });
            if !due {
                continue;
            }
            if let Some(status) = response.pool.as_mut().and_then(|pool| pool.status.as_mut()) {
                status.as_of = Some(convert::moment(now));
            }
            rows.push(PoolStatusRow { pool: pool.clone(), status: response.encode_to_vec(), as_of_us: now.0 });
            self.statuses.sending.insert(pool, content);
        }
        rows
    }

    /// Every pool, explained, without the time. A pool that stands for a row that cannot be read is left out.
    fn explained(&self, now: Timestamp) -> Vec<(String, ExplainPoolResponse)> {
        let shares = Shares::of(self.reports.iter().map(|report| &report.pool));
        let readable = self.reports.iter().filter(|report| !self.blind.has_pool(&report.pool.name));
        let explain = |report: &PoolReport| {
            let mut asked = Asked::default();
            for (queue, part) in shares.parts(&report.pool) {
                if let Some(row) = self.demand.get(queue) {
                    asked.add(row, part);
                }
            }
            let provider = self.fleet.provider(&report.pool.provider, now);
            (report.pool.name.clone(), convert::status::explained(report, provider, &asked))
        };
        readable.map(explain).collect()
    }
}
