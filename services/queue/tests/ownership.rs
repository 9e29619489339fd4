//! Who owns a queue (R5).

mod common;

use std::time::Duration;

use common::{Database, Peer, Process, hello, offer, task};
use millrace_core::id::{MemberId, TaskId};
use millrace_proto::queue::v1::answer::Verdict;
use millrace_queue::HostSettings;
use millrace_store::{Claimed, DeleteMode, DeleteResult, MemberKind, MemberRow, Store};
use tokio::time::Instant;
use tonic::Code;
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(1_000_000);

#[tokio::test(start_paused = true)]
async fn r5_an_owner_cut_off_from_the_database_is_succeeded_and_its_matches_are_refused() {
    let database = Database::new();
    let first = Process::queue(&database, 1);
    let old_epoch = first.owns(&["default"]).await[0];
    let second = Process::queue(&database, 2);
    let (session, tasks) = (database.session(), database.submit(2));
    let mut peer = Peer::open(&first.host, hello(&database)).await;
    peer.demand(1, 1, 0).await;
    let stale = peer.one().await;

    first.way.cut(true);
    let epoch = second.owns(&["default"]).await[0];
    assert!(epoch > old_epoch);
    // The first does not know, and goes on with what it has; the gate knows.
    assert_eq!(database.claim(task(&stale), session, old_epoch), Claimed::GateClosed);
    peer.answer(&stale, Verdict::Stale).await;
    peer.demand(1, 1, 1).await;
    let other = peer.matches().await;
    assert_eq!(other.epoch, old_epoch);
    assert_eq!(database.claim(task(&other.matches[0]), session, other.epoch), Claimed::GateClosed);

    let mut successor = Peer::open(&second.host, hello(&database)).await;
    successor.demand(1, 2, 0).await;
    let mut won = Vec::new();
    while won.len() < 2 {
        for matched in successor.matches().await.matches {
            assert!(matches!(database.claim(task(&matched), session, epoch), Claimed::Won(_)));
            successor.answer(&matched, Verdict::Claimed).await;
            won.push(task(&matched));
        }
    }
    won.sort();
    let mut all: Vec<TaskId> = tasks.into_iter().map(|(id, _)| id).collect();
    all.sort();
    assert_eq!(won, all);

    first.way.cut(false);
    peer.hears_owned(&[]).await;
    assert_eq!(second.host.owned(), [("default".to_owned(), epoch)]);
}

