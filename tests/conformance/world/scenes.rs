//! Short ways to set a scene.

use super::*;

/// A session as the replica that holds its stream knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Worker {
    pub(crate) id: SessionId,
    pub(crate) generation: i64,
}

/// A task for the default queue and tenant, with nothing special.
pub(crate) fn new_task(route_version: i64) -> NewTask {
    NewTask {
        envelope: Envelope {
            id: TaskId(Uuid::now_v7()),
            tenant: DEFAULT.into(),
            queue: DEFAULT.into(),
            rank: 0,
            executor: "process".into(),
            resource_class: String::new(),
            concurrency_key: String::new(),
            exclusive: false,
            timeout_ms: None,
            trace_context: String::new(),
            format: ROW_FORMAT,
            min_reader: ROW_FORMAT,
        },
        spec: b"spec".to_vec(),
        request: None,
        not_before: None,
        expire_after: None,
        route_version,
    }
}

pub(crate) fn outcome(kind: OutcomeKind) -> Outcome {
    Outcome {
        kind,
        exit_code: None,
        signal: None,
        message: String::new(),
        output_tail: Vec::new(),
        output_bytes: 0,
        started_at_us: None,
        ended_at_us: None,
    }
}

pub(crate) fn completion(lease: LeaseRef, state: State) -> Completion {
    let kind = match state {
        State::Succeeded => OutcomeKind::Succeeded,
        State::Cancelled => OutcomeKind::Cancelled,
        _ => OutcomeKind::Failed,
    };
    Completion { lease, state, outcome: outcome(kind), failures: i32::from(state == State::Failed), losses: 0 }
}

pub(crate) fn requeue(lease: LeaseRef, wait: Duration) -> Requeue {
    Requeue { lease, outcome: outcome(OutcomeKind::Failed), wait, failures: 1, losses: 0, unsupported: 0 }
}

pub(crate) fn token() -> Token {
    Token::new(1, Uuid::new_v4().as_u64_pair().1)
}

pub(crate) fn request() -> Option<Uuid> {
    Some(Uuid::new_v4())
}

pub(crate) fn member() -> MemberId {
    MemberId(Uuid::new_v4())
}

pub(crate) fn new_session(ttl: Duration) -> NewSession {
    NewSession {
        id: SessionId(Uuid::now_v7()),
        name: "worker".into(),
        queues: vec![DEFAULT.into()],
        slots: 4,
        labels: Default::default(),
        ttl_ms: ttl.as_millis() as i64,
        replica: "http://127.0.0.1:7601".into(),
        build: "test".into(),
    }
}

pub(crate) fn queue_row(name: &str) -> QueueRow {
    QueueRow {
        name: name.into(),
        description: String::new(),
        default_timeout_ms: None,
        default_expire_after_ms: None,
        pause: None,
        draining: false,
        epoch: 0,
        created_at_us: 0,
        updated_at_us: 0,
    }
}

pub(crate) fn audit() -> Audit {
    Audit { action: "Test".into(), subject: DEFAULT.into(), detail: "a test".into() }
}

impl World {
    pub(crate) fn route_version(&self) -> i64 {
        self.cluster().expect("reading the cluster's row").route_version
    }

    pub(crate) fn new_task(&self) -> NewTask {
        new_task(self.route_version())
    }

    /// A task for another queue.
    pub(crate) fn new_task_in(&self, queue: &str) -> NewTask {
        let mut task = self.new_task();
        task.envelope.queue = queue.into();
        task
    }

    /// Stores one task and returns its id.
    pub(crate) fn put(&self, task: NewTask) -> TaskId {
        let id = task.envelope.id;
        let answers = self.submit(&[task], false).expect("submitting");
        assert!(matches!(answers[..], [Submitted::Stored { .. }]), "{answers:?}");
        id
    }

    /// Stores a task with nothing special.
    pub(crate) fn queued(&self) -> TaskId {
        self.put(self.new_task())
    }

    /// Stores tasks with nothing special, in the order of their ids.
    pub(crate) fn queued_many(&self, count: usize) -> Vec<TaskId> {
        let version = self.route_version();
        let batch: Vec<NewTask> = (0..count).map(|_| new_task(version)).collect();
        let answers = self.submit(&batch, false).expect("submitting");
        assert!(answers.iter().all(|answer| matches!(answer, Submitted::Stored { .. })), "{answers:?}");
        batch.iter().map(|task| task.envelope.id).collect()
    }

    /// A queue made for the test.
    pub(crate) fn queue_named(&self, name: &str) -> String {
        self.create_queue(&queue_row(name), None).expect("creating a queue").expect("a new queue");
        name.to_owned()
    }

