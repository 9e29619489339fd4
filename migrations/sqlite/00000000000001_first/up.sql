-- The first schema. Tables and columns have the names of migrations/postgres; SQLite's types are INTEGER, TEXT and BLOB:
-- UUIDs are 16-byte BLOBs, times are microseconds since 1970, booleans are 0 and 1, lists and maps are JSON.

-- The one row that describes the whole database.
CREATE TABLE cluster (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    incarnation INTEGER NOT NULL,
    write_format INTEGER NOT NULL,
    -- Raised by every change of a route or of a queue.
    route_version INTEGER NOT NULL,
    -- The width of a slot of finished_tasks: a sixth of the time for which they are kept.
    slice_us INTEGER NOT NULL
);

CREATE TABLE served_clock (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    served_ms INTEGER NOT NULL,
    ticked_at_us INTEGER NOT NULL,
    frozen_ms INTEGER NOT NULL
);

CREATE TABLE members (
    id BLOB NOT NULL PRIMARY KEY,
    kind INTEGER NOT NULL,
    endpoint TEXT NOT NULL,
    build TEXT NOT NULL,
    reader_min INTEGER NOT NULL,
    reader_max INTEGER NOT NULL,
    expires_served_ms INTEGER NOT NULL,
    seen_at_us INTEGER NOT NULL
);

CREATE TABLE queues (
    name TEXT NOT NULL PRIMARY KEY,
    description TEXT NOT NULL,
    default_timeout_ms INTEGER,
    default_expire_after_ms INTEGER,
    paused INTEGER NOT NULL DEFAULT 0,
    pause_reason TEXT NOT NULL DEFAULT '',
    pause_until_us INTEGER,
    pause_since_us INTEGER,
    draining INTEGER NOT NULL DEFAULT 0,
    move_to TEXT,
    created_at_us INTEGER NOT NULL,
    updated_at_us INTEGER NOT NULL
);

