-- One life of 500 tasks in our own schema: the statements of services/store/src/postgres/{submit,claim,complete}.rs with their
-- arrays made in the server, so that only PostgreSQL is measured. Each statement is a transaction. The
-- harness puts an expression for the idempotency key in the place of REQUEST.
\set batch random(1, 9000000000000000000)
\set token random(1, 9000000000000000000)
WITH item AS MATERIALIZED (
    SELECT id, 'bench'::text AS tenant, 'default'::text AS queue, 0 AS rank, 'process'::text AS executor,
        ''::text AS resource_class, ''::text AS concurrency_key, FALSE AS exclusive, NULL::bigint AS timeout_ms,
        ''::text AS trace_context, 1::smallint AS format, 1::smallint AS min_reader, NULL::bigint AS not_before_us,
        NULL::bigint AS expire_after_us, 1::bigint AS route_version, REQUEST AS request,
        convert_to(repeat('x', 500), 'UTF8') AS spec
    FROM (SELECT (lpad(to_hex(:batch::bigint), 16, '0') || lpad(to_hex(i), 16, '0'))::uuid AS id FROM generate_series(1, 500) AS i) AS ids
), open_queue AS MATERIALIZED (
    SELECT name FROM queues WHERE name = ANY (ARRAY['default']) AND NOT draining ORDER BY name FOR KEY SHARE
), clock AS MATERIALIZED (
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us, (SELECT route_version FROM cluster) AS route_version
), fresh AS MATERIALIZED (
    SELECT item.*, clock.now_us, coalesce(item.not_before_us > clock.now_us, FALSE) AS later FROM clock, item
    WHERE item.queue IN (SELECT name FROM open_queue) AND item.route_version = clock.route_version
), keyed AS (
    INSERT INTO requests (key, task_id, created_at_us)
    SELECT request, id, now_us FROM fresh WHERE request IS NOT NULL ORDER BY request
    ON CONFLICT (key) DO NOTHING
    RETURNING task_id
), stored AS (
    INSERT INTO tasks (id, tenant, queue, state, rank, executor, resource_class, concurrency_key, exclusive, timeout_ms,
        attempt, failures, losses, unsupported, created_at_us, ready_at_us, wake_at_us, expires_at_us, trace_context, format,
        min_reader, spec)
    SELECT id, tenant, queue, CASE WHEN later THEN 1 ELSE 2 END, rank, executor, resource_class, concurrency_key, exclusive,
        timeout_ms, 0, 0, 0, 0, now_us, CASE WHEN NOT later THEN now_us END, CASE WHEN later THEN not_before_us END,
        now_us + expire_after_us, trace_context, format, min_reader, spec
    FROM fresh WHERE request IS NULL OR id IN (SELECT task_id FROM keyed)
    RETURNING id, state, created_at_us, ready_at_us, expires_at_us
) SELECT array_agg(id) AS ids FROM stored \gset
WITH item AS MATERIALIZED (
    SELECT task, 'default'::text AS queue, 0::bigint AS epoch, '00000000-0000-7000-8000-000000000001'::uuid AS session,
        1::bigint AS generation, :token::bigint AS token
    FROM unnest(:ids::uuid[]) AS task
), gate AS MATERIALIZED (
    SELECT queue, epoch FROM queue_gates WHERE queue = ANY (ARRAY['default']) AND NOT paused ORDER BY queue FOR SHARE
), holder AS MATERIALIZED (
    SELECT id, generation FROM sessions WHERE id = ANY (ARRAY['00000000-0000-7000-8000-000000000001'::uuid]) AND state = 1
    ORDER BY id FOR SHARE
), fit AS MATERIALIZED (
    SELECT item.*, (queue, epoch) IN (SELECT queue, epoch FROM gate) AS gate_open,
        (session, generation) IN (SELECT id, generation FROM holder) AS session_live
    FROM item
), clock AS MATERIALIZED (
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us
), won AS (
    UPDATE tasks t SET state = 3, attempt = t.attempt + 1, token = fit.token, session_id = fit.session, ready_at_us = NULL,
        dispatched_at_us = clock.now_us, started_at_us = NULL
    FROM clock, fit
    WHERE fit.gate_open AND fit.session_live AND t.id = fit.task AND t.queue = fit.queue AND t.state = 2
        AND t.min_reader <= 1 AND (t.expires_at_us IS NULL OR t.expires_at_us > clock.now_us)
    RETURNING t.id, t.attempt, t.token, t.queue, t.spec, t.timeout_ms, t.trace_context, t.dispatched_at_us, t.state
) SELECT count(spec) AS claimed FROM won;
WITH item AS MATERIALIZED (
    SELECT id, 1 AS attempt, :token::bigint AS token, 6::smallint AS state, 0 AS failures, 0 AS losses, 1::smallint AS outcome,
        NULL::integer AS exit_code, NULL::integer AS signal, ''::text AS message, ''::bytea AS output_tail,
        0::bigint AS output_bytes, 1::bigint AS started_at_us, 1::bigint AS ended_at_us
    FROM unnest(:ids::uuid[]) AS id
), clock AS MATERIALIZED (
    SELECT now_us, ((now_us / slice_us) % 8)::smallint AS slot
    FROM cluster, (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us) AS now
), ended AS (
    DELETE FROM tasks t USING item
    WHERE t.id = item.id AND t.attempt = item.attempt AND t.token = item.token AND t.state IN (3, 4, 5)
    RETURNING t.id, t.tenant, t.queue, CASE WHEN t.state = 5 AND item.state <> 6 THEN 8 ELSE item.state END AS state, t.rank,
        t.executor, t.resource_class, t.concurrency_key, t.exclusive, t.timeout_ms, t.attempt, t.token, t.session_id,
        item.failures, item.losses, t.unsupported, t.created_at_us, t.expires_at_us, t.dispatched_at_us,
        coalesce(item.started_at_us, t.started_at_us) AS started_at_us, t.trace_context, t.format, t.min_reader, t.spec,
        item.outcome, item.exit_code, item.signal, item.message, item.output_tail, item.output_bytes, item.ended_at_us
)
INSERT INTO finished_tasks (slot, finished_at_us, id, tenant, queue, state, rank, executor, resource_class, concurrency_key,
    exclusive, timeout_ms, attempt, token, session_id, failures, losses, unsupported, created_at_us, expires_at_us,
    dispatched_at_us, started_at_us, trace_context, format, min_reader, spec, outcome, exit_code, signal, message, output_tail,
    output_bytes, ended_at_us)
SELECT clock.slot, clock.now_us, ended.* FROM clock, ended;
