//! `millrace preflight`: whether this release can read what a database holds, before it is deployed on it.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_core::foreign::{self, Defect, Holder, References, Value, Verdict};
use millrace_core::{READER_RANGE, task::State};
use millrace_store::{Drift, ListFilter, QuarantineFilter, Reader, Store, StoreError, migrate};
use serde_json::{Value as Json, json};

use crate::exit::Failure;
use crate::output::{self, Format};
use crate::serve::{DatabaseArgs, redacted, store_failure};

/// Rows of one read.
const PAGE: i64 = 500;

/// Ids that are named for each kind of error.
const EXAMPLES: usize = 5;

/// How often progress is shown on a terminal.
const PROGRESS: Duration = Duration::from_millis(500);

/// Flags of `preflight`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace preflight --database-url postgres://millrace@db/millrace
  millrace preflight --database-url postgres://millrace@db/millrace --output json

Run it with the new release before it is deployed: as a step of the pipeline, or as an init container of
each pod. It reads every live task, a sample of the finished ones, routes, queues and what is set aside,
with the code that the services of this release use, and writes nothing.

Exit code: 0 when this release reads all that is read today; 1 when rows that are live would become
unreadable, the schema does not fit, or a proxy pools connections by transaction; 69 when the database
cannot be reached.")]
pub(crate) struct PreflightArgs {
    /// The database: postgres://…
    #[arg(long, env = "MILLRACE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: String,
    /// How many finished tasks are read, the newest first.
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(i64).range(0..=1_000_000))]
    sample: i64,
    /// How many live rows may be unreadable without failing.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    allow: u64,
    /// How to print.
    #[arg(long, short = 'o', value_name = "FORMAT", value_enum, default_value_t = Format::Table, env = "MILLRACE_OUTPUT")]
    output: Format,
    #[command(flatten)]
    database: DatabaseArgs,
}

/// Runs the command.
pub(crate) async fn run(args: PreflightArgs) -> Result<(), Failure> {
    if !args.database_url.starts_with("postgres") {
        return Err(Failure::Usage(
            "--database-url: preflight is for PostgreSQL, where releases meet; `millrace dev` owns its own file".into(),
        ));
    }
    let (format, url) = (args.output, args.database_url.clone());
    let looked = tokio::task::spawn_blocking(move || look(&args)).await;
    let report = looked.map_err(|error| Failure::Request(format!("preflight did not end: {error}")))?;
    let report = report.map_err(|error| store_failure(&error, &url))?;
    match format {
        Format::Json => output::line(&report.json().to_string())?,
        Format::Table => report.print(&redacted(&url))?,
    }
    match report.failures() {
        failures if failures.is_empty() => Ok(()),
        failures => Err(Failure::Request(failures.join("; "))),
    }
}

// ── What was found ──────────────────────────────────────────────────────────────────────────────────────────────────

#[derive(Debug, Default)]
struct Report {
    /// Why the schema does not fit. Nothing else is read then.
    schema: Option<String>,
    /// What was seen of a proxy that pools by transaction.
    pooling: Option<String>,
    live: Findings,
    finished: Findings,
    quarantined: u64,
    would_release: u64,
    /// Rows of queues, routes and sessions that were left out, by column.
    others: BTreeMap<String, u64>,
    drift: Vec<Drift>,
    allowed: u64,
}

/// Rows that were read, by what this release makes of them.
#[derive(Debug, Default)]
struct Findings {
    rows: u64,
    too_new: u64,
    unreadable: u64,
    /// By column or field.
    errors: BTreeMap<String, Finding>,
    ignored: BTreeMap<String, Finding>,
}

#[derive(Debug, Default)]
struct Finding {
    rows: u64,
    /// The first error, in full.
    error: String,
    examples: Vec<String>,
}

impl Findings {
    fn note(found: &mut BTreeMap<String, Finding>, task: &str, defect: &Defect) {
        let finding = found.entry(defect.column.clone()).or_default();
        finding.rows += 1;
        if finding.examples.len() < EXAMPLES {
            finding.examples.push(task.to_owned());
        }
        if finding.error.is_empty() {
            finding.error.clone_from(&defect.error);
        }
    }

    fn json(&self) -> Json {
        let list = |found: &BTreeMap<String, Finding>| -> Json {
            let one = |(column, finding): (&String, &Finding)| json!({"column": column, "error": finding.error, "rows": finding.rows, "examples": finding.examples});
            found.iter().map(one).collect()
        };
        json!({
            "rows": self.rows, "too_new": self.too_new, "unreadable": self.unreadable,
            "errors": list(&self.errors), "ignored": list(&self.ignored),
        })
    }
}

