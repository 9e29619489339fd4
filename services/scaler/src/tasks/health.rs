//! Says each second whether the database answers. Whether this process leads is no question of health: a standby serves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use millrace_runtime::{Context, background};
use millrace_store::StoreError;

const PERIOD: Duration = Duration::from_secs(1);

/// How many checks in a row may fail before the database counts as down, if it does not say so itself: a busy database is no
/// reason for clients to go elsewhere, one that never answers is.
const FAILURES: u32 = 3;

pub(super) fn start(context: &Context) {
    let (checked, failures) = (context.clone(), Arc::new(AtomicU32::new(0)));
    background::every("database check", PERIOD, Arc::default(), &context.shutdown, move || {
        let (context, failures) = (checked.clone(), failures.clone());
        async move {
            let result = context.call(|store| store.cluster()).await;
            note(&context, &failures, result.as_ref().err());
            result.map(|_| ())
        }
    });
}

fn note(context: &Context, failures: &AtomicU32, error: Option<&StoreError>) {
    match error {
        None => {
            failures.store(0, Ordering::Relaxed);
            context.health.set_database(true);
        }
        Some(error) => {
            let in_a_row = failures.fetch_add(1, Ordering::Relaxed) + 1;
            if in_a_row >= FAILURES || matches!(error, StoreError::Unavailable(_)) {
                context.health.set_database(false);
            }
        }
    }
}
