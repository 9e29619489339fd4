//! Lists over live and finished tasks.

use millrace_core::{id::TaskId, task::State};
use millrace_store::{LIST_SCAN_BOUND, ListFilter, NewTask};

use crate::world::{DEFAULT, World, hours, new_task};

/// Follows the pages of a list to its end and checks each.
fn listed(world: &World, filter: &ListFilter, limit: i64) -> Vec<TaskId> {
    let (mut ids, mut below) = (Vec::new(), None);
    loop {
        let page = world.list(filter, below, limit).expect("listing");
        assert!(page.rows.len() as i64 <= limit);
        let rows = page.rows.iter().map(|row| row.envelope.id);
        assert!(rows.clone().all(|id| below.is_none_or(|below| id < below)));
        ids.extend(rows);
        assert!(page.next.is_none_or(|next| below.is_none_or(|below| next < below)), "a page that does not go on");
        below = page.next;
        if below.is_none() {
            assert!(ids.is_sorted_by(|newer, older| newer > older), "newest first, each once");
            return ids;
        }
    }
}

/// Tasks of every state in two queues and of two tenants, oldest first.
fn mixed(world: &World) -> Vec<TaskId> {
    let other = world.queue_named("other");
    let worker = world.worker();
    let mut ids = Vec::new();
    for queue in [DEFAULT, &other] {
        for tenant in ["acme", "apex"] {
            let new = |scheduled: bool, expires: bool| {
                let mut task: NewTask = world.new_task_in(queue);
                task.envelope.tenant = tenant.into();
                task.not_before = scheduled.then(|| world.now().after(hours(9)));
                task.expire_after = expires.then(|| hours(1));
                world.put(task)
            };
            let dispatched = |id| world.dispatched_from(worker, queue, id).lease;
            ids.extend([new(true, false), new(false, false), new(false, true)]);
            for step in 0..6 {
                let id = new(false, false);
                ids.push(id);
                match step {
                    0 => drop(world.cancelled(id)),
                    1 => drop(dispatched(id)),
                    2 => drop(world.beat(worker, vec![(dispatched(id), None)])),
                    3 => world.completed(dispatched(id), State::Succeeded),
                    4 => world.completed(dispatched(id), State::Failed),
                    _ => {
                        dispatched(id);
                        world.cancelled(id);
                    }
                }
            }
        }
    }
    world.advance(hours(2));
    assert_eq!(world.expire(100).expect("expiring").len(), 4);
    ids
}

pub(crate) fn lists_go_newest_first_over_live_and_finished_tasks(world: &World) {
    let mut ids = mixed(world);
    ids.reverse();
    assert_eq!(listed(world, &ListFilter::default(), 1000), ids);
    let page = world.list(&ListFilter::default(), None, 1000).expect("listing");
    for row in page.rows {
        assert_eq!(row, world.row(row.envelope.id));
    }
}

pub(crate) fn lists_page_without_gap_or_repeat(world: &World) {
    let mut ids = mixed(world);
    ids.reverse();
    for limit in [1, 2, 7, 36, 37] {
        assert_eq!(listed(world, &ListFilter::default(), limit), ids, "pages of {limit}");
    }
    let page = world.list(&ListFilter::default(), Some(ids[10]), 5).expect("listing");
    assert_eq!(page.rows.iter().map(|row| row.envelope.id).collect::<Vec<_>>(), ids[11..16]);
}

pub(crate) fn lists_filter_by_tenant_queue_and_state(world: &World) {
    let ids = mixed(world);
    let rows = world.tasks(&ids).expect("reading");
    let tenants = [None, Some("acme"), Some("nobody")];
    let queues = [None, Some("other"), Some("nowhere")];
    let states = [
        vec![],
        vec![State::Queued],
        vec![State::Succeeded, State::Expired],
        vec![State::Scheduled, State::Dispatched, State::Running, State::Cancelling, State::Failed, State::Cancelled],
    ];
    for tenant in tenants {
        for queue in queues {
            for states in &states {
                let filter = ListFilter {
                    tenant: tenant.map(str::to_owned),
                    queue: queue.map(str::to_owned),
                    states: states.clone(),
                };
                let fits = |id: &&TaskId| {
                    rows.iter().any(|row| {
                        row.envelope.id == **id
                            && tenant.is_none_or(|tenant| row.envelope.tenant == tenant)
                            && queue.is_none_or(|queue| row.envelope.queue == queue)
                            && (states.is_empty() || states.contains(&row.state))
                    })
                };
                let expected: Vec<TaskId> = ids.iter().rev().filter(fits).copied().collect();
                for limit in [2, 100] {
                    assert_eq!(listed(world, &filter, limit), expected, "{filter:?} in pages of {limit}");
                }
            }
        }
    }
}

pub(crate) fn lists_filter_beyond_the_scan_bound(world: &World) {
    let mut rare = world.new_task();
    rare.envelope.tenant = "rare".into();
    let rare = world.put(rare);
    let version = world.route_version();
    let noise: Vec<NewTask> = (0..LIST_SCAN_BOUND + 500).map(|_| new_task(version)).collect();
    for batch in noise.chunks(1000) {
        world.submit(batch, false).expect("submitting");
    }
    let filter = ListFilter { tenant: Some("rare".into()), ..ListFilter::default() };
    assert_eq!(listed(world, &filter, 50), [rare]);
}

pub(crate) fn lists_go_on_where_they_stood_when_tasks_come_and_go(world: &World) {
    let ids = world.queued_many(6);
    let first = world.list(&ListFilter::default(), None, 3).expect("listing");
    assert_eq!(first.rows.iter().map(|row| row.envelope.id).collect::<Vec<_>>(), [ids[5], ids[4], ids[3]]);
    // New ones join before the page token, and what is behind it moves to the finished tasks.
    world.queued_many(3);
    world.cancelled(ids[1]);
    world.cancelled(ids[5]);
    let second = world.list(&ListFilter::default(), first.next, 10).expect("listing");
    assert_eq!(second.rows.iter().map(|row| row.envelope.id).collect::<Vec<_>>(), [ids[2], ids[1], ids[0]]);
    assert_eq!(second.next, None);
}
