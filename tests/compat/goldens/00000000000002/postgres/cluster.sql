INSERT INTO cluster (one, incarnation, write_format, route_version, slice_us) VALUES ('true', '23860', '1', '23', '100800000000');
