//! `quarantine release` and `discard`: many rows, a page at a time.

use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use millrace_proto::distributor::v1::{
    DiscardQuarantinedRowsRequest, QuarantineFilter, RefusedRow, ReleaseQuarantinedRowsRequest,
};
use tokio::time::Instant;

use super::filter::FilterArgs;
use crate::client::{Client, ClientArgs, request_id};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::output::{self, Format, count, cut, printable};

/// Rows of one call. Each is done within the time that a call may take.
const PAGE: u32 = 200;

/// Rows that are counted in one call.
const COUNTED: i32 = 1000;

/// Refused rows that are named.
const NAMED: usize = 20;

/// How often progress is told where no terminal shows it.
const TOLD: Duration = Duration::from_secs(10);

/// Flags of `quarantine release`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReleaseArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Every row.
    #[arg(long)]
    all: bool,
    /// Only counts the rows that match.
    #[arg(long)]
    dry_run: bool,
    /// How many rows a second; 0 means as many as the service can.
    #[arg(long, value_name = "ROWS", default_value_t = 100)]
    rate: u32,
}

/// Flags of `quarantine discard`.
#[derive(Debug, clap::Args)]
pub(crate) struct DiscardArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Every row that is set aside now.
    #[arg(long)]
    all: bool,
    /// Only counts the rows that match.
    #[arg(long)]
    dry_run: bool,
    /// Why, for the audit trail.
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    reason: Option<String>,
}

/// Releases rows, and names those that stay.
pub(crate) async fn release(args: ReleaseArgs) -> Result<(), Failure> {
    let filter = args.filter.filter_or(args.all)?;
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let format = args.client.output;
    let total = counted(&client, &filter).await?;
    if args.dry_run {
        return tell_count(format, total);
    }
    let mut pace = Pace::new(args.rate, total, "released");
    let mut request =
        ReleaseQuarantinedRowsRequest { filter: Some(filter), page_size: pace.page_size(), ..Default::default() };
    let (mut released, mut matched, mut missing, mut refused) = (0_u64, 0_u64, 0_u64, Vec::new());
    loop {
        request.request_id = request_id();
        let answer = client.change(|| {
            let (mut calls, request) = (client.quarantine(), request.clone());
            async move { calls.release_quarantined_rows(request).await }
        });
        let answer = answer.await.map_err(|failure| after(failure, released, "released"))?;
        if format == Format::Json {
            output::json_line("millrace.distributor.v1.ReleaseQuarantinedRowsResponse", &answer)?;
        }
        released += u64::try_from(answer.released).unwrap_or(0);
        matched += u64::try_from(answer.matched).unwrap_or(0);
        missing = missing.max(u64::try_from(answer.not_found).unwrap_or(0));
        refused.extend(answer.refused);
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
        pace.done(matched).await;
    }
    pace.finish();
    if format == Format::Table {
        output::line(&format!("released {released} of {}", count(matched, "row")))?;
        print_refused(&refused)?;
    }
    match matched.saturating_sub(released) {
        0 => all_found(missing),
        1 => Err(Failure::Request("1 row stays: the service cannot read it".to_owned())),
        stay => Err(Failure::Request(format!("{stay} rows stay: the service cannot read them"))),
    }
}

fn print_refused(refused: &[RefusedRow]) -> Result<(), Failure> {
    if refused.is_empty() {
        return Ok(());
    }
    let mut table = output::table(&["STAYS", "COLUMN", "ERROR"]);
    for row in refused.iter().take(NAMED) {
        let defect = row.defect.clone().unwrap_or_default();
        table.add_row(vec![row.task_id.clone(), printable(&defect.column), cut(&printable(&defect.error), 80)]);
    }
    output::print_table(&table)
}

