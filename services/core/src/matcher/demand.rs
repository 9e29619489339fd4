//! What sessions can take, and whose turn it is.

use std::collections::{BTreeMap, VecDeque};

use super::{Connection, Receiver};
use crate::credit::Credits;

#[derive(Debug, Default)]
pub(super) struct Demands {
    formats: BTreeMap<Connection, i16>,
    sessions: BTreeMap<(Connection, Receiver), Session>,
    /// Sessions with credit, in turn; each at most once, so it is no longer than `sessions`.
    turn: VecDeque<(Connection, Receiver)>,
}

#[derive(Debug, Default)]
struct Session {
    credits: Credits,
    in_turn: bool,
}

impl Demands {
    pub(super) fn open(&mut self, connection: Connection, newest_format: i16) {
        self.formats.insert(connection, newest_format);
    }

    pub(super) fn close(&mut self, connection: Connection) {
        self.formats.remove(&connection);
        self.sessions.retain(|(of, _), _| *of != connection);
        self.turn.retain(|(of, _)| *of != connection);
    }

    pub(super) fn set(&mut self, connection: Connection, id: Receiver, seq: u64, credits: u32, acked: u64) -> bool {
        if !self.formats.contains_key(&connection) {
            return false;
        }
        let session = self.sessions.entry((connection, id)).or_default();
        if !session.credits.grant(seq, credits, acked) {
            return false;
        }
        if session.credits.available() > 0 && !session.in_turn {
            session.in_turn = true;
            self.turn.push_back((connection, id));
        }
        true
    }

    pub(super) fn forget(&mut self, connection: Connection, id: Receiver) {
        self.sessions.remove(&(connection, id));
        self.turn.retain(|turn| *turn != (connection, id));
    }

    pub(super) fn any(&self) -> bool {
        !self.turn.is_empty()
    }

    /// Spends a credit of the next session whose distributor can act on rows of this format.
    pub(super) fn take(&mut self, min_reader: i16) -> Option<(Connection, Receiver, u64)> {
        for _ in 0..self.turn.len() {
            let (connection, id) = self.turn.pop_front()?;
            let Some(session) = self.sessions.get_mut(&(connection, id)) else { continue };
            if session.credits.available() == 0 {
                // A later, lower demand has withdrawn it.
                session.in_turn = false;
                continue;
            }
            if self.formats.get(&connection).is_none_or(|newest| *newest < min_reader) {
                self.turn.push_back((connection, id));
                continue;
            }
            let seq = session.credits.take()?;
            session.in_turn = session.credits.available() > 0;
            if session.in_turn {
                self.turn.push_back((connection, id));
            }
            return Some((connection, id, seq));
        }
        None
    }

    pub(super) fn newest_format(&self) -> i16 {
        self.formats.values().copied().max().unwrap_or(0)
    }

    pub(super) fn total(&self) -> u64 {
        self.sessions.values().map(|session| u64::from(session.credits.available())).sum()
    }

    pub(super) fn receivers(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn connections(&self) -> usize {
        self.formats.len()
    }
}
