//! The executor of commands.

use std::{
    collections::BTreeMap,
    io,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::BoxFuture;
use millrace_proto::common::v1::{Command, OutcomeKind, TaskSpec, task_spec::Payload};
use tempfile::TempDir;

use super::{
    process::{Finished, Launch, Patience, Process},
    shell,
};
use crate::{AttemptHandle, Executor, Outcome};

/// Where programs are looked for when the agent itself has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A machine that is out of processes or files keeps an attempt for this long before it hands it back, so that it does
/// not draw the whole queue through itself.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of a health command's output that are shown.
const HEALTH_OUTPUT_BYTES: usize = 512;

/// How commands are run.
#[derive(Debug, Clone)]
pub struct ProcessOptions {
    /// The `executor` names in specs that are served; the first is the executor's own name.
    pub executors: Vec<String>,
    /// Between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// How long processes that a command left in the background may hold its output open before they are killed.
    pub linger: Duration,
    /// A shell command that succeeds while the machine is fit for work.
    pub health_command: Option<String>,
}

impl Default for ProcessOptions {
    fn default() -> Self {
        Self {
            executors: vec!["process".into()],
            kill_grace: Duration::from_secs(10),
            linger: Duration::from_secs(2),
            health_command: None,
        }
    }
}

/// Runs `Command` payloads as processes.
#[derive(Debug)]
pub struct ProcessExecutor {
    options: ProcessOptions,
}

impl ProcessExecutor {
    /// An executor with these options.
    pub fn new(options: ProcessOptions) -> Self {
        Self { options }
    }

    fn patience(&self) -> Patience {
        Patience { kill_grace: self.options.kill_grace, linger: self.options.linger }
    }

    async fn execute(&self, attempt: AttemptHandle) -> Outcome {
        let Some(Payload::Command(command)) = &attempt.spec.payload else {
            return Outcome::unsupported("the payload is not a command");
        };
        let dir = match WorkingDir::prepare(&command.working_dir) {
            Ok(dir) => dir,
            Err(failure) => return failure.into_outcome().await,
        };
        let outcome = self.execute_in(dir.path(), command, &attempt).await;
        dir.remove().await;
        outcome
    }

    async fn execute_in(&self, dir: &Path, command: &Command, attempt: &AttemptHandle) -> Outcome {
        let env = environment(dir, command, attempt);
        let launch = Launch { argv: &command.argv, env: &env, dir, stdin: command.stdin.clone() };
        let process = match Process::start(launch).await {
            Ok(process) => process,
            Err(error) => return StartFailure::of_program(command, &error).into_outcome().await,
        };
        let output = |stream, bytes: &[u8]| attempt.progress(stream, bytes);
        match process.finish(attempt.cancelled(), self.patience(), output).await {
            Ok(finished) => outcome(&finished),
            Err(error) => Outcome::failed(format!("the process cannot be waited for: {error}")),
        }
    }

    async fn check_machine(&self) -> Result<(), String> {
        let Some(command) = &self.options.health_command else { return Ok(()) };
        let process =
            shell::start(command).await.map_err(|error| format!("the health command cannot be started: {error}"))?;
        let mut shown = Vec::new();
        let show = |_, bytes: &[u8]| {
            let room = HEALTH_OUTPUT_BYTES.saturating_sub(shown.len()).min(bytes.len());
            shown.extend_from_slice(&bytes[..room]);
        };
        // The library bounds the time and drops this future, which kills the command's group.
        let finished = process.finish(std::future::pending(), self.patience(), show).await;
        match finished {
            Ok(finished) if finished.status.success() => Ok(()),
            Ok(finished) => {
                let shown = String::from_utf8_lossy(&shown);
                Err(format!("the health command failed ({}): {}", finished.status, shown.trim()))
            }
            Err(error) => Err(format!("the health command cannot be waited for: {error}")),
        }
    }
}

impl Executor for ProcessExecutor {
    fn name(&self) -> &str {
        self.options.executors.first().map_or("process", String::as_str)
    }

    fn supports(&self, spec: &TaskSpec) -> Result<(), String> {
        if !self.options.executors.contains(&spec.executor) {
            let served = self.options.executors.join(", ");
            return Err(format!("this agent runs tasks for {served}, not for `{}`", spec.executor));
        }
        match &spec.payload {
            Some(Payload::Command(_)) => Ok(()),
            Some(Payload::Custom(any)) => Err(format!("this agent runs commands, not `{}`", any.type_url)),
            None => Err("the spec holds no payload".into()),
        }
    }

    fn run(&self, attempt: AttemptHandle) -> BoxFuture<'_, Outcome> {
        Box::pin(self.execute(attempt))
    }

    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.check_machine())
    }
}

