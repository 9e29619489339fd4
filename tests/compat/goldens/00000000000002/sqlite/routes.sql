INSERT INTO routes ("name", "ord", "executor", "resource_class", "tenant", "labels", "queue") VALUES ('attempts', 1000, 'attempts', '', '', '{}', 'attempts');
INSERT INTO routes ("name", "ord", "executor", "resource_class", "tenant", "labels", "queue") VALUES ('batch', 10, 'docker', 'gpu.large', 'acme', '{"zone":"a","ü":""}', 'batch');
INSERT INTO routes ("name", "ord", "executor", "resource_class", "tenant", "labels", "queue") VALUES ('changed', 1000, 'changed', '', '', '{}', 'changed');
INSERT INTO routes ("name", "ord", "executor", "resource_class", "tenant", "labels", "queue") VALUES ('default', 1000, 'process', '', '', '{}', 'default');
INSERT INTO routes ("name", "ord", "executor", "resource_class", "tenant", "labels", "queue") VALUES ('ended', 1000, 'ended', '', '', '{}', 'ended');
INSERT INTO routes ("name", "ord", "executor", "resource_class", "tenant", "labels", "queue") VALUES ('held', 1000, 'held', '', '', '{}', 'held');
INSERT INTO routes ("name", "ord", "executor", "resource_class", "tenant", "labels", "queue") VALUES ('paused', 1000, 'paused', '', '', '{}', 'paused');
INSERT INTO routes ("name", "ord", "executor", "resource_class", "tenant", "labels", "queue") VALUES ('paused-until', 1000, 'paused-until', '', '', '{}', 'paused-until');
