//! The figures of a run: `summary.json`, and the table.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{
    ceiling::Ceiling,
    dispatch::{Dispatch, Latency},
    life::Lives,
    memory::{self, Memory},
    usage::Used,
};

/// A load above this before a run means that the machine had other work.
const BUSY: f64 = 0.7;

/// Where and how it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Environment {
    /// `release` or `debug`.
    pub(crate) profile: &'static str,
    /// Whether the run was a quick one.
    pub(crate) quick: bool,
    /// What `millrace --version` says.
    pub(crate) millrace: String,
    /// CPUs.
    pub(crate) cores: usize,
    /// The server's version.
    pub(crate) postgres: String,
    /// Of the server, as it shows it.
    pub(crate) fsync: String,
    /// Of the server, as it shows it.
    pub(crate) synchronous_commit: String,
    /// Further settings of the server that figures depend on.
    pub(crate) settings: BTreeMap<&'static str, String>,
    /// The machine's load of the last minute before the run; more than a little means that others used it too.
    pub(crate) load_before: f64,
    /// Milliseconds of one fdatasync in the temporary folder, where `make bench` keeps the database.
    pub(crate) fdatasync_ms: f64,
}

/// What the machine does without the services, once for each pass.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Ceilings {
    /// Lives in the bare shape.
    pub(crate) bare: Vec<Ceiling>,
    /// Lives in our schema, with idempotency keys.
    pub(crate) own: Vec<Ceiling>,
    /// The same without.
    pub(crate) own_without_ids: Vec<Ceiling>,
    /// Lives by the store crate, with idempotency keys.
    pub(crate) store: Vec<Ceiling>,
    /// Null unary calls a second, 64 in flight.
    pub(crate) null_unary_per_s: Vec<f64>,
    /// Milliseconds of a null unary call alone, the median.
    pub(crate) null_unary_ms: Vec<f64>,
}

/// Unary submission.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Submit {
    /// Tasks a second.
    pub(crate) per_s: f64,
    /// Half were faster, in milliseconds.
    pub(crate) p50_ms: f64,
    /// 99 of 100 were faster.
    pub(crate) p99_ms: f64,
    /// Who used the CPU.
    pub(crate) used: Vec<Used>,
}

/// Everything that was measured; what was not asked for is empty.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) environment: Environment,
    pub(crate) ceilings: Ceilings,
    pub(crate) submit: Option<Submit>,
    pub(crate) submit_without_ids: Option<Submit>,
    pub(crate) drain: Option<Lives>,
    pub(crate) life: Option<Lives>,
    pub(crate) life_without_ids: Option<Lives>,
    pub(crate) dispatch: Option<Dispatch>,
    pub(crate) dispatch_agent: Option<Latency>,
    pub(crate) memory: Vec<Memory>,
}

/// `summary.json`. Rates are per second; null is what this run did not measure.
#[derive(Debug, Serialize)]
pub(crate) struct Summary<'a> {
    submit_per_s: Option<f64>,
    submit_ratio_to_null_unary: Option<f64>,
    submit_without_ids_per_s: Option<f64>,
    lifecycle_per_s: Option<f64>,
    lifecycle_without_ids_per_s: Option<f64>,
    drain_per_s: Option<f64>,
    batch_submit_per_s: Option<f64>,
    ceiling_bare_per_s: Option<f64>,
    ceiling_own_per_s: Option<f64>,
    ceiling_own_without_ids_per_s: Option<f64>,
    store_per_s: Option<f64>,
    null_unary_per_s: Option<f64>,
    null_unary_ms: Option<f64>,
    ratio_to_ceiling: Option<f64>,
    ratio_to_own_ceiling: Option<f64>,
    dispatch_ms: Option<&'a Latency>,
    submit_answer_ms: Option<&'a Latency>,
    dispatch_agent_ms: Option<&'a Latency>,
    /// Service, then waiting tasks, then MB.
    rss_mb: BTreeMap<&'static str, BTreeMap<String, f64>>,
    queue_bytes_per_window_entry: Option<f64>,
    fsync: &'a str,
    synchronous_commit: &'a str,
    cores: usize,
    profile: &'a str,
    environment: &'a Environment,
    passes: &'a Ceilings,
    submit: BTreeMap<&'static str, &'a Submit>,
    lives: BTreeMap<&'static str, &'a Lives>,
    memory: &'a [Memory],
    targets: Vec<Target>,
}

