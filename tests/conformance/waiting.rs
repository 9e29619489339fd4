//! Tasks that wait: lanes, waking, expiring, positions.

use millrace_core::{id::TaskId, retry::OutcomeKind, task::State, time::Timestamp};
use millrace_store::{LaneKey, LanePage, Waiting};
use uuid::Uuid;

use crate::world::{DEFAULT, World, hours, secs, sorted};

const START: (Timestamp, TaskId) = (Timestamp::MIN, TaskId(Uuid::nil()));

fn lane(tenant: &str, rank: i32) -> LaneKey {
    LaneKey { tenant: tenant.into(), rank }
}

fn put_in(world: &World, queue: &str, tenant: &str, rank: i32) -> TaskId {
    let mut task = world.new_task_in(queue);
    task.envelope.tenant = tenant.into();
    task.envelope.rank = rank;
    world.put(task)
}

fn page(world: &World, key: &LaneKey, after: (Timestamp, TaskId), limit: i64) -> LanePage {
    world.lane_page(DEFAULT, key, after, None, limit).expect("reading a lane")
}

fn cursor(row: &Waiting) -> (Timestamp, TaskId) {
    (Timestamp(row.ready_at_us), row.id)
}

/// Reads a lane from its start in pages and checks that the pages fit together.
fn whole_lane(world: &World, key: &LaneKey, limit: i64) -> Vec<TaskId> {
    let (mut rows, mut after) = (Vec::new(), START);
    loop {
        let page = page(world, key, after, limit);
        assert!(page.rows.len() as i64 <= limit);
        assert!(page.exhausted || page.rows.len() as i64 == limit, "a short page with more to come");
        if let Some(last) = page.rows.last() {
            assert!(cursor(&page.rows[0]) > after);
            after = cursor(last);
        }
        rows.extend(page.rows);
        if page.exhausted {
            break;
        }
    }
    assert!(rows.is_sorted_by_key(cursor));
    rows.into_iter().map(|row| row.id).collect()
}

pub(crate) fn r3_lanes_are_listed_in_the_order_of_bytes(world: &World) {
    // Names that a linguistic order would sort otherwise than bytes do.
    let names = ["a-b", "a.b", "a_b", "ab", "a0", "b", "a", "a-", "0", "z.z"];
    for name in names {
        put_in(world, DEFAULT, name, 0);
        put_in(world, DEFAULT, name, -5);
    }
    let expected = sorted(names.iter().flat_map(|name| [lane(name, -5), lane(name, 0)]));
    assert_eq!(world.lanes(DEFAULT, None, 100).expect("listing lanes"), expected);
    // And so they page, one by one.
    let mut listed = Vec::new();
    while let [next, ..] = &world.lanes(DEFAULT, listed.last(), 1).expect("listing lanes")[..] {
        listed.push(next.clone());
    }
    assert_eq!(listed, expected);
}

pub(crate) fn r3_lanes_page_and_name_only_what_waits(world: &World) {
    let other = world.queue_named("other");
    let (one, two) = (put_in(world, DEFAULT, "one", 0), put_in(world, DEFAULT, "two", 7));
    put_in(world, DEFAULT, "two", -7);
    put_in(world, DEFAULT, "two", 7);
    put_in(world, &other, "three", 0);
    let mut scheduled = world.new_task();
    scheduled.envelope.tenant = "four".into();
    scheduled.not_before = Some(world.now().after(hours(1)));
    world.put(scheduled);
    let lanes = |after: Option<&LaneKey>, limit| world.lanes(DEFAULT, after, limit).expect("listing lanes");
    assert_eq!(lanes(None, 10), [lane("one", 0), lane("two", -7), lane("two", 7)]);
    assert_eq!(lanes(None, 2), [lane("one", 0), lane("two", -7)]);
    assert_eq!(lanes(Some(&lane("two", -7)), 2), [lane("two", 7)]);
    assert_eq!(lanes(Some(&lane("two", 7)), 2), []);
    // A position need not be a lane that there is.
    assert_eq!(lanes(Some(&lane("one", -1)), 1), [lane("one", 0)]);
    assert_eq!(lanes(Some(&lane("p", 0)), 1), [lane("two", -7)]);
    let worker = world.worker();
    world.dispatched(worker, one);
    world.dispatched(worker, two);
    assert_eq!(lanes(None, 10), [lane("two", -7), lane("two", 7)]);
    assert_eq!(world.lanes("nowhere", None, 10).expect("listing lanes"), []);
}

