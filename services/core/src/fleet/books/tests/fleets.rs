//! Pools beside each other, and what does not hang on any one step.

use super::desk::{Desk, pool};
use crate::fleet::{Pool, State};

#[test]
fn a_queue_that_two_pools_serve_is_split_by_their_slots() {
    let large = Pool { slots: 3, ..pool("large") };
    let mut desk = Desk::new(vec![large, pool("small")]);
    desk.wait(8);
    desk.rounds(3);
    let of = |name: &str| desk.fleet.nodes().filter(|node| node.pool == name).count();
    // Six of eight tasks are the large pool's share, three to a node.
    assert_eq!((of("large"), of("small")), (2, 2));
}

#[test]
fn figures_that_are_old_hold_the_size() {
    let mut desk = Desk::of_one().working(3);
    desk.pass(3600);
    for id in desk.ids_in(&[State::Ready]) {
        desk.runs(id, 0);
    }
    desk.rounds(600);
    assert_eq!((desk.count(State::Ready), desk.cloud.made.len()), (3, 3));
}

#[test]
fn decisions_are_told_once() {
    let mut desk = Desk::of_one().working(3);
    let _ = desk.fleet.decisions();
    for _ in 0..50 {
        desk.wait(3);
        desk.rounds(1);
    }
    assert!(desk.fleet.decisions().len() <= 1);
    desk.wait(6);
    desk.rounds(1);
    let told = desk.fleet.decisions();
    assert!(told.len() == 1 && told[0].text.contains("grows to 6"), "{told:?}");
}

#[test]
fn the_same_facts_make_the_same_books() {
    let run = || {
        let mut desk = Desk::new(vec![pool("a"), pool("b")]);
        for turn in 0..120_u64 {
            desk.wait(turn % 17);
            desk.rounds(1);
            if turn % 3 == 0 {
                desk.all_join();
            }
        }
        (desk.rows, desk.cloud.made, desk.cloud.killed)
    };
    assert_eq!(run(), run());
}
