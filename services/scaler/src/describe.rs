//! Pools with their figures, as people see them: the rows, and what the leader last wrote down of each.

use std::collections::BTreeMap;

use millrace_core::time::Timestamp;
use millrace_proto::scaler::v1::{ExplainPoolResponse, Pool, PoolStatus};
use millrace_runtime::status::Fault;
use millrace_store::{PoolRow, PoolStatusRow, Pools, Store, StoreError};
use prost::Message;

use crate::convert;

/// The rows behind pools and their figures.
#[derive(Debug)]
pub(crate) struct Described {
    pools: Vec<PoolRow>,
    statuses: BTreeMap<String, PoolStatusRow>,
    now: Timestamp,
}

impl Described {
    /// Reads the figures of these pools. With no pool at all, reads nothing.
    pub(crate) fn of(store: &dyn Store, pools: Pools) -> Result<Self, StoreError> {
        Self::read(store, pools.rows, Timestamp(pools.now_us))
    }

    /// Reads a pool with its figures.
    pub(crate) fn one(store: &dyn Store, name: &str, now: Timestamp) -> Result<Option<Self>, StoreError> {
        match store.pool(name)? {
            Some(row) => Self::read(store, vec![row], now).map(Some),
            None => Ok(None),
        }
    }

    fn read(store: &dyn Store, pools: Vec<PoolRow>, now: Timestamp) -> Result<Self, StoreError> {
        let names: Vec<String> = pools.iter().map(|row| row.name.clone()).collect();
        let rows = if names.is_empty() { Vec::new() } else { store.pool_statuses(&names)? };
        let statuses = rows.into_iter().map(|row| (row.pool.clone(), row)).collect();
        Ok(Self { pools, statuses, now })
    }

    /// The pools. One that this build cannot read is left out: it is logged and counted by the leader.
    pub(crate) fn pools(&self, led: bool) -> Vec<Pool> {
        let explained = self.pools.iter().filter_map(|row| self.explain(row, led).ok());
        explained.filter_map(|explained| explained.pool).collect()
    }

    /// Why the pools have the sizes that they have.
    ///
    /// # Errors
    /// FAILED_PRECONDITION for a row that this build cannot read.
    pub(crate) fn explained(&self, led: bool) -> Result<Vec<ExplainPoolResponse>, Fault> {
        self.pools.iter().map(|row| self.explain(row, led)).collect()
    }

    fn explain(&self, row: &PoolRow, led: bool) -> Result<ExplainPoolResponse, Fault> {
        let pool = convert::pool::shown(row, self.now).map_err(|error| {
            Fault::precondition("ROW_UNREADABLE", format!("the pool `{}` cannot be read: {error}", row.name))
        })?;
        // Figures that cannot be read are as good as none: the leader writes them anew.
        let written = self.statuses.get(&row.name);
        let written = written.and_then(|row| ExplainPoolResponse::decode(row.status.as_slice()).ok());
        let mut explained = written.unwrap_or_default();
        let mut status: PoolStatus = explained.pool.take().and_then(|pool| pool.status).unwrap_or_default();
        if !led {
            status.as_of = None;
            explained.obstacles.insert(0, "no scaler leads: fleets stay as they are".into());
        } else if status.as_of.is_none() {
            explained.obstacles.insert(0, "the leader has not looked at the pool yet".into());
        }
        explained.pool = Some(Pool { status: Some(status), ..pool });
        Ok(explained)
    }
}
