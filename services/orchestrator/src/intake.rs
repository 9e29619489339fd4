//! The intake of an orchestrator, as the program around it closes and opens it.

use tokio::sync::watch;

/// Closes and opens the intake of an orchestrator. Clones are the same intake. While it is closed no work is asked for, what is
/// assigned all the same is handed back, and what runs goes on.
#[derive(Debug, Clone)]
pub struct Intake(watch::Sender<Option<String>>);

impl Default for Intake {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Intake {
    /// Closes it; the reason is a sentence for people. Of several the newest counts.
    pub fn close(&self, reason: &str) {
        self.set(Some(reason.to_owned()));
    }

    /// Opens it. The executor's health and a shutdown count as before.
    pub fn open(&self) {
        self.set(None);
    }

    fn set(&self, reason: Option<String>) {
        self.0.send_if_modified(|current| {
            let news = *current != reason;
            *current = reason;
            news
        });
    }

    /// The orchestrator's end of it.
    pub(crate) fn valve(&self) -> Valve {
        Valve { _intake: self.clone(), reason: self.0.subscribe() }
    }
}

/// The orchestrator's end of an intake.
#[derive(Debug)]
pub(crate) struct Valve {
    /// Keeps the channel open though the program around it has let go of its end.
    _intake: Intake,
    reason: watch::Receiver<Option<String>>,
}

impl Valve {
    /// Resolves when it was closed or opened.
    pub(crate) async fn changed(&mut self) {
        if self.reason.changed().await.is_err() {
            // The other end is held here, so this is not reached.
            std::future::pending::<()>().await;
        }
    }

    /// Why it is closed; none while it is open.
    pub(crate) fn reason(&self) -> Option<String> {
        self.reason.borrow().clone()
    }
}
