//! Finds rows that this build cannot read and sets them aside: those that readers noticed, those that no feeder ever meets, and, with a
//! slow sweep, those that nobody has tried to read.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use millrace_core::{foreign::Verdict, id::TaskId};
use millrace_runtime::{background, foreign::ForeignRows, status::Fault};
use millrace_store::Examined;

use crate::shared::{Shared, lock};

const STRAYS_PERIOD: Duration = Duration::from_secs(5);

/// Strays of one look.
const STRAYS: i64 = 500;

/// The most of one look, when many of them are to be left where they are.
const MOST_STRAYS: i64 = 10_000;

const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// Rows that all replicas together sweep over in a second.
const SWEEP_RATE: usize = 500;

/// Rows of one read of the sweep, each with its spec.
const SWEEP_PAGE: usize = 100;

pub(super) fn start(shared: &Arc<Shared>) {
    ForeignRows::start(&shared.context);
    let stop = shared.context.shutdown.clone();
    let (worker, stuck) = (shared.clone(), Arc::new(AtomicI64::new(0)));
    background::every("strays", STRAYS_PERIOD, Arc::default(), &stop, move || strays(worker.clone(), stuck.clone()));
    let (worker, at) = (shared.clone(), Arc::new(Mutex::new(None)));
    background::every("sweep", SWEEP_PERIOD, Arc::default(), &stop, move || sweep(worker.clone(), at.clone()));
}

/// Examines waiting rows that no feeder meets. `stuck` is how many the last look left where they are: they come first again, and must
/// not stand before others for ever.
async fn strays(shared: Arc<Shared>, stuck: Arc<AtomicI64>) -> Result<(), Fault> {
    let limit = (STRAYS + stuck.load(Ordering::Relaxed)).min(MOST_STRAYS);
    let found = shared.blocking(move |store| store.strays(limit)).await?;
    let left = examine(&shared, found).await?;
    stuck.store(left, Ordering::Relaxed);
    Ok(())
}

/// Judges the next live rows, and examines those that cannot be read.
async fn sweep(shared: Arc<Shared>, at: Arc<Mutex<Option<TaskId>>>) -> Result<(), Fault> {
    let mut open = SWEEP_RATE.div_ceil(shared.replicas());
    while open > 0 {
        let (after, limit) = (*lock(&at), open.min(SWEEP_PAGE));
        let seen = shared.read(move |store| store.inspect(after, limit as i64)).await?;
        let unreadable = |(task, reading): &(TaskId, millrace_core::foreign::Reading)| {
            matches!(reading.verdict, Verdict::Unreadable(_)).then_some(*task)
        };
        examine(&shared, seen.rows.iter().filter_map(unreadable).collect()).await?;
        *lock(&at) = seen.next;
        if seen.next.is_none() {
            break;
        }
        open -= limit;
    }
    Ok(())
}

/// Examines rows; how many of them stay where they are.
async fn examine(shared: &Shared, tasks: Vec<TaskId>) -> Result<i64, Fault> {
    if tasks.is_empty() {
        return Ok(0);
    }
    let mut left = 0;
    for (task, verdict) in shared.foreign.examine(&shared.context, tasks).await? {
        match verdict {
            Examined::Quarantined(_) => shared.watches.nudge(task),
            Examined::Gone => {}
            Examined::Readable | Examined::TooNew(_) | Examined::Held(_) => left += 1,
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use millrace_core::foreign::Value;
    use millrace_store::Store;

    use super::*;
    use crate::fixture;

    #[tokio::test]
    async fn r10_a_row_that_no_reader_meets_is_found_by_the_sweep() {
        let replica = fixture::replica();
        let (good, bad) = (replica.submit(1), replica.submit(2));
        replica.store.damage(bad, "attempt", Value::Text("many".into()));
        let at = Arc::new(Mutex::new(None));
        sweep(replica.shared.clone(), at.clone()).await.unwrap();
        assert!(replica.store.is_quarantined(bad).unwrap() && !replica.store.is_quarantined(good).unwrap());
        assert_eq!(*lock(&at), None, "it begins again");
    }

    #[tokio::test]
    async fn a_row_without_a_lane_is_found_among_the_strays() {
        let replica = fixture::replica();
        let bad = replica.submit(1);
        replica.store.damage(bad, "queue", Value::Text("of-nobody".into()));
        strays(replica.shared.clone(), Arc::default()).await.unwrap();
        assert!(replica.store.is_quarantined(bad).unwrap());
    }

    #[tokio::test]
    async fn strays_that_stay_do_not_stand_before_others_for_ever() {
        let replica = fixture::replica();
        let later = replica.submit(1);
        replica.store.damage(later, "queue", Value::Null);
        replica.store.damage(later, "min_reader", Value::Integer(99));
        let stuck = Arc::new(AtomicI64::new(0));
        strays(replica.shared.clone(), stuck.clone()).await.unwrap();
        assert_eq!(stuck.load(Ordering::Relaxed), 1);
        assert!(!replica.store.is_quarantined(later).unwrap(), "it is for a later release");
    }
}
