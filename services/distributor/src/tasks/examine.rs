//! Finds rows that this build cannot read and sets them aside: those that readers noticed, those that no feeder ever meets, and, with a
//! slow sweep, those that nobody has tried to read.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use millrace_core::{foreign::Verdict, id::TaskId};
use millrace_runtime::{background, foreign::ForeignRows, status::Fault};
use millrace_store::Examined;

use crate::{
    shared::{Shared, lock},
    suspicion::Left,
};

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
    let (worker, pass) = (shared.clone(), Arc::new(Mutex::new(Pass::default())));
    background::every("sweep", SWEEP_PERIOD, Arc::default(), &stop, move || sweep(worker.clone(), pass.clone()));
}

/// A pass over every live row.
#[derive(Debug, Default)]
struct Pass {
    /// The row after which it goes on; none at its beginning.
    at: Option<TaskId>,
    /// What it has left where it is until now.
    left: Left,
}

/// Examines waiting rows that no feeder meets. `stuck` is how many the last look left where they are: they come first again, and must
/// not stand before others for ever.
async fn strays(shared: Arc<Shared>, stuck: Arc<AtomicI64>) -> Result<(), Fault> {
    let limit = (STRAYS + stuck.load(Ordering::Relaxed)).min(MOST_STRAYS);
    let found = shared.blocking(move |store| store.strays(limit)).await?;
    let left = examine(&shared, found).await?;
    let stays = |(_, verdict): &(TaskId, Examined)| !matches!(verdict, Examined::Quarantined(_) | Examined::Gone);
    let left = i64::try_from(left.iter().filter(|row| stays(row)).count()).unwrap_or(i64::MAX);
    stuck.store(left, Ordering::Relaxed);
    Ok(())
}

/// Judges the next live rows, and examines those that cannot be read. What a whole pass has left where it is, is shown.
async fn sweep(shared: Arc<Shared>, pass: Arc<Mutex<Pass>>) -> Result<(), Fault> {
    let mut open = SWEEP_RATE.div_ceil(shared.replicas());
    while open > 0 {
        let (after, limit) = (lock(&pass).at, open.min(SWEEP_PAGE));
        let seen = shared.read(move |store| store.inspect(after, limit as i64)).await?;
        let (mut unreadable, mut left) = (Vec::new(), Vec::new());
        for (task, reading) in seen.rows {
            match reading.verdict {
                Verdict::Readable => {}
                Verdict::TooNew(defect) => left.push((task, defect, true)),
                Verdict::Unreadable(_) => unreadable.push(task),
            }
        }
        let held = examine(&shared, unreadable).await?.into_iter().filter_map(|(task, verdict)| match verdict {
            Examined::Held(defect) => Some((task, defect, false)),
            Examined::TooNew(defect) => Some((task, defect, true)),
            Examined::Readable | Examined::Quarantined(_) | Examined::Gone => None,
        });
        left.extend(held);
        left.sort();
        let mut pass = lock(&pass);
        left.into_iter().for_each(|(task, defect, too_new)| pass.left.note(task, defect, too_new));
        pass.at = seen.next;
        if seen.next.is_none() {
            let seen_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as i64);
            lock(&shared.survey).left = Some(Left { seen_us, ..std::mem::take(&mut pass.left) });
            break;
        }
        open -= limit;
    }
    Ok(())
}

/// Examines rows, and tells who watches those that were set aside.
async fn examine(shared: &Shared, tasks: Vec<TaskId>) -> Result<Vec<(TaskId, Examined)>, Fault> {
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    let examined = shared.foreign.examine(&shared.context, tasks).await?;
    for (task, _) in examined.iter().filter(|(_, verdict)| matches!(verdict, Examined::Quarantined(_))) {
        shared.watches.nudge(*task);
    }
    Ok(examined)
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
        let pass = Arc::new(Mutex::new(Pass::default()));
        sweep(replica.shared.clone(), pass.clone()).await.unwrap();
        assert!(replica.store.is_quarantined(bad).unwrap() && !replica.store.is_quarantined(good).unwrap());
        assert_eq!(lock(&pass).at, None, "it begins again");
        assert_eq!(lock(&replica.shared.survey).left.as_ref().map(|left| left.too_new + left.held), Some(0));
    }

    #[tokio::test]
    async fn r9_rows_that_are_left_where_they_are_are_counted_and_named() {
        let replica = fixture::replica();
        let tasks: Vec<TaskId> = (1..=30).map(|number| replica.submit(number)).collect();
        for task in &tasks[5..] {
            replica.store.damage(*task, "state", Value::Integer(77));
        }
        let pass = Arc::new(Mutex::new(Pass::default()));
        for _ in 0..2 {
            sweep(replica.shared.clone(), pass.clone()).await.unwrap();
            let left = lock(&replica.shared.survey).left.clone().unwrap();
            assert_eq!((left.too_new, left.held, left.examples.len()), (25, 0, 20));
            let (task, defect, too_new) = &left.examples[0];
            assert_eq!((*task, defect.column.as_str(), *too_new), (tasks[5], "state", true));
        }
        for task in &tasks[5..] {
            replica.store.damage(*task, "state", Value::Integer(2));
        }
        sweep(replica.shared.clone(), pass).await.unwrap();
        assert_eq!(lock(&replica.shared.survey).left.as_ref().map(|left| left.too_new), Some(0));
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
