INSERT INTO cluster ("one", "incarnation", "write_format", "route_version", "slice_us") VALUES (1, 6653, 1, 23, 100800000000);
