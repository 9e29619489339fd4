INSERT INTO served_clock ("one", "served_ms", "ticked_at_us", "frozen_ms") VALUES (1, 580, 1795516658580000, 0);
