//! Ids of new nodes: they rise with time (UUID version 7), by the clock of whoever drives the engine.

use millrace_core::{id::NodeId, time::Timestamp};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use uuid::Builder;

/// The counter within a millisecond has 12 bits; one more id moves on to the next millisecond.
const COUNTS: u16 = 1 << 12;

/// Makes ids.
#[derive(Debug)]
pub(super) struct Ids {
    random: StdRng,
    last: (u64, u16),
}

impl Ids {
    /// With a seed the ids are the same in every run.
    pub(super) fn new(seed: Option<u64>) -> Self {
        let random = match seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_os_rng(),
        };
        Self { random, last: (0, 0) }
    }

    /// The next id: after every id that was made before, also when the clock stands still or steps back.
    pub(super) fn next(&mut self, now: Timestamp) -> NodeId {
        let millis = u64::try_from(now.0.div_euclid(1_000)).unwrap_or(0);
        self.last = match self.last {
            (last, _) if millis > last => (millis, 0),
            (last, count) if count + 1 < COUNTS => (last, count + 1),
            (last, _) => (last + 1, 0),
        };
        let mut bytes = [0; 10];
        self.random.fill_bytes(&mut bytes);
        let (millis, count) = self.last;
        bytes[..2].copy_from_slice(&count.to_be_bytes());
        NodeId(Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rise_whatever_the_clock_does() {
        let mut ids = Ids::new(Some(7));
        let mut last = ids.next(Timestamp(5_000_000));
        for now in [5_000_000, 5_000_999, 4_000_000, 6_000_000, 6_000_000].into_iter().flat_map(|now| [now; 3_000]) {
            let next = ids.next(Timestamp(now));
            assert!(next > last && next.0.get_version_num() == 7, "{last} {next}");
            last = next;
        }
        assert_eq!(Ids::new(Some(7)).next(Timestamp(1)), Ids::new(Some(7)).next(Timestamp(1)));
    }
}
