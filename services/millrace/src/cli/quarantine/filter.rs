//! Which rows a command is about.

use std::time::SystemTime;

use millrace_proto::distributor::v1::QuarantineFilter;
use prost_types::Timestamp;

use crate::exit::Failure;
use crate::time::parse_moment;

/// Conditions, every one of which must hold.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Which rows")]
pub(crate) struct FilterArgs {
    /// Only this task's; may be given many times.
    #[arg(long = "task", value_name = "ID")]
    tasks: Vec<String>,
    /// Only this tenant's.
    #[arg(long, value_name = "NAME", default_value = "")]
    tenant: String,
    /// Only this queue's.
    #[arg(long, value_name = "NAME", default_value = "")]
    queue: String,
    /// Only those of which this column or field (`spec.timeout`) cannot be read.
    #[arg(long, value_name = "NAME", default_value = "")]
    column: String,
    /// Only those set aside before: RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = parse_before)]
    before: Option<Timestamp>,
}

fn parse_before(text: &str) -> Result<Timestamp, String> {
    parse_moment(text, SystemTime::now())
}

impl FilterArgs {
    /// The filter, which may be one that every row fits.
    pub(crate) fn filter(self) -> QuarantineFilter {
        let Self { tasks, tenant, queue, column, before } = self;
        QuarantineFilter { task_ids: tasks, tenant, queue, column, before }
    }

    /// The filter for a change. That every row is meant has to be said.
    pub(crate) fn filter_or(self, all: bool) -> Result<QuarantineFilter, Failure> {
        let filter = self.filter();
        match (filter == QuarantineFilter::default(), all) {
            (true, false) => Err(Failure::Usage(
                "say which rows: --task, --tenant, --queue, --column or --before; or --all".to_owned(),
            )),
            (false, true) => Err(Failure::Usage("--all and a condition exclude each other".to_owned())),
            _ => Ok(filter),
        }
    }
}
