//! Keeps the service among the live members, and takes it out when it stops.

use std::{sync::Arc, time::Duration};

use millrace_core::{READER_RANGE, id::MemberId};
use millrace_runtime::{Context, background};
use millrace_store::{MemberKind, MemberRow, StoreError};

use crate::Host;

const PERIOD: Duration = Duration::from_secs(1);

/// How long the membership outlives its last renewal, in served milliseconds.
const TTL_MS: i64 = 5_000;

pub(super) fn start(context: &Context, host: &Host, member: MemberId) {
    let row = MemberRow {
        id: member,
        kind: MemberKind::Queue,
        endpoint: context.endpoint.clone(),
        build: context.build.clone(),
        readers: READER_RANGE,
        seen_at_us: 0,
    };
    let (renewing, reached) = (context.clone(), host.clone());
    background::every("queue membership", PERIOD, Arc::default(), &context.shutdown, move || {
        let (context, host, row) = (renewing.clone(), reached.clone(), row.clone());
        async move { renew(&context, &host, row).await }
    });
    let (leaving, host) = (context.clone(), host.clone());
    context.shutdown.spawn("queue membership ends", async move {
        // The queues go first, so that whoever sees the member gone finds them free.
        host.left().await;
        if let Err(error) = leaving.call(move |store| store.remove_member(member)).await {
            tracing::warn!(%error, "the member could not be removed; its lease runs out");
        }
    });
}

/// A service that no distributor reaches is no live member: then a distributor may host the matchers (R5).
async fn renew(context: &Context, host: &Host, row: MemberRow) -> Result<(), StoreError> {
    match host.is_holding_back() {
        true => context.call(move |store| store.remove_member(row.id)).await,
        false => context.call(move |store| store.renew_member(&row, TTL_MS)).await,
    }
}
