use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const SMALL: Limits = Limits {
    lane: 8,
    window: 20,
    idle_lanes: 100,
    patience: Duration::from_secs(2),
    overlap: Duration::from_micros(5),
    sweep: Duration::from_secs(10),
};

fn lane(rank: i32, tenant: &str) -> Lane {
    Lane { rank, tenant: tenant.into() }
}

fn entry(id: u128, ready_at: i64) -> Entry {
    Entry { id: TaskId(Uuid::from_u128(id)), ready_at: Timestamp(ready_at), expires_at: None, min_reader: 1 }
}

fn task(id: u128) -> TaskId {
    TaskId(Uuid::from_u128(id))
}

const ONE: Connection = Connection(1);
const NOW: Duration = Duration::ZERO;
const WALL: Timestamp = Timestamp(1_000);

/// A matcher with one distributor, and these lanes known to be empty.
fn matcher(limits: Limits, lanes: &[Lane]) -> Matcher {
    let mut matcher = Matcher::new(limits);
    matcher.open(ONE, 1);
    matcher.discovered(lanes.iter().cloned());
    for feed in matcher.feeds(WALL, 100) {
        matcher.fed(&feed, Vec::new(), true);
    }
    matcher
}

fn tasks(matched: &[Matched]) -> Vec<TaskId> {
    matched.iter().map(|matched| matched.task).collect()
}

#[test]
fn rank_comes_before_age_and_age_before_nothing() {
    let (low, high) = (lane(0, "a"), lane(-5, "b"));
    let mut matcher = matcher(SMALL, &[low.clone(), high.clone(), lane(0, "c")]);
    matcher.offer(&low, entry(1, 10));
    matcher.offer(&lane(0, "c"), entry(2, 9));
    matcher.offer(&high, entry(3, 99));
    matcher.demand(ONE, Receiver(7), 1, 9, 0);
    assert_eq!(tasks(&matcher.matches(NOW, WALL, 10)), [task(3), task(2), task(1)]);
}

#[test]
fn r6_no_more_matches_than_credits_and_sessions_take_turns() {
    let all = lane(0, "a");
    let mut matcher = matcher(SMALL, std::slice::from_ref(&all));
    for id in 1..=6 {
        matcher.offer(&all, entry(id, id as i64));
    }
    matcher.demand(ONE, Receiver(1), 1, 2, 0);
    matcher.demand(ONE, Receiver(2), 1, 1, 0);
    let turns: Vec<u64> = matcher.matches(NOW, WALL, 10).iter().map(|matched| matched.receiver.0).collect();
    assert_eq!(turns, [1, 2, 1]);
    assert!(matcher.matches(NOW, WALL, 10).is_empty());
    // Both matches of session 1 are answered; one of them was stale, so its credit comes back with the next demand.
    matcher.answer(ONE, task(1), Answer::Claimed);
    matcher.answer(ONE, task(3), Answer::Stale);
    matcher.demand(ONE, Receiver(1), 2, 1, 2);
    assert_eq!(matcher.matches(NOW, WALL, 10).len(), 1);
}

#[test]
fn r6_unanswered_matches_return_after_their_patience_and_when_the_stream_closes() {
    let all = lane(0, "a");
    let mut matcher = matcher(SMALL, std::slice::from_ref(&all));
    matcher.offer(&all, entry(1, 1));
    matcher.offer(&all, entry(2, 2));
    matcher.demand(ONE, Receiver(1), 1, 5, 0);
    assert_eq!(matcher.matches(NOW, WALL, 10).len(), 2);
    matcher.answer(ONE, task(1), Answer::Claimed);
    assert_eq!(matcher.return_overdue(Duration::from_millis(1_999)), 0);
    assert_eq!(matcher.return_overdue(Duration::from_secs(2)), 1);
    assert_eq!(tasks(&matcher.matches(Duration::from_secs(2), WALL, 10)), [task(2)]);
    matcher.close(ONE);
    assert_eq!((matcher.window_len(), matcher.pending_len(), matcher.demand_len()), (1, 0, 0));
}