/// A goal of the project and whether this run reaches it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Target {
    what: &'static str,
    goal: String,
    figure: f64,
    met: bool,
}

/// The mean of the passes.
fn mean(passes: &[f64]) -> Option<f64> {
    (!passes.is_empty()).then(|| passes.iter().sum::<f64>() / passes.len() as f64)
}

/// The mean rate of the passes.
fn rate(passes: &[Ceiling]) -> Option<f64> {
    mean(&passes.iter().map(|pass| pass.per_s).collect::<Vec<_>>())
}

fn ratio(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    Some(part? / whole?)
}

/// What there is of these.
fn measured<'a, T, const N: usize>(all: [(&'static str, &'a Option<T>); N]) -> BTreeMap<&'static str, &'a T> {
    all.into_iter().filter_map(|(name, one)| Some((name, one.as_ref()?))).collect()
}

impl Figures {
    /// What goes into `summary.json`.
    pub(crate) fn summary(&self) -> Summary<'_> {
        let (ceilings, environment) = (&self.ceilings, &self.environment);
        let life = self.life.as_ref().map(|life| life.per_s);
        let submit = self.submit.as_ref().map(|submit| submit.per_s);
        let (bare, own) = (rate(&ceilings.bare), rate(&ceilings.own));
        let null = mean(&ceilings.null_unary_per_s);
        let mut rss_mb = BTreeMap::new();
        let of =
            |pick: fn(&Memory) -> f64| self.memory.iter().map(|one| (one.waiting.to_string(), pick(one))).collect();
        rss_mb.insert("distributor", of(|one| one.distributor_mb));
        rss_mb.insert("queue", of(|one| one.queue_mb));
        Summary {
            submit_per_s: submit,
            submit_ratio_to_null_unary: ratio(submit, null),
            submit_without_ids_per_s: self.submit_without_ids.as_ref().map(|submit| submit.per_s),
            lifecycle_per_s: life,
            lifecycle_without_ids_per_s: self.life_without_ids.as_ref().map(|life| life.per_s),
            drain_per_s: self.drain.as_ref().map(|drain| drain.per_s),
            batch_submit_per_s: self.drain.as_ref().map(|drain| drain.submit_per_s),
            ceiling_bare_per_s: bare,
            ceiling_own_per_s: own,
            ceiling_own_without_ids_per_s: rate(&ceilings.own_without_ids),
            store_per_s: rate(&ceilings.store),
            null_unary_per_s: null,
            null_unary_ms: mean(&ceilings.null_unary_ms),
            ratio_to_ceiling: ratio(life, bare),
            ratio_to_own_ceiling: ratio(life, own),
            dispatch_ms: self.dispatch.as_ref().map(|dispatch| &dispatch.to_spawn),
            submit_answer_ms: self.dispatch.as_ref().map(|dispatch| &dispatch.to_answer),
            dispatch_agent_ms: self.dispatch_agent.as_ref(),
            rss_mb,
            queue_bytes_per_window_entry: memory::bytes_per_entry(&self.memory),
            fsync: &environment.fsync,
            synchronous_commit: &environment.synchronous_commit,
            cores: environment.cores,
            profile: environment.profile,
            environment,
            passes: ceilings,
            submit: measured([("with_ids", &self.submit), ("without_ids", &self.submit_without_ids)]),
            lives: measured([
                ("drain", &self.drain),
                ("whole", &self.life),
                ("whole_without_ids", &self.life_without_ids),
            ]),
            memory: &self.memory,
            targets: self.targets(ratio(submit, null), ratio(life, bare)),
        }
    }

    fn targets(&self, submit: Option<f64>, life: Option<f64>) -> Vec<Target> {
        let at_least = |what, goal: f64, figure: Option<f64>| {
            figure.map(|figure| Target { what, goal: format!("≥ {goal}"), figure, met: figure >= goal })
        };
        let at_most = |what, goal: f64, unit: &str, figure: Option<f64>| {
            figure.map(|figure| Target { what, goal: format!("≤ {goal} {unit}"), figure, met: figure <= goal })
        };
        let spawn = self.dispatch.as_ref().map(|dispatch| &dispatch.to_spawn);
        let targets = [
            at_least("life", 0.5, life),
            at_least("submit", 0.35, submit),
            at_most("p50", 2.0, "ms", spawn.map(|spawn| spawn.p50)),
            at_most("p99", 5.0, "ms", spawn.map(|spawn| spawn.p99)),
            at_most("window", 200.0, "bytes", memory::bytes_per_entry(&self.memory)),
        ];
        targets.into_iter().flatten().collect()
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let summary = self.summary();
        let mut rows = Rows::new(summary.targets.clone());
        rows.rate("PostgreSQL, bare shape: the ceiling", summary.ceiling_bare_per_s, "tasks/s", "");
        let to_bare = |figure| of(ratio(figure, summary.ceiling_bare_per_s), "of the ceiling");
        let own = summary.ceiling_own_per_s;
        rows.rate("PostgreSQL, own schema", own, "tasks/s", &to_bare(own));
        let without = summary.ceiling_own_without_ids_per_s;
        rows.rate("  without request ids", without, "tasks/s", &to_bare(without));
        rows.rate("store crate alone", summary.store_per_s, "tasks/s", &to_bare(summary.store_per_s));
        rows.rate("null unary, 64 in flight", summary.null_unary_per_s, "calls/s", "");
        rows.millis("null unary, alone", summary.null_unary_ms, "");
        let to_null = |figure| of(ratio(figure, summary.null_unary_per_s), "of null unary");
        rows.goal("submit").rate(
            "SubmitTask, 64 in flight",
            summary.submit_per_s,
            "tasks/s",
            &to_null(summary.submit_per_s),
        );
        let without = summary.submit_without_ids_per_s;
        rows.rate("  without request ids", without, "tasks/s", &to_null(without));
        rows.rate("BatchSubmitTasks of 500", summary.batch_submit_per_s, "tasks/s", "");
        rows.rate("drain of a backlog", summary.drain_per_s, "tasks/s", &to_bare(summary.drain_per_s));
        let life = summary.lifecycle_per_s;
        rows.goal("life").rate("whole life", life, "tasks/s", &to_bare(life));
        let to_own = summary.ratio_to_own_ceiling;
        rows.rate("  to our own schema's ceiling", to_own.and(life), "tasks/s", &of(to_own, "of own schema"));
        let without = summary.lifecycle_without_ids_per_s;
        rows.rate("  without request ids", without, "tasks/s", &to_bare(without));
        let spawn = summary.dispatch_ms;
        rows.goal("p50").millis("submit call to spawn, 200/s, p50", spawn.map(|spawn| spawn.p50), "");
        rows.goal("p99").millis("submit call to spawn, 200/s, p99", spawn.map(|spawn| spawn.p99), "");
        rows.millis("  submit call to answer, p50", summary.submit_answer_ms.map(|answer| answer.p50), "");
        let agent = summary.dispatch_agent_ms;
        rows.millis("  by the agent, before its spawn, p50", agent.map(|agent| agent.p50), "");
        rows.millis("  by the agent, before its spawn, p99", agent.map(|agent| agent.p99), "");
        for one in &self.memory {
            let window = format!("window {} of {}", one.window, one.window_capacity);
            rows.plain(
                &format!("memory, {} waiting: distributor", one.waiting),
                format!("{:.1} MB", one.distributor_mb),
                "",
            );
            rows.plain(&format!("memory, {} waiting: queue", one.waiting), format!("{:.1} MB", one.queue_mb), &window);
        }
        if let Some(bytes) = summary.queue_bytes_per_window_entry {
            rows.goal("window").plain("  queue, for each entry of the window", format!("{bytes:.0} bytes"), "");
        }
        if let Some(column) = rows.table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{}\n\n{}\n\n{}", text(&rows.table), text(&self.cpu()), self.conditions())
    }

    /// Who used the CPU, for those who look for the time.
    fn cpu(&self) -> Table {
        const PROCESSES: [&str; 4] = ["distributor", "queue", "clients", "postgres"];
        let ceiling = |passes: &'_ [Ceiling]| passes.last().map(|pass| pass.used.clone());
        let submit = |submit: &Option<Submit>| submit.as_ref().map(|submit| submit.used.clone());
        let lives = |lives: &Option<Lives>| lives.as_ref().map(|lives| lives.used.clone());
        let parts = [
            ("bare shape", ceiling(&self.ceilings.bare)),
            ("own schema", ceiling(&self.ceilings.own)),
            ("  without request ids", ceiling(&self.ceilings.own_without_ids)),
            ("store crate", ceiling(&self.ceilings.store)),
            ("SubmitTask", submit(&self.submit)),
            ("  without request ids", submit(&self.submit_without_ids)),
            ("drain", lives(&self.drain)),
            ("whole life", lives(&self.life)),
            ("  without request ids", lives(&self.life_without_ids)),
        ];
        let mut table = new_table();
        table.set_header(["CPU, µs a task", "DISTRIBUTOR", "QUEUE", "CLIENTS", "POSTGRES", "ALL", "CORES USED"]);
        for (name, used) in parts {
            let Some(used) = used else { continue };
            let mut cells = vec![name.to_owned()];
            cells.extend(PROCESSES.map(|process| {
                let one = used.iter().find(|one| one.process == process);
                one.map_or_else(String::new, |one| format!("{:.1}", one.us_per_item))
            }));
            cells.push(format!("{:.1}", used.iter().map(|one| one.us_per_item).sum::<f64>()));
            cells.push(format!("{:.2}", used.iter().map(|one| one.cores).sum::<f64>()));
            table.add_row(cells);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn conditions(&self) -> String {
        let Environment { profile, millrace, cores, postgres, fsync, synchronous_commit, fdatasync_ms, .. } =
            &self.environment;
        let load = self.environment.load_before;
        let busy = match load > BUSY {
            true => format!(
                "\nThe load was {load:.1} before the run: others used the machine, and these figures tell little."
            ),
            false => String::new(),
        };
        format!(
            "{millrace}, {profile} build, {cores} cores; PostgreSQL {postgres}, fsync {fsync}, synchronous_commit \
             {synchronous_commit}, fdatasync {fdatasync_ms:.2} ms{busy}"
        )
    }
}

fn of(ratio: Option<f64>, whole: &str) -> String {
    ratio.map(|ratio| format!("{ratio:.2} {whole}")).unwrap_or_default()
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty();
    table
}

/// The table as text, flush with the left margin and without blanks at the ends of lines.
fn text(table: &Table) -> String {
    let lines = table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// Rows of the table; what was not measured gives none.
struct Rows {
    table: Table,
    targets: Vec<Target>,
    goal: Option<&'static str>,
}

impl Rows {
    fn new(targets: Vec<Target>) -> Self {
        let mut table = new_table();
        table.set_header(["WHAT", "FIGURE", "RATIO", "TARGET", "MET"]);
        Self { table, targets, goal: None }
    }

    /// The next row is about this goal.
    fn goal(&mut self, goal: &'static str) -> &mut Self {
        self.goal = Some(goal);
        self
    }

    fn rate(&mut self, what: &str, per_s: Option<f64>, unit: &str, ratio: &str) {
        match per_s {
            Some(per_s) => self.plain(what, format!("{per_s:.0} {unit}"), ratio),
            None => self.goal = None,
        }
    }

    fn millis(&mut self, what: &str, millis: Option<f64>, ratio: &str) {
        match millis {
            Some(millis) => self.plain(what, format!("{millis:.2} ms"), ratio),
            None => self.goal = None,
        }
    }

    fn plain(&mut self, what: &str, figure: String, ratio: &str) {
        let goal = self.goal.take();
        let target = self.targets.iter().find(|target| Some(target.what) == goal);
        let (goal, met) = match target {
            Some(target) => (target.goal.clone(), if target.met { "yes" } else { "no" }),
            None => (String::new(), ""),
        };
        self.table.add_row([what.to_owned(), figure, ratio.to_owned(), goal, met.to_owned()]);
    }
}
