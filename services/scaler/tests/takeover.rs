//! Leaders that follow each other on one database: no launch is made twice, and no node is lost, wherever the first one stops.

mod common;

use std::time::Duration;

use common::{Drive, Mode, pool};
use millrace_core::fleet::{State, books::Work};
use millrace_scaler::engine::{Reply, Stepped};
use millrace_store::{FleetStore, NodeFilter};

fn is_request(work: &Work) -> bool {
    matches!(work, Work::Request { .. })
}

fn is_end(work: &Work) -> bool {
    matches!(work, Work::Terminate { .. })
}

/// Where the first leader stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    BeforeCall,
    AfterCall,
    BeforeAnswerStored,
    AfterAnswerStored,
}

const STOPS: [Stop; 4] = [Stop::BeforeCall, Stop::AfterCall, Stop::BeforeAnswerStored, Stop::AfterAnswerStored];

/// Goes on with a call until the leader stops.
fn go_on(leader: &mut Drive, call: millrace_core::fleet::books::Call, stop: Stop) {
    if stop == Stop::BeforeCall {
        return;
    }
    let reply = leader.perform(call);
    if stop == Stop::AfterCall {
        return;
    }
    leader.engine.take(reply, leader.now());
    if stop == Stop::AfterAnswerStored {
        assert!(leader.step());
    }
}

#[test]
fn a_standby_takes_over_in_the_middle_of_a_surge_without_a_double_launch() {
    for stop in STOPS {
        let mut first = Drive::new(&[pool("p", 20)]);
        let call = first.until_call(is_request);
        go_on(&mut first, call, stop);

        let mut second = first.next(2);
        second.rounds(30);
        let mut made = second.provider.made();
        assert_eq!(made.len(), 20, "{stop:?}: 20 nodes, none twice");
        made.sort_unstable();
        made.dedup();
        assert_eq!((made.len(), second.stored()), (20, made.clone()), "{stop:?}: the books have each");
        assert!(second.provider.ended().is_empty(), "{stop:?}");
        second.all_join();
        second.rounds(5);
        assert_eq!(second.in_state(State::Ready).len(), 20, "{stop:?}");

        assert!(!first.step(), "{stop:?}: the first one is fenced");
        assert!(first.calls().is_empty(), "{stop:?}");
    }
}

#[test]
fn a_standby_takes_over_in_the_middle_of_an_end() {
    for stop in STOPS {
        let mut first = Drive::new(&[pool("p", 4)]);
        first.rounds(10);
        first.all_join();
        first.rounds(2);
        let node = first.in_state(State::Ready)[0];
        let audit = millrace_store::Audit { action: "t".into(), subject: "t".into(), detail: String::new() };
        first.store.ask_drain(node, "a test", &audit, None).unwrap().unwrap();
        first.rounds(2);
        assert_eq!(first.in_state(State::Draining), [node], "asked for by way of the database");
        first.engine.heard(node, millrace_core::fleet::books::News::Drained, first.now()).unwrap();
        let call = first.until_call(is_end);
        go_on(&mut first, call, stop);

        let mut second = first.next(2);
        second.rounds(30);
        assert_eq!(second.provider.ended(), [format!("i-{node}")], "{stop:?}");
        assert_eq!(second.provider.made().len(), 5, "{stop:?}: it was replaced, once");
        let row = second.store.node(node).unwrap().unwrap();
        assert_eq!(row.node.state, State::Gone, "{stop:?}");
    }
}

#[test]
fn a_drain_that_was_asked_for_is_begun_by_the_next_leader() {
    let mut first = Drive::new(&[pool("p", 2)]);
    first.rounds(10);
    first.all_join();
    first.rounds(2);
    let node = first.in_state(State::Ready)[0];
    let audit = millrace_store::Audit { action: "t".into(), subject: "t".into(), detail: String::new() };
    first.store.ask_drain(node, "a test", &audit, None).unwrap().unwrap();
    let mut second = first.next(2);
    second.rounds(1);
    assert_eq!(second.in_state(State::Draining), [node]);
}

#[test]
fn lost_answers_and_lost_requests_make_nothing_twice() {
    for mode in [Mode::LosesAnswers, Mode::LosesRequests] {
        let mut leader = Drive::new(&[pool("p", 10)]);
        leader.provider.set(mode);
        leader.rounds(20);
        leader.provider.set(Mode::Good);
        leader.rounds(30);
        let mut made = leader.provider.made();
        made.sort_unstable();
        assert_eq!((made.len(), leader.stored()), (10, made.clone()), "{mode:?}");
    }
}

