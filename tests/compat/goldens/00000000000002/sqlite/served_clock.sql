INSERT INTO served_clock ("one", "served_ms", "ticked_at_us", "frozen_ms") VALUES (1, 5772, 1795524769772000, 0);
