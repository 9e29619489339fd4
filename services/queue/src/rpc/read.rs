//! GetQueue, ListQueues and WatchQueues.

use std::time::Duration;

use millrace_proto::queue::v1::{
    GetQueueRequest, GetQueueResponse, ListQueuesRequest, ListQueuesResponse, WatchQueuesRequest,
};
use millrace_runtime::status::{Fault, Violations};

use super::{Rpc, no_queue, page};
use crate::{convert, describe::Described, validate, watch::Responses};

/// The most names that one watcher may give.
const MAX_WATCHED: usize = 1_000;

/// How often a watcher may hear.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(3_600);

pub(super) async fn get(rpc: &Rpc, request: GetQueueRequest) -> Result<GetQueueResponse, Fault> {
    let mut violations = Violations::new();
    validate::name("name", &request.name, &mut violations);
    violations.finish()?;
    let name = request.name.clone();
    let described = rpc.calls.read(move |store| Described::read(store, store.queue(&name)?.into_iter().collect()));
    let queue = described.await?.describe(&rpc.host).pop().ok_or_else(|| no_queue(&request.name))?;
    Ok(GetQueueResponse { queue: Some(queue) })
}

pub(super) async fn list(rpc: &Rpc, request: ListQueuesRequest) -> Result<ListQueuesResponse, Fault> {
    let mut violations = Violations::new();
    let size = page::size(request.page_size, &mut violations);
    let after = page::after(&request.page_token, &mut violations);
    violations.finish()?;
    let described = rpc.calls.read(move |store| {
        let after = after.as_deref().unwrap_or("");
        // Rows come by name, and no name is empty.
        let mut rows: Vec<_> = store.queues()?.into_iter().filter(|row| row.name.as_str() > after).collect();
        let more = rows.len() > size;
        rows.truncate(size);
        Ok((Described::read(store, rows)?, more))
    });
    let (described, more) = described.await?;
    let queues = described.describe(&rpc.host);
    let last = queues.last().filter(|_| more);
    let next_page_token = last.map(|queue| page::token(&queue.name)).unwrap_or_default();
    Ok(ListQueuesResponse { queues, next_page_token })
}

pub(super) fn watch(rpc: &Rpc, request: WatchQueuesRequest) -> Result<Responses, Fault> {
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
