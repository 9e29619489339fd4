INSERT INTO cluster (one, incarnation, write_format, route_version, slice_us) VALUES ('true', '18054', '1', '23', '100800000000');
