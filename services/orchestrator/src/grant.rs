//! The receiver's side of credits (R6): how many assignments to ask for.

use millrace_proto::distributor::v1::Grant;

/// What was granted on the present stream. The sender's side is [`millrace_core::credit::Credits`].
#[derive(Debug, Default)]
pub(crate) struct Grants {
    seq: u64,
    acked: u64,
    /// How many more assignments the distributor may believe it can send; unknown before the first grant, and after a
    /// resent assignment, whose credit the two sides may have counted differently.
    believed: Option<u32>,
}

impl Grants {
    /// A new stream begins: both sides count from zero.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn received(&mut self, seq: u64, resent: bool) {
        self.acked = self.acked.max(seq);
        self.believed = match resent {
            true => None,
            false => self.believed.map(|credits| credits.saturating_sub(1)),
        };
    }

    /// The grant to send when `free` assignments can be taken; none when the distributor already knows.
    pub(crate) fn next(&mut self, free: u32) -> Option<Grant> {
        if self.believed == Some(free) {
            return None;
        }
        self.seq += 1;
        self.believed = Some(free);
        Some(Grant { seq: self.seq, credits: free, acked_seq: self.acked, queues: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(grants: &mut Grants, free: u32) -> Option<(u64, u32, u64)> {
        grants.next(free).map(|grant| (grant.seq, grant.credits, grant.acked_seq))
    }

    #[test]
    fn r6_a_grant_is_sent_only_when_the_other_side_cannot_know() {
        let mut grants = Grants::default();
        assert_eq!(next(&mut grants, 3), Some((1, 3, 0)));
        assert_eq!(next(&mut grants, 3), None);
        grants.received(1, false);
        assert_eq!(next(&mut grants, 2), None);
        grants.received(2, false);
        // One of the two has already ended and given its slot back.
        assert_eq!(next(&mut grants, 2), Some((2, 2, 2)));
        assert_eq!(next(&mut grants, 0), Some((3, 0, 2)));
    }

    #[test]
    fn r6_a_resent_assignment_uses_no_credit_and_is_answered_with_a_grant() {
        let mut grants = Grants::default();
        next(&mut grants, 3);
        grants.received(1, true);
        assert_eq!(next(&mut grants, 3), Some((2, 3, 1)));
    }

    #[test]
    fn r6_each_stream_counts_from_one() {
        let mut grants = Grants::default();
        next(&mut grants, 3);
        grants.received(7, false);
        grants.reset();
        assert_eq!(next(&mut grants, 2), Some((1, 2, 0)));
    }
}