#[tokio::test(start_paused = true)]
async fn r5_a_refused_match_makes_the_owner_look_and_see_its_successor() {
    let database = Database::new();
    let first = Process::queue(&database, 1);
    let epoch = first.owns(&["default"]).await[0];
    let mut peer = Peer::open(&first.host, hello(&database)).await;
    database.submit(1);
    peer.demand(1, 1, 0).await;
    let matched = peer.one().await;
    // Another owner takes over, in a way that the first cannot have noticed.
    database.store.release_queues(MemberId(Uuid::from_u128(1)), &["default".into()]).unwrap();
    let taken = database.store.own_queue("default", MemberId(Uuid::from_u128(9)), "http://nine", 60_000).unwrap();
    assert!(taken > Some(epoch));
    let before = Instant::now();
    peer.answer(&matched, Verdict::Refused).await;
    peer.hears_owned(&[]).await;
    assert!(before.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn r5_an_owner_that_no_distributor_reaches_gives_up_and_another_takes_over() {
    let database = Database::new();
    database.distributor(LONG);
    let first = Process::queue(&database, 1);
    first.owns(&["default"]).await;
    let second = Process::queue(&database, 2);
    let mut peer = Peer::open(&second.host, hello(&database)).await;
    second.owns(&["default"]).await;
    peer.hears_owned(&["default"]).await;
    assert!(first.host.owned().is_empty() && first.host.is_holding_back());
    // It is reached again, so it would take queues that are free.
    let _peer = Peer::open(&first.host, hello(&database)).await;
    common::until("the end of holding back", || !first.host.is_holding_back()).await;
    second.shutdown.begin();
    first.owns(&["default"]).await;
}

#[tokio::test(start_paused = true)]
async fn r5_an_owner_without_any_distributor_keeps_its_queues() {
    let database = Database::new();
    let process = Process::queue(&database, 1);
    let epoch = process.owns(&["default"]).await;
    let rounds = process.way.calls("renew_queues");
    common::until("thirty rounds", || process.way.calls("renew_queues") > rounds + 30).await;
    assert_eq!(process.owns(&["default"]).await, epoch);
}

#[tokio::test(start_paused = true)]
async fn r5_a_distributor_stands_in_and_yields_to_a_queue_service() {
    let database = Database::new();
    let before = Instant::now();
    let distributor = Process::start(&database, 1, MemberKind::Distributor, HostSettings::default());
    let first = distributor.owns(&["default"]).await[0];
    assert!(before.elapsed() >= Duration::from_secs(3), "not before it is sure that there is none");
    let mut peer = Peer::open(&distributor.host, hello(&database)).await;

    let service = Process::queue(&database, 2);
    let member = MemberRow {
        id: MemberId(Uuid::from_u128(2)),
        kind: MemberKind::Queue,
        endpoint: "http://host-2".into(),
        build: "test".into(),
        readers: (1, 1),
        seen_at_us: 0,
    };
    database.store.renew_member(&member, 1_000_000).unwrap();
    peer.hears_owned(&[]).await;
    let second = service.owns(&["default"]).await[0];
    assert!(second > first);

    // The service goes, and the distributor stands in again.
    service.shutdown.begin();
    database.store.remove_member(member.id).unwrap();
    assert!(distributor.owns(&["default"]).await[0] > second);
}

#[tokio::test(start_paused = true)]
async fn r5_a_distributor_alone_ends_timed_pauses_and_deletes_queues_that_drain() {
    let database = Database::new();
    let distributor = Process::start(&database, 1, MemberKind::Distributor, HostSettings::default());
    database.create("other");
    distributor.owns(&["default", "other"]).await;
    let mut peer = Peer::open(&distributor.host, hello(&database)).await;
    database.pause_for(Duration::from_secs(30));
    let tasks = database.submit(1);
    peer.demand(1, 1, 0).await;
    let paused = Instant::now();
    peer.one().await;
    assert!((28..34).contains(&paused.elapsed().as_secs()), "{:?}", paused.elapsed());
    assert!(database.store.queue("default").unwrap().unwrap().pause.is_none());

    database.store.delete_route("default", None).unwrap();
    let draining = database.store.delete_queue("default", &DeleteMode::Drain, None).unwrap();
    assert!(matches!(draining, DeleteResult::Draining(_)), "{draining:?}");
    database.store.cancel(tasks[0].0, "no more", None).unwrap();
    distributor.owns(&["other"]).await;
    assert!(database.store.queue("default").unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn r6_a_queue_that_is_owned_again_gets_a_new_stream_for_its_numbers() {
    let database = Database::new();
    let process = Process::queue(&database, 1);
    process.owns(&["default"]).await;
    let mut peer = Peer::open(&process.host, hello(&database)).await;
    database.submit(3);
    peer.demand(1, 1, 0).await;
    assert_eq!(peer.one().await.seq, 1);
    let (owner, queues) = (MemberId(Uuid::from_u128(1)), ["default".to_owned()]);
    database.store.release_queues(owner, &queues).unwrap();
    // On the old stream the session has seen match 1; the new matcher has sent none.
    assert_eq!(peer.error().await.code(), Code::Aborted);
    let mut peer = Peer::open(&process.host, hello(&database)).await;
    peer.demand(1, 3, 0).await;
    let mut seqs = Vec::new();
    while seqs.len() < 3 {
        seqs.extend(peer.matches().await.matches.iter().map(|matched| matched.seq));
    }
    assert_eq!(seqs, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn matching_goes_on_while_the_database_is_down_and_ownership_recovers() {
    let database = Database::new();
    let process = Process::queue(&database, 1);
    let epoch = process.owns(&["default"]).await;
    let mut peer = Peer::open(&process.host, hello(&database)).await;
    database.submit(1);
    peer.demand(1, 1, 0).await;
    let matched = peer.one().await;
    peer.answer(&matched, Verdict::Stale).await;

    process.way.cut(true);
    let failing = process.way.calls("renew_queues");
    common::until("a failed round", || process.way.calls("renew_queues") > failing + 2).await;
    let unknown = TaskId(Uuid::from_u128(7));
    peer.demand(1, 1, 1).await;
    peer.offer(vec![offer(unknown, database.now_us())]).await;
    assert_eq!(task(&peer.one().await), unknown);

    process.way.cut(false);
    database.create("later");
    peer.hears_owned(&["default", "later"]).await;
    assert_eq!(process.owns(&["default", "later"]).await[0], epoch[0], "nobody else ticked, so no lease ended");
}

#[tokio::test(start_paused = true)]
async fn queues_are_shared_by_who_comes_first_and_taken_over_when_one_stops() {
    let database = Database::new();
    let first = Process::queue(&database, 1);
    first.owns(&["default"]).await;
    let second = Process::queue(&database, 2);
    let before = Instant::now();
    assert!(first.shutdown.finish(Duration::from_secs(10)).await.is_empty());
    second.owns(&["default"]).await;
    assert!(before.elapsed() < Duration::from_millis(1_500), "no lease had to end: {:?}", before.elapsed());
}
