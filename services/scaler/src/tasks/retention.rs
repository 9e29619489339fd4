//! Drops nodes that have been gone for long, with their histories.

use std::{sync::Arc, time::Duration};

use millrace_runtime::{Context, background};
use millrace_store::StoreError;

use crate::leader::Desk;

const PERIOD: Duration = Duration::from_secs(300);

/// Rows of one transaction.
const PAGE: i64 = 500;

/// Transactions of one step; the rest waits for the next one.
const PAGES: usize = 100;

/// One process does it: the leader.
pub(super) fn start(context: &Context, keep: Duration, desk: &Desk) {
    let (trimming, desk) = (context.clone(), desk.clone());
    background::every("nodes' retention", PERIOD, Arc::default(), &context.shutdown, move || {
        let (context, leads) = (trimming.clone(), desk.leader().is_some());
        async move {
            match leads {
                true => trim(&context, keep).await,
                false => Ok(()),
            }
        }
    });
}

async fn trim(context: &Context, keep: Duration) -> Result<(), StoreError> {
    for _ in 0..PAGES {
        if context.call(move |store| store.trim_nodes(keep, PAGE)).await? < PAGE {
            break;
        }
    }
    Ok(())
}
