INSERT INTO scaler_leases ("name", "owner", "endpoint", "epoch", "expires_at_us") VALUES ('scaler', X'01A20D9DB96171FFBB7F3153CBB1E55E', 'http://127.0.0.1:7603', 1, 4949124770145679);