#[test]
fn what_is_not_stored_is_not_done() {
    let mut leader = Drive::new(&[pool("p", 3)]);
    leader.rounds(1);
    leader.store.fail_when(|method| (method == "save_fleet").then_some(millrace_store::memory::Fault::BeforeCommit));
    leader.pass(1);
    assert!(leader.engine.step(&leader.store.clone(), &leader.term.clone(), leader.now()).is_err());
    assert!(leader.calls().is_empty());
    leader.store.heal();
    // A commit whose answer is lost is made again, with the same nodes.
    leader.store.fail_when(|method| (method == "save_fleet").then_some(millrace_store::memory::Fault::AfterCommit));
    assert!(leader.engine.step(&leader.store.clone(), &leader.term.clone(), leader.now()).is_err());
    assert!(leader.calls().is_empty());
    leader.store.heal();
    leader.rounds(10);
    assert_eq!((leader.provider.made().len(), leader.stored().len()), (3, 3));
}

#[test]
fn a_leader_whose_lease_another_has_taken_writes_nothing_more() {
    let mut first = Drive::new(&[pool("p", 3)]);
    let second = first.next(2);
    assert!(matches!(first.engine.step(&first.store, &first.term, first.clock.now()).unwrap(), Stepped::Fenced));
    assert!(second.stored().is_empty() && first.calls().is_empty());
    // And one whose lease has ended, though nobody has taken it.
    let mut third = second.next(3);
    third.clock.advance(Duration::from_secs(16));
    assert!(!third.step());
}

#[test]
fn rows_that_cannot_be_read_and_their_nodes_are_left_alone() {
    let mut first = Drive::new(&[pool("bad", 3), pool("good", 2)]);
    first.rounds(10);
    first.all_join();
    first.rounds(2);
    assert_eq!(first.provider.made().len(), 5);
    first.store.damage_pool("bad", "spec");
    first.rounds(10);
    let mut second = first.next(2);
    assert_eq!(second.engine.unreadable(), (1, 0));
    second.all_join();
    second.rounds(60);
    assert_eq!((second.provider.made().len(), second.provider.ended().len()), (5, 0));
    assert_eq!(second.in_state(State::Ready).len(), 5);

    let node = second.in_state(State::Ready)[0];
    second.store.damage_node(node, "state");
    let mut third = second.next(3);
    assert_eq!(third.engine.unreadable(), (1, 1));
    third.all_join();
    third.rounds(30);
    assert!(third.provider.ended().is_empty(), "it is neither ended nor adopted over its row");
    let page = third.store.nodes(&NodeFilter::default(), None, 100).unwrap();
    assert_eq!(page.unreadable.len(), 1);
}

#[test]
fn instances_that_nobody_knows_are_ended_after_two_sightings_and_those_of_others_never() {
    let mut leader = Drive::new(&[pool("p", 1)]);
    leader.provider.add("i-orphan", "deleted");
    leader.provider.add("i-theirs", "");
    leader.provider.set_page(1);
    leader.rounds(40);
    assert_eq!(leader.provider.ended(), ["i-orphan"]);
}

#[test]
fn a_deleted_pool_goes_once_its_nodes_have() {
    let mut leader = Drive::new(&[pool("p", 3)]);
    leader.rounds(10);
    leader.all_join();
    leader.rounds(2);
    let audit = millrace_store::Audit { action: "t".into(), subject: "t".into(), detail: String::new() };
    leader.store.delete_pool("p", true, &audit, None).unwrap();
    leader.rounds(2);
    for node in leader.in_state(State::Draining) {
        leader.engine.heard(node, millrace_core::fleet::books::News::Drained, leader.now()).unwrap();
    }
    leader.rounds(30);
    assert_eq!((leader.provider.there().len(), leader.provider.ended().len()), (0, 3));
    assert_eq!(leader.store.pool("p").unwrap(), None);
}

#[test]
fn a_call_without_an_answer_waits_for_a_listing() {
    let mut leader = Drive::new(&[pool("p", 2)]);
    let call = leader.until_call(is_request);
    leader.perform(call.clone());
    leader.engine.take(Reply::unknown(call, "lost"), leader.now());
    let before = leader.provider.calls().len();
    leader.rounds(5);
    assert_eq!(leader.provider.calls()[before], "DescribeNodes");
    assert_eq!(leader.provider.made().len(), 2);
}
