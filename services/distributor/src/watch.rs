//! Who watches which task, and the one query that looks for changes on behalf of all of them (R13).

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use millrace_core::{foreign::Defect, id::TaskId, task::State};
use millrace_runtime::status::Fault;
use tokio::sync::{Notify, watch};

use crate::{
    quarantine::Seen,
    shared::{Shared, lock},
};

/// How often tasks are looked at that another replica may have changed.
const PERIOD: Duration = Duration::from_millis(300);

/// Tasks in one query.
const PAGE: usize = 500;

/// The newest row of a watched task; none before the first look.
pub(crate) type Latest = watch::Receiver<Option<Arc<Seen>>>;

/// Every watched task.
pub(crate) struct Watches {
    most: usize,
    tasks: Mutex<HashMap<TaskId, watch::Sender<Option<Arc<Seen>>>>>,
    changed: Mutex<BTreeSet<TaskId>>,
    wake: Notify,
}

impl Watches {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, tasks: Mutex::default(), changed: Mutex::default(), wake: Notify::new() }
    }

    /// Subscribes to a task. The caller reads the row itself afterwards, so that no change is lost in between.
    pub(crate) fn subscribe(&self, task: TaskId) -> Result<Latest, Fault> {
        let mut tasks = lock(&self.tasks);
        tasks.retain(|_, sender| !sender.is_closed());
        let watchers: usize = tasks.values().map(watch::Sender::receiver_count).sum();
        if watchers >= self.most {
            let message = format!("{} watches are open on this replica, which is its bound", self.most);
            return Err(Fault::exhausted("TOO_MANY_WATCHES", message, Duration::from_secs(1)));
        }
        Ok(tasks.entry(task).or_insert_with(|| watch::channel(None).0).subscribe())
    }

    /// This replica has changed the task: look at it now.
    pub(crate) fn nudge(&self, task: TaskId) {
        if lock(&self.tasks).contains_key(&task) {
            lock(&self.changed).insert(task);
            self.wake.notify_one();
        }
    }

    fn all(&self) -> Vec<TaskId> {
        let mut tasks = lock(&self.tasks);
        tasks.retain(|_, sender| !sender.is_closed());
        tasks.keys().copied().collect()
    }

    fn publish(&self, rows: Vec<Seen>) {
        let tasks = lock(&self.tasks);
        for row in rows {
            if let Some(sender) = tasks.get(&row.id()) {
                sender.send_if_modified(|latest| {
                    let news = latest.as_ref().is_none_or(|known| signs(known) != signs(&row));
                    if news {
                        *latest = Some(Arc::new(row));
                    }
                    news
                });
            }
        }
    }
}

/// What makes a task worth telling about.
#[derive(PartialEq)]
enum Signs {
    Task(State, i32, Option<i64>, Option<i64>),
    SetAside(Defect, i64),
}

fn signs(seen: &Seen) -> Signs {
    match seen {
        Seen::Task(row) => Signs::Task(row.state, row.attempt, row.started_at_us, row.ready_at_us),
        Seen::SetAside(row) => Signs::SetAside(row.defect.clone(), row.first_seen_us),
    }
}

/// Looks for changes until the replica stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut timer = tokio::time::interval(PERIOD);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let tasks: Vec<TaskId> = tokio::select! {
            () = shared.context.shutdown.draining() => return,
            () = shared.watches.wake.notified() => {
                std::mem::take(&mut *lock(&shared.watches.changed)).into_iter().collect()
            }
            _ = timer.tick() => shared.watches.all(),
        };
        for page in tasks.chunks(PAGE) {
            let page = page.to_vec();
            match shared.read(move |store| Seen::look_at_all(store, &page)).await {
                Ok(rows) => shared.watches.publish(rows),
                Err(fault) => tracing::debug!(%fault, "watched tasks cannot be read now"),
            }
        }
    }
}
