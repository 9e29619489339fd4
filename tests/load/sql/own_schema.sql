-- What a life in our own schema needs beside the migrations: a live session, and 100,000 other tasks that wait.
INSERT INTO sessions (id, generation, state, name, queues, labels, slots, ttl_ms, expires_served_ms, replica, build,
    created_at_us, seen_at_us)
VALUES ('00000000-0000-7000-8000-000000000001', 1, 1, 'ceiling', '["default"]', '{}', 1, 600000, 600000, '', '', 0, 0);
INSERT INTO tasks (id, tenant, queue, state, rank, executor, resource_class, concurrency_key, exclusive, attempt, failures,
    losses, unsupported, created_at_us, ready_at_us, trace_context, format, min_reader, spec)
SELECT gen_random_uuid(), 'bench', 'parked', 2, 0, 'process', '', '', FALSE, 0, 0, 0, 0, i, i, '', 1, 1,
    convert_to(repeat('x', 500), 'UTF8')
FROM generate_series(1, 100000) AS i;
VACUUM ANALYZE tasks;
VACUUM ANALYZE sessions;
CHECKPOINT;