#[test]
fn r4_what_a_closed_stream_returns_does_not_depend_on_the_order_of_a_map() {
    let lanes: Vec<Lane> = ["a", "b", "c", "d", "e", "f"].map(|tenant| lane(0, tenant)).into();
    // Twice as many matches are under way as the window holds, so that most do not fit when they return.
    let run = || {
        let mut matcher = matcher(SMALL, &lanes);
        matcher.demand(ONE, Receiver(1), 1, 100, 0);
        for id in 0..SMALL.window as u128 * 2 {
            matcher.offer(&lanes[(id * id % 6) as usize], entry(id, (id * 13 % 40) as i64));
            matcher.matches(NOW, WALL, 1);
        }
        matcher.close(ONE);
        format!("{:?} {:?}", matcher.feeds(WALL, 100), matcher.window)
    };
    // A hash map has another order each time; what it holds is not printed in its order.
    let places = |text: String| text.split("places").next().unwrap_or_default().to_owned();
    let first = places(run());
    for _ in 0..20 {
        assert_eq!(places(run()), first);
    }
}

#[test]
fn r6_a_late_claim_of_a_returned_match_takes_the_entry_out() {
    let all = lane(0, "a");
    let mut matcher = matcher(SMALL, std::slice::from_ref(&all));
    matcher.offer(&all, entry(1, 1));
    matcher.demand(ONE, Receiver(1), 1, 5, 0);
    matcher.matches(NOW, WALL, 10);
    matcher.return_overdue(Duration::from_secs(5));
    matcher.answer(ONE, task(1), Answer::Claimed);
    assert_eq!(matcher.window_len(), 0);
}

#[test]
fn a_paused_queue_matches_nothing_and_keeps_its_window() {
    let all = lane(0, "a");
    let mut matcher = matcher(SMALL, std::slice::from_ref(&all));
    matcher.offer(&all, entry(1, 1));
    matcher.demand(ONE, Receiver(1), 1, 5, 0);
    matcher.set_paused(true);
    assert!(matcher.matches(NOW, WALL, 10).is_empty());
    matcher.set_paused(false);
    assert_eq!(matcher.matches(NOW, WALL, 10).len(), 1);
}

#[test]
fn expired_entries_are_dropped_without_a_match() {
    let all = lane(0, "a");
    let mut matcher = matcher(SMALL, std::slice::from_ref(&all));
    matcher.offer(&all, Entry { expires_at: Some(Timestamp(999)), ..entry(1, 1) });
    matcher.offer(&all, Entry { expires_at: Some(Timestamp(1_001)), ..entry(2, 2) });
    matcher.demand(ONE, Receiver(1), 1, 5, 0);
    assert_eq!(tasks(&matcher.matches(NOW, WALL, 10)), [task(2)]);
}

#[test]
fn r4_a_full_lane_drops_its_worst_and_the_feeder_comes_back_for_it() {
    let all = lane(0, "a");
    let mut matcher = matcher(SMALL, std::slice::from_ref(&all));
    for id in 1..=9 {
        matcher.offer(&all, entry(id, id as i64));
    }
    assert_eq!(matcher.window_len(), 8);
    assert_eq!(matcher.offer(&all, entry(10, 10)), Offered::Beyond);
    assert!(matcher.feeds(WALL, 10).is_empty(), "more than half full");
    matcher.demand(ONE, Receiver(1), 1, 4, 0);
    assert_eq!(matcher.matches(NOW, WALL, 10).len(), 4);
    let feeds = matcher.feeds(WALL, 10);
    assert_eq!(feeds.len(), 1);
    assert_eq!(feeds[0].after, (Timestamp(8), task(8)));
    matcher.fed(&feeds[0], vec![entry(9, 9), entry(10, 10)], true);
    assert_eq!(matcher.offer(&all, entry(11, 11)), Offered::Kept);
}

#[test]
fn r4_a_better_lane_takes_room_from_a_worse_one() {
    let (worse, better) = (lane(0, "a"), lane(-1, "a"));
    let mut matcher = matcher(Limits { lane: 20, window: 10, ..SMALL }, &[worse.clone(), better.clone()]);
    for id in 1..=10 {
        matcher.offer(&worse, entry(id, id as i64));
    }
    for id in 11..=14 {
        assert_eq!(matcher.offer(&better, entry(id, id as i64)), Offered::Kept);
    }
    assert_eq!(matcher.window_len(), 10);
    matcher.demand(ONE, Receiver(1), 1, 6, 0);
    let first: Vec<TaskId> = tasks(&matcher.matches(NOW, WALL, 10));
    assert_eq!(first, [11, 12, 13, 14, 1, 2].map(task));
}

