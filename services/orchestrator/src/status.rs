//! What an orchestrator says about itself to the program around it.

/// A snapshot, for health pages and tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The replica that it is connected to; none while it is not.
    pub endpoint: Option<String>,
    /// The session's id; none before the first, and after one is gone.
    pub session_id: Option<String>,
    /// Attempts that run.
    pub running: usize,
    /// Results that are not recorded yet.
    pub undelivered: usize,
    /// Why no work is asked for at present, if it is not.
    pub closed: Option<String>,
}
