//! What a store reads out of a database: as JSON, to be held against what it read when the rows were written.

use millrace_core::{
    id::{SessionId, TaskId},
    time::Timestamp,
};
use millrace_store::{AttemptRow, Dispatch, LaneKey, OpenOptions, Outcome, Store, TaskRow, Waiting};
use serde_json::{Map, Value as Json, json};

use super::{dump::Database, fleet};

/// More than any golden has of anything.
pub(super) const ALL: i64 = 10_000;

/// Reads everything that a store can read without changing it.
pub(super) fn of(database: &Database) -> Json {
    let tasks = database.uuids("SELECT id AS key FROM tasks UNION ALL SELECT id FROM finished_tasks");
    let requests = database.uuids("SELECT key FROM requests");
    let sessions = database.uuids("SELECT id AS key FROM sessions");
    let store = millrace_store::open(&database.url(), &OpenOptions::default())
        .unwrap_or_else(|error| panic!("opening {}: {error}", database.url()));
    let store = &*store;
    let cluster = store.cluster().expect("the cluster's row");
    let mut described = Map::new();
    for id in tasks.into_iter().map(TaskId) {
        let row = store.task(id).unwrap_or_else(|error| panic!("task {id} cannot be read: {error}"));
        let row = row.unwrap_or_else(|| panic!("there is no task {id}"));
        let attempts: Vec<Json> = store.attempts(id).expect("attempts").iter().map(attempt).collect();
        described.insert(id.to_string(), json!({ "row": task(&row), "attempts": attempts }));
    }
    let request =
        |key: &uuid::Uuid| (key.to_string(), json!(store.request(*key).expect("a request").map(|id| id.0.to_string())));
    json!({
        "cluster": { "incarnation": cluster.incarnation, "write_format": cluster.write_format, "route_version": cluster.route_version },
        "tasks": described,
        "listed": listed(store),
        "waiting": waiting(store),
        "held": sessions.into_iter().map(|id| (id.to_string(), held(store, SessionId(id)))).collect::<Map<_, _>>(),
        "sessions": live_sessions(store),
        "queues": queues(store),
        "routes": routes(store),
        "requests": requests.iter().map(request).collect::<Map<_, _>>(),
        "owners": store.owners().expect("owners").iter().map(|owner| json!({
            "queue": owner.queue, "epoch": owner.epoch,
            "owner": owner.owner.as_ref().map(|(id, endpoint)| json!([id.0.to_string(), endpoint])),
        })).collect::<Vec<_>>(),
        "members": store.members().expect("members").iter().map(|member| json!({
            "id": member.id.0.to_string(), "kind": member.kind as i16, "endpoint": member.endpoint, "build": member.build,
            "readers": [member.readers.0, member.readers.1], "seen_at_us": member.seen_at_us,
        })).collect::<Vec<_>>(),
        "quarantined": store.quarantined().expect("quarantine"),
        "fleet": fleet::meaning(store),
    })
}

// ── Tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────────

fn task(row: &TaskRow) -> Json {
    let envelope = &row.envelope;
    json!({
        "tenant": envelope.tenant, "queue": envelope.queue, "rank": envelope.rank, "executor": envelope.executor,
        "resource_class": envelope.resource_class, "concurrency_key": envelope.concurrency_key,
        "exclusive": envelope.exclusive, "timeout_ms": envelope.timeout_ms, "trace_context": envelope.trace_context,
        "format": envelope.format, "min_reader": envelope.min_reader, "spec": hex(&row.spec), "state": row.state as i16,
        "attempt": row.attempt, "token": row.token.map(|token| token.to_string()),
        "session": row.session.map(|session| session.0.to_string()), "orchestrator": row.orchestrator,
        "replica": row.replica, "failures": row.failures, "losses": row.losses, "created_at_us": row.created_at_us,
        "ready_at_us": row.ready_at_us, "wake_at_us": row.wake_at_us, "expires_at_us": row.expires_at_us,
        "dispatched_at_us": row.dispatched_at_us, "started_at_us": row.started_at_us,
        "finished_at_us": row.finished_at_us, "outcome": row.outcome.as_ref().map(outcome),
    })
}

fn outcome(outcome: &Outcome) -> Json {
    json!({
        "kind": outcome.kind as i16, "exit_code": outcome.exit_code, "signal": outcome.signal, "message": outcome.message,
        "output_tail": hex(&outcome.output_tail), "output_bytes": outcome.output_bytes,
        "started_at_us": outcome.started_at_us, "ended_at_us": outcome.ended_at_us,
    })
}

