//! How nodes come: intents, calls, zones, joins.

use super::desk::{Desk, Mood, PROVIDER, pool};
use crate::fleet::{
    Pool, State,
    books::{News, ProviderState, Work},
};

#[test]
fn nothing_is_called_before_its_intent_is_stored() {
    let mut desk = Desk::of_one();
    desk.wait(3);
    let mut number = 0;
    desk.fleet.round(desk.now, &mut || {
        number += 1;
        crate::id::NodeId(uuid::Uuid::from_u128(number))
    });
    let request = |work: &Work| matches!(work, Work::Request { .. });
    assert!(!desk.fleet.calls(desk.now).iter().any(|call| request(&call.work)), "nothing is stored yet");
    let batch = desk.fleet.unsaved();
    assert_eq!(batch.nodes.len(), 3);
    desk.fleet.saved(batch, false);
    assert!(!desk.fleet.calls(desk.now).iter().any(|call| request(&call.work)), "storing has failed");
    desk.store();
    desk.pass(1);
    assert!(desk.fleet.calls(desk.now).iter().any(|call| request(&call.work)));
}

#[test]
fn a_call_without_an_answer_is_not_repeated_before_a_listing() {
    for (mood, made_before) in [(Mood::Silent, 3), (Mood::Deaf, 0)] {
        let mut desk = Desk::of_one();
        desk.wait(3);
        desk.rounds(1);
        desk.wait(3);
        desk.mood = mood;
        let mut calls = desk.decide();
        if calls.is_empty() {
            desk.pass(1);
            calls = desk.decide();
        }
        // The first round may have requested already; then this asks for nothing more.
        for call in &calls {
            let answer = desk.make(call);
            desk.take(call, answer);
        }
        let _ = made_before;
        desk.mood = Mood::Well;
        for _ in 0..20 {
            desk.wait(3);
            desk.rounds(1);
            desk.all_join();
        }
        assert_eq!((desk.cloud.made.len(), desk.count(State::Ready)), (3, 3), "{mood:?}");
    }
}

#[test]
fn lost_answers_make_no_node_twice_and_none_stays_unknown() {
    let mut desk = Desk::of_one();
    desk.mood = Mood::Silent;
    for turn in 0..60 {
        desk.mood = if turn % 3 == 0 { Mood::Silent } else { Mood::Well };
        desk.wait(8);
        desk.rounds(1);
        desk.all_join();
    }
    assert_eq!((desk.cloud.made.len(), desk.count(State::Ready)), (8, 8));
    assert!(desk.fleet.nodes().all(|node| !node.unknown));
}

#[test]
fn a_throttled_launch_keeps_its_intent_and_is_called_again() {
    let mut desk = Desk::of_one();
    desk.mood = Mood::Throttles;
    for _ in 0..5 {
        desk.wait(4);
        desk.rounds(1);
    }
    assert_eq!((desk.count(State::Requested), desk.cloud.made.len()), (4, 0));
    assert_eq!(desk.fleet.provider(PROVIDER, desk.now).unwrap().state, ProviderState::Throttled);
    let intents = desk.ids_in(&[State::Requested]);
    desk.mood = Mood::Well;
    for _ in 0..120 {
        desk.wait(4);
        desk.rounds(1);
    }
    assert_eq!(
        desk.cloud.made.iter().copied().collect::<std::collections::BTreeSet<_>>(),
        intents.into_iter().collect()
    );
}

#[test]
fn a_zone_without_room_is_passed_over_within_two_rounds_and_tried_again_later() {
    let zones = vec!["a".to_owned(), "b".to_owned()];
    let mut desk = Desk::new(vec![Pool { zones, ..pool("p") }]);
    desk.cloud.full.insert("a".into());
    desk.wait(2);
    desk.rounds(3);
    let zones = |desk: &Desk| -> Vec<String> { desk.cloud.there.values().map(|(.., zone)| zone.clone()).collect() };
    assert_eq!(zones(&desk), ["b", "b"]);
    let report = desk.fleet.provider(PROVIDER, desk.now).unwrap();
    assert_eq!(report.blocked.iter().map(|zone| zone.zone.as_str()).collect::<Vec<_>>(), ["a"]);
    desk.all_join();
    desk.cloud.full.clear();
    desk.pass(61);
    desk.wait(3);
    desk.rounds(2);
    assert_eq!(zones(&desk).iter().filter(|zone| *zone == "a").count(), 1, "the preferred zone has room again");
}

#[test]
fn what_no_zone_has_room_for_is_asked_of_the_fallback_pool() {
    let first = Pool { zones: vec!["a".into()], fallback: vec!["second".into()], ..pool("first") };
    let second = Pool { zones: vec!["c".into()], ..pool("second") };
    let mut desk = Desk::new(vec![first, second]);
    desk.cloud.full.insert("a".into());
    desk.wait(3);
    desk.rounds(4);
    assert_eq!(desk.cloud.there.values().filter(|(_, pool, _)| pool == "second").count(), 3);
    assert!(desk.fleet.nodes().all(|node| node.pool == "second"), "nothing stays requested of the first");
}

#[test]
fn a_refused_launch_is_a_failed_one_and_backs_off() {
    let mut desk = Desk::of_one();
    desk.mood = Mood::Refuses;
    for _ in 0..100 {
        desk.wait(4);
        desk.rounds(1);
    }
    assert_eq!(desk.count(State::Requested), 0);
    // Listings are refused as well: a call a round would be 100.
    assert!(desk.cloud.calls < 40, "{} calls", desk.cloud.calls);
    let gone = desk.rows.values().filter(|node| node.reason.contains("bad image")).count();
    assert!((4..=10).contains(&gone), "{gone} launches were tried");
    let report = desk.fleet.report("p", desk.now).unwrap();
    assert!(report.obstacles.iter().any(|text| text.contains("bad image")), "{:?}", report.obstacles);
}

#[test]
fn a_late_joiner_calls_off_its_own_end() {
    let mut desk = Desk::of_one().working(2);
    desk.wait(3);
    desk.rounds(2);
    let late = desk.ids_in(&[State::Starting])[0];
    // Nobody has the time to learn here: the longest time that a node may take passes.
    for _ in 0..61 * 60 {
        desk.pass(1);
        desk.wait(3);
        let _ = desk.decide();
        if desk.state(late) == State::Terminating {
            break;
        }
    }
    assert_eq!(desk.state(late), State::Terminating);
    desk.join(late);
    assert_eq!(desk.state(late), State::Ready);
    desk.wait(3);
    desk.rounds(5);
    assert!(desk.cloud.killed.is_empty());
}

#[test]
fn a_boot_that_fails_is_replaced_and_its_error_is_told() {
    let mut desk = Desk::of_one().working(2);
    desk.wait(3);
    desk.rounds(2);
    let broken = desk.ids_in(&[State::Starting])[0];
    desk.heard(broken, News::BootFailed { error: "cannot mount".into() });
    assert_eq!(desk.state(broken), State::Terminating);
    for _ in 0..15 {
        desk.wait(3);
        desk.rounds(1);
        desk.all_join();
    }
    assert_eq!((desk.count(State::Ready), desk.state(broken)), (3, State::Gone));
    assert!(desk.rows[&broken].reason.contains("cannot mount"));
}