#[test]
fn r3_a_feed_goes_back_by_the_longest_transaction() {
    let all = lane(0, "a");
    let mut matcher = matcher(SMALL, std::slice::from_ref(&all));
    for id in 1..=9 {
        matcher.offer(&all, entry(id, 990 + id as i64));
    }
    matcher.demand(ONE, Receiver(1), 1, 8, 0);
    matcher.matches(NOW, WALL, 10);
    // The horizon is at 998 and it is 1000 now: a row stamped 996 may have been committed since.
    let feeds = matcher.feeds(Timestamp(1_000), 10);
    assert_eq!(feeds[0].after.0, Timestamp(995));
    matcher.fed(&feeds[0], vec![entry(50, 996), entry(9, 999)], true);
    matcher.demand(ONE, Receiver(1), 2, 8, 8);
    assert_eq!(tasks(&matcher.matches(NOW, WALL, 10)), [task(50), task(9)]);
}

#[test]
fn r3_an_offer_dropped_while_its_lane_was_read_is_read_for_again() {
    let all = lane(0, "a");
    let mut matcher = Matcher::new(SMALL);
    matcher.open(ONE, 1);
    matcher.discovered([all.clone()]);
    let feed = matcher.feeds(WALL, 1).remove(0);
    assert_eq!(matcher.offer(&all, entry(1, 1)), Offered::Beyond);
    matcher.fed(&feed, Vec::new(), true);
    let feed = matcher.feeds(WALL, 1).remove(0);
    matcher.fed(&feed, vec![entry(1, 1)], true);
    assert_eq!(matcher.window_len(), 1);
}

#[test]
fn r3_the_sweep_finds_a_task_whose_offer_was_lost() {
    let all = lane(0, "a");
    let mut matcher = matcher(SMALL, std::slice::from_ref(&all));
    let sweep = matcher.sweep(NOW).unwrap();
    assert!(matcher.sweep(NOW).is_none());
    assert_eq!(matcher.swept(&sweep, vec![entry(1, 1)], true), 1);
    assert_eq!(matcher.window_len(), 1);
    assert!(matcher.sweep(Duration::from_secs(9)).is_none());
    assert!(matcher.sweep(Duration::from_secs(10)).is_some());
}

#[test]
fn r9_rows_go_to_distributors_that_can_act_on_them() {
    let all = lane(0, "a");
    let mut matcher = matcher(SMALL, std::slice::from_ref(&all));
    matcher.open(Connection(2), 2);
    for feed in matcher.feeds(WALL, 10) {
        matcher.fed(&feed, Vec::new(), true);
    }
    matcher.offer(&all, Entry { min_reader: 2, ..entry(1, 1) });
    matcher.offer(&all, entry(2, 2));
    matcher.demand(ONE, Receiver(1), 1, 5, 0);
    assert_eq!(tasks(&matcher.matches(NOW, WALL, 10)), [task(2)]);
    matcher.demand(Connection(2), Receiver(1), 1, 5, 0);
    assert_eq!(tasks(&matcher.matches(NOW, WALL, 10)), [task(1)]);
}

