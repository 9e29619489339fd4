//! Follows a task until it ends, over lost connections and restarts of the service, and prints what it writes.

use std::io::Write;

use millrace_proto::common::v1::{OutputChunk, OutputStream};
use millrace_proto::distributor::v1::watch_task_response::Event;
use millrace_proto::distributor::v1::{Task, TaskOutput, WatchTaskRequest, WatchTaskResponse};

use super::outcome::is_over;
use crate::client::{Backoff, Client};
use crate::exit::Failure;
use crate::output::count;
use crate::status;

/// What is done with each event.
pub(crate) type OnEvent<'a> = &'a mut (dyn FnMut(&WatchTaskResponse) -> Result<(), Failure> + Send);

/// What to follow, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Following<'a> {
    /// The task.
    pub(crate) id: &'a str,
    /// Only its states.
    pub(crate) without_output: bool,
    /// Says nothing about a service that is away.
    pub(crate) quietly: bool,
    /// Whether the service has acknowledged it to this very process. If not, a service that gives no answer at all may
    /// never have known it.
    pub(crate) known: bool,
}

/// Follows a task and gives it as it stands at its end. While the service is away the watch is opened again and again,
/// without end: the task goes on meanwhile, and its end will be known.
pub(crate) async fn follow(client: &Client, following: Following<'_>, on_event: OnEvent<'_>) -> Result<Task, Failure> {
    let Following { id, quietly, .. } = following;
    let mut state = State { known: following.known, ..State::default() };
    loop {
        let asked = match watch_once(client, following, on_event, &mut state).await? {
            Watch::Over(task) => return Ok(*task),
            Watch::Broken(asked) => asked,
        };
        if !state.away && !quietly && asked.is_some() {
            eprintln!("millrace: the watch of task {id} broke off; the task goes on, reconnecting");
        }
        state.away |= asked.is_some();
        let delay = state.backoff.next(asked.flatten()).unwrap_or(std::time::Duration::from_secs(5));
        tokio::time::sleep(delay).await;
    }
}

/// What one watch leaves to the next.
#[derive(Debug, Default)]
struct State {
    backoff: Backoff,
    /// Whether the last watch ended with an error.
    away: bool,
    /// Whether the task is known to be there.
    known: bool,
}

/// How one stream ended.
enum Watch {
    /// With the task's end.
    Over(Box<Task>),
    /// Before that: with an error that may pass and perhaps the wait that it asked for, or without one, as a replica
    /// that drains ends it.
    Broken(Option<Option<std::time::Duration>>),
}

/// Opens the watch once and reads it to its end.
async fn watch_once(
    client: &Client,
    following: Following<'_>,
    on_event: OnEvent<'_>,
    state: &mut State,
) -> Result<Watch, Failure> {
    let request = WatchTaskRequest { id: following.id.to_owned(), without_output: following.without_output };
    let opened = client.open(|| {
        let (mut calls, request) = (client.distributor(), request.clone());
        async move { calls.watch_task(request).await }
    });
    let mut stream = match opened.await {
        Ok(stream) => stream,
        Err(status) if !state.known && status.code() == tonic::Code::DeadlineExceeded => {
            return Err(client.failure(&status));
        }
        Err(status) => return broken(client, &status),
    };
    let at = client.at();
    loop {
        let event = match stream.message().await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(Watch::Broken(None)),
            Err(status) => {
                client.turn(at, &status);
                return broken(client, &status);
            }
        };
        *state = State { known: true, ..State::default() };
        on_event(&event)?;
        if let Some(Event::Task(task)) = event.event
            && is_over(&task)
        {
            return Ok(Watch::Over(Box::new(task)));
        }
    }
}

/// What a status at the end of a watch means.
fn broken(client: &Client, status: &tonic::Status) -> Result<Watch, Failure> {
    match may_pass(status) {
        true => Ok(Watch::Broken(Some(status::retry_delay(status)))),
        false => Err(client.failure(status)),
    }
}

/// Whether a broken watch is worth opening again. A stream may also be cut by a reset, which reads CANCELLED.
fn may_pass(status: &tonic::Status) -> bool {
    status::is_transient(status) || status.code() == tonic::Code::Cancelled
}

/// Where in the output of which attempt the reader is. After a new connection chunks may come again, and some may never
/// come.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The attempt that is read.
    attempt: i32,
    /// Bytes of its output that were printed or known to be lost.
    next: u64,
}

/// What to do with a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Bytes that are missing before it.
    pub(crate) gap: u64,
    /// Bytes at its start that were printed before.
    pub(crate) skip: usize,
}

