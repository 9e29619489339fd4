//! `millrace quarantine`: rows that were set aside because a build could not read them.

mod bulk;
mod filter;
mod read;
mod repair;

use crate::exit::Failure;

/// Commands about rows that are set aside.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum QuarantineCommand {
    /// List rows that are set aside, in the order of submission
    #[command(after_help = "\
Examples:
  millrace quarantine list
  millrace quarantine list --column spec.payload --queue builds --limit 0
  millrace quarantine list --output json | jq -r '[.taskId, .defect.column] | @tsv'")]
    List(read::ListArgs),
    /// Show one row whole: its columns as the database held them, and its spec
    #[command(after_help = "\
Examples:
  millrace quarantine show 0197f2a0-5c1e-7bd4-9d3c-0f3a1c2b4d5e
  millrace quarantine show ID --output json | jq -r .specBytes | base64 -d > spec.binpb")]
    Show(read::ShowArgs),
    /// Change columns or the spec of a row, and release it if it can be read then
    #[command(after_help = "\
Examples:
  millrace quarantine repair ID --column attempt=0 --dry-run
  millrace quarantine repair ID --column queue=builds --null timeout_ms
  millrace quarantine repair ID --spec task.json

Nothing is changed unless the row can be read with the change. A spec is a TaskSpec as protobuf JSON; it replaces
the one before as a whole, and columns such as `tenant` do not follow it.")]
    Repair(repair::RepairArgs),
    /// Release rows that the service can read now
    #[command(after_help = "\
Examples:
  millrace quarantine release --all --dry-run
  millrace quarantine release --column spec.timeout --rate 500
  millrace quarantine release --task ID --task ID

A new release of the service does this by itself, a little at a time, with rows that it has not refused. Rows that the
service cannot read stay, are named, and make the exit code 1.")]
    Release(bulk::ReleaseArgs),
    /// End the tasks of rows as cancelled; the rows go into the audit trail
    #[command(after_help = "\
Examples:
  millrace quarantine discard --tenant team-a --before 2026-01-02T15:00:00Z --dry-run --reason 'of a load test'
  millrace quarantine discard --task ID --reason 'its input is gone'
  millrace quarantine discard --all --reason 'restored by hand from the submitters'")]
    Discard(bulk::DiscardArgs),
}

impl QuarantineCommand {
    /// Runs the command.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            QuarantineCommand::List(args) => read::list(args).await,
            QuarantineCommand::Show(args) => read::show(args).await,
            QuarantineCommand::Repair(args) => repair::repair(args).await,
            QuarantineCommand::Release(args) => bulk::release(args).await,
            QuarantineCommand::Discard(args) => bulk::discard(args).await,
        }
    }
}
