//! The same random calls on a database and on the model give the same answers. Times are compared only by whether they are
//! set: the model's clock moves when it is told, a database's all the time. Spans are whole hours or half an hour less, so that
//! a run that takes minutes comes to the same decisions on both.
//!
//! `MILLRACE_TEST_SEED=17 cargo test …` runs one seed, which a failure names.

mod answers;
mod calls;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fmt::{Debug, Write},
    time::Duration,
};

use millrace_core::{
    held::LeaseRef,
    id::{MemberId, SessionId, TaskId},
    lease::Token,
    retry::OutcomeKind,
    route::Route,
    task::State,
};
use millrace_store::{
    CancelResult, Claim, Claimed, Completion, DeleteMode, DeleteResult, Dispatch, Heartbeat, HeldRow, LaneKey,
    ListFilter, NewTask, QueueChange, QueueRow, Requeue, Requeued, Resumed, RetryResult, SessionRow, Submitted,
    TaskRow,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use answers::difference;

use crate::world::{Worker, World, audit, completion, hours, new_session, new_task, outcome, queue_row, requeue};

const SEEDS: u64 = 6;
const STEPS: usize = 400;
const QUEUES: [&str; 4] = ["default", "q-1", "q.2", "nowhere"];
const TENANTS: [&str; 3] = ["a.b", "ab", "a-b"];

#[test]
fn sqlite_answers_as_the_model() {
    run_seeds(World::sqlite);
}

#[test]
fn postgres_answers_as_the_model() {
    run_seeds(World::postgres);
}

fn run_seeds(make: fn() -> World) {
    let seeds = match std::env::var("MILLRACE_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("MILLRACE_TEST_SEED is a number")],
        Err(_) => (0..SEEDS).collect(),
    };
    for seed in seeds {
        let run = Run::new(seed, World::memory(), make());
        for step in 0..STEPS {
            run.step();
            if step % 25 == 24 {
                run.compare_everything();
            }
        }
        run.compare_everything();
    }
}

/// A submission whose moments are given as spans, because the clocks differ.
#[derive(Clone, Debug)]
struct Draft {
    task: NewTask,
    not_before: Option<Duration>,
    old_routes: bool,
}

impl Draft {
    fn for_world(&self, world: &World) -> NewTask {
        NewTask {
            not_before: self.not_before.map(|span| world.now().after(span)),
            route_version: world.route_version() - i64::from(self.old_routes),
            ..self.task.clone()
        }
    }
}

/// A claim without what the worlds number by themselves.
#[derive(Clone, Debug)]
struct Match {
    task: TaskId,
    session: SessionId,
    token: Token,
    queue: Option<&'static str>,
    old_epoch: bool,
    old_generation: bool,
}

struct Run {
    seed: u64,
    model: World,
    other: World,
    rng: RefCell<StdRng>,
    drafts: RefCell<Vec<Draft>>,
    sessions: RefCell<Vec<Worker>>,
    matches: RefCell<Vec<Match>>,
    members: Vec<MemberId>,
    keys: Vec<Uuid>,
    history: RefCell<Vec<String>>,
}

impl Run {
    fn new(seed: u64, model: World, other: World) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let run = Self {
            seed,
            model,
            other,
            members: (0..3).map(|_| MemberId(Uuid::from_u128(rng.random()))).collect(),
            keys: (0..12).map(|_| Uuid::from_u128(rng.random())).collect(),
            rng: RefCell::new(rng),
            drafts: RefCell::default(),
            sessions: RefCell::default(),
            matches: RefCell::default(),
            history: RefCell::default(),
        };
        for queue in ["q-1", "q.2"] {
            run.both(format!("create {queue}"), |world| {
                world.create_queue(&queue_row(queue), None).map(|row| row.is_some())
            });
        }
        for _ in 0..3 {
            run.open_session();
        }
        run
    }

    /// Makes a call on both and compares the answers.
    fn both<T: Debug + PartialEq>(&self, what: String, call: impl Fn(&World) -> millrace_store::Result<T>) -> T {
        self.history.borrow_mut().push(what);
        // Two calls are never made at the same moment of a database's clock; nor shall they be of the model's.
        self.model.advance(Duration::from_millis(1));
        let expected = call(&self.model).unwrap_or_else(|error| panic!("the model failed: {error}{}", self.tale()));
        let answer = call(&self.other).unwrap_or_else(|error| panic!("the database failed: {error}{}", self.tale()));
        assert!(answer == expected, "{}{}", difference(&answer, &expected), self.tale());
        expected
    }

    /// How it came to this.
    fn tale(&self) -> String {
        let mut tale = format!("\nseed {}, the calls until then, the last one last:\n", self.seed);
        let history = self.history.borrow();
        for call in &history[history.len().saturating_sub(25)..] {
            let _ = writeln!(tale, "    {call}");
        }
        tale
    }

    fn draw(&self, bound: usize) -> usize {
        self.rng.borrow_mut().random_range(0..bound)
    }

    /// True once in `n` times.
    fn once_in(&self, n: usize) -> bool {
        self.draw(n) == 0
    }

    fn pick<T: Clone>(&self, from: &[T]) -> T {
        from[self.draw(from.len())].clone()
    }

    fn token(&self) -> Token {
        Token::new(1, self.rng.borrow_mut().random())
    }

    /// Half an hour less than one to four hours.
    fn span(&self) -> Duration {
        hours(1 + self.draw(4) as u64) - Duration::from_secs(1800)
    }

    fn key(&self) -> Option<Uuid> {
        self.once_in(3).then(|| self.pick(&self.keys))
    }

    /// A key that no call has had.
    fn fresh_key(&self) -> Option<Uuid> {
        self.once_in(2).then(|| Uuid::from_u128(self.rng.borrow_mut().random()))
    }

    /// Some different tasks, in no order.
    fn some_tasks(&self, most: usize) -> Vec<TaskId> {
        let drafts = self.drafts.borrow();
        let mut tasks = Vec::new();
        for _ in 0..1 + self.draw(most) {
            // Rather young ones, where there is something going on.
            let recent = drafts.len().min(12);
            if recent > 0 {
                let task = drafts[drafts.len() - 1 - self.draw(recent)].task.envelope.id;
                if !tasks.contains(&task) {
                    tasks.push(task);
                }
            }
        }
        tasks
    }

    fn some_queue(&self) -> &'static str {
        match self.once_in(15) {
            true => "nowhere",
            false => QUEUES[self.draw(3)],
        }
    }

    /// The lease of a task as its row has it, or a stale one.
    fn lease(&self, task: TaskId) -> LeaseRef {
        let row = self.model.task(task).expect("the model");
        let (attempt, token) = row.map_or((1, None), |row| (row.attempt, row.token));
        match self.once_in(8) {
            true => LeaseRef { task, attempt: attempt.max(1) - 1, token: token.unwrap_or(Token(5)) },
            false => LeaseRef { task, attempt, token: token.unwrap_or(Token(7)) },
        }
    }
}
