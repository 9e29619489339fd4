//! How nodes go: drains, silence, flapping, orphans.

use std::time::Duration;

use super::desk::{Desk, PROVIDER};
use crate::{
    fleet::{
        Override, State,
        books::{News, Order},
    },
    id::NodeId,
};

/// Long enough for a pool to be allowed to shrink.
fn quiet(desk: &mut Desk, seconds: u64) {
    for _ in 0..seconds {
        desk.wait(0);
        desk.rounds(1);
    }
}

#[test]
fn a_pool_shrinks_to_zero_by_draining_the_emptiest_first_and_comes_back() {
    let mut desk = Desk::of_one().working(4);
    let ids = desk.ids_in(&[State::Ready]);
    desk.runs(ids[0], 1);
    let mut drained = Vec::new();
    for _ in 0..320 {
        desk.wait(0);
        desk.rounds(1);
        for (id, order) in desk.fleet.orders() {
            assert!(matches!(order, Order::Drain(_)));
            drained.push(id);
        }
    }
    assert!(!drained.contains(&ids[0]) && drained.len() == 3, "the one that works stays: {drained:?}");
    for id in drained {
        desk.heard(id, News::Drained);
    }
    desk.runs(ids[0], 0);
    quiet(&mut desk, 320);
    assert_eq!(desk.fleet.orders().into_iter().map(|(id, _)| id).collect::<Vec<_>>(), [ids[0]]);
    desk.heard(ids[0], News::Drained);
    quiet(&mut desk, 15);
    assert_eq!((desk.fleet.nodes().count(), desk.cloud.there.len(), desk.cloud.killed.len()), (0, 0, 4));
    desk.wait(1);
    desk.rounds(2);
    assert_eq!(desk.cloud.there.len(), 1);
}

#[test]
fn a_drain_is_called_off_before_anything_is_launched() {
    let mut desk = Desk::of_one().working(3);
    quiet(&mut desk, 320);
    let drains = desk.fleet.orders().len();
    assert!(drains > 0 && desk.count(State::Draining) == drains);
    let made = desk.cloud.made.len();
    desk.wait(3);
    desk.rounds(1);
    assert_eq!((desk.count(State::Ready), desk.cloud.made.len()), (3, made));
    assert!(desk.fleet.orders().iter().all(|(_, order)| *order == Order::Resume));
}

#[test]
fn a_drain_that_someone_asked_for_is_not_called_off_but_replaced() {
    let mut desk = Desk::of_one().working(2);
    let id = desk.ids_in(&[State::Ready])[0];
    desk.fleet.ask_drain(id, "its disk is bad", desk.now).unwrap();
    desk.wait(2);
    desk.rounds(2);
    assert_eq!((desk.state(id), desk.cloud.made.len()), (State::Draining, 3));
    assert!(desk.fleet.standing_order(id).is_some_and(|order| order == Order::Drain("its disk is bad".into())));
}

#[test]
fn the_loss_of_a_stream_is_a_signal_and_not_a_verdict() {
    let mut desk = Desk::of_one().working(2);
    let id = desk.ids_in(&[State::Ready])[0];
    desk.heard(id, News::Detached);
    desk.heard(id, News::Session { live: true });
    for _ in 0..120 {
        desk.wait(2);
        desk.rounds(1);
    }
    assert_eq!(desk.state(id), State::Ready, "its orchestrator lives");
    desk.heard(id, News::Session { live: false });
    for _ in 0..40 {
        desk.wait(2);
        desk.rounds(1);
        desk.all_join();
    }
    assert_eq!((desk.state(id), desk.cloud.killed.len()), (State::Suspect, 0));
    assert_eq!(desk.count(State::Ready), 2, "it is replaced");
    desk.join(id);
    assert_eq!(desk.state(id), State::Ready, "it is back");
    desk.wait(2);
    desk.rounds(1);
    assert_eq!((desk.count(State::Ready), desk.count(State::Draining)), (2, 1), "one of the three is too many");
}

#[test]
fn a_node_that_nothing_shows_to_live_is_ended_at_last() {
    let mut desk = Desk::of_one().working(2);
    let id = desk.ids_in(&[State::Ready])[0];
    desk.heard(id, News::Detached);
    for _ in 0..17 * 60 {
        desk.wait(2);
        desk.rounds(1);
        desk.all_join();
    }
    assert_eq!((desk.state(id), desk.cloud.killed.len()), (State::Gone, 1));
}

#[test]
fn a_flapping_node_is_held_back_and_not_ended() {
    let mut desk = Desk::of_one().working(2);
    let id = desk.ids_in(&[State::Ready])[0];
    let health = |healthy| News::Health { healthy, reason: "disk".into(), running: 0, slots: 1 };
    for _ in 0..3 {
        desk.heard(id, health(false));
        desk.pass(5);
        desk.heard(id, health(true));
        desk.wait(2);
        desk.rounds(1);
    }
    assert_eq!(desk.state(id), State::Suspect);
    assert!(desk.fleet.node(id).unwrap().reason.contains("held back"));
    for _ in 0..121 {
        desk.wait(2);
        desk.rounds(1);
    }
    assert_eq!((desk.state(id), desk.cloud.killed.len()), (State::Ready, 0));
}

