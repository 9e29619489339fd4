-- The bare shape of the ceiling: a row with a UUID key and 500 bytes, one partial index for its queue, and 100,000 other
-- rows that wait.
CREATE TABLE bare (
    id UUID PRIMARY KEY,
    queue TEXT COLLATE "C" NOT NULL,
    priority INTEGER NOT NULL,
    -- 1 waiting, 2 claimed, 3 done.
    state SMALLINT NOT NULL,
    token BIGINT,
    payload BYTEA NOT NULL
);
CREATE INDEX bare_waiting ON bare (queue, priority, id) WHERE state = 1;
INSERT INTO bare (id, queue, priority, state, payload)
SELECT gen_random_uuid(), 'parked', 0, 1, convert_to(repeat('x', 500), 'UTF8') FROM generate_series(1, 100000);
VACUUM ANALYZE bare;
CHECKPOINT;
