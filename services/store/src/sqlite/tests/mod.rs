//! What is particular to SQLite. What every backend does is in tests/conformance.

mod data;
mod opening;
mod plans;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use diesel::{Connection, RunQueryDsl, SqliteConnection, sql_query};
use millrace_core::{
    held::LeaseRef,
    id::{MemberId, SessionId, TaskId},
    lease::Token,
    retry::OutcomeKind,
    served::TickRule,
    task::State,
    time::Timestamp,
};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

struct Bed {
    folder: TempDir,
    store: SqliteStore,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("millrace.db");
        migrate::up(&format!("sqlite:{}", path.display())).unwrap();
        let store = open(&path);
        Self { folder, store }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("millrace.db")
    }

    /// Closes the store and opens it again.
    fn reopen(self) -> Self {
        drop(self.store);
        let store = open(&self.folder.path().join("millrace.db"));
        Self { folder: self.folder, store }
    }

    /// Changes rows behind the store's back.
    fn vandalize(&self, sql: &str) {
        let mut connection = SqliteConnection::establish(self.path().to_str().unwrap()).unwrap();
        let changed = sql_query(sql).execute(&mut connection).unwrap();
        assert!(changed > 0 || sql.starts_with("ALTER"), "{sql} changed nothing");
    }

    /// What a query gives as `line`, once it is read behind the store's back.
    fn line(&self, sql: &str) -> String {
        #[derive(diesel::QueryableByName)]
        struct Line {
            #[diesel(sql_type = diesel::sql_types::Text)]
            line: String,
        }
        let mut connection = SqliteConnection::establish(self.path().to_str().unwrap()).unwrap();
        sql_query(sql).get_result::<Line>(&mut connection).unwrap().line
    }

    fn submit(&self, count: usize) -> Vec<TaskId> {
        let batch: Vec<NewTask> = (0..count).map(|_| new_task()).collect();
        for submitted in self.store.submit(&batch, false).unwrap() {
            assert!(matches!(submitted, Submitted::Stored { .. }), "{submitted:?}");
        }
        batch.iter().map(|task| task.envelope.id).collect()
    }

    fn session(&self) -> SessionId {
        let id = SessionId(Uuid::now_v7());
        let session = NewSession {
            id,
            name: "fleet".into(),
            queues: vec!["default".into()],
            slots: 10,
            labels: [("os".to_owned(), "linux".to_owned())].into(),
            ttl_ms: 30_000,
            replica: "http://127.0.0.1:7601".into(),
            build: "test".into(),
        };
        assert_eq!(self.store.open_session(&session).unwrap().session, session);
        id
    }

    fn claim(&self, session: SessionId, tasks: &[TaskId]) -> Vec<Claimed> {
        let epoch = self.store.queue("default").unwrap().unwrap().epoch;
        let claims: Vec<Claim> = tasks
            .iter()
            .map(|&task| Claim {
                task,
                queue: "default".into(),
                epoch,
                session,
                generation: 1,
                token: Token::new(1, task.0.as_u128() as u64),
            })
            .collect();
        self.store.claim(&claims).unwrap()
    }

    fn waiting(&self) -> Vec<TaskId> {
        let lane = LaneKey { tenant: "tenant".into(), rank: 0 };
        let start = (Timestamp::MIN, TaskId(Uuid::nil()));
        let page = self.store.lane_page("default", &lane, start, None, 1000).unwrap();
        page.rows.into_iter().map(|row| row.id).collect()
    }
}

fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path.to_str().unwrap(), &OpenOptions::default()).unwrap()
}

fn new_task() -> NewTask {
    NewTask {
        envelope: Envelope {
            id: TaskId(Uuid::now_v7()),
            tenant: "tenant".into(),
            queue: "default".into(),
            rank: 0,
            executor: "process".into(),
            resource_class: String::new(),
            concurrency_key: String::new(),
            exclusive: false,
            timeout_ms: None,
            trace_context: String::new(),
            format: 1,
            min_reader: 1,
        },
        spec: b"spec".to_vec(),
        request: None,
        not_before: None,
        expire_after: None,
        route_version: 1,
    }
}

fn succeeded() -> Outcome {
    Outcome {
        kind: OutcomeKind::Succeeded,
        exit_code: Some(0),
        signal: None,
        message: String::new(),
        output_tail: b"done".to_vec(),
        output_bytes: 4,
        started_at_us: Some(1),
        ended_at_us: Some(2),
    }
}

fn lease_of(claimed: &Claimed) -> LeaseRef {
    match claimed {
        Claimed::Won(dispatch) => dispatch.lease,
        other => panic!("{other:?}"),
    }
}
