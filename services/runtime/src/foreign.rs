//! Rows that the readers of this process could not read: counted for /metrics, and examined, so that those that this build cannot
//! read are set aside.
//!
//! Every service that reads rows of tasks starts this; services that share a process share it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use millrace_core::{
    foreign::{Reading, Verdict},
    id::TaskId,
};
use millrace_store::{Drift, Examined, StoreError};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{Context, background};

/// How often suspects are looked for; there being none costs a lock.
const PERIOD: Duration = Duration::from_millis(200);

/// Rows of one transaction.
const PAGE: usize = 200;

/// Transactions of one step: past them others have the database first.
const PAGES: usize = 10;

/// Rows of one look ahead, each with its spec, and the most looks of one step.
const AHEAD: (i64, usize) = (500, 10);

/// Where one row in so many cannot be read, the rows after it are looked at as well: whoever writes such rows writes many, and one by one
/// they would hold up what waits behind them.
const CROWDED: usize = 5;

/// How long rows that were looked at are not looked at again on account of a suspect.
const LOOKED: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Column {
    column: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Field {
    field: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Drifted {
    table: String,
    column: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    build: String,
}

/// What a process knows of rows that other releases wrote.
#[derive(Debug)]
pub struct ForeignRows {
    unreadable: Family<Column, Counter>,
    ignored: Family<Field, Counter>,
    too_new: Counter,
    let_go: Counter,
    quarantined: Counter,
    released: Counter,
    set_aside: Gauge,
    drift: Family<Drifted, Gauge>,
    suspects: Family<Build, Gauge>,
    started: AtomicBool,
    /// Suspects that were taken and not examined yet, because the database did not answer.
    pending: Mutex<Vec<TaskId>>,
    /// The rows that were looked at last ahead of a suspect, from the one to the other, and when.
    ahead: Mutex<Option<(TaskId, TaskId, Instant)>>,
}

impl ForeignRows {
    /// The foreign rows of a process.
    pub fn of(context: &Context) -> Arc<Self> {
        context.metrics.group(Self::register)
    }

    /// Starts the loop that examines suspects, unless another service of the process has. It ends with the shutdown.
    pub fn start(context: &Context) -> Arc<Self> {
        let rows = Self::of(context);
        if !rows.started.swap(true, Ordering::Relaxed) {
            let (context, worker) = (context.clone(), rows.clone());
            let stop = context.shutdown.clone();
            background::every("suspects", PERIOD, Arc::default(), &stop, move || {
                let (context, rows) = (context.clone(), worker.clone());
                async move { rows.step(&context).await }
            });
        }
        rows
    }

    fn register(registry: &mut Registry) -> Self {
        let rows = Self {
            unreadable: Family::default(),
            ignored: Family::default(),
            too_new: Counter::default(),
            let_go: Counter::default(),
            quarantined: Counter::default(),
            released: Counter::default(),
            set_aside: Gauge::default(),
            drift: Family::default(),
            suspects: Family::default(),
            started: AtomicBool::new(false),
            pending: Mutex::default(),
            ahead: Mutex::default(),
        };
        registry.register("rows_unreadable", "Reads of a row given up for a column", rows.unreadable.clone());
        registry.register("fields_ignored", "Reads that went on without a column or field", rows.ignored.clone());
        registry.register("rows_too_new", "Reads of a row left to a later release", rows.too_new.clone());
        registry.register("row_suspects_let_go", "Unreadable rows not noted for want of room", rows.let_go.clone());
        registry.register("rows_quarantined", "Rows set aside by this process", rows.quarantined.clone());
        registry.register("rows_released", "Rows released from quarantine by this process", rows.released.clone());
        registry.register("quarantined_rows", "Rows in quarantine, up to 100000", rows.set_aside.clone());
        registry.register("schema_drift", "Columns whose type is not the expected one", rows.drift.clone());
        registry.register(
            "quarantine_suspect_deploy",
            "Builds since whose deploy rows are set aside in numbers",
            rows.suspects.clone(),
        );
        rows
    }

    /// Examines rows, and sets aside those that this build cannot read. A row that makes the database itself fail holds up no other: it
    /// is left out of the answer.
    ///
    /// # Errors
    /// Those that are transient. Repeating is harmless.
    pub async fn examine(&self, context: &Context, tasks: Vec<TaskId>) -> Result<Vec<(TaskId, Examined)>, StoreError> {
        let mut examined = Vec::with_capacity(tasks.len());
        let mut open: Vec<Vec<TaskId>> = tasks.rchunks(PAGE).map(<[TaskId]>::to_vec).collect();
        while let Some(page) = open.pop() {
            let call = page.clone();
            match context.call(move |store| store.examine(&call)).await {
                Ok(verdicts) => examined.extend(page.into_iter().zip(verdicts)),
                Err(error) if error.is_transient() => return Err(error),
                Err(_) if page.len() > 1 => {
                    let (first, second) = page.split_at(page.len() / 2);
                    open.extend([second.to_vec(), first.to_vec()]);
                }
                Err(error) => tracing::error!(task = ?page.first(), %error, "a row cannot even be examined"),
            }
        }
        let aside = examined.iter().filter(|(_, verdict)| matches!(verdict, Examined::Quarantined(_))).count();
        self.quarantined.inc_by(aside as u64);
        Ok(examined)
    }

    /// How many rows this process has set aside since it started, those aside that a claim set aside.
    pub fn quarantined(&self) -> u64 {
        self.quarantined.get()
    }

    /// Counts rows that this process has released.
    pub fn released(&self, rows: usize) {
        self.released.inc_by(rows as u64);
    }

    /// Shows how many rows are set aside now.
    pub fn show_set_aside(&self, rows: i64) {
        self.set_aside.set(rows);
    }

    /// Shows which columns have another type than this build expects.
    pub fn show_drift(&self, drift: &[Drift]) {
        self.drift.clear();
        for Drift { table, column, .. } in drift {
            self.drift.get_or_create(&Drifted { table: table.clone(), column: column.clone() }).set(1);
        }
    }

    /// Shows which builds are under suspicion.
    pub fn show_suspects<'b>(&self, builds: impl IntoIterator<Item = &'b str>) {
        self.suspects.clear();
        for build in builds {
            self.suspects.get_or_create(&Build { build: build.to_owned() }).set(1);
        }
    }

    async fn step(&self, context: &Context) -> Result<(), StoreError> {
        self.count(context);
        for _ in 0..PAGES {
            let mut tasks = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
            tasks.extend(context.store.foreign().take_suspects(PAGE.saturating_sub(tasks.len())));
            if tasks.is_empty() {
                return Ok(());
            }
            match self.examine(context, tasks.clone()).await {
                Ok(examined) => self.look_ahead(context, &examined).await?,
                Err(error) => {
                    *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Sets aside what cannot be read right after rows that could not: in the order of ids, which is that of submission.
    async fn look_ahead(&self, context: &Context, examined: &[(TaskId, Examined)]) -> Result<(), StoreError> {
        // What a claim has set aside is gone when it is examined.
        let bad = examined.iter().filter(|(_, verdict)| matches!(verdict, Examined::Quarantined(_) | Examined::Gone));
        let Some(first) = bad.map(|(task, _)| *task).min() else { return Ok(()) };
        let looked = *self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = looked.filter(|(from, to, when)| (*from..=*to).contains(&first) && when.elapsed() < LOOKED);
        let (from, mut after) = inside.map_or((first, first), |(from, to, _)| (from, to));
        let (limit, looks) = AHEAD;
        for _ in 0..looks {
            let seen = context.call(move |store| store.inspect(Some(after), limit)).await?;
            let unreadable = |(task, reading): &(TaskId, Reading)| {
                matches!(reading.verdict, Verdict::Unreadable(_)).then_some(*task)
            };
            let bad: Vec<TaskId> = seen.rows.iter().filter_map(unreadable).collect();
            let crowded = bad.len() * CROWDED >= seen.rows.len();
            self.examine(context, bad).await?;
            let Some((last, _)) = seen.rows.last() else { break };
            after = *last;
            *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = Some((from, after, Instant::now()));
            if !crowded || seen.next.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Takes over what the readers have counted.
    fn count(&self, context: &Context) {
        let figures = context.store.foreign().figures();
        let all = |counts: BTreeMap<String, u64>, counter: &dyn Fn(String) -> Counter| {
            for (name, count) in counts {
                // The figures only rise, and two services of a process may take them over at the same time.
                counter(name).inner().fetch_max(count, Ordering::Relaxed);
            }
        };
        all(figures.unreadable, &|column| self.unreadable.get_or_create_owned(&Column { column }));
        all(figures.ignored, &|field| self.ignored.get_or_create_owned(&Field { field }));
        self.too_new.inner().fetch_max(figures.too_new, Ordering::Relaxed);
        self.let_go.inner().fetch_max(figures.let_go, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
