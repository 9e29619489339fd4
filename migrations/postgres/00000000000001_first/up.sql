-- The first schema. Every time is in microseconds since 1970 by the database's clock (`*_us`); served time, by which
-- leases run out, is in milliseconds (`*_served_ms`). SQLite's migration of the same name has the same tables and columns.
--
-- Names compare by their bytes (COLLATE "C"): the services sort lanes and lists the same way, whatever the locale of the
-- database, and comparing costs less.

-- The whole database in one row.
CREATE TABLE cluster (
    one BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one),
    -- In the upper bits of tokens, so that none given before a restore fits a row written after it.
    incarnation SMALLINT NOT NULL,
    -- The format in which rows are written.
    write_format SMALLINT NOT NULL,
    -- Raised by every change of a route or of a queue.
    route_version BIGINT NOT NULL,
    -- The width of a slot of finished_tasks: a sixth of the time for which they are kept.
    slice_us BIGINT NOT NULL CHECK (slice_us > 0)
);
INSERT INTO cluster (incarnation, write_format, route_version, slice_us)
VALUES (1 + floor(random() * 32767)::smallint, 1, 1, 100800000000);

CREATE TABLE served_clock (
    one BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one),
    served_ms BIGINT NOT NULL,
    ticked_at_us BIGINT NOT NULL,
    -- For how much longer the clock stands still after a gap.
    frozen_ms BIGINT NOT NULL
) WITH (fillfactor = 50);
INSERT INTO served_clock (served_ms, ticked_at_us, frozen_ms)
VALUES (0, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 0);

