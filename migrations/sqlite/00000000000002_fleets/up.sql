-- Fleets: what the scaler keeps. Tables and columns have the names of migrations/postgres.

-- Who leads, by name.
CREATE TABLE scaler_leases (
    name TEXT NOT NULL PRIMARY KEY,
    -- Null once it was given up.
    owner BLOB,
    endpoint TEXT NOT NULL,
    -- Raised whenever the lease is taken.
    epoch INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL
);

CREATE TABLE pools (
    name TEXT NOT NULL PRIMARY KEY,
    -- The contract's Pool, encoded.
    spec BLOB NOT NULL,
    -- The contract's PoolOverride, encoded.
    override BLOB,
    -- Goes once its nodes have.
    deleting INTEGER NOT NULL,
    -- Raised by every change.
    version INTEGER NOT NULL,
    created_at_us INTEGER NOT NULL,
    updated_at_us INTEGER NOT NULL
);

-- What the leader last thought of each pool.
CREATE TABLE pool_statuses (
    pool TEXT NOT NULL PRIMARY KEY,
    -- The contract's ExplainPoolResponse, encoded.
    status BLOB NOT NULL,
    as_of_us INTEGER NOT NULL
);

-- Nodes, from the intent to launch one to some time after its end. The id is the idempotency token of the launch.
CREATE TABLE nodes (
    id BLOB NOT NULL PRIMARY KEY,
    pool TEXT NOT NULL,
    provider TEXT NOT NULL,
    -- Empty when the provider chose.
    zone TEXT NOT NULL,
    -- The provider's name of it; empty until it is known.
    instance TEXT NOT NULL,
    -- A number of the contract; 8 is GONE.
    state INTEGER NOT NULL,
    reason TEXT NOT NULL,
    requested_at_us INTEGER NOT NULL,
    started_at_us INTEGER,
    attached_at_us INTEGER,
    ready_at_us INTEGER,
    -- When it entered its state.
    since_us INTEGER NOT NULL,
    gone_at_us INTEGER,
    boot_stage TEXT NOT NULL,
    boot_percent INTEGER,
    boot_at_us INTEGER,
    slots INTEGER NOT NULL,
    -- Set by people alone; the leader's writes leave it as it is.
    drain_asked INTEGER NOT NULL,
    drain_reason TEXT NOT NULL,
    adopted INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    -- How the last call ended is not known.
    unknown INTEGER NOT NULL,
    -- A call to end it was made.
    ending INTEGER NOT NULL,
    updated_at_us INTEGER NOT NULL
);

-- Most rows are of nodes that have gone, and most reads are not about them.
CREATE INDEX nodes_live ON nodes (id) WHERE state <> 8;
CREATE INDEX nodes_live_pool ON nodes (pool, id) WHERE state <> 8;
CREATE INDEX nodes_drain_asked ON nodes (id) WHERE drain_asked = 1 AND state <> 8;
CREATE INDEX nodes_gone ON nodes (gone_at_us) WHERE gone_at_us IS NOT NULL;

-- What happened to a node, in its own order. They go with it.
CREATE TABLE node_events (
    node_id BLOB NOT NULL,
    seq INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    -- The state from then on.
    state INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (node_id, seq)
);
