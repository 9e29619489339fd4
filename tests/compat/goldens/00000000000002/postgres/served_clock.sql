INSERT INTO served_clock (one, served_ms, ticked_at_us, frozen_ms) VALUES ('true', '1911', '1795524762978332', '0');
