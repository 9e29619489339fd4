-- One life of 500 tasks in our own schema: the statements of services/store/src/postgres/{submit,claim,complete}.rs with their
-- arrays made in the server, so that only PostgreSQL is measured. Each statement is a transaction. The
-- harness puts in the place of REQUEST an expression for the idempotency key and in that of KEYLESS whether it is null. When
-- the store's statements change these follow; "store crate alone" shows when they have not.
\set batch random(1, 9000000000000000000)
\set token random(1, 9000000000000000000)
WITH ids AS MATERIALIZED (
    SELECT (lpad(to_hex(:batch::bigint), 16, '0') || lpad(to_hex(i), 16, '0'))::uuid AS id FROM generate_series(1, 500) AS i
), open_queue AS MATERIALIZED (
    SELECT name FROM queues WHERE name = ANY (ARRAY['default']) AND NOT draining ORDER BY name FOR KEY SHARE
), clock AS MATERIALIZED (
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us, (SELECT route_version FROM cluster) AS route_version
), keyed AS (
    INSERT INTO requests (key, task_id, created_at_us)
    SELECT item.request, item.id, (SELECT now_us FROM clock)
    FROM (SELECT REQUEST AS request, id, 'default'::text AS queue, 1::bigint AS route_version FROM ids) AS item
    WHERE item.request IS NOT NULL AND (item.queue IN (SELECT name FROM open_queue)) IS TRUE
        AND item.route_version = (SELECT route_version FROM clock)
    ORDER BY item.request
    ON CONFLICT (key) DO NOTHING
    RETURNING task_id
), stored AS (
    INSERT INTO tasks (id, tenant, queue, state, rank, executor, resource_class, concurrency_key, exclusive, timeout_ms,
        attempt, failures, losses, unsupported, created_at_us, ready_at_us, wake_at_us, expires_at_us, trace_context, format,
        min_reader, spec)
    SELECT item.id, item.tenant, item.queue, CASE WHEN not_before_us > now_us THEN 1 ELSE 2 END,
        coalesce(item.rank, 0), item.executor, coalesce(item.resource_class, ''), coalesce(item.concurrency_key, ''),
        coalesce(item.exclusive, FALSE), item.timeout_ms, 0, 0, 0, 0, now_us,
        CASE WHEN not_before_us > now_us THEN NULL ELSE now_us END,
        CASE WHEN not_before_us > now_us THEN not_before_us END, now_us + item.expire_after_us,
        coalesce(item.trace_context, ''), coalesce(item.format, 1), coalesce(item.min_reader, 1), item.spec
    FROM (SELECT now_us FROM clock) AS clock, (
        SELECT id, 'bench'::text AS tenant, 'default'::text AS queue, NULL::integer AS rank, 'process'::text AS executor,
            NULL::text AS resource_class, NULL::text AS concurrency_key, NULL::boolean AS exclusive, NULL::bigint AS timeout_ms,
            NULL::text AS trace_context, NULL::smallint AS format, NULL::smallint AS min_reader, NULL::bigint AS not_before_us,
            NULL::bigint AS expire_after_us, 1::bigint AS route_version, convert_to(repeat('x', 500), 'UTF8') AS spec
        FROM ids
    ) AS item
    WHERE (item.queue IN (SELECT name FROM open_queue)) IS TRUE AND item.route_version = (SELECT route_version FROM clock)
        AND (KEYLESS OR item.id IN (SELECT task_id FROM keyed))
    RETURNING id, state, created_at_us, ready_at_us, expires_at_us
) SELECT array_agg(id) AS ids FROM stored \gset
WITH gate AS MATERIALIZED (
    SELECT queue, epoch FROM queue_gates WHERE queue = ANY (ARRAY['default']) AND NOT paused ORDER BY queue FOR SHARE
), holder AS MATERIALIZED (
    SELECT id, generation FROM sessions WHERE id = ANY (ARRAY['00000000-0000-7000-8000-000000000001'::uuid]) AND state = 1
    ORDER BY id FOR SHARE
), clock AS MATERIALIZED (
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us
), won AS (
    UPDATE tasks t SET state = 3, attempt = t.attempt + 1, token = item.token, session_id = item.session, ready_at_us = NULL,
        dispatched_at_us = (SELECT now_us FROM clock), started_at_us = NULL
    FROM (
        SELECT task, 'default'::text AS queue, 0::bigint AS epoch, '00000000-0000-7000-8000-000000000001'::uuid AS session,
            1::bigint AS generation, :token::bigint AS token
        FROM unnest(:ids::uuid[]) AS task
    ) AS item
    WHERE ((item.queue, item.epoch) IN (SELECT queue, epoch FROM gate)) IS TRUE
        AND ((item.session, item.generation) IN (SELECT id, generation FROM holder)) IS TRUE
        AND t.id = item.task AND t.queue = item.queue AND t.state = 2 AND t.min_reader <= 1
        AND (t.expires_at_us IS NULL OR t.expires_at_us > (SELECT now_us FROM clock))
    RETURNING t.id, t.attempt, t.token, t.queue, t.spec, t.timeout_ms, t.trace_context, t.dispatched_at_us, t.state
) SELECT count(spec) AS claimed FROM won;
WITH clock AS MATERIALIZED (
    SELECT now_us, ((now_us / slice_us) % 8)::smallint AS slot
    FROM cluster, (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us) AS now
), ended AS (
    DELETE FROM tasks t USING (
        SELECT id, 1 AS attempt, :token::bigint AS token, n FROM unnest(:ids::uuid[]) WITH ORDINALITY AS item(id, n)
    ) AS item
    WHERE t.id = item.id AND t.attempt = item.attempt AND t.token = item.token AND t.state IN (3, 4, 5)
    RETURNING t.id, t.tenant, t.queue, t.state, t.rank, t.executor, t.resource_class, t.concurrency_key, t.exclusive,
        t.timeout_ms, t.attempt, t.token, t.session_id, t.failures, t.losses, t.unsupported, t.created_at_us, t.expires_at_us,
        t.dispatched_at_us, t.started_at_us, t.trace_context, t.format, t.min_reader, t.spec, item.n::integer AS n
)
INSERT INTO finished_tasks (slot, finished_at_us, id, tenant, queue, state, rank, executor, resource_class, concurrency_key,
    exclusive, timeout_ms, attempt, token, session_id, unsupported, created_at_us, expires_at_us, dispatched_at_us,
    trace_context, format, min_reader, spec, failures, losses, outcome, exit_code, signal, message, output_tail, output_bytes,
    started_at_us, ended_at_us)
SELECT (SELECT slot FROM clock), (SELECT now_us FROM clock), id, tenant, queue, CASE WHEN state = 5 THEN 8 ELSE 6 END, rank,
    executor, resource_class, concurrency_key, exclusive, timeout_ms, attempt, token, session_id, unsupported, created_at_us,
    expires_at_us, dispatched_at_us, trace_context, format, min_reader, spec, greatest(failures, 0), greatest(losses, 0), 1,
    NULL, NULL, '', '', 0, coalesce(1, started_at_us), 1
FROM ended;
