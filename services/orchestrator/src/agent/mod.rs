//! The ready agent: runs `Command` payloads as processes on the machine it is on.
//!
//! Each command gets a process group of its own, a clean environment (PATH, HOME, LANG, TRACEPARENT, MILLRACE_TASK_ID and
//! MILLRACE_ATTEMPT beside what the spec sets), and a fresh directory when the spec names none. Its output is streamed
//! while it runs. When it has to stop, its group gets SIGTERM, and SIGKILL after the grace; whatever it leaves behind in
//! its group is killed when it ends.
//!
//! An agent that is killed itself takes its commands with it, group by group: see `warden` and `spawner`. What has left its
//! group (setsid) goes on. With a state directory the next start closes the old session, so that the tasks are retried
//! without waiting for the lease.
//!
//! On a node of a pool the agent also speaks to the scaler that asked for the node, from the start of its boot: see `attach`.
//! A scaler that is away changes nothing.

mod attach;
mod boot;
mod executor;
mod group;
mod node;
mod process;
#[cfg(test)]
mod process_tests;
mod settings;
mod shell;
mod spawner;
mod spot;
mod warden;
mod work;

use std::{fs, io, path::PathBuf, sync::Arc};

use tokio_util::sync::CancellationToken;

pub use boot::BootError;
pub use executor::{ProcessExecutor, ProcessOptions};
pub use node::NodeSettings;
pub use settings::Settings;

use crate::{InvalidOptions, RunError, TcpConnect};

/// Why the agent did not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A setting is out of its bounds.
    #[error(transparent)]
    Settings(#[from] InvalidOptions),
    /// The state directory cannot be used.
    #[error("state directory {}: {source}", path.display())]
    StateDir {
        /// The directory, or the file in it.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Another agent works with the same state directory: each would close the other's session.
    #[error("state directory {} is in use by another agent", .0.display())]
    StateDirInUse(PathBuf),
    /// The machine could not be made fit for work.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The orchestrator did not run.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Runs the agent until `shutdown`, and then until it has drained. On a node it also ends, once nothing runs, when the scaler
/// says that the node is not on its books.
///
/// # Errors
/// Invalid settings, a state directory that cannot be used, a boot command that fails, and a service that refuses this agent's
/// first Hello.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> Result<(), AgentError> {
    settings.check()?;
    let mut options = settings.options();
    let mut _lock = None;
    if let Some(dir) = &settings.state_dir {
        _lock = Some(lock(dir)?);
        options.previous_session_file = Some(dir.join("session"));
    }
    tracing::info!(name = %options.name, queues = ?options.queues, slots = options.slots, "agent starts");
    work::run(&settings, options, shutdown, Arc::new(TcpConnect)).await
}

/// Held for as long as the agent runs; the system lets go of it when the process ends, however that happens.
fn lock(dir: &PathBuf) -> Result<fs::File, AgentError> {
    let path = dir.join("lock");
    let failed = |path: &PathBuf| {
        let path = path.clone();
        move |source| AgentError::StateDir { path, source }
    };
    fs::create_dir_all(dir).map_err(failed(dir))?;
    let file = fs::File::create(&path).map_err(failed(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(AgentError::StateDirInUse(dir.clone())),
        Err(fs::TryLockError::Error(source)) => Err(failed(&path)(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r2_one_state_directory_serves_one_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(AgentError::StateDirInUse(_))));
        drop(first);
        assert!(lock(&path).is_ok());
    }
}
