//! GetPool, ListPools and WatchPools.

use std::time::Duration;

use millrace_proto::scaler::v1::{
    GetPoolRequest, GetPoolResponse, ListPoolsRequest, ListPoolsResponse, WatchPoolsRequest,
};
use millrace_runtime::status::{Fault, Violations};

use super::{Rpc, no_pool, page};
use crate::{convert, describe::Described, validate, watch::Responses};

/// The most names that one watcher may give.
const MAX_WATCHED: usize = 1_000;

/// How often a watcher may hear.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(3_600);

pub(super) async fn get(rpc: &Rpc, request: GetPoolRequest) -> Result<GetPoolResponse, Fault> {
    let mut violations = Violations::new();
    validate::name("name", &request.name, &mut violations);
    violations.finish()?;
    let (name, now) = (request.name.clone(), rpc.desk.now());
    let described = rpc.calls.read(move |store| Described::one(store, &name, now)).await?;
    let described = described.ok_or_else(|| no_pool(&request.name))?;
    let mut pools = described.explained(rpc.desk.is_led())?;
    let pool = pools.pop().and_then(|explained| explained.pool);
    Ok(GetPoolResponse { pool: Some(pool.ok_or_else(|| no_pool(&request.name))?) })
}

pub(super) async fn list(rpc: &Rpc, request: ListPoolsRequest) -> Result<ListPoolsResponse, Fault> {
    let mut violations = Violations::new();
    let size = page::size(request.page_size, &mut violations);
    let after = page::read_pool(&request.page_token, &mut violations);
    violations.finish()?;
    let read = rpc.calls.read(move |store| {
        let after = after.as_deref().unwrap_or("");
        let mut pools = store.pools()?;
        // Rows come by name, and no name is empty.
        pools.rows.retain(|row| row.name.as_str() > after);
        let next = pools.rows.get(size).and_then(|_| pools.rows.get(size - 1)).map(|last| last.name.clone());
        pools.rows.truncate(size);
        Ok((Described::of(store, pools)?, next))
    });
    let (described, next) = read.await?;
    let next_page_token = next.map(|last| page::after_pool(&last)).unwrap_or_default();
    Ok(ListPoolsResponse { pools: described.pools(rpc.desk.is_led()), next_page_token })
}

pub(super) fn watch(rpc: &Rpc, request: WatchPoolsRequest) -> Result<Responses, Fault> {
    let mut violations = Violations::new();
    violations.require(request.names.len() <= MAX_WATCHED, "names", "must be at most 1000");
    for (index, name) in request.names.iter().enumerate().take(MAX_WATCHED) {
        validate::name(&format!("names[{index}]"), name, &mut violations);
    }
    let interval = match &request.interval {
        Some(interval) => convert::span(interval).filter(|interval| INTERVALS.contains(interval)),
        None => Some(Duration::from_secs(1)),
    };
    violations.require(interval.is_some(), "interval", "must be from 200 ms to 1 h");
    violations.finish()?;
    let names = (!request.names.is_empty()).then(|| request.names.into_iter().collect());
    rpc.watch.watch(names, interval.unwrap_or(Duration::from_secs(1)))
}
