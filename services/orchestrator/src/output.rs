//! Live output: a bounded ring for each attempt, and the list of rings that have news.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use millrace_proto::common::v1::{OutputChunk, OutputStream};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::book::LocalId;

/// The largest chunk that the contract permits, in bytes.
const MAX_CHUNK_BYTES: usize = 64 * 1024;

/// The newest bytes of one attempt's output. When it is full the oldest bytes are overwritten, sent or not; readers see
/// that as a gap in the offsets. What was sent is kept as well, to be sent again after a reconnect.
#[derive(Debug)]
pub(crate) struct Ring {
    capacity: usize,
    data: VecDeque<u8>,
    /// Which stream the bytes of `data` came from, in order. At most one run per byte.
    runs: VecDeque<Run>,
    /// Bytes ever pushed.
    end: u64,
    /// Everything before this offset was taken.
    taken: u64,
    sealed: bool,
}

#[derive(Debug)]
struct Run {
    stream: OutputStream,
    len: usize,
}

impl Ring {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, data: VecDeque::new(), runs: VecDeque::new(), end: 0, taken: 0, sealed: false }
    }

    /// Bytes ever pushed.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The attempt has ended: what something it left behind still writes is not its output any more.
    pub(crate) fn seal(&mut self) {
        self.sealed = true;
    }

    pub(crate) fn push(&mut self, stream: OutputStream, bytes: &[u8]) {
        if self.sealed {
            return;
        }
        self.end += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(self.capacity)..];
        if bytes.is_empty() {
            return;
        }
        self.forget((self.data.len() + bytes.len()).saturating_sub(self.capacity));
        self.data.extend(bytes);
        match self.runs.back_mut() {
            Some(run) if run.stream == stream => run.len += bytes.len(),
            _ => self.runs.push_back(Run { stream, len: bytes.len() }),
        }
    }

    /// Whether there are bytes that were not taken yet.
    pub(crate) fn has_news(&self) -> bool {
        self.taken < self.end && !self.data.is_empty()
    }

    /// Takes bytes that were not taken yet, oldest first: about `limit` of them, in chunks of at most 64 KiB.
    pub(crate) fn take(&mut self, limit: usize) -> Vec<OutputChunk> {
        let start = self.end - self.data.len() as u64;
        let mut from = (self.taken.max(start) - start) as usize;
        let stop = self.data.len().min(from.saturating_add(limit));
        let (mut chunks, mut run_start) = (Vec::new(), 0);
        for run in &self.runs {
            let run_end = (run_start + run.len).min(stop);
            while from < run_end {
                let to = run_end.min(from + MAX_CHUNK_BYTES);
                let data = self.copy(from, to);
                chunks.push(OutputChunk { stream: run.stream as i32, offset: start + from as u64, data });
                from = to;
            }
            run_start += run.len;
        }
        self.taken = start + stop as u64;
        chunks
    }

    /// Makes everything still here news again, because the stream that took it is gone.
    pub(crate) fn rewind(&mut self) {
        self.taken = 0;
    }

    /// The last `limit` bytes, or fewer when there are fewer.
    pub(crate) fn tail(&self, limit: usize) -> Bytes {
        self.copy(self.data.len().saturating_sub(limit), self.data.len())
    }

    fn forget(&mut self, mut bytes: usize) {
        self.data.drain(..bytes);
        while bytes > 0 {
            let Some(run) = self.runs.front_mut() else { return };
            let part = run.len.min(bytes);
            run.len -= part;
            bytes -= part;
            if run.len == 0 {
                self.runs.pop_front();
            }
        }
    }

    fn copy(&self, from: usize, to: usize) -> Bytes {
        let (front, back) = self.data.as_slices();
        let within = |slice: &[u8], base: usize| -> (usize, usize) {
            (from.saturating_sub(base).min(slice.len()), to.saturating_sub(base).min(slice.len()))
        };
        let ((a, b), (c, d)) = (within(front, 0), within(back, front.len()));
        [&front[a..b], &back[c..d]].concat().into()
    }
}

/// Tells the connection's loop which attempts have output to send. The list is bounded by the attempts that run, since
/// each enters it once until it is looked at.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    dirty: Mutex<Vec<(Uuid, LocalId)>>,
    pub(crate) notify: Notify,
}

impl Signals {
    pub(crate) fn mark(&self, task: Uuid, local: LocalId) {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner).push((task, local));
        self.notify.notify_one();
    }

    pub(crate) fn drain(&self) -> Vec<(Uuid, LocalId)> {
        std::mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use OutputStream::{Stderr, Stdout};

    fn text(chunks: &[OutputChunk]) -> Vec<(u64, i32, String)> {
        chunks.iter().map(|c| (c.offset, c.stream, String::from_utf8_lossy(&c.data).into_owned())).collect()
    }

    #[test]
    fn chunks_keep_streams_apart_and_offsets_count_both() {
        let mut ring = Ring::new(100);
        ring.push(Stdout, b"ab");
        ring.push(Stdout, b"c");
        ring.push(Stderr, b"E");
        ring.push(Stdout, b"d");
        let expected = [(0, 1, "abc".into()), (3, 2, "E".into()), (4, 1, "d".into())];
        assert_eq!(text(&ring.take(1000)), expected);
        assert!(!ring.has_news());
        ring.push(Stdout, b"ef");
        assert_eq!(text(&ring.take(1000)), [(5, 1, "ef".into())]);
        ring.rewind();
        assert_eq!(text(&ring.take(1000)), [expected[0].clone(), expected[1].clone(), (4, 1, "def".into())]);
    }

    #[test]
    fn what_was_overwritten_shows_as_a_gap() {
        let mut ring = Ring::new(4);
        ring.push(Stdout, b"abc");
        assert_eq!(text(&ring.take(2)), [(0, 1, "ab".into())]);
        ring.push(Stderr, b"12345678");
        assert_eq!(text(&ring.take(1000)), [(7, 2, "5678".into())]);
        ring.push(Stdout, b"x");
        assert_eq!((ring.tail(2), ring.tail(9), ring.end()), (Bytes::from("8x"), Bytes::from("678x"), 12));
        ring.rewind();
        assert_eq!(text(&ring.take(1000)), [(8, 2, "678".into()), (11, 1, "x".into())]);
    }

    #[test]
    fn nothing_is_added_after_the_end() {
        let mut ring = Ring::new(10);
        ring.push(Stdout, b"ab");
        ring.seal();
        ring.push(Stdout, b"cd");
        assert_eq!((ring.end(), text(&ring.take(9))), (2, vec![(0, 1, "ab".into())]));
    }

    #[test]
    fn large_output_leaves_in_chunks_of_64_kib() {
        let mut ring = Ring::new(200_000);
        ring.push(Stdout, &vec![7; 150_000]);
        let chunks = ring.take(140_000);
        assert_eq!(chunks.iter().map(|c| c.data.len()).collect::<Vec<_>>(), [65536, 65536, 8928]);
        assert_eq!(ring.take(140_000)[0].offset, 140_000);
    }
}
