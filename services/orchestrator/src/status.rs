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
    /// Whether the executor is fit for work, or why not; none before it was asked for the first time.
    pub fitness: Option<Result<(), String>>,
}

/// What is so now, borrowed: it is looked at in every turn of the loop and has seldom changed.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) endpoint: Option<&'a String>,
    pub(crate) session_id: Option<&'a String>,
    pub(crate) running: usize,
    pub(crate) undelivered: usize,
    pub(crate) closed: Option<&'a String>,
    pub(crate) fitness: &'a Option<Result<(), String>>,
}

impl Seen<'_> {
    /// Brings the snapshot up to date, and tells whether it was not.
    pub(crate) fn update(&self, status: &mut Status) -> bool {
        let same = (status.running, status.undelivered) == (self.running, self.undelivered)
            && status.endpoint.as_ref() == self.endpoint
            && status.session_id.as_ref() == self.session_id
            && status.closed.as_ref() == self.closed
            && status.fitness == *self.fitness;
        if !same {
            *status = Status {
                endpoint: self.endpoint.cloned(),
                session_id: self.session_id.cloned(),
                running: self.running,
                undelivered: self.undelivered,
                closed: self.closed.cloned(),
                fitness: self.fitness.clone(),
            };
        }
        !same
    }
}