#[test]
fn a_task_queued_again_replaces_its_older_entry() {
    let all = lane(0, "a");
    let mut matcher = matcher(SMALL, std::slice::from_ref(&all));
    matcher.offer(&all, entry(1, 1));
    assert_eq!(matcher.offer(&all, entry(1, 1)), Offered::Duplicate);
    assert_eq!(matcher.offer(&all, entry(1, 5)), Offered::Kept);
    assert_eq!(matcher.window_len(), 1);
    matcher.demand(ONE, Receiver(1), 1, 1, 0);
    matcher.matches(NOW, WALL, 10);
    assert_eq!(matcher.offer(&all, entry(1, 5)), Offered::Duplicate);
    assert_eq!(matcher.offer(&all, entry(1, 9)), Offered::Kept);
    assert_eq!((matcher.window_len(), matcher.pending_len()), (1, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Against a model of the database: whatever is offered, lost, fed, swept, matched and answered, every task that waits
    /// is dispatched in the end, each once, and the window keeps its bounds.
    #[test]
    fn r3_r4_nothing_is_skipped_and_nothing_outgrows_its_bound(steps in prop::collection::vec((0u8..8, 0u8..6, any::<bool>()), 1..300)) {
        let mut matcher = Matcher::new(SMALL);
        matcher.open(ONE, 1);
        let mut database: BTreeMap<(Lane, Position), Entry> = BTreeMap::new();
        let (mut next_id, mut clock, mut seq, mut acked, mut dispatched) = (1u128, 10i64, 0u64, 0u64, BTreeSet::new());
        let read = |database: &BTreeMap<(Lane, Position), Entry>, lane: &Lane, after: Position, up_to: Option<Position>, limit: usize| {
            let rows: Vec<Entry> = database.iter()
                .filter(|((of, position), _)| of == lane && *position > after && up_to.is_none_or(|up_to| *position <= up_to))
                .map(|(_, entry)| *entry).take(limit + 1).collect();
            let exhausted = rows.len() <= limit;
            (rows.into_iter().take(limit).collect::<Vec<_>>(), exhausted)
        };
        let finish = steps.len();
        for (index, (step, which, flag)) in steps.into_iter().chain(std::iter::repeat_n((9, 0, false), 200)).enumerate() {
            let of = lane(i32::from(which % 3), if which < 3 { "a" } else { "b" });
            match step {
                0..=2 => {
                    clock += 1;
                    let row = entry(next_id, clock);
                    next_id += 1;
                    database.insert((of.clone(), (row.ready_at, row.id)), row);
                    if flag { matcher.offer(&of, row); }
                }
                3 => { seq += 1; matcher.demand(ONE, Receiver(1), seq, u32::from(which), acked); }
                4 => {
                    for matched in matcher.matches(NOW, Timestamp(clock), usize::from(which)) {
                        acked = matched.seq;
                        let row = database.iter().find(|(_, row)| row.id == matched.task).map(|(key, _)| key.clone());
                        match (row, flag) {
                            (Some(_), true) => matcher.answer(ONE, matched.task, Answer::Returned),
                            (Some(key), false) => {
                                database.remove(&key);
                                prop_assert!(dispatched.insert(matched.task));
                                matcher.answer(ONE, matched.task, Answer::Claimed);
                            }
                            (None, _) => matcher.answer(ONE, matched.task, Answer::Stale),
                        }
                    }
                }
                5 => for feed in matcher.feeds(Timestamp(clock), 2) {
                    let (rows, exhausted) = read(&database, &feed.lane, feed.after, None, feed.limit);
                    if flag { matcher.feed_failed(&feed) } else { matcher.fed(&feed, rows, exhausted) }
                },
                6 => if let Some(key) = database.keys().next().cloned() && flag { database.remove(&key); },
                7 => { matcher.return_overdue(Duration::from_secs(u64::from(which))); }
                // The end: demand without bound, every loop runs.
                _ => {
                    matcher.discovered(database.keys().map(|(lane, _)| lane.clone()).collect::<BTreeSet<_>>());
                    for feed in matcher.feeds(Timestamp(clock), 10) {
                        let (rows, exhausted) = read(&database, &feed.lane, feed.after, None, feed.limit);
                        matcher.fed(&feed, rows, exhausted);
                    }
                    while let Some(sweep) = matcher.sweep(Duration::from_secs(100 * (index - finish) as u64)) {
                        let (rows, exhausted) = read(&database, &sweep.lane, sweep.after, sweep.up_to, sweep.limit);
                        matcher.swept(&sweep, rows, exhausted);
                    }
                    seq += 1;
                    matcher.demand(ONE, Receiver(1), seq, 100, acked);
                    for matched in matcher.matches(NOW, Timestamp(clock), 100) {
                        acked = matched.seq;
                        let key = database.iter().find(|(_, row)| row.id == matched.task).map(|(key, _)| key.clone());
                        let answer = match key {
                            Some(key) => { database.remove(&key); prop_assert!(dispatched.insert(matched.task)); Answer::Claimed }
                            None => Answer::Stale,
                        };
                        matcher.answer(ONE, matched.task, answer);
                    }
                }
            }
            prop_assert!(matcher.window_len() <= SMALL.window);
        }
        prop_assert!(database.is_empty(), "left waiting: {database:?}");
    }
}
