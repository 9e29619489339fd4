//! The columns that this build's statements know, with the types that they expect, in the words of the database.

/// Columns with their types.
pub(in crate::postgres) type Columns = &'static [(&'static str, &'static str)];

/// The columns of both tables of tasks.
pub(in crate::postgres) const BOTH: Columns = &[
    ("id", "uuid"),
    ("tenant", "text"),
    ("queue", "text"),
    ("state", "smallint"),
    ("rank", "integer"),
    ("executor", "text"),
    ("resource_class", "text"),
    ("concurrency_key", "text"),
    ("exclusive", "boolean"),
    ("timeout_ms", "bigint"),
    ("attempt", "integer"),
    ("token", "bigint"),
    ("session_id", "uuid"),
    ("failures", "integer"),
    ("losses", "integer"),
    ("unsupported", "integer"),
    ("created_at_us", "bigint"),
    ("expires_at_us", "bigint"),
    ("dispatched_at_us", "bigint"),
    ("started_at_us", "bigint"),
    ("trace_context", "text"),
    ("format", "smallint"),
    ("min_reader", "smallint"),
    ("spec", "bytea"),
];

const LIVE: Columns = &[("ready_at_us", "bigint"), ("wake_at_us", "bigint")];

const FINISHED: Columns = &[
    ("slot", "smallint"),
    ("finished_at_us", "bigint"),
    ("outcome", "smallint"),
    ("exit_code", "integer"),
    ("signal", "integer"),
    ("message", "text"),
    ("output_tail", "bytea"),
    ("output_bytes", "bigint"),
    ("ended_at_us", "bigint"),
];

const ATTEMPTS: Columns = &[
    ("task_id", "uuid"),
    ("attempt", "integer"),
    ("token", "bigint"),
    ("session_id", "uuid"),
    ("orchestrator", "text"),
    ("dispatched_at_us", "bigint"),
    ("recorded_at_us", "bigint"),
    ("outcome", "smallint"),
    ("exit_code", "integer"),
    ("signal", "integer"),
    ("message", "text"),
    ("output_tail", "bytea"),
    ("output_bytes", "bigint"),
    ("started_at_us", "bigint"),
    ("ended_at_us", "bigint"),
];

const REQUESTS: Columns = &[("key", "uuid"), ("task_id", "uuid"), ("created_at_us", "bigint")];

const SESSIONS: Columns = &[
    ("id", "uuid"),
    ("generation", "bigint"),
    ("state", "smallint"),
    ("name", "text"),
    ("queues", "text"),
    ("labels", "text"),
    ("slots", "integer"),
    ("ttl_ms", "bigint"),
    ("expires_served_ms", "bigint"),
    ("replica", "text"),
    ("build", "text"),
    ("created_at_us", "bigint"),
    ("seen_at_us", "bigint"),
    ("over_at_us", "bigint"),
];

const QUEUES: Columns = &[
    ("name", "text"),
    ("description", "text"),
    ("default_timeout_ms", "bigint"),
    ("default_expire_after_ms", "bigint"),
    ("paused", "boolean"),
    ("pause_reason", "text"),
    ("pause_until_us", "bigint"),
    ("pause_since_us", "bigint"),
    ("draining", "boolean"),
    ("move_to", "text"),
    ("created_at_us", "bigint"),
    ("updated_at_us", "bigint"),
];

const GATES: Columns = &[("queue", "text"), ("epoch", "bigint"), ("paused", "boolean")];

const LEASES: Columns =
    &[("queue", "text"), ("owner", "uuid"), ("endpoint", "text"), ("epoch", "bigint"), ("expires_served_ms", "bigint")];

const ROUTES: Columns = &[
    ("name", "text"),
    ("ord", "integer"),
    ("executor", "text"),
    ("resource_class", "text"),
    ("tenant", "text"),
    ("labels", "text"),
    ("queue", "text"),
];

const MEMBERS: Columns = &[
    ("id", "uuid"),
    ("kind", "smallint"),
    ("endpoint", "text"),
    ("build", "text"),
    ("min_reader", "smallint"),
    ("max_reader", "smallint"),
    ("expires_served_ms", "bigint"),
    ("seen_at_us", "bigint"),
];

const CLUSTER: Columns =
    &[("incarnation", "smallint"), ("write_format", "smallint"), ("route_version", "bigint"), ("slice_us", "bigint")];

const CLOCK: Columns = &[("served_ms", "bigint"), ("ticked_at_us", "bigint"), ("frozen_ms", "bigint")];

const QUARANTINE: Columns = &[
    ("task_id", "uuid"),
    ("tenant", "text"),
    ("queue", "text"),
    ("raw", "text"),
    ("spec", "bytea"),
    ("error", "text"),
    ("column_name", "text"),
    ("writer_format", "smallint"),
    ("refused_by", "text"),
    ("first_seen_us", "bigint"),
];

/// Every table whose columns are looked at, with its columns in parts.
pub(super) const TABLES: &[(&str, &[Columns])] = &[
    ("tasks", &[BOTH, LIVE]),
    ("finished_tasks", &[BOTH, FINISHED]),
    ("attempts", &[ATTEMPTS]),
    ("requests", &[REQUESTS]),
    ("sessions", &[SESSIONS]),
    ("queues", &[QUEUES]),
    ("queue_gates", &[GATES]),
    ("queue_leases", &[LEASES]),
    ("routes", &[ROUTES]),
    ("members", &[MEMBERS]),
    ("cluster", &[CLUSTER]),
    ("served_clock", &[CLOCK]),
    ("quarantine", &[QUARANTINE]),
];

/// Columns that say by being there in which part of its life a row is. Whether they are there does not depend on what they hold, and an
/// index over such rows stays one over them whatever type they have.
pub(super) const PRESENCE: [&str; 4] = ["ready_at_us", "wake_at_us", "session_id", "over_at_us"];

/// The keys by which rows are found, which have one spelling each: this build's. What is spelled otherwise is no key of it.
pub(super) const KEYS: [(&str, &str); 6] = [
    ("tasks", "id"),
    ("finished_tasks", "id"),
    ("sessions", "id"),
    ("attempts", "task_id"),
    ("requests", "key"),
    ("quarantine", "task_id"),
];

/// Columns that statements carry from one table of tasks to the other and never look at.
pub(super) const CARRIED: [&str; 8] =
    ["executor", "resource_class", "concurrency_key", "exclusive", "timeout_ms", "trace_context", "format", "spec"];
