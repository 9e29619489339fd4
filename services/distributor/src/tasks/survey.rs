//! Looks at the quarantine as a whole, and at the types of the columns, and tells when a deploy seems to be to blame.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use millrace_runtime::{background, status::Fault};
use millrace_store::MemberRow;

use crate::{
    shared::{Shared, lock},
    suspicion::{Look, Suspicion},
};

const PERIOD: Duration = Duration::from_secs(5);
const DRIFT_PERIOD: Duration = Duration::from_secs(60);

pub(super) fn start(shared: &Arc<Shared>) {
    let stop = shared.context.shutdown.clone();
    let (worker, suspicion) = (shared.clone(), Arc::new(Mutex::new(Suspicion::default())));
    background::every("survey", PERIOD, Arc::default(), &stop, move || survey(worker.clone(), suspicion.clone()));
    let worker = shared.clone();
    background::every("drift", DRIFT_PERIOD, Arc::default(), &stop, move || drift(worker.clone()));
}

async fn survey(shared: Arc<Shared>, suspicion: Arc<Mutex<Suspicion>>) -> Result<(), Fault> {
    let set_aside = shared.read(|store| store.quarantined()).await?;
    shared.foreign.show_set_aside(set_aside);
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as i64);
    let look = Look {
        at: shared.now(),
        at_us: now_us,
        set_aside: u64::try_from(set_aside).unwrap_or(0),
        by_this: shared.foreign.quarantined(),
        // What the others get is taken to be as much.
        submitted: shared.metrics.submitted.get() * shared.replicas() as u64,
        builds: builds(&shared.context.build, shared.now(), &lock(&shared.members), now_us),
    };
    let mut suspicion = lock(&suspicion);
    for suspect in suspicion.look(look) {
        tracing::warn!(
            build = suspect.build,
            rows_per_minute = suspect.rows,
            "the deploy of this build is suspect: rows are being set aside because they cannot be read"
        );
    }
    let suspects = suspicion.suspects();
    shared.foreign.show_suspects(suspects.iter().map(|suspect| suspect.build.as_str()));
    lock(&shared.survey).suspects = suspects;
    Ok(())
}

async fn drift(shared: Arc<Shared>) -> Result<(), Fault> {
    let drift = shared.read(|store| store.drift()).await?;
    shared.foreign.show_drift(&drift);
    let mut survey = lock(&shared.survey);
    for one in drift.iter().filter(|one| !survey.drift.contains(one)) {
        tracing::warn!(drift = %one, "a column's type is not the one that this build expects; what needs it suffers");
    }
    survey.drift = drift;
    Ok(())
}

/// The builds that run, this one first, each with the time since its first process started. Ids of members tell when they were made;
/// one whose id does not is left out.
fn builds(own: &str, running: Duration, members: &[MemberRow], now_us: i64) -> Vec<(String, Duration)> {
    let mut oldest: BTreeMap<&str, Duration> = BTreeMap::new();
    for member in members {
        let Some(started) = member.id.0.get_timestamp() else { continue };
        let (seconds, nanos) = started.to_unix();
        let started_us = i64::try_from(seconds * 1_000_000 + u64::from(nanos / 1000)).unwrap_or(i64::MAX);
        let age = Duration::from_micros(u64::try_from(now_us.saturating_sub(started_us)).unwrap_or(0));
        let known = oldest.entry(&member.build).or_default();
        *known = age.max(*known);
    }
    let own_age = oldest.remove(own).unwrap_or_default().max(running);
    let others = oldest.into_iter().map(|(build, age)| (build.to_owned(), age));
    std::iter::once((own.to_owned(), own_age)).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use millrace_core::id::MemberId;
    use millrace_store::{MemberKind, Store};
    use uuid::{NoContext, Timestamp, Uuid};

    use super::*;
    use crate::fixture;

    fn member(build: &str, started: u64) -> MemberRow {
        MemberRow {
            id: MemberId(Uuid::new_v7(Timestamp::from_unix(NoContext, started, 0))),
            kind: MemberKind::Distributor,
            endpoint: "http://there".into(),
            build: build.into(),
            readers: (1, 1),
            seen_at_us: 0,
        }
    }

    #[test]
    fn a_build_is_as_old_as_its_oldest_process() {
        let mut members = vec![member("2", 1_700_000_100), member("1", 1_700_000_000), member("1", 1_700_000_190)];
        members.push(MemberRow { id: MemberId(Uuid::from_u128(7)), ..member("3", 0) });
        let seconds = Duration::from_secs;
        assert_eq!(
            builds("2", seconds(5), &members, 1_700_000_200_000_000),
            [("2".to_owned(), seconds(100)), ("1".to_owned(), seconds(200))]
        );
    }

    #[tokio::test]
    async fn a_rise_is_shown_and_stops_nothing() {
        let replica = fixture::replica();
        let suspicion = Arc::new(Mutex::new(Suspicion::default()));
        survey(replica.shared.clone(), suspicion.clone()).await.unwrap();
        for number in 1..=10 {
            let task = replica.submit(number);
            replica.store.quarantine(task);
        }
        survey(replica.shared.clone(), suspicion).await.unwrap();
        let suspects = lock(&replica.shared.survey).suspects.clone();
        assert_eq!((suspects[0].build.as_str(), suspects[0].rows), ("test", 10));
        let text = replica.shared.context.metrics.encode();
        assert!(text.contains(r#"millrace_quarantine_suspect_deploy{build="test"} 1"#), "{text}");
        assert!(text.contains("millrace_quarantined_rows 10"), "{text}");
        assert_eq!(replica.store.task(replica.submit(11)).unwrap().map(|task| task.attempt), Some(0));
    }

    #[tokio::test]
    async fn drift_is_looked_at() {
        let replica = fixture::replica();
        drift(replica.shared.clone()).await.unwrap();
        assert!(lock(&replica.shared.survey).drift.is_empty());
    }
}
