//! Credits: what a receiver has asked for and a sender may still send (R6).
//!
//! Both hops use the same arithmetic: an orchestrator grants a distributor, and a distributor a queue's owner. A grant is
//! absolute and sequenced. It says how many items beyond the last one that the receiver had seen may come, so a grant
//! that crosses items on the wire neither loses nor doubles a credit, and a lost grant is mended by the next.

/// The sender's side of one receiver's credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Credits {
    grant_seq: u64,
    granted: u32,
    acked: u64,
    sent: u64,
}

impl Credits {
    /// Takes a grant of `credits` items beyond item `acked`. Returns false, and changes nothing, when it is older than
    /// the one in force or speaks of items that were never sent.
    pub fn grant(&mut self, grant_seq: u64, credits: u32, acked: u64) -> bool {
        if grant_seq <= self.grant_seq || acked > self.sent {
            return false;
        }
        *self = Self { grant_seq, granted: credits, acked, sent: self.sent };
        true
    }

    /// How many items may be sent now.
    pub fn available(&self) -> u32 {
        let in_flight = self.sent.saturating_sub(self.acked);
        self.granted.saturating_sub(u32::try_from(in_flight).unwrap_or(u32::MAX))
    }

    /// Spends one credit and returns the item's number, from 1; none when no credit is left.
    pub fn take(&mut self) -> Option<u64> {
        if self.available() == 0 {
            return None;
        }
        self.sent += 1;
        Some(self.sent)
    }

    /// Numbers an item that must be sent although it was not asked for (a repeat of an assignment that the receiver
    /// should already have). It uses the credit of the item it repeats, so the grant is raised with it.
    pub fn take_uncounted(&mut self) -> u64 {
        self.granted = self.granted.saturating_add(1);
        self.sent += 1;
        self.sent
    }

    /// The number of the last item sent; 0 before the first.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn r6_a_grant_that_crossed_items_counts_them_once() {
        let mut credits = Credits::default();
        assert!(credits.grant(1, 2, 0));
        assert_eq!((credits.take(), credits.take(), credits.take()), (Some(1), Some(2), None));
        // The receiver granted 2 again when it had seen only item 1: item 2 is one of those two.
        assert!(credits.grant(2, 2, 1));
        assert_eq!(credits.available(), 1);
    }

    #[test]
    fn r6_old_and_impossible_grants_change_nothing() {
        let mut credits = Credits::default();
        assert!(credits.grant(5, 3, 0));
        let before = credits;
        assert!(!credits.grant(5, 9, 0));
        assert!(!credits.grant(4, 9, 0));
        assert!(!credits.grant(6, 9, 1));
        assert_eq!(credits, before);
    }

    proptest! {
        /// A receiver with `slots` slots that grants its free slots at random moments never holds more than `slots`.
        #[test]
        fn r6_a_receiver_never_gets_more_than_it_has_room_for(slots in 1u32..8, steps in prop::collection::vec(0u8..4, 1..200)) {
            let (mut credits, mut wire_items, mut wire_grants) = (Credits::default(), Vec::new(), Vec::new());
            let (mut held, mut seen, mut grant_seq) = (0u32, 0u64, 0u64);
            for step in steps {
                match step {
                    0 => wire_items.extend(credits.take()),
                    1 => if !wire_items.is_empty() { seen = wire_items.remove(0); held += 1; },
                    2 => { grant_seq += 1; wire_grants.push((grant_seq, slots - held, seen)); }
                    _ => {
                        if !wire_grants.is_empty() { let (seq, free, acked) = wire_grants.remove(0); credits.grant(seq, free, acked); }
                        held = held.saturating_sub(1);
                    }
                }
                prop_assert!(held <= slots);
            }
        }
    }
}