impl Report {
    /// Why the deploy is to be stopped.
    fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        failures.extend(self.schema.clone());
        failures.extend(self.pooling.as_ref().map(|seen| format!("{seen}; connect directly or pool by session")));
        if self.live.unreadable > self.allowed {
            let (count, columns) =
                (self.live.unreadable, self.live.errors.keys().cloned().collect::<Vec<_>>().join(", "));
            failures.push(format!("this release cannot read {count} of {} live rows ({columns})", self.live.rows));
        }
        failures
    }

    fn json(&self) -> Json {
        json!({
            "build": crate::version::build(),
            "passed": self.failures().is_empty(),
            "failures": self.failures(),
            "schema": {"fits": self.schema.is_none(), "detail": self.schema},
            "connection": {"fits": self.pooling.is_none(), "detail": self.pooling},
            "live": self.live.json(),
            "finished_sample": self.finished.json(),
            "quarantine": {"rows": self.quarantined, "readable": self.would_release},
            "others_unreadable": self.others,
            "drift": self.drift.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    }

    fn print(&self, url: &str) -> Result<(), Failure> {
        let verdict = |why: &Option<String>| why.clone().unwrap_or_else(|| "fits".to_owned());
        output::print_fields(&[
            ("release", crate::version::build()),
            ("database", url.to_owned()),
            ("schema", verdict(&self.schema)),
            ("connection", verdict(&self.pooling)),
        ])?;
        if self.schema.is_some() {
            return Ok(());
        }
        let mut table = output::table(&["ROWS", "LOOKED AT", "TOO NEW", "UNREADABLE"]);
        for (name, findings) in [("live", &self.live), ("finished, a sample", &self.finished)] {
            let counts = [findings.rows, findings.too_new, findings.unreadable].map(|count| count.to_string());
            table.add_row([&[name.to_owned()], &counts[..]].concat());
        }
        output::line("")?;
        output::print_table(&table)?;
        output::line(&format!(
            "\nset aside: {}, of which this release can read {}",
            self.quarantined, self.would_release
        ))?;
        let mut table = output::table(&["COLUMN", "WHAT", "ROWS", "FIRST ERROR", "EXAMPLES"]);
        let of = |what: &'static str, found: &BTreeMap<String, Finding>| -> Vec<Vec<String>> {
            let line = |(column, one): (&String, &Finding)| {
                vec![column.clone(), what.to_owned(), one.rows.to_string(), one.error.clone(), one.examples.join(" ")]
            };
            found.iter().map(line).collect()
        };
        let live = &self.live;
        let lines =
            [of("unreadable", &live.errors), of("ignored", &live.ignored), of("finished", &self.finished.errors)];
        let lines = lines.concat();
        if !lines.is_empty() {
            table.add_rows(lines);
            output::line("")?;
            output::print_table(&table)?;
        }
        for drift in &self.drift {
            output::line(&format!("type changed: {drift}"))?;
        }
        for (column, rows) in &self.others {
            output::line(&format!("left out of queues, routes and sessions: {rows} because of {column}"))?;
        }
        Ok(())
    }
}

// ── Looking ─────────────────────────────────────────────────────────────────────────────────────────────────────────

fn look(args: &PreflightArgs) -> Result<Report, StoreError> {
    let mut report = Report { allowed: args.allow, ..Report::default() };
    let url = args.database_url.as_str();
    match migrate::fits(url) {
        Ok(()) => {}
        Err(StoreError::Schema(why)) => {
            report.schema = Some(why);
            return Ok(report);
        }
        Err(error) => return Err(error),
    }
    report.pooling = millrace_store::transaction_pooling(url)?;
    if report.pooling.is_some() {
        // Prepared statements would fail at random behind it.
        return Ok(report);
    }
    let options = args.database.options();
    let reader = options.reader.clone();
    let store = millrace_store::open(url, &options)?;
    others(&store, &mut report)?;
    live(&store, &mut report.live)?;
    finished(&store, args.sample, &mut report.finished)?;
    quarantine(&store, &reader, &mut report)?;
    report.drift = store.drift()?;
    Ok(report)
}