pub(crate) fn r3_a_lane_pages_by_ready_time_and_id(world: &World) {
    let mut expected = world.queued_many(7);
    put_in(world, DEFAULT, "another", 0);
    put_in(world, DEFAULT, DEFAULT, 1);
    for limit in [1, 2, 3, 7, 8] {
        assert_eq!(sorted(whole_lane(world, &lane(DEFAULT, 0), limit)), sorted(expected.clone()), "pages of {limit}");
    }
    // Whoever joined later stands later, whatever its id.
    let mut late: Vec<_> = (0..3).map(|_| world.new_task()).collect();
    late.reverse();
    for task in late {
        world.advance(secs(1));
        expected.push(world.put(task));
    }
    let listed = whole_lane(world, &lane(DEFAULT, 0), 4);
    assert_eq!(listed[7..], expected[7..]);
    // What the matcher needs stands in the row.
    let mut task = world.new_task();
    task.envelope.tenant = "acme".into();
    task.envelope.rank = -3;
    task.expire_after = Some(hours(1));
    let id = world.put(task);
    let stored = world.row(id);
    let waiting = Waiting {
        id,
        tenant: "acme".into(),
        rank: -3,
        ready_at_us: stored.ready_at_us.expect("it is queued"),
        expires_at_us: stored.expires_at_us,
        min_reader: stored.envelope.min_reader,
    };
    assert_eq!(page(world, &lane("acme", -3), START, 5).rows, [waiting]);
}

pub(crate) fn r3_a_lane_page_ends_at_its_bound(world: &World) {
    for _ in 0..6 {
        world.queued();
        world.advance(secs(1));
    }
    let key = lane(DEFAULT, 0);
    let rows = page(world, &key, START, 10).rows;
    assert_eq!(rows.len(), 6);
    let bounded =
        |after, up_to, limit| world.lane_page(DEFAULT, &key, after, Some(up_to), limit).expect("reading a lane");
    let all = bounded(START, cursor(&rows[3]), 10);
    assert_eq!((&all.rows[..], all.exhausted), (&rows[..4], true), "the bound itself belongs to the page");
    let first = bounded(START, cursor(&rows[3]), 3);
    assert_eq!((&first.rows[..], first.exhausted), (&rows[..3], false));
    assert_eq!(bounded(cursor(&rows[2]), cursor(&rows[3]), 3).rows, rows[3..4]);
    // Of the rows of one moment, those up to the id.
    let just_before = (Timestamp(rows[3].ready_at_us), TaskId(Uuid::nil()));
    assert_eq!(bounded(START, just_before, 10).rows, rows[..3]);
    assert_eq!(bounded(cursor(&rows[3]), cursor(&rows[3]), 10).rows, []);
}

pub(crate) fn r3_a_task_queued_again_stands_behind_the_cursor(world: &World) {
    let key = lane(DEFAULT, 0);
    let worker = world.worker();
    let mut scheduled = world.new_task();
    scheduled.not_before = Some(world.now().after(hours(1)));
    let scheduled = world.put(scheduled);
    let requeued = world.held(worker);
    let retried = world.finished(State::Failed);
    world.advance(hours(2));
    world.queued();
    // The feeder has read everything up to here.
    let after = page(world, &key, START, 10).rows.iter().map(cursor).max().expect("a row");
    world.advance(secs(1));
    world.requeued(requeued, secs(0));
    world.retry(retried, None).expect("retrying");
    world.wake(10).expect("waking");
    let found = page(world, &key, after, 10).rows;
    assert_eq!(sorted(found.iter().map(|row| row.id)), sorted([scheduled, requeued.task, retried]));
}

pub(crate) fn r3_a_page_knows_the_databases_time(world: &World) {
    let key = lane(DEFAULT, 0);
    let before = world.now();
    assert!(page(world, &key, START, 10).now >= before);
    let task = world.queued();
    let page = page(world, &key, START, 10);
    assert_eq!((page.rows[0].id, page.exhausted), (task, true));
    assert!(page.now >= Timestamp(page.rows[0].ready_at_us));
}

pub(crate) fn r3_waking_gives_the_time_of_waking(world: &World) {
    let mut task = world.new_task();
    let moment = world.now().after(hours(1));
    task.not_before = Some(moment);
    task.envelope.tenant = "acme".into();
    task.envelope.rank = 4;
    task.expire_after = Some(hours(100));
    let id = world.put(task);
    world.advance(hours(5));
    let before = world.now();
    let woken = world.wake(10).expect("waking");
    let row = world.row(id);
    assert_eq!((row.state, row.wake_at_us), (State::Queued, None));
    assert!(row.ready_at_us >= Some(before.0), "it joins now, not when its moment came");
    let waiting = Waiting {
        id,
        tenant: "acme".into(),
        rank: 4,
        ready_at_us: row.ready_at_us.expect("it is queued"),
        expires_at_us: row.expires_at_us,
        min_reader: row.envelope.min_reader,
    };
    assert_eq!(woken, [(DEFAULT.to_owned(), waiting)]);
}