/// The whole environment of a command: a few variables that programs expect, and what the spec sets.
fn environment(dir: &Path, command: &Command, attempt: &AttemptHandle) -> BTreeMap<String, String> {
    let own = |key, default: &str| (key, std::env::var(key).unwrap_or_else(|_| default.to_owned()));
    let mut env = BTreeMap::from([
        own("PATH", DEFAULT_PATH),
        own("HOME", &dir.to_string_lossy()),
        own("LANG", "C.UTF-8"),
        ("MILLRACE_TASK_ID", attempt.task_id.to_string()),
        ("MILLRACE_ATTEMPT", attempt.attempt.to_string()),
    ]);
    if !attempt.traceparent.is_empty() {
        env.insert("TRACEPARENT", attempt.traceparent.clone());
    }
    let mut env: BTreeMap<String, String> = env.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    env.extend(command.env.clone());
    env
}

fn outcome(finished: &Finished) -> Outcome {
    let (code, signal) = (finished.status.code(), finished.status.signal());
    let mut outcome = match (finished.stopped, code, signal) {
        (Some(stop), _, _) => Outcome::stopped(stop.reason),
        (None, Some(0), _) => Outcome::succeeded(),
        (None, Some(code), _) => Outcome::failed(format!("exit code {code}")),
        (None, None, Some(signal)) => Outcome::failed(format!("killed by signal {signal}")),
        (None, None, None) => Outcome::failed(finished.status.to_string()),
    };
    (outcome.exit_code, outcome.signal) = (code, signal);
    outcome
}

/// Why a command was not started.
struct StartFailure {
    message: String,
    /// Whether the machine is short of something, which is not the task's failure.
    shortage: bool,
}

impl StartFailure {
    fn of_program(command: &Command, error: &io::Error) -> Self {
        let program = command.argv.first().map_or("", String::as_str);
        let message = match error.kind() {
            io::ErrorKind::NotFound => format!("no such program: `{program}`"),
            io::ErrorKind::PermissionDenied => format!("program `{program}` may not be executed: {error}"),
            _ => format!("program `{program}` cannot be started: {error}"),
        };
        Self { message, shortage: is_shortage(error) }
    }

    async fn into_outcome(self) -> Outcome {
        if !self.shortage {
            return Outcome::not_started(self.message);
        }
        tracing::error!(problem = %self.message, "machine is short of resources; handing the attempt back");
        tokio::time::sleep(SHORTAGE_PAUSE).await;
        Outcome::new(OutcomeKind::HandedBack, self.message)
    }
}

fn is_shortage(error: &io::Error) -> bool {
    let codes = [libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::ENOSPC, libc::EDQUOT, libc::EROFS];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Where a command runs.
enum WorkingDir {
    Given(PathBuf),
    Fresh(TempDir),
}

impl WorkingDir {
    fn prepare(wanted: &str) -> Result<Self, StartFailure> {
        if wanted.is_empty() {
            let fresh = tempfile::Builder::new().prefix("millrace-").tempdir();
            return fresh.map(Self::Fresh).map_err(|error| StartFailure {
                message: format!("no temporary directory can be made: {error}"),
                shortage: true,
            });
        }
        // Looked at first, because a failed start does not tell a missing directory from a missing program.
        let problem = match std::fs::metadata(wanted) {
            Ok(metadata) if metadata.is_dir() => return Ok(Self::Given(wanted.into())),
            Ok(_) => "is not a directory".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => "does not exist".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(StartFailure { message: format!("working directory `{wanted}`: {problem}"), shortage: false })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Fresh(dir) => dir.path(),
        }
    }

    /// Removes a fresh directory, off the runtime's threads since it may hold much.
    async fn remove(self) {
        let Self::Fresh(dir) = self else { return };
        let path = dir.path().to_owned();
        let removal = tokio::task::spawn_blocking(move || {
            // Some tools write-protect directories that they made, which then cannot be emptied.
            std::fs::remove_dir_all(dir.path()).or_else(|_| {
                open_up(dir.path())?;
                dir.close()
            })
        });
        match removal.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(path = %path.display(), %error, "temporary directory cannot be removed"),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "removal of a temporary directory was cut short")
            }
        }
    }
}

/// Makes every directory under this one writable for us. Links are not followed.
fn open_up(dir: &Path) -> io::Result<()> {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}
