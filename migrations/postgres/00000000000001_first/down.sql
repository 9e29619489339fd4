-- Everything goes, tasks included: this is for a database that is to be empty again.
DROP TABLE audit;
DROP TABLE quarantine;
DROP TABLE requests;
DROP TABLE attempts;
DROP TABLE finished_tasks;
DROP TABLE tasks;
DROP TABLE sessions;
DROP TABLE routes;
DROP TABLE queue_leases;
DROP TABLE queue_gates;
DROP TABLE queues;
DROP TABLE members;
DROP TABLE served_clock;
DROP TABLE cluster;