    /// A session whose lease lasts longer than any test that does not care.
    pub(crate) fn worker(&self) -> Worker {
        self.worker_for(hours(10_000))
    }

    pub(crate) fn worker_for(&self, ttl: Duration) -> Worker {
        let session = self.open_session(&new_session(ttl)).expect("opening a session");
        Worker { id: session.session.id, generation: session.generation }
    }

    /// Makes a new member the owner of a queue.
    pub(crate) fn epoch_of(&self, queue: &str) -> i64 {
        let owner = member();
        self.own_queue(queue, owner, "http://127.0.0.1:7602", 36_000_000_000)
            .expect("owning")
            .expect("nobody else owns it")
    }

    /// The epoch in the default queue's gate now, whoever owns it.
    pub(crate) fn gate(&self, queue: &str) -> i64 {
        self.queue(queue).expect("reading a queue").expect("the queue").epoch
    }

    pub(crate) fn claim_of(&self, worker: Worker, queue: &str, task: TaskId) -> Claim {
        Claim {
            task,
            queue: queue.into(),
            epoch: self.gate(queue),
            session: worker.id,
            generation: worker.generation,
            token: token(),
        }
    }

    /// Makes one claim and returns what became of it.
    pub(crate) fn try_claim(&self, claim: &Claim) -> Claimed {
        let mut answers = self.claim(std::slice::from_ref(claim)).expect("claiming");
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    /// Claims a task of the default queue.
    pub(crate) fn dispatched(&self, worker: Worker, task: TaskId) -> Dispatch {
        self.dispatched_from(worker, DEFAULT, task)
    }

    pub(crate) fn dispatched_from(&self, worker: Worker, queue: &str, task: TaskId) -> Dispatch {
        match self.try_claim(&self.claim_of(worker, queue, task)) {
            Claimed::Won(dispatch) => *dispatch,
            lost => panic!("the claim of {task} was not won: {lost:?}"),
        }
    }

    /// Stores a task and claims it.
    pub(crate) fn held(&self, worker: Worker) -> LeaseRef {
        self.dispatched(worker, self.queued()).lease
    }

    pub(crate) fn try_complete(&self, completion: Completion) -> Completed {
        let answers = self.complete(&[completion]).expect("completing");
        assert_eq!(answers.len(), 1);
        answers[0]
    }

    pub(crate) fn completed(&self, lease: LeaseRef, state: State) {
        assert_eq!(self.try_complete(completion(lease, state)), Completed::Recorded);
    }

    /// A task that has ended in this state by itself.
    pub(crate) fn finished(&self, state: State) -> TaskId {
        let worker = self.worker();
        let lease = self.held(worker);
        self.completed(lease, state);
        self.close_session(worker.id, None).expect("closing a session");
        lease.task
    }

    pub(crate) fn try_requeue(&self, requeue: Requeue) -> Requeued {
        let mut answers = self.requeue(&[requeue]).expect("requeueing");
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    pub(crate) fn requeued(&self, lease: LeaseRef, wait: Duration) {
        let answer = self.try_requeue(requeue(lease, wait));
        assert!(matches!(answer, Requeued::Waiting { .. }), "{answer:?}");
    }

    /// Cancels a task that can be cancelled.
    pub(crate) fn cancelled(&self, task: TaskId) -> TaskRow {
        match self.cancel(task, "a test", None).expect("cancelling") {
            CancelResult::Done(row) => *row,
            other => panic!("{task} was not cancelled: {other:?}"),
        }
    }

    pub(crate) fn row(&self, task: TaskId) -> TaskRow {
        self.task(task).expect("reading a task").unwrap_or_else(|| panic!("there is no task {task}"))
    }

    pub(crate) fn state(&self, task: TaskId) -> State {
        self.row(task).state
    }

    /// Sends one heartbeat; tells whether it renewed, and what is to be stopped.
    pub(crate) fn beat(&self, worker: Worker, accepted: Vec<(LeaseRef, Option<i64>)>) -> (bool, Vec<LeaseRef>) {
        let heartbeat = Heartbeat { session: worker.id, generation: worker.generation, accepted };
        let mut answers = self.heartbeat(&[heartbeat]).expect("sending a heartbeat");
        assert_eq!(answers.len(), 1);
        let answer = answers.remove(0);
        (answer.renewed, answer.cancelling)
    }

    /// The ids of every task, newest first.
    pub(crate) fn all(&self) -> Vec<TaskId> {
        let mut ids = Vec::new();
        let mut below = None;
        loop {
            let page = self.list(&Default::default(), below, 1000).expect("listing");
            ids.extend(page.rows.iter().map(|row| row.envelope.id));
            below = page.next;
            if below.is_none() {
                return ids;
            }
        }
    }
}