fn live(store: &Arc<dyn Store>, findings: &mut Findings) -> Result<(), StoreError> {
    let shown = std::io::stderr().is_terminal();
    let mut said = Instant::now();
    let mut after = None;
    loop {
        let page = store.inspect(after, PAGE)?;
        for (task, reading) in &page.rows {
            let task = task.to_string();
            findings.rows += 1;
            for defect in &reading.ignored {
                Findings::note(&mut findings.ignored, &task, defect);
            }
            match &reading.verdict {
                Verdict::Readable => {}
                Verdict::TooNew(_) => findings.too_new += 1,
                Verdict::Unreadable(defect) => {
                    findings.unreadable += 1;
                    Findings::note(&mut findings.errors, &task, defect);
                }
            }
        }
        if shown && said.elapsed() >= PROGRESS {
            said = Instant::now();
            eprint!("\r{} live rows read", findings.rows);
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if shown {
        // Back to the start of the line, which is then wiped.
        eprint!("\r\x1b[K");
    }
    Ok(())
}

/// The newest finished tasks, as a list of them reads them.
fn finished(store: &Arc<dyn Store>, sample: i64, findings: &mut Findings) -> Result<(), StoreError> {
    let states = vec![State::Succeeded, State::Failed, State::Cancelled, State::Expired];
    let filter = ListFilter { states, ..ListFilter::default() };
    let before = store.foreign().figures().unreadable;
    let mut below = None;
    while (findings.rows as i64) < sample {
        let page = store.list(&filter, below, PAGE.min(sample - findings.rows as i64))?;
        findings.rows += page.rows.len() as u64;
        below = page.next;
        if below.is_none() {
            break;
        }
    }
    let suspects: Vec<String> = store.foreign().take_suspects(EXAMPLES).iter().map(ToString::to_string).collect();
    for (column, rows) in risen(&before, store) {
        findings.unreadable += rows;
        findings.rows += rows;
        let error = "cannot be read".to_owned();
        findings.errors.insert(column, Finding { rows, error, examples: suspects.clone() });
    }
    Ok(())
}

fn others(store: &Arc<dyn Store>, report: &mut Report) -> Result<(), StoreError> {
    let before = store.foreign().figures().unreadable;
    store.routing()?;
    store.sessions(PAGE)?;
    store.members()?;
    report.others = risen(&before, store);
    Ok(())
}

/// Columns that have cost rows since.
fn risen(before: &BTreeMap<String, u64>, store: &Arc<dyn Store>) -> BTreeMap<String, u64> {
    let now = store.foreign().figures().unreadable;
    let rise = |(column, count): (String, u64)| {
        let rise = count - before.get(&column).copied().unwrap_or(0);
        (rise > 0).then_some((column, rise))
    };
    now.into_iter().filter_map(rise).collect()
}

fn quarantine(store: &Arc<dyn Store>, reader: &Reader, report: &mut Report) -> Result<(), StoreError> {
    let queues: Vec<String> = store.routing()?.queues.into_iter().map(|queue| queue.name).collect();
    let mut after = None;
    loop {
        let page = store.quarantine(&QuarantineFilter::default(), after, PAGE)?;
        for held in page.rows {
            report.quarantined += 1;
            let queue = held.queue.is_some_and(|queue| queues.contains(&queue));
            let mut row = held.row;
            row.extend(held.spec.map(|spec| ("spec".to_owned(), Value::Bytes(spec))));
            let references = References { queue, holder: Holder::Over };
            let reading = foreign::judge(&row, references, READER_RANGE.1, &|spec| (reader.spec)(spec));
            report.would_release += u64::from(reading.verdict == Verdict::Readable);
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_unreadable_rows_than_allowed_stop_a_deploy_and_name_the_columns() {
        let mut report = Report::default();
        report.live.rows = 10;
        assert!(report.failures().is_empty());
        report.live.unreadable = 2;
        Findings::note(&mut report.live.errors, "a", &Defect::new("rank", "is null"));
        assert_eq!(report.failures(), ["this release cannot read 2 of 10 live rows (rank)"]);
        report.allowed = 2;
        assert!(report.failures().is_empty());
        report.pooling = Some("a proxy pools by transaction".into());
        assert_eq!(report.json()["passed"], false);
    }

    #[test]
    fn examples_are_bounded_and_the_first_error_is_kept() {
        let mut findings = Findings::default();
        for number in 0..10 {
            let defect = Defect::new("rank", format!("holds {number}"));
            Findings::note(&mut findings.errors, &number.to_string(), &defect);
        }
        let finding = &findings.errors["rank"];
        assert_eq!((finding.rows, finding.examples.len(), finding.error.as_str()), (10, EXAMPLES, "holds 0"));
    }
}
