//! How much of an answer is left: lists end where it is full, because one message that is too large would fail as a whole.

use crate::shared::Shared;

/// Bytes that an answer still has room for.
pub(super) struct Room(usize);

impl Room {
    /// An answer that nothing is in yet. Half of what may be sent: one more that is large must always fit.
    pub(super) fn of(shared: &Shared) -> Self {
        Self(shared.settings.max_message_bytes / 2)
    }

    /// Takes room for so many bytes; false when there is not as much. There is none at all then: the answer ends, or holds this one
    /// alone.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let left = self.0.checked_sub(bytes);
        self.0 = left.unwrap_or(0);
        left.is_some()
    }
}