fn attempt(row: &AttemptRow) -> Json {
    json!({
        "attempt": row.attempt, "orchestrator": row.orchestrator, "dispatched_at_us": row.dispatched_at_us,
        "recorded_at_us": row.recorded_at_us, "outcome": outcome(&row.outcome),
    })
}

fn dispatch(dispatch: &Dispatch) -> Json {
    let lease = &dispatch.lease;
    json!({
        "task": lease.task.to_string(), "attempt": lease.attempt, "token": lease.token.to_string(), "queue": dispatch.queue,
        "spec": hex(&dispatch.spec), "timeout_ms": dispatch.timeout_ms, "trace_context": dispatch.trace_context,
        "dispatched_at_us": dispatch.dispatched_at_us, "state": dispatch.state as i16,
    })
}

/// What each session holds, by task.
fn held(store: &dyn Store, session: SessionId) -> Json {
    let mut held: Vec<Dispatch> = store.held_by(session).expect("what a session holds");
    held.sort_by_key(|dispatch| dispatch.lease.task);
    held.iter().map(dispatch).collect()
}

/// The ids that lists find, newest first.
fn listed(store: &dyn Store) -> Json {
    let page = store.list(&Default::default(), None, ALL).expect("a list");
    assert!(page.next.is_none(), "a golden has more than one page");
    page.rows.iter().map(|row| json!(row.envelope.id.to_string())).collect()
}

/// What the feeder finds in every queue, lane by lane.
fn waiting(store: &dyn Store) -> Json {
    let mut found = Map::new();
    for queue in store.queues().expect("queues") {
        let lanes = store.lanes(&queue.name, None, ALL).expect("lanes");
        let rows = lanes.iter().flat_map(|lane| lane_rows(store, &queue.name, lane)).map(|row| {
            json!({
                "id": row.id.to_string(), "tenant": row.tenant, "rank": row.rank, "ready_at_us": row.ready_at_us,
                "expires_at_us": row.expires_at_us, "min_reader": row.min_reader,
            })
        });
        found.insert(queue.name.clone(), rows.collect());
    }
    Json::Object(found)
}

fn lane_rows(store: &dyn Store, queue: &str, lane: &LaneKey) -> Vec<Waiting> {
    let start = (Timestamp::MIN, TaskId(uuid::Uuid::nil()));
    store.lane_page(queue, lane, start, None, ALL).expect("a lane").rows
}

// ── What is around them ─────────────────────────────────────────────────────────────────────────────────────────────

fn live_sessions(store: &dyn Store) -> Json {
    let mut rows = store.sessions(ALL).expect("sessions");
    rows.sort_by_key(|row| row.session.id);
    let described = rows.iter().map(|row| {
        let session = &row.session;
        json!({
            "id": session.id.0.to_string(), "name": session.name, "queues": session.queues, "slots": session.slots,
            "labels": session.labels, "ttl_ms": session.ttl_ms, "replica": session.replica, "build": session.build,
            "generation": row.generation, "live": row.live, "expires_served_ms": row.expires_served_ms,
            "seen_at_us": row.seen_at_us, "held": row.held,
        })
    });
    described.collect()
}

fn queues(store: &dyn Store) -> Json {
    let rows = store.queues().expect("queues");
    let described = rows.iter().map(|row| {
        let pause = row.pause.as_ref();
        json!({
            "name": row.name, "description": row.description, "default_timeout_ms": row.default_timeout_ms,
            "default_expire_after_ms": row.default_expire_after_ms, "draining": row.draining, "epoch": row.epoch,
            "pause": pause.map(|pause| json!([pause.reason, pause.until_us, pause.since_us])),
            "created_at_us": row.created_at_us, "updated_at_us": row.updated_at_us,
        })
    });
    described.collect()
}

fn routes(store: &dyn Store) -> Json {
    let mut routes = store.routing().expect("routing").routes;
    routes.sort_by(|a, b| a.name.cmp(&b.name));
    let described = routes.iter().map(|route| {
        json!({
            "name": route.name, "order": route.order, "executor": route.executor, "resource_class": route.resource_class,
            "tenant": route.tenant, "labels": route.labels, "queue": route.queue,
        })
    });
    described.collect()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
