INSERT INTO served_clock (one, served_ms, ticked_at_us, frozen_ms) VALUES ('true', '1128', '1795516660156504', '0');
