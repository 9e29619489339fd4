//! One process from start to end, with everything it leaves behind.

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use bytes::Bytes;
use millrace_proto::common::v1::OutputStream;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::{Instant, sleep_until},
};

use super::{
    group::{Group, Signal},
    spawner,
};
use crate::Stop;

/// Bytes read at a time, from each stream.
const READ_BYTES: usize = 16 * 1024;

/// What to start.
pub(crate) struct Launch<'a> {
    pub(crate) argv: &'a [String],
    /// The whole environment.
    pub(crate) env: &'a BTreeMap<String, String>,
    pub(crate) dir: &'a Path,
    pub(crate) stdin: Bytes,
}

/// How patient to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Between SIGTERM and SIGKILL.
    pub(crate) kill_grace: Duration,
    /// How long processes in the background may keep the output open once the main one has ended.
    pub(crate) linger: Duration,
}

/// A process that was started, in a group of its own.
pub(crate) struct Process {
    child: Child,
    group: Group,
    stdin: Option<(ChildStdin, Bytes)>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    /// The order to stop that came before the end.
    pub(crate) stopped: Option<Stop>,
}

impl Process {
    /// Starts it. The environment is exactly the one given.
    pub(crate) async fn start(launch: Launch<'_>) -> io::Result<Self> {
        let (program, arguments) = launch.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(launch.env)
            .current_dir(launch.dir)
            .stdin(if launch.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (mut child, group) = spawner::spawn(command).await?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let stdin = child.stdin.take().map(|pipe| (pipe, launch.stdin));
        Ok(Self { child, group, stdin, stdout, stderr })
    }

    /// Sees it to its end: feeds its input, hands its output to `output` as it comes, and obeys `stop`. Everything that
    /// was written before the end is read; dropping the future kills the group.
    pub(crate) async fn finish(
        mut self,
        stop: impl Future<Output = Stop>,
        patience: Patience,
        mut output: impl FnMut(OutputStream, &[u8]),
    ) -> io::Result<Finished> {
        let feed = feed(self.stdin.take());
        tokio::pin!(feed, stop);
        let (mut fed, mut stopped, mut exited) = (false, None, None);
        let (mut out_bytes, mut err_bytes) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
        // When the next push follows: SIGKILL after SIGTERM, or after the main process has ended.
        let (mut kill_at, mut abandon_at) = (None, None);
        loop {
            if let Some(status) = exited
                && self.stdout.is_none()
                && self.stderr.is_none()
            {
                return Ok(Finished { status, stopped });
            }
            tokio::select! {
                read = read(&mut self.stdout, &mut out_bytes) => match read {
                    0 => self.stdout = None,
                    count => output(OutputStream::Stdout, &out_bytes[..count]),
                },
                read = read(&mut self.stderr, &mut err_bytes) => match read {
                    0 => self.stderr = None,
                    count => output(OutputStream::Stderr, &err_bytes[..count]),
                },
                status = self.child.wait(), if exited.is_none() => {
                    exited = Some(status?);
                    kill_at = Some(Instant::now() + patience.linger);
                }
                () = &mut feed, if !fed => fed = true,
                order = &mut stop, if stopped.is_none() && exited.is_none() => {
                    stopped = Some(order);
                    self.group.signal(Signal::Term);
                    let grace_end = Instant::now() + patience.kill_grace;
                    kill_at = Some(order.deadline.map_or(grace_end, |deadline| deadline.min(grace_end)));
                }
                () = at(kill_at) => {
                    self.group.signal(Signal::Kill);
                    kill_at = None;
                    // With its group dead only a process that left the group can still hold the pipes.
                    abandon_at = exited.is_some().then(|| Instant::now() + patience.linger);
                }
                () = at(abandon_at) => {
                    self.stdout = None;
                    self.stderr = None;
                    abandon_at = None;
                }
            }
        }
    }
}

/// Writes the input and closes it. A process that ends, or closes its input, without reading it is none of our business.
async fn feed(stdin: Option<(ChildStdin, Bytes)>) {
    if let Some((mut pipe, bytes)) = stdin {
        let _ = pipe.write_all(&bytes).await;
    }
}

/// Reads once; 0 at the end, and also when the stream fails, after which nothing can come. Never resolves without a
/// stream. Dropping the future loses nothing.
async fn read(stream: &mut Option<impl AsyncRead + Unpin>, bytes: &mut [u8]) -> usize {
    match stream {
        Some(stream) => stream.read(bytes).await.unwrap_or(0),
        None => pending().await,
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}
