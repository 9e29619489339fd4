//! An executor that starts real processes, as the agent does, and notes the moment at which each start returned.

use std::{collections::BTreeMap, process::Stdio, sync::Mutex, time::Instant};

use futures::future::BoxFuture;
use millrace_orchestrator::{AttemptHandle, Executor, Outcome, Payload};
use tokio::process::Command;

use crate::payload;

/// Starts the command of each attempt in a fresh directory, a process group of its own and a clean environment with its output
/// piped, which is what the agent does, and waits for its end.
#[derive(Debug, Default)]
pub(crate) struct Spawning {
    /// The number that a spec carries, and when its process had been started.
    started: Mutex<Vec<(u64, Instant)>>,
}

impl Spawning {
    /// The starts noted so far.
    pub(crate) fn started(&self) -> Vec<(u64, Instant)> {
        self.started.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// How many starts were noted.
    pub(crate) fn count(&self) -> usize {
        self.started.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).len()
    }

    async fn execute(&self, attempt: AttemptHandle) -> std::io::Result<Outcome> {
        let Some(Payload::Command(command)) = &attempt.spec.payload else {
            return Ok(Outcome::unsupported("the payload is not a command"));
        };
        let Some((program, arguments)) = command.argv.split_first() else {
            return Ok(Outcome::not_started("the command is empty"));
        };
        let folder = tempfile::tempdir()?;
        let own = [("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8")].map(|(key, value)| (key.into(), value.into()));
        let mut env: BTreeMap<String, String> = BTreeMap::from(own);
        env.insert("HOME".into(), folder.path().to_string_lossy().into_owned());
        env.insert("MILLRACE_TASK_ID".into(), attempt.task_id.to_string());
        env.extend(command.env.clone());
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(&env)
            .current_dir(folder.path())
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let now = Instant::now();
        if let Some(number) = payload::number(&attempt.spec) {
            self.started.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((number, now));
        }
        let status = child.wait().await?;
        match status.success() {
            true => Ok(Outcome::succeeded()),
            false => Ok(Outcome::failed(status.to_string())),
        }
    }
}

impl Executor for Spawning {
    fn name(&self) -> &str {
        "process"
    }

    fn run(&self, attempt: AttemptHandle) -> BoxFuture<'_, Outcome> {
        Box::pin(
            async move { self.execute(attempt).await.unwrap_or_else(|error| Outcome::not_started(error.to_string())) },
        )
    }
}
