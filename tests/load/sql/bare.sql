-- One life of 500 tasks in the bare shape: insert, claim by key where still waiting, complete where the token matches. Each
-- statement is a transaction. The ids of a batch sort together, as those of UUIDs of version 7 do.
\set batch random(1, 9000000000000000000)
\set token random(1, 9000000000000000000)
WITH new AS (
    INSERT INTO bare (id, queue, priority, state, payload)
    SELECT (lpad(to_hex(:batch::bigint), 16, '0') || lpad(to_hex(i), 16, '0'))::uuid, 'default', 0, 1, convert_to(repeat('x', 500), 'UTF8')
    FROM generate_series(1, 500) AS i
    RETURNING id
) SELECT array_agg(id) AS ids FROM new \gset
UPDATE bare SET state = 2, token = :token WHERE id = ANY (:ids::uuid[]) AND state = 1;
UPDATE bare SET state = 3 WHERE id = ANY (:ids::uuid[]) AND token = :token;