-- What claims check: the epoch of the queue's owner, and whether dispatch is stopped.
CREATE TABLE queue_gates (
    queue TEXT NOT NULL PRIMARY KEY,
    epoch INTEGER NOT NULL,
    paused INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE queue_leases (
    queue TEXT NOT NULL PRIMARY KEY,
    owner BLOB,
    endpoint TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    expires_served_ms INTEGER NOT NULL
);

CREATE TABLE routes (
    name TEXT NOT NULL PRIMARY KEY,
    ord INTEGER NOT NULL,
    executor TEXT NOT NULL,
    resource_class TEXT NOT NULL,
    tenant TEXT NOT NULL,
    labels TEXT NOT NULL,
    queue TEXT NOT NULL
);

CREATE TABLE sessions (
    id BLOB NOT NULL PRIMARY KEY,
    generation INTEGER NOT NULL,
    -- 1 live, 2 over.
    state INTEGER NOT NULL,
    name TEXT NOT NULL,
    queues TEXT NOT NULL,
    labels TEXT NOT NULL,
    slots INTEGER NOT NULL,
    ttl_ms INTEGER NOT NULL,
    expires_served_ms INTEGER NOT NULL,
    replica TEXT NOT NULL,
    build TEXT NOT NULL,
    created_at_us INTEGER NOT NULL,
    seen_at_us INTEGER NOT NULL,
    over_at_us INTEGER
);

CREATE INDEX sessions_over ON sessions (over_at_us) WHERE over_at_us IS NOT NULL;

-- Live tasks only: SCHEDULED to CANCELLING.
CREATE TABLE tasks (
    id BLOB NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    queue TEXT NOT NULL,
    state INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    executor TEXT NOT NULL,
    resource_class TEXT NOT NULL,
    concurrency_key TEXT NOT NULL,
    exclusive INTEGER NOT NULL,
    timeout_ms INTEGER,
    attempt INTEGER NOT NULL,
    token INTEGER,
    -- Set exactly while DISPATCHED, RUNNING or CANCELLING.
    session_id BLOB,
    failures INTEGER NOT NULL,
    losses INTEGER NOT NULL,
    unsupported INTEGER NOT NULL,
    created_at_us INTEGER NOT NULL,
    -- Set exactly while QUEUED.
    ready_at_us INTEGER,
    -- Set exactly while SCHEDULED.
    wake_at_us INTEGER,
    expires_at_us INTEGER,
    dispatched_at_us INTEGER,
    started_at_us INTEGER,
    trace_context TEXT NOT NULL,
    format INTEGER NOT NULL,
    min_reader INTEGER NOT NULL,
    -- Last, so that reading the envelope never touches the pages that a long spec overflows to.
    spec BLOB NOT NULL
);

CREATE INDEX tasks_waiting ON tasks (queue, tenant, rank, ready_at_us, id) WHERE ready_at_us IS NOT NULL;
CREATE INDEX tasks_waking ON tasks (wake_at_us) WHERE wake_at_us IS NOT NULL;
CREATE INDEX tasks_expiring ON tasks (expires_at_us) WHERE expires_at_us IS NOT NULL AND session_id IS NULL;
CREATE INDEX tasks_held ON tasks (session_id) WHERE session_id IS NOT NULL;
-- For a queue's figures and its deletion.
CREATE INDEX tasks_scheduled_queue ON tasks (queue) WHERE wake_at_us IS NOT NULL;
CREATE INDEX tasks_held_queue ON tasks (queue) WHERE session_id IS NOT NULL;

-- Ended tasks. SQLite has no partitions: the slot is a column, and emptying a slot is a delete in pieces.
CREATE TABLE finished_tasks (
    id BLOB NOT NULL,
    slot INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    queue TEXT NOT NULL,
    state INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    executor TEXT NOT NULL,
    resource_class TEXT NOT NULL,
    concurrency_key TEXT NOT NULL,
    exclusive INTEGER NOT NULL,
    timeout_ms INTEGER,
    attempt INTEGER NOT NULL,
    token INTEGER,
    session_id BLOB,
    failures INTEGER NOT NULL,
    losses INTEGER NOT NULL,
    unsupported INTEGER NOT NULL,
    created_at_us INTEGER NOT NULL,
    expires_at_us INTEGER,
    dispatched_at_us INTEGER,
    started_at_us INTEGER,
    trace_context TEXT NOT NULL,
    format INTEGER NOT NULL,
    min_reader INTEGER NOT NULL,
    finished_at_us INTEGER NOT NULL,
    outcome INTEGER NOT NULL,
    exit_code INTEGER,
    signal INTEGER,
    message TEXT NOT NULL,
    output_bytes INTEGER NOT NULL,
    ended_at_us INTEGER,
    output_tail BLOB NOT NULL,
    spec BLOB NOT NULL,
    PRIMARY KEY (id, slot)
);

CREATE INDEX finished_tasks_slot ON finished_tasks (slot, finished_at_us);

-- Idempotency keys. Calls that are not about a task leave task_id null.
CREATE TABLE requests (
    key BLOB NOT NULL PRIMARY KEY,
    task_id BLOB,
    created_at_us INTEGER NOT NULL
) WITHOUT ROWID;

-- Attempts that were not the last word.
CREATE TABLE attempts (
    task_id BLOB NOT NULL,
    attempt INTEGER NOT NULL,
    token INTEGER,
    session_id BLOB,
    orchestrator TEXT NOT NULL,
    dispatched_at_us INTEGER,
    recorded_at_us INTEGER NOT NULL,
    outcome INTEGER NOT NULL,
    exit_code INTEGER,
    signal INTEGER,
    message TEXT NOT NULL,
    output_bytes INTEGER NOT NULL,
    started_at_us INTEGER,
    ended_at_us INTEGER,
    output_tail BLOB NOT NULL,
    PRIMARY KEY (task_id, attempt)
);

-- Rows that could not be read, set aside with everything that is known of them.
CREATE TABLE quarantine (
    task_id BLOB NOT NULL PRIMARY KEY,
    tenant TEXT,
    queue TEXT,
    raw TEXT NOT NULL,
    spec BLOB,
    error TEXT NOT NULL,
    column_name TEXT NOT NULL,
    writer_format INTEGER,
    refused_by TEXT NOT NULL,
    first_seen_us INTEGER NOT NULL
);

CREATE TABLE audit (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at_us INTEGER NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL
);

-- The incarnation is random, so that tokens of another database never fit this one (R15).
INSERT INTO cluster (one, incarnation, write_format, route_version, slice_us)
VALUES (1, abs(random() % 32767) + 1, 1, 1, 28800000000);

INSERT INTO served_clock (one, served_ms, ticked_at_us, frozen_ms)
VALUES (1, 0, unixepoch() * 1000000, 0);

INSERT INTO queues (name, description, created_at_us, updated_at_us)
VALUES ('default', '', unixepoch() * 1000000, unixepoch() * 1000000);

INSERT INTO queue_gates (queue, epoch) VALUES ('default', 0);

INSERT INTO routes (name, ord, executor, resource_class, tenant, labels, queue)
VALUES ('default', 1000, 'process', '', '', '{}', 'default');
