//! Releases what is set aside and what this build can read and has not refused before (R9), a little at a time.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use millrace_core::id::TaskId;
use millrace_runtime::{background, status::Fault};
use millrace_store::Released;

use crate::shared::{Shared, lock};

const PERIOD: Duration = Duration::from_secs(1);

/// Looks of one step: rows that this build has refused before are passed over quickly, but not without end.
const LOOKS: usize = 20;

/// Rows of one transaction.
const PAGE: usize = 200;

pub(super) fn start(shared: &Arc<Shared>) {
    let stop = shared.context.shutdown.clone();
    let (worker, at) = (shared.clone(), Arc::new(Mutex::new(None)));
    background::every("reexamine", PERIOD, Arc::default(), &stop, move || step(worker.clone(), at.clone()));
}

/// Examines as many rows as a second may, from where the last step ended.
async fn step(shared: Arc<Shared>, at: Arc<Mutex<Option<TaskId>>>) -> Result<(), Fault> {
    let rate = shared.settings.quarantine_release_rate as usize;
    let mut open = rate.div_ceil(shared.replicas());
    for _ in 0..LOOKS {
        if open == 0 {
            break;
        }
        let (after, limit) = (*lock(&at), open.min(PAGE) as i64);
        let seen = shared.blocking(move |store| store.reexamine(after, limit)).await?;
        *lock(&at) = seen.next;
        open = open.saturating_sub(seen.rows.len());
        let released = seen.rows.iter().filter(|(_, became)| *became == Released::Done);
        let released: Vec<TaskId> = released.map(|(task, _)| *task).collect();
        if !released.is_empty() {
            tracing::info!(rows = released.len(), "rows were released from quarantine: this build can read them");
        }
        shared.released(released).await;
        if seen.next.is_none() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use millrace_store::{Reader, Store};

    use super::*;
    use crate::fixture;

    #[tokio::test]
    async fn r9_what_another_build_refused_is_released_at_the_rate_and_what_this_one_refused_is_not() {
        let replica = fixture::replica_with(&["--quarantine-release-rate", "2"]);
        let other = Reader { build: "other".into(), ..Reader::default() };
        let tasks: Vec<TaskId> = (1..=5).map(|number| replica.submit(number)).collect();
        replica.store.read_by(other).quarantine(tasks[0]);
        // The replica's own build, which is the reader's of the fixture.
        replica.store.quarantine(tasks[1]);
        let other = Reader { build: "other".into(), ..Reader::default() };
        let theirs = replica.store.read_by(other);
        tasks[2..].iter().for_each(|task| theirs.quarantine(*task));
        let at = Arc::new(Mutex::new(None));
        step(replica.shared.clone(), at.clone()).await.unwrap();
        assert_eq!(replica.store.quarantined().unwrap(), 3, "two a second");
        for _ in 0..5 {
            step(replica.shared.clone(), at.clone()).await.unwrap();
        }
        assert!(replica.store.is_quarantined(tasks[1]).unwrap());
        assert_eq!(replica.store.quarantined().unwrap(), 1);
    }

    #[tokio::test]
    async fn a_rate_of_nothing_releases_nothing() {
        let replica = fixture::replica_with(&["--quarantine-release-rate", "0"]);
        let task = replica.submit(1);
        replica.store.read_by(Reader { build: "other".into(), ..Reader::default() }).quarantine(task);
        step(replica.shared.clone(), Arc::default()).await.unwrap();
        assert!(replica.store.is_quarantined(task).unwrap());
    }
}
