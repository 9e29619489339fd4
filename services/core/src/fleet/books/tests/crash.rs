//! Whoever leads dies at every step of a launch and of an end, and the next one goes on from the rows.

use super::desk::{Desk, Mood};
use crate::fleet::{State, books::Answer};

/// Where the leader dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    BeforeIntent,
    AfterIntent,
    AfterCall,
    BeforeAnswerStored,
    AfterAnswerStored,
}

const STEPS: [Step; 5] =
    [Step::BeforeIntent, Step::AfterIntent, Step::AfterCall, Step::BeforeAnswerStored, Step::AfterAnswerStored];

/// A round that ends at a step.
fn round_until(desk: &mut Desk, step: Step) {
    if step == Step::BeforeIntent {
        // The intents are only in memory.
        let mut fleet = std::mem::replace(&mut desk.fleet, crate::fleet::Fleet::new(Default::default()));
        let mut number = 1_000_000;
        fleet.round(desk.now, &mut || {
            number += 1;
            crate::id::NodeId(uuid::Uuid::from_u128(number))
        });
        return desk.reopen();
    }
    let calls = desk.decide();
    if step == Step::AfterIntent {
        return desk.reopen();
    }
    let answers: Vec<Answer> = calls.iter().map(|call| desk.make(call)).collect();
    if step == Step::AfterCall {
        return desk.reopen();
    }
    for (call, answer) in calls.iter().zip(answers) {
        desk.fleet.answered(call.id, answer, desk.now);
    }
    if step == Step::AfterAnswerStored {
        desk.store();
    }
    desk.reopen();
}

#[test]
fn a_leader_that_dies_at_any_step_of_a_launch_makes_no_node_twice_and_loses_none() {
    for step in STEPS {
        for mood in [Mood::Well, Mood::Silent] {
            let mut desk = Desk::of_one();
            desk.wait(5);
            desk.mood = mood;
            round_until(&mut desk, step);
            desk.mood = Mood::Well;
            for _ in 0..40 {
                desk.wait(5);
                desk.rounds(1);
                desk.all_join();
            }
            assert_eq!(desk.count(State::Ready), 5, "{step:?} {mood:?}");
            assert_eq!((desk.cloud.made.len(), desk.cloud.there.len()), (5, 5), "{step:?} {mood:?}");
            assert!(desk.cloud.killed.is_empty(), "{step:?} {mood:?}");
        }
    }
}

#[test]
fn a_leader_that_dies_at_any_step_of_an_end_ends_that_node_and_no_other() {
    for step in STEPS {
        for rounds in 0..4 {
            let mut desk = Desk::of_one().working(3);
            let victim = desk.ids_in(&[State::Ready])[1];
            desk.fleet.ask_drain(victim, "a test", desk.now).unwrap();
            desk.heard(victim, super::super::News::Drained);
            for _ in 0..rounds {
                desk.wait(3);
                desk.rounds(1);
            }
            round_until(&mut desk, step);
            for _ in 0..60 {
                // The database has what was asked for, and nodes attach again after the change of leaders.
                let _ = desk.fleet.ask_drain(victim, "a test", desk.now);
                for id in desk.ids_in(&[State::Starting, State::Joining, State::Ready, State::Suspect, State::Draining])
                {
                    desk.join(id);
                    if desk.fleet.standing_order(id).is_some() {
                        desk.heard(id, super::super::News::Drained);
                    }
                }
                desk.wait(3);
                desk.rounds(1);
            }
            let killed: Vec<_> = desk.cloud.killed.iter().collect();
            assert_eq!(killed, [&format!("i-{victim}")], "{step:?} after {rounds} rounds");
            assert_eq!((desk.count(State::Ready), desk.cloud.made.len()), (3, 4), "{step:?} after {rounds} rounds");
        }
    }
}