#[test]
fn an_unhealthy_node_is_lost_capacity_and_not_a_dead_node() {
    let mut desk = Desk::of_one().working(2);
    let id = desk.ids_in(&[State::Ready])[0];
    desk.heard(id, News::Health { healthy: false, reason: "no docker".into(), running: 0, slots: 1 });
    for _ in 0..20 * 60 {
        desk.wait(2);
        desk.rounds(1);
        desk.all_join();
    }
    assert_eq!((desk.state(id), desk.cloud.killed.len(), desk.fleet.lost_slots("p")), (State::Suspect, 0, 1));
    assert_eq!(desk.count(State::Ready), 2);
}

#[test]
fn a_stranger_of_a_known_pool_is_adopted_and_an_orphan_is_ended_after_two_sightings() {
    let mut desk = Desk::of_one();
    desk.wait(0);
    desk.rounds(1);
    desk.cloud.there.insert("by-hand".into(), (None, "p".into(), String::new()));
    desk.cloud.there.insert("of-nobody".into(), (None, "another".into(), String::new()));
    desk.pass(10);
    desk.round();
    assert_eq!(desk.fleet.nodes().filter(|node| node.adopted && node.instance == "by-hand").count(), 1);
    desk.rounds(2);
    assert!(desk.cloud.there.contains_key("of-nobody"), "one sighting is not enough");
    desk.pass(10);
    desk.rounds(3);
    assert!(!desk.cloud.there.contains_key("of-nobody") && desk.cloud.there.contains_key("by-hand"));
}

#[test]
fn a_node_that_its_provider_no_longer_has_is_gone_after_two_listings() {
    let mut desk = Desk::of_one().working(2);
    let id = desk.ids_in(&[State::Ready])[0];
    desk.heard(id, News::Detached);
    desk.cloud.there.remove(&format!("i-{id}"));
    desk.pass(11);
    desk.wait(2);
    desk.round();
    assert_ne!(desk.state(id), State::Gone);
    for _ in 0..15 {
        desk.wait(2);
        desk.rounds(1);
        desk.all_join();
    }
    assert_eq!((desk.state(id), desk.count(State::Ready)), (State::Gone, 2));
}

#[test]
fn a_spot_notice_drains_and_replaces() {
    let mut desk = Desk::of_one().working(2);
    let id = desk.ids_in(&[State::Ready])[1];
    let at = Some(desk.now.after(Duration::from_secs(120)));
    desk.heard(id, News::Spot { at });
    desk.wait(2);
    desk.rounds(2);
    assert_eq!((desk.state(id), desk.cloud.made.len()), (State::Draining, 3));
    assert!(desk.fleet.node(id).unwrap().reason.contains("120 s"));
}

#[test]
fn by_hand_no_node_is_ended_and_none_is_launched_until_it_expires() {
    let mut desk = Desk::of_one().working(3);
    let by_hand = |no_terminations, no_launches, until| Override {
        owner: "someone".into(),
        reason: "an incident".into(),
        until,
        min: None,
        max: None,
        desired: None,
        no_terminations,
        no_launches,
    };
    let until = desk.now.after(Duration::from_secs(400));
    desk.pools[0].by_hand = Some(by_hand(true, true, until));
    desk.fleet.set_pool(desk.pools[0].clone());
    quiet(&mut desk, 390);
    assert_eq!(desk.count(State::Ready), 3);
    desk.wait(9);
    desk.rounds(2);
    assert_eq!(desk.cloud.made.len(), 3);
    desk.pass(10);
    desk.wait(9);
    desk.rounds(2);
    assert!(desk.cloud.made.len() > 3);
}

#[test]
fn a_deleted_pool_goes_once_its_nodes_have() {
    let mut desk = Desk::of_one().working(2);
    desk.pools[0].deleting = true;
    desk.fleet.set_pool(desk.pools[0].clone());
    desk.wait(5);
    desk.rounds(1);
    for id in desk.ids_in(&[State::Draining]) {
        desk.heard(id, News::Drained);
    }
    for _ in 0..30 {
        desk.wait(5);
        desk.rounds(1);
    }
    assert_eq!((desk.fleet.pool("p"), desk.cloud.there.len()), (None, 0));
}

#[test]
fn news_of_a_node_that_is_gone_or_never_was_is_told_apart() {
    use crate::fleet::books::Missing;
    let mut desk = Desk::of_one().working(1);
    let id = desk.ids_in(&[State::Ready])[0];
    desk.heard(id, News::Detached);
    desk.cloud.there.clear();
    for _ in 0..30 {
        desk.wait(0);
        desk.rounds(1);
    }
    assert_eq!(desk.fleet.heard(id, News::Ready, desk.now), Err(Missing::Gone));
    let never = NodeId(uuid::Uuid::from_u128(u128::MAX));
    assert_eq!(desk.fleet.heard(never, News::Ready, desk.now), Err(Missing::Unknown));
    assert!(desk.fleet.provider(PROVIDER, desk.now).is_some());
}