pub(crate) fn waking_is_bounded_and_waits_for_the_moment(world: &World) {
    let other = world.queue_named("other");
    let now = world.now();
    let scheduled = |queue: &str, hours_ahead: u64| {
        let mut task = world.new_task_in(queue);
        task.not_before = Some(now.after(hours(hours_ahead)));
        world.put(task)
    };
    let due = [scheduled(DEFAULT, 1), scheduled(&other, 2), scheduled(DEFAULT, 1)];
    let later = scheduled(DEFAULT, 50);
    assert_eq!(world.wake(10).expect("waking"), []);
    world.advance(hours(3));
    let mut woken = world.wake(2).expect("waking");
    assert_eq!(woken.len(), 2);
    woken.extend(world.wake(2).expect("waking"));
    assert_eq!(world.wake(2).expect("waking"), []);
    assert_eq!(sorted(woken.iter().map(|(_, waiting)| waiting.id)), sorted(due));
    let queue = woken.iter().find(|(_, waiting)| waiting.id == due[1]).map(|(queue, _)| queue.as_str());
    assert_eq!(queue, Some("other"));
    assert_eq!(world.state(later), State::Scheduled);
}

pub(crate) fn expiring_ends_what_waited_too_long(world: &World) {
    let expiring = |after: u64, not_before: Option<u64>| {
        let mut task = world.new_task();
        task.expire_after = Some(hours(after));
        task.not_before = not_before.map(|span| world.now().after(hours(span)));
        world.put(task)
    };
    let due = [expiring(1, None), expiring(2, None), expiring(1, Some(50))];
    let later = expiring(50, None);
    let never = world.queued();
    assert_eq!(world.expire(10).expect("expiring"), []);
    world.advance(hours(3));
    let mut expired = world.expire(2).expect("expiring");
    assert_eq!(expired.len(), 2);
    expired.extend(world.expire(2).expect("expiring"));
    assert_eq!(world.expire(2).expect("expiring"), []);
    assert_eq!(sorted(expired), sorted(due));
    for task in due {
        let row = world.row(task);
        assert_eq!((row.state, row.ready_at_us, row.wake_at_us), (State::Expired, None, None));
        assert_eq!(row.outcome.map(|outcome| outcome.kind), Some(OutcomeKind::Expired));
        assert!(row.finished_at_us.is_some() && row.expires_at_us.is_some());
    }
    assert_eq!((world.state(later), world.state(never)), (State::Queued, State::Queued));
}

pub(crate) fn expiring_leaves_what_is_held(world: &World) {
    let worker = world.worker();
    let held = |world: &World| {
        let mut task = world.new_task();
        task.expire_after = Some(hours(1));
        world.dispatched(worker, world.put(task)).lease
    };
    let (dispatched, running, cancelling, requeued) = (held(world), held(world), held(world), held(world));
    world.beat(worker, vec![(running, None)]);
    world.cancelled(cancelling.task);
    world.advance(hours(2));
    assert_eq!(world.expire(10).expect("expiring"), []);
    assert_eq!(world.state(dispatched.task), State::Dispatched);
    // Once it waits again, its deadline counts again.
    world.requeued(requeued, secs(0));
    assert_eq!(world.expire(10).expect("expiring"), [requeued.task]);
}

pub(crate) fn positions_count_what_stands_before(world: &World) {
    let other = world.queue_named("other");
    let position = |task| world.position(task).expect("counting");
    let first = put_in(world, DEFAULT, "one", 0);
    put_in(world, &other, "one", -10);
    world.advance(secs(1));
    let second = put_in(world, DEFAULT, "two", 0);
    world.advance(secs(1));
    let urgent = put_in(world, DEFAULT, "three", -1);
    let low = put_in(world, DEFAULT, "one", 1);
    assert_eq!([urgent, first, second, low].map(position), [Some(0), Some(1), Some(2), Some(3)]);
    world.dispatched(world.worker(), first);
    assert_eq!([urgent, first, second, low].map(position), [Some(0), None, Some(1), Some(2)]);
    let mut scheduled = world.new_task();
    scheduled.not_before = Some(world.now().after(hours(1)));
    assert_eq!(position(world.put(scheduled)), None);
    assert_eq!(position(world.finished(State::Failed)), None);
    assert_eq!(position(TaskId(Uuid::now_v7())), None);
}
