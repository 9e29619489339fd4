INSERT INTO scaler_leases (name, owner, endpoint, epoch, expires_at_us) VALUES ('scaler', '01a20d9d-9ed4-76d2-a9b2-40e7ae997083', 'http://127.0.0.1:7603', '1', '4949124763366648');