impl Cursor {
    /// Takes a chunk in. None when all of it is known, or when it is of an attempt that was given up.
    pub(crate) fn take(&mut self, attempt: i32, offset: u64, length: usize) -> Option<Piece> {
        if attempt < self.attempt {
            return None;
        }
        if attempt > self.attempt {
            *self = Cursor { attempt, next: 0 };
        }
        let end = offset.saturating_add(length as u64);
        if end <= self.next {
            return None;
        }
        let gap = offset.saturating_sub(self.next);
        // Less than the length, as the chunk ends after `next`.
        let skip = usize::try_from(self.next.saturating_sub(offset)).unwrap_or(length);
        self.next = end;
        Some(Piece { gap, skip })
    }
}

/// Prints output as it comes: what the command wrote to its standard output here to standard output, its errors to
/// standard error.
#[derive(Debug, Default)]
pub(crate) struct Printer {
    cursor: Cursor,
}

impl Printer {
    /// Prints a chunk, without what was printed before, and says what is missing.
    pub(crate) fn output(&mut self, output: &TaskOutput) -> Result<(), Failure> {
        let Some(OutputChunk { stream, offset, data }) = &output.chunk else { return Ok(()) };
        let Some(piece) = self.cursor.take(output.attempt, *offset, data.len()) else { return Ok(()) };
        note_gap(piece.gap);
        let bytes = &data[piece.skip.min(data.len())..];
        match OutputStream::try_from(*stream) {
            Ok(OutputStream::Stderr) => write_now(&mut std::io::stderr().lock(), bytes),
            _ => write_now(&mut std::io::stdout().lock(), bytes),
        }
    }

    /// Prints what the live stream did not bring before the task ended, as far as the kept tail reaches back. The tail
    /// has both of the command's streams in one and does not tell them apart: it goes to standard output.
    pub(crate) fn rest(&mut self, task: &Task) -> Result<(), Failure> {
        let Some(outcome) = &task.outcome else { return Ok(()) };
        let start = outcome.output_bytes.saturating_sub(outcome.output_tail.len() as u64);
        let Some(piece) = self.cursor.take(task.attempt, start, outcome.output_tail.len()) else { return Ok(()) };
        note_gap(piece.gap);
        let bytes = &outcome.output_tail[piece.skip.min(outcome.output_tail.len())..];
        write_now(&mut std::io::stdout().lock(), bytes)
    }
}

fn note_gap(bytes: u64) {
    if bytes > 0 {
        eprintln!("[{} dropped]", count(bytes, "byte"));
    }
}

fn write_now(out: &mut dyn Write, bytes: &[u8]) -> Result<(), Failure> {
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_in_order_passes_through() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.take(1, 0, 5), Some(Piece { gap: 0, skip: 0 }));
        assert_eq!(cursor.take(1, 5, 5), Some(Piece { gap: 0, skip: 0 }));
    }

    #[test]
    fn repeats_are_dropped_and_overlaps_cut() {
        let mut cursor = Cursor { attempt: 1, next: 10 };
        assert_eq!(cursor.take(1, 0, 10), None);
        assert_eq!(cursor.take(1, 5, 0), None);
        assert_eq!(cursor.take(1, 6, 10), Some(Piece { gap: 0, skip: 4 }));
        assert_eq!(cursor.next, 16);
    }

    #[test]
    fn gaps_are_counted_once() {
        let mut cursor = Cursor { attempt: 1, next: 10 };
        assert_eq!(cursor.take(1, 30, 5), Some(Piece { gap: 20, skip: 0 }));
        assert_eq!(cursor.take(1, 35, 5), Some(Piece { gap: 0, skip: 0 }));
        // What was called dropped is not printed late, out of its order.
        assert_eq!(cursor.take(1, 10, 20), None);
    }

    #[test]
    fn a_new_attempt_starts_anew_and_an_old_one_is_over() {
        let mut cursor = Cursor { attempt: 1, next: 10 };
        assert_eq!(cursor.take(2, 0, 3), Some(Piece { gap: 0, skip: 0 }));
        assert_eq!(cursor.take(1, 10, 5), None);
        assert_eq!(cursor, Cursor { attempt: 2, next: 3 });
    }

    #[test]
    fn absurd_offsets_do_no_harm() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.take(1, u64::MAX, 9), Some(Piece { gap: u64::MAX, skip: 0 }));
        assert_eq!(cursor.take(1, u64::MAX - 3, 9), None);
    }
}
