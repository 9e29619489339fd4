use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::StoreError;

fn store() -> MemoryStore {
    MemoryStore::settable(Timestamp(1_000_000)).0
}

fn session() -> NewSession {
    NewSession {
        id: SessionId(Uuid::from_u128(1)),
        name: "worker".into(),
        queues: vec!["default".into()],
        slots: 1,
        labels: Default::default(),
        ttl_ms: 1000,
        replica: String::new(),
        build: String::new(),
    }
}

#[test]
fn a_fault_before_the_commit_leaves_nothing_and_one_after_it_leaves_everything() {
    for (fault, done) in [(Fault::BeforeCommit, 0), (Fault::CommitLost, 0), (Fault::AfterCommit, 1)] {
        let store = store();
        store.fail_next(fault);
        let error = store.open_session(&session()).unwrap_err();
        assert!(error.is_transient());
        let may_have_happened = matches!(error, StoreError::UnknownOutcome(_));
        assert_eq!(may_have_happened, fault != Fault::BeforeCommit, "{fault:?}");
        assert_eq!(store.sessions(10).unwrap().len(), done, "{fault:?}");
        // The repeat finds what the first try did.
        assert_eq!(store.open_session(&session()).unwrap().generation, 1);
    }
}

#[test]
fn faults_are_chosen_by_method_until_healed() {
    let store = store();
    store.fail_when(|method| (method == "open_session").then_some(Fault::BeforeCommit));
    assert!(store.open_session(&session()).is_err());
    assert!(store.cluster().is_ok());
    store.heal();
    assert!(store.open_session(&session()).is_ok());
}

#[test]
fn a_read_has_no_outcome_to_be_unsure_about() {
    let store = store();
    store.fail_next(Fault::AfterCommit);
    assert!(matches!(store.cluster(), Err(StoreError::Unavailable(_))));
}

#[test]
fn a_restore_goes_back_and_clones_share() {
    let store = store();
    let before = store.snapshot();
    store.clone().open_session(&session()).unwrap();
    assert_eq!(store.sessions(10).unwrap().len(), 1);
    store.restore(before);
    store.set_incarnation(7);
    assert_eq!((store.sessions(10).unwrap().len(), store.cluster().unwrap().incarnation), (0, 7));
    assert_eq!(store.check_invariants(), Ok(()));
}

#[test]
fn the_clock_is_the_callers() {
    let reads = Arc::new(AtomicUsize::new(0));
    let counter = reads.clone();
    let store = MemoryStore::new(Arc::new(move || Timestamp(counter.fetch_add(1, Ordering::SeqCst) as i64)));
    let before = reads.load(Ordering::SeqCst);
    store.counts(&[]).unwrap();
    assert_eq!(reads.load(Ordering::SeqCst), before + 1, "one call sees one time");
}
