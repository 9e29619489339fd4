//! A database in memory whose time is the tests' own.

use std::{sync::Arc, time::Duration};

use millrace_core::{
    id::{MemberId, SessionId, TaskId},
    lease::Token,
    time::{Timestamp, micros},
};
use millrace_store::{
    Audit, Claim, Claimed, Envelope, MemberKind, MemberRow, MemoryStore, NewSession, NewTask, QueueChange, QueueRow,
    Store, Submitted,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::Way;

/// When the tests begin.
const START_US: i64 = 1_700_000_000_000_000;

/// A database in memory.
#[derive(Clone)]
pub struct Database {
    pub store: MemoryStore,
    origin: Instant,
}

impl Database {
    pub fn new() -> Self {
        let origin = Instant::now();
        let store = MemoryStore::new(Arc::new(move || Timestamp(START_US + micros(origin.elapsed()))));
        Self { store, origin }
    }

    /// A process's own way to it.
    pub fn way(&self) -> Arc<Way> {
        Way::new(Arc::new(self.store.clone()))
    }

    pub fn now_us(&self) -> i64 {
        START_US + micros(self.origin.elapsed())
    }

    pub fn incarnation(&self) -> i32 {
        self.store.cluster().unwrap().incarnation.into()
    }

    /// Enters a distributor that stays a live member for this long, in served time.
    pub fn distributor(&self, span: Duration) {
        let member = MemberRow {
            id: MemberId(Uuid::from_u128(0xD)),
            kind: MemberKind::Distributor,
            endpoint: "http://distributor".into(),
            build: "test".into(),
            readers: (1, 1),
            seen_at_us: 0,
        };
        self.store.renew_member(&member, span.as_millis() as i64).unwrap();
    }

    /// Stores waiting tasks of the tenant `acme` in the queue `default`; their offers are lost.
    pub fn submit(&self, count: u128) -> Vec<(TaskId, i64)> {
        let ids: Vec<TaskId> = (0..count).map(|_| TaskId(Uuid::now_v7())).collect();
        let batch: Vec<NewTask> = ids.iter().map(|id| self.new_task(*id)).collect();
        let submitted = self.store.submit(&batch, false).unwrap();
        let ready = submitted.into_iter().map(|submitted| match submitted {
            Submitted::Stored { ready_at_us: Some(ready_at_us), .. } => ready_at_us,
            other => panic!("{other:?}"),
        });
        ids.into_iter().zip(ready).collect()
    }

    fn new_task(&self, id: TaskId) -> NewTask {
        NewTask {
            envelope: Envelope {
                id,
                tenant: "acme".into(),
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
            spec: Vec::new(),
            request: None,
            not_before: None,
            expire_after: None,
            route_version: self.store.routing().unwrap().version,
        }
    }

    /// Opens a session; its generation is 1.
    pub fn session(&self) -> SessionId {
        let session = NewSession {
            id: SessionId(Uuid::now_v7()),
            name: "orchestrator".into(),
            queues: vec!["default".into()],
            slots: 10,
            labels: Default::default(),
            ttl_ms: 600_000,
            replica: "http://distributor".into(),
            build: "test".into(),
        };
        self.store.open_session(&session).unwrap().session.id
    }

    /// Claims a task for a session under an epoch.
    pub fn claim(&self, task: TaskId, session: SessionId, epoch: i64) -> Claimed {
        let claim = Claim {
            task,
            queue: "default".into(),
            epoch,
            session,
            generation: 1,
            token: Token::new(1, task.0.as_u64_pair().1),
        };
        self.store.claim(&[claim]).unwrap().remove(0)
    }

    pub fn create(&self, name: &str) {
        let row = QueueRow {
            name: name.into(),
            description: String::new(),
            default_timeout_ms: None,
            default_expire_after_ms: None,
            pause: None,
            draining: false,
            epoch: 0,
            created_at_us: 0,
            updated_at_us: 0,
        };
        self.store.create_queue(&row, None).unwrap().unwrap();
    }

    /// Pauses or resumes the queue `default` behind the hosts' backs.
    pub fn pause(&self, paused: bool) {
        self.set_pause(paused.then(|| ("test".into(), None)));
    }

    /// Pauses the queue `default` for a while, behind the hosts' backs.
    pub fn pause_for(&self, span: Duration) {
        self.set_pause(Some(("test".into(), Some(self.now_us() + span.as_micros() as i64))));
    }

    fn set_pause(&self, pause: Option<(String, Option<i64>)>) {
        let change = QueueChange { pause: Some(pause), ..QueueChange::default() };
        let audit = Audit { action: "test".into(), subject: "default".into(), detail: String::new() };
        self.store.update_queue("default", &change, &audit, None).unwrap().unwrap();
    }
}