-- Processes of the suite, as leases.
CREATE TABLE members (
    id UUID PRIMARY KEY,
    kind SMALLINT NOT NULL,
    endpoint TEXT NOT NULL,
    build TEXT NOT NULL,
    min_reader SMALLINT NOT NULL,
    max_reader SMALLINT NOT NULL,
    expires_served_ms BIGINT NOT NULL,
    seen_at_us BIGINT NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE queues (
    name TEXT COLLATE "C" PRIMARY KEY,
    description TEXT NOT NULL,
    default_timeout_ms BIGINT,
    default_expire_after_ms BIGINT,
    paused BOOLEAN NOT NULL,
    pause_reason TEXT NOT NULL,
    pause_until_us BIGINT,
    pause_since_us BIGINT,
    -- Takes no more tasks and goes once it is empty.
    draining BOOLEAN NOT NULL,
    -- Where what waits in it goes.
    move_to TEXT COLLATE "C",
    created_at_us BIGINT NOT NULL,
    updated_at_us BIGINT NOT NULL
) WITH (fillfactor = 70);

-- What every claim locks FOR SHARE. Pausing and a change of owner write it; renewing an ownership does not.
CREATE TABLE queue_gates (
    queue TEXT COLLATE "C" PRIMARY KEY,
    epoch BIGINT NOT NULL,
    paused BOOLEAN NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE queue_leases (
    queue TEXT COLLATE "C" PRIMARY KEY,
    owner UUID,
    endpoint TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    expires_served_ms BIGINT NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE routes (
    name TEXT COLLATE "C" PRIMARY KEY,
    ord INTEGER NOT NULL,
    -- Empty columns match anything.
    executor TEXT COLLATE "C" NOT NULL,
    resource_class TEXT COLLATE "C" NOT NULL,
    tenant TEXT COLLATE "C" NOT NULL,
    -- A JSON object of strings.
    labels TEXT NOT NULL,
    queue TEXT COLLATE "C" NOT NULL
);

INSERT INTO queues (name, description, paused, pause_reason, draining, created_at_us, updated_at_us)
SELECT 'default', '', FALSE, '', FALSE, now_us, now_us
FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us) AS clock;
INSERT INTO queue_gates (queue, epoch, paused) VALUES ('default', 0, FALSE);
INSERT INTO routes (name, ord, executor, resource_class, tenant, labels, queue)
VALUES ('default', 1000, 'process', '', '', '{}', 'default');

-- Sessions of orchestrators, as leases. A heartbeat writes one row here and changes no indexed column.
CREATE TABLE sessions (
    id UUID PRIMARY KEY,
    generation BIGINT NOT NULL,
    -- 1 live, 2 over.
    state SMALLINT NOT NULL,
    name TEXT NOT NULL,
    -- A JSON array of names.
    queues TEXT NOT NULL,
    -- A JSON object of strings.
    labels TEXT NOT NULL,
    slots INTEGER NOT NULL,
    ttl_ms BIGINT NOT NULL,
    expires_served_ms BIGINT NOT NULL,
    -- The endpoint of the replica that holds the stream.
    replica TEXT NOT NULL,
    build TEXT NOT NULL,
    created_at_us BIGINT NOT NULL,
    seen_at_us BIGINT NOT NULL,
    over_at_us BIGINT
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 1000);
-- Of columns that no heartbeat writes, so that heartbeats stay on their page.
CREATE INDEX sessions_live ON sessions (id) WHERE state = 1;
CREATE INDEX sessions_over ON sessions (over_at_us) WHERE over_at_us IS NOT NULL;

-- Live tasks, from SCHEDULED to CANCELLING. A task that ends moves to finished_tasks, so that what has ended costs the hot
-- path nothing. `ready_at_us` is set exactly while a task is QUEUED, `wake_at_us` exactly while it is SCHEDULED and `session_id`
-- exactly while an orchestrator has it: the partial indexes hang on these, and `state` is in none.
CREATE TABLE tasks (
    id UUID PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL,
    queue TEXT COLLATE "C" NOT NULL,
    state SMALLINT NOT NULL,
    -- Minus the priority: ascending is dispatched first.
    rank INTEGER NOT NULL,
    executor TEXT COLLATE "C" NOT NULL,
    resource_class TEXT COLLATE "C" NOT NULL,
    concurrency_key TEXT COLLATE "C" NOT NULL,
    exclusive BOOLEAN NOT NULL,
    timeout_ms BIGINT,
    attempt INTEGER NOT NULL,
    token BIGINT,
    session_id UUID,
    failures INTEGER NOT NULL,
    losses INTEGER NOT NULL,
    unsupported INTEGER NOT NULL,
    created_at_us BIGINT NOT NULL,
    ready_at_us BIGINT,
    wake_at_us BIGINT,
    expires_at_us BIGINT,
    dispatched_at_us BIGINT,
    started_at_us BIGINT,
    trace_context TEXT NOT NULL,
    format SMALLINT NOT NULL,
    min_reader SMALLINT NOT NULL,
    spec BYTEA NOT NULL
) WITH (
    -- Room for the version of the row that a claim writes, on the page where the row is.
    fillfactor = 80,
    -- Rows come and go: vacuum by number of dead rows, not by a share of a table whose size means nothing, and at full speed.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0.2,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.1,
    autovacuum_analyze_threshold = 10000
);
CREATE INDEX tasks_waiting ON tasks (queue, tenant, rank, ready_at_us, id) WHERE ready_at_us IS NOT NULL;
CREATE INDEX tasks_waking ON tasks (wake_at_us) WHERE wake_at_us IS NOT NULL;
CREATE INDEX tasks_expiring ON tasks (expires_at_us) WHERE expires_at_us IS NOT NULL AND session_id IS NULL;
CREATE INDEX tasks_held ON tasks (session_id) WHERE session_id IS NOT NULL;

-- Tasks that have ended, in eight slots by the time of their end; retention empties a slot at a time, without a long delete.
CREATE TABLE finished_tasks (
    id UUID NOT NULL,
    slot SMALLINT NOT NULL,
    tenant TEXT COLLATE "C" NOT NULL,
    queue TEXT COLLATE "C" NOT NULL,
    state SMALLINT NOT NULL,
    rank INTEGER NOT NULL,
    executor TEXT COLLATE "C" NOT NULL,
    resource_class TEXT COLLATE "C" NOT NULL,
    concurrency_key TEXT COLLATE "C" NOT NULL,
    exclusive BOOLEAN NOT NULL,
    timeout_ms BIGINT,
    attempt INTEGER NOT NULL,
    token BIGINT,
    session_id UUID,
    failures INTEGER NOT NULL,
    losses INTEGER NOT NULL,
    unsupported INTEGER NOT NULL,
    created_at_us BIGINT NOT NULL,
    expires_at_us BIGINT,
    dispatched_at_us BIGINT,
    started_at_us BIGINT,
    finished_at_us BIGINT NOT NULL,
    trace_context TEXT NOT NULL,
    format SMALLINT NOT NULL,
    min_reader SMALLINT NOT NULL,
    spec BYTEA NOT NULL,
    -- How it ended: the kind, a command's exit code or signal, a sentence, the end and the size of the output, and the
    -- end by the orchestrator's clock (its start is started_at_us).
    outcome SMALLINT NOT NULL,
    exit_code INTEGER,
    signal INTEGER,
    message TEXT NOT NULL,
    output_tail BYTEA NOT NULL,
    output_bytes BIGINT NOT NULL,
    ended_at_us BIGINT,
    PRIMARY KEY (id, slot)
) PARTITION BY LIST (slot);
CREATE TABLE finished_tasks_0 PARTITION OF finished_tasks FOR VALUES IN (0);
CREATE TABLE finished_tasks_1 PARTITION OF finished_tasks FOR VALUES IN (1);
CREATE TABLE finished_tasks_2 PARTITION OF finished_tasks FOR VALUES IN (2);
CREATE TABLE finished_tasks_3 PARTITION OF finished_tasks FOR VALUES IN (3);
CREATE TABLE finished_tasks_4 PARTITION OF finished_tasks FOR VALUES IN (4);
CREATE TABLE finished_tasks_5 PARTITION OF finished_tasks FOR VALUES IN (5);
CREATE TABLE finished_tasks_6 PARTITION OF finished_tasks FOR VALUES IN (6);
CREATE TABLE finished_tasks_7 PARTITION OF finished_tasks FOR VALUES IN (7);

-- Attempts that were not the last word on their task.
CREATE TABLE attempts (
    task_id UUID NOT NULL,
    attempt INTEGER NOT NULL,
    token BIGINT NOT NULL,
    session_id UUID,
    orchestrator TEXT NOT NULL,
    dispatched_at_us BIGINT,
    recorded_at_us BIGINT NOT NULL,
    outcome SMALLINT NOT NULL,
    exit_code INTEGER,
    signal INTEGER,
    message TEXT NOT NULL,
    output_tail BYTEA NOT NULL,
    output_bytes BIGINT NOT NULL,
    started_at_us BIGINT,
    ended_at_us BIGINT,
    PRIMARY KEY (task_id, attempt)
);

-- Idempotency keys: UUIDv5 of tenant, method and request id. Calls that are not about a task leave task_id null.
CREATE TABLE requests (
    key UUID PRIMARY KEY,
    task_id UUID,
    created_at_us BIGINT NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

-- Rows that could not be read, whole, by the task's id.
CREATE TABLE quarantine (
    task_id UUID PRIMARY KEY,
    tenant TEXT COLLATE "C",
    queue TEXT COLLATE "C",
    -- The columns as they were, a JSON object.
    raw TEXT NOT NULL,
    spec BYTEA,
    error TEXT NOT NULL,
    column_name TEXT NOT NULL,
    writer_format SMALLINT,
    refused_by TEXT NOT NULL,
    first_seen_us BIGINT NOT NULL
);

-- What operators did.
CREATE TABLE audit (
    id BIGSERIAL PRIMARY KEY,
    at_us BIGINT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL
);
