//! Says that this replica lives, and whether the database answers.

use std::{sync::Arc, time::Duration};

use millrace_core::READER_RANGE;
use millrace_runtime::{background, status::Fault};
use millrace_store::{MemberKind, MemberRow};

use crate::shared::{Shared, lock};

const PERIOD: Duration = Duration::from_secs(1);

/// How long the membership outlives its last renewal, in served time.
const TTL_MS: i64 = 5_000;

pub(super) fn start(shared: &Arc<Shared>) {
    let stop = shared.context.shutdown.clone();
    let worker = shared.clone();
    background::every("membership", PERIOD, Arc::default(), &stop, move || step(worker.clone()));
}

async fn step(shared: Arc<Shared>) -> Result<(), Fault> {
    let member = MemberRow {
        id: shared.id(),
        kind: MemberKind::Distributor,
        endpoint: shared.context.endpoint.clone(),
        build: shared.context.build.clone(),
        readers: READER_RANGE,
        seen_at_us: 0,
    };
    let read = shared
        .blocking(move |store| {
            let cluster = store.cluster()?;
            store.renew_member(&member, TTL_MS)?;
            Ok((cluster, store.members()?))
        })
        .await;
    match read {
        Ok((cluster, members)) => {
            let first = lock(&shared.cluster).replace(cluster).is_none();
            *lock(&shared.members) = members;
            if first {
                shared.look_for_owners.notify_one();
            }
            if shared.routing.version().is_none_or(|version| version != cluster.route_version) {
                shared.routing.refresh(&shared).await?;
            }
            shared.context.health.set_database(true);
            Ok(())
        }
        Err(fault) => {
            shared.context.health.set_database(false);
            Err(fault)
        }
    }
}