/// Ends the tasks of rows.
pub(crate) async fn discard(args: DiscardArgs) -> Result<(), Failure> {
    let mut filter = args.filter.filter_or(args.all)?;
    if args.all {
        // What is set aside while this runs was not meant.
        filter.before = Some(SystemTime::now().into());
    }
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let format = args.client.output;
    let total = counted(&client, &filter).await?;
    if args.dry_run {
        return tell_count(format, total);
    }
    let mut pace = Pace::new(0, total, "discarded");
    let mut request = DiscardQuarantinedRowsRequest {
        filter: Some(filter),
        reason: args.reason.unwrap_or_default(),
        page_size: pace.page_size(),
        ..Default::default()
    };
    let (mut discarded, mut missing) = (0_u64, 0_u64);
    loop {
        request.request_id = request_id();
        let answer = client.change(|| {
            let (mut calls, request) = (client.quarantine(), request.clone());
            async move { calls.discard_quarantined_rows(request).await }
        });
        let answer = answer.await.map_err(|failure| after(failure, discarded, "discarded"))?;
        if format == Format::Json {
            output::json_line("millrace.distributor.v1.DiscardQuarantinedRowsResponse", &answer)?;
        }
        discarded += u64::try_from(answer.discarded).unwrap_or(0);
        missing = missing.max(u64::try_from(answer.not_found).unwrap_or(0));
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
        pace.done(discarded).await;
    }
    pace.finish();
    if format == Format::Table {
        output::line(&format!("discarded {}", count(discarded, "row")))?;
    }
    all_found(missing)
}

/// A task that was named and is not set aside was not meant to be passed over in silence.
fn all_found(missing: u64) -> Result<(), Failure> {
    match missing {
        0 => Ok(()),
        1 => Err(Failure::Request("1 task that was named is not set aside".to_owned())),
        _ => Err(Failure::Request(format!("{missing} tasks that were named are not set aside"))),
    }
}

/// A failure in the middle, with what was done before it.
fn after(failure: Failure, done: u64, what: &str) -> Failure {
    if done > 0 {
        eprintln!("millrace: {} {what} before this failed", count(done, "row"));
    }
    failure
}

/// How many rows match.
async fn counted(client: &Client, filter: &QuarantineFilter) -> Result<u64, Failure> {
    let mut request = ReleaseQuarantinedRowsRequest {
        filter: Some(filter.clone()),
        dry_run: true,
        page_size: COUNTED,
        ..Default::default()
    };
    let mut total = 0;
    loop {
        let page = client.read(|| {
            let (mut calls, request) = (client.quarantine(), request.clone());
            async move { calls.release_quarantined_rows(request).await }
        });
        let page = page.await?;
        total += u64::try_from(page.matched).unwrap_or(0);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(total);
        }
    }
}

fn tell_count(format: Format, total: u64) -> Result<(), Failure> {
    match format {
        Format::Json => output::line(&serde_json::json!({ "matched": total }).to_string()),
        Format::Table if total == 1 => output::line("1 row matches; nothing was changed"),
        Format::Table => output::line(&format!("{total} rows match; nothing was changed")),
    }
}

/// Keeps to a rate, and shows how far it is.
struct Pace {
    rate: u32,
    began: Instant,
    told: Instant,
    total: u64,
    what: &'static str,
    bar: ProgressBar,
}

impl Pace {
    fn new(rate: u32, total: u64, what: &'static str) -> Pace {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} {per_sec} {eta}") {
            bar.set_style(style);
        }
        bar.set_message(what);
        Pace { rate, began: Instant::now(), told: Instant::now(), total, what, bar }
    }

    /// How many rows one call is about, so that the rate holds from second to second.
    fn page_size(&self) -> i32 {
        let size = if self.rate == 0 { PAGE } else { self.rate.min(PAGE) };
        i32::try_from(size).unwrap_or(1)
    }

    /// Notes that so many rows are done, and waits until the next may be.
    async fn done(&mut self, rows: u64) {
        self.bar.set_position(rows);
        if self.bar.is_hidden() && self.told.elapsed() >= TOLD {
            self.told = Instant::now();
            eprintln!("millrace: {rows} of {} rows {}", self.total, self.what);
        }
        if self.rate > 0 {
            let due = Duration::from_secs_f64(rows as f64 / f64::from(self.rate));
            tokio::time::sleep_until(self.began + due).await;
        }
    }

    fn finish(self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rows_keep_to_their_rate() {
        let mut pace = Pace::new(50, 120, "released");
        assert_eq!(pace.page_size(), 50);
        let began = Instant::now();
        pace.done(50).await;
        pace.done(100).await;
        assert_eq!(began.elapsed().as_secs(), 2);
        let mut free = Pace::new(0, 120, "released");
        assert_eq!(free.page_size(), 200);
        free.done(100).await;
        assert_eq!(began.elapsed().as_secs(), 2);
    }
}
