-- Pools and nodes are forgotten; the nodes themselves go on at their providers.
DROP TABLE node_events;
DROP TABLE nodes;
DROP TABLE pool_statuses;
DROP TABLE pools;
DROP TABLE scaler_leases;
