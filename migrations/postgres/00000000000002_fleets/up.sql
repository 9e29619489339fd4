-- Fleets: what the scaler keeps. Only additions: builds that know nothing of them go on. Every time is in microseconds since 1970 by
-- the database's clock (`*_us`), that of the scaler's lease too: while the suite is down nobody leads, and a lease that ended meanwhile
-- is anyone's.

-- Who leads, by name. The leader's writes hold the row FOR KEY SHARE and whoever takes the lease locks it FOR UPDATE, so no write of the
-- leader before commits after the next one has begun. Renewing writes no key and waits for neither.
CREATE TABLE scaler_leases (
    name TEXT COLLATE "C" PRIMARY KEY,
    -- Null once it was given up.
    owner UUID,
    endpoint TEXT NOT NULL,
    -- Raised whenever the lease is taken.
    epoch BIGINT NOT NULL,
    expires_at_us BIGINT NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE pools (
    name TEXT COLLATE "C" PRIMARY KEY,
    -- The contract's Pool, encoded.
    spec BYTEA NOT NULL,
    -- The contract's PoolOverride, encoded.
    override BYTEA,
    -- Goes once its nodes have.
    deleting BOOLEAN NOT NULL,
    -- Raised by every change.
    version BIGINT NOT NULL,
    created_at_us BIGINT NOT NULL,
    updated_at_us BIGINT NOT NULL
);

-- What the leader last thought of each pool: beside the pools, which people change, because a round writes all of these.
CREATE TABLE pool_statuses (
    pool TEXT COLLATE "C" PRIMARY KEY,
    -- The contract's ExplainPoolResponse, encoded.
    status BYTEA NOT NULL,
    as_of_us BIGINT NOT NULL
) WITH (fillfactor = 50);

-- Nodes, from the intent to launch one to some time after its end. The id is the idempotency token of the launch.
CREATE TABLE nodes (
    id UUID PRIMARY KEY,
    pool TEXT COLLATE "C" NOT NULL,
    provider TEXT COLLATE "C" NOT NULL,
    -- Empty when the provider chose.
    zone TEXT NOT NULL,
    -- The provider's name of it; empty until it is known.
    instance TEXT NOT NULL,
    -- A number of the contract; 8 is GONE.
    state SMALLINT NOT NULL,
    reason TEXT NOT NULL,
    requested_at_us BIGINT NOT NULL,
    started_at_us BIGINT,
    attached_at_us BIGINT,
    ready_at_us BIGINT,
    -- When it entered its state.
    since_us BIGINT NOT NULL,
    gone_at_us BIGINT,
    boot_stage TEXT NOT NULL,
    boot_percent SMALLINT,
    boot_at_us BIGINT,
    slots INTEGER NOT NULL,
    -- Set by people alone; the leader's writes leave it as it is.
    drain_asked BOOLEAN NOT NULL,
    drain_reason TEXT NOT NULL,
    adopted BOOLEAN NOT NULL,
    calls INTEGER NOT NULL,
    -- How the last call ended is not known.
    unknown BOOLEAN NOT NULL,
    -- A call to end it was made.
    ending BOOLEAN NOT NULL,
    updated_at_us BIGINT NOT NULL
) WITH (fillfactor = 80);
-- Most rows are of nodes that have gone, and most reads are not about them.
CREATE INDEX nodes_live ON nodes (id) WHERE state <> 8;
CREATE INDEX nodes_live_pool ON nodes (pool, id) WHERE state <> 8;
CREATE INDEX nodes_drain_asked ON nodes (id) WHERE drain_asked AND state <> 8;
CREATE INDEX nodes_gone ON nodes (gone_at_us) WHERE gone_at_us IS NOT NULL;

-- What happened to a node, in its own order. They go with it.
CREATE TABLE node_events (
    node_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    -- The state from then on.
    state SMALLINT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (node_id, seq)
);
