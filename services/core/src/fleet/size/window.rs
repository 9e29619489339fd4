//! The greatest recommendation of a while, in bounded memory.

use std::{collections::VecDeque, time::Duration};

use crate::time::Timestamp;

/// The while is kept in this many parts, so that it is exact to a part of it and never takes more memory.
const PARTS: u32 = 30;

/// Recommendations by time: the greatest of each part of the while.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    /// When each part began, and its greatest recommendation; the oldest first.
    parts: VecDeque<(Timestamp, u32)>,
}

impl Window {
    /// Whether nothing was ever noted.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Notes a recommendation, and forgets what is older than the while.
    pub(super) fn note(&mut self, nodes: u32, span: Duration, now: Timestamp) {
        match self.parts.back_mut() {
            // Also when time has gone back, as it may with another leader's clock.
            Some((began, most)) if now < began.after(span / PARTS) => *most = nodes.max(*most),
            _ => self.parts.push_back((now, nodes)),
        }
        // A part is forgotten only when its last moment may be older than the while.
        while self.parts.len() > 1 && self.parts[0].0.after(span + span / PARTS) <= now {
            self.parts.pop_front();
        }
        // A while that has been made shorter or longer leaves parts of another length: no more of them than fit.
        while self.parts.len() > PARTS as usize + 2 {
            let Some((_, most)) = self.parts.pop_front() else { break };
            if let Some(next) = self.parts.front_mut() {
                next.1 = next.1.max(most);
            }
        }
    }

    /// The greatest recommendation that is remembered.
    pub(super) fn most(&self) -> u32 {
        self.parts.iter().map(|(_, most)| *most).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(300);

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000)
    }

    #[test]
    fn the_greatest_is_remembered_for_the_while_and_a_part_at_most() {
        let mut window = Window::default();
        window.note(9, SPAN, at(0));
        for second in 1..300 {
            window.note(2, SPAN, at(second));
            assert_eq!(window.most(), 9, "after {second} s");
        }
        (300..=310).for_each(|second| window.note(2, SPAN, at(second)));
        assert_eq!(window.most(), 2);
    }

    #[test]
    fn memory_is_bounded_whatever_the_while_and_the_pace() {
        let mut window = Window::default();
        for round in 0..100_000 {
            let span = if round % 7 == 0 { Duration::from_secs(3600) } else { Duration::from_secs(1) };
            window.note(1, span, at(round));
            assert!(window.parts.len() <= PARTS as usize + 2);
        }
        window.note(1, Duration::ZERO, at(200_000));
        assert_eq!(window.most(), 1);
    }
}
