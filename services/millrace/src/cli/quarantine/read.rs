//! `quarantine list` and `show`.

use std::time::SystemTime;

use millrace_proto::distributor::v1::{
    GetQuarantinedRowRequest, ListQuarantinedRowsRequest, QuarantinedColumn, QuarantinedRow,
};

use super::filter::FilterArgs;
use crate::client::{Client, ClientArgs};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::json;
use crate::output::{self, Format, cut, printable};
use crate::time::ago;

/// The row's name in the contracts.
const ROW: &str = "millrace.distributor.v1.QuarantinedRow";

/// The most that one page of a list holds.
const PAGE: usize = 1000;

/// The longest error in a table.
const ERROR: usize = 60;

/// Flags of `quarantine list`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// How many at most; 0 means all.
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    limit: usize,
}

/// Flags of `quarantine show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The task.
    #[arg(value_name = "ID")]
    id: String,
}

/// Lists rows, page by page.
pub(crate) async fn list(args: ListArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let mut request = ListQuarantinedRowsRequest { filter: Some(args.filter.filter()), ..Default::default() };
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let (mut shown, mut table) = (0, rows_table());
    while shown < limit {
        request.page_size = i32::try_from(PAGE.min(limit - shown)).unwrap_or(0);
        let page = client.read(|| {
            let (mut calls, request) = (client.quarantine(), request.clone());
            async move { calls.list_quarantined_rows(request).await }
        });
        let page = page.await?;
        for row in &page.rows {
            match args.client.output {
                Format::Json => output::json_line(ROW, row)?,
                Format::Table => add_row(&mut table, row),
            }
        }
        shown += page.rows.len();
        // Whole pages are printed as they come: a list of everything need not fit in memory.
        if table.row_count() >= PAGE {
            output::print_table(&table)?;
            table = rows_table();
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    if shown == 0 && args.client.output == Format::Table {
        eprintln!("no row that matches is set aside");
    } else if table.row_count() > 0 {
        output::print_table(&table)?;
    }
    if !request.page_token.is_empty() {
        eprintln!("there may be more; --limit 0 lists all");
    }
    Ok(())
}

fn rows_table() -> comfy_table::Table {
    output::table(&["TASK", "SINCE", "TENANT", "QUEUE", "COLUMN", "ERROR", "REFUSED BY"])
}

fn add_row(table: &mut comfy_table::Table, row: &QuarantinedRow) {
    let defect = row.defect.clone().unwrap_or_default();
    let since = row.first_seen_time.as_ref().map(|time| ago(time, SystemTime::now())).unwrap_or_default();
    let refused_by = match row.refused_by.as_slice() {
        [] => String::new(),
        [only] => printable(only),
        [before @ .., last] => format!("{} and {} more", printable(last), before.len()),
    };
    table.add_row(vec![
        row.task_id.clone(),
        since,
        printable(&row.tenant),
        printable(&row.queue),
        printable(&defect.column),
        cut(&printable(&defect.error), ERROR),
        refused_by,
    ]);
}

/// Shows one row whole.
pub(crate) async fn show(args: ShowArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Distributor).await?;
    let request = GetQuarantinedRowRequest { task_id: args.id };
    let answer = client.read(|| {
        let (mut calls, request) = (client.quarantine(), request.clone());
        async move { calls.get_quarantined_row(request).await }
    });
    let row = answer.await?.row.unwrap_or_default();
    match args.client.output {
        Format::Json => output::json_line(ROW, &row),
        Format::Table => print_one(&row),
    }
}

fn print_one(row: &QuarantinedRow) -> Result<(), Failure> {
    let defect = row.defect.clone().unwrap_or_default();
    let since = row.first_seen_time.as_ref().map(|time| format!("{time} ({})", ago(time, SystemTime::now())));
    let format = if row.writer_format == 0 { String::new() } else { row.writer_format.to_string() };
    output::print_fields(&[
        ("task", row.task_id.clone()),
        ("defect", printable(&format!("{} {}", defect.column, defect.error))),
        ("set aside", since.unwrap_or_default()),
        ("refused by", printable(&row.refused_by.join(", "))),
        ("written in format", format),
        ("tenant", printable(&row.tenant)),
        ("queue", printable(&row.queue)),
    ])?;
    output::line("\ncolumns")?;
    let mut table = output::table(&["COLUMN", "TYPE", "VALUE"]);
    for QuarantinedColumn { name, value, r#type } in &row.columns {
        table.add_row(vec![printable(name), r#type.clone(), printable(value.as_deref().unwrap_or_default())]);
    }
    output::print_table(&table)?;
    output::line(&format!("\nspec\n{}", spec(row)))
}

/// The spec as JSON where it decodes, and a word about it where it does not.
fn spec(row: &QuarantinedRow) -> String {
    let size = row.spec_size.unwrap_or_default();
    match (&row.spec_bytes, row.spec_size) {
        (Some(bytes), _) => match json::to_json("millrace.common.v1.TaskSpec", bytes) {
            Ok(spec) => format!("{spec:#}"),
            Err(_) => format!("{}, which do not decode; --output json has them", output::count(size, "byte")),
        },
        (None, Some(_)) => format!("{}, too many for an answer", output::count(size, "byte")),
        (None, None) => "no bytes; see the column".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use millrace_proto::common::v1::TaskSpec;
    use prost::Message;

    use super::*;

    #[test]
    fn a_spec_is_shown_as_far_as_it_can_be() {
        let row = |bytes: Option<&[u8]>, spec_size| QuarantinedRow {
            spec_bytes: bytes.map(Bytes::copy_from_slice),
            spec_size,
            ..Default::default()
        };
        let whole = TaskSpec { executor: "process".into(), ..Default::default() }.encode_to_vec();
        assert!(spec(&row(Some(&whole), Some(9))).contains("\"executor\": \"process\""));
        assert_eq!(spec(&row(Some(&[0xFF]), Some(1))), "1 byte, which do not decode; --output json has them");
        assert_eq!(spec(&row(None, Some(20))), "20 bytes, too many for an answer");
        assert_eq!(spec(&row(None, None)), "no bytes; see the column");
    }
}
