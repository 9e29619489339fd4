//! What an operator can set.

use std::time::Duration;

use millrace_runtime::config::duration;

/// Settings of a distributor replica.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// Largest accepted spec, in bytes.
    #[arg(long, env = "MILLRACE_MAX_SPEC_BYTES", default_value_t = 256 * 1024, value_name = "BYTES")]
    pub max_spec_bytes: usize,

    /// Largest accepted and sent gRPC message, in bytes.
    #[arg(long, env = "MILLRACE_MAX_MESSAGE_BYTES", default_value_t = 16 * 1024 * 1024, value_name = "BYTES")]
    pub max_message_bytes: usize,

    /// Submit calls that may wait for a commit; past it submitters get RESOURCE_EXHAUSTED.
    #[arg(long, env = "MILLRACE_MAX_PENDING_SUBMISSIONS", default_value_t = 10_000, value_name = "COUNT")]
    pub max_pending_submissions: usize,

    /// Tasks of submit calls that may wait for a commit; past it submitters get RESOURCE_EXHAUSTED.
    #[arg(long, env = "MILLRACE_MAX_PENDING_TASKS", default_value_t = 100_000, value_name = "COUNT")]
    pub max_pending_tasks: usize,

    /// Bytes of specs that may wait for a commit; past it submitters get RESOURCE_EXHAUSTED.
    #[arg(long, env = "MILLRACE_MAX_PENDING_BYTES", default_value_t = 128 * 1024 * 1024, value_name = "BYTES")]
    pub max_pending_bytes: usize,

    /// Most rows in one transaction of the hot path.
    #[arg(long, env = "MILLRACE_MAX_BATCH", default_value_t = 1_000, value_name = "ROWS")]
    pub max_batch: usize,

    /// How long finished tasks are kept.
    #[arg(long, env = "MILLRACE_RETENTION", default_value = "7d", value_parser = duration, value_name = "DURATION")]
    pub retention: Duration,

    /// How long a request_id makes repeats harmless.
    #[arg(long, env = "MILLRACE_REQUEST_RETENTION", default_value = "24h", value_parser = duration, value_name = "DURATION")]
    pub request_retention: Duration,

    /// How long an assignment may go unacknowledged before it is sent again.
    #[arg(long, env = "MILLRACE_ACCEPT_PATIENCE", default_value = "5s", value_parser = duration, value_name = "DURATION")]
    pub accept_patience: Duration,

    /// How long a write is tried again while the database does not answer, before the caller is told.
    #[arg(long, env = "MILLRACE_WRITE_PATIENCE", default_value = "5s", value_parser = duration, value_name = "DURATION")]
    pub write_patience: Duration,

    /// Most orchestrators connected to this replica.
    #[arg(long, env = "MILLRACE_MAX_SESSIONS", default_value_t = 10_000, value_name = "COUNT")]
    pub max_sessions: usize,

    /// Most calls of WatchTask on this replica.
    #[arg(long, env = "MILLRACE_MAX_WATCHERS", default_value_t = 2_000, value_name = "COUNT")]
    pub max_watchers: usize,

    /// Live output kept in memory for late watchers, over all tasks, in bytes.
    #[arg(long, env = "MILLRACE_OUTPUT_BYTES", default_value_t = 64 * 1024 * 1024, value_name = "BYTES")]
    pub output_bytes: usize,

    /// Rows that are released from quarantine each second, over all replicas, when a new build can read them; 0 releases none by
    /// itself.
    #[arg(long, env = "MILLRACE_QUARANTINE_RELEASE_RATE", default_value_t = 100, value_name = "ROWS")]
    pub quarantine_release_rate: u32,

    /// How long orchestrators get to move to another replica when this one stops.
    #[arg(long, env = "MILLRACE_LEAVE_GRACE", default_value = "2s", value_parser = duration, value_name = "DURATION")]
    pub leave_grace: Duration,
}

impl Settings {
    /// Says what contradicts itself.
    pub fn check(&self) -> Result<(), String> {
        // A message of assignments is full at 1 MiB, and may hold one spec more.
        if self.max_spec_bytes.saturating_add(2 * 1024 * 1024) > self.max_message_bytes {
            return Err("max-message-bytes must exceed max-spec-bytes by at least 2 MiB".into());
        }
        if self.max_batch == 0 || self.max_batch > 10_000 {
            return Err("max-batch must lie between 1 and 10000".into());
        }
        if self.max_pending_submissions == 0 || self.max_sessions == 0 {
            return Err("max-pending-submissions and max-sessions must be at least 1".into());
        }
        if self.max_pending_tasks == 0 || self.max_pending_bytes == 0 {
            return Err("max-pending-tasks and max-pending-bytes must be at least 1".into());
        }
        if self.retention < Duration::from_secs(60) {
            return Err("retention must be at least 60s".into());
        }
        Ok(())
    }
}
