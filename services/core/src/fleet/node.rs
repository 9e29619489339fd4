//! A node, as the books hold it.

use crate::{fleet::State, id::NodeId, time::Timestamp};

/// A node. All times are the database's.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its id, and the idempotency token of its launch.
    pub id: NodeId,
    /// Its pool.
    pub pool: String,
    /// Its provider, which is also whose calls it spends.
    pub provider: String,
    /// Its zone; empty when the provider chose.
    pub zone: String,
    /// The provider's name of it; empty until it is known.
    pub instance: String,
    /// Where it stands.
    pub state: State,
    /// Why, for people.
    pub reason: String,
    /// When the intent was stored.
    pub requested_at: Timestamp,
    /// When the provider first confirmed it.
    pub started_at: Option<Timestamp>,
    /// When it was first heard of.
    pub attached_at: Option<Timestamp>,
    /// When it was first ready.
    pub ready_at: Option<Timestamp>,
    /// When it entered its present state.
    pub since: Timestamp,
    /// When it ended.
    pub gone_at: Option<Timestamp>,
    /// The stage of its boot.
    pub boot_stage: String,
    /// How far its boot has come, 0 to 100.
    pub boot_percent: Option<i16>,
    /// When its boot last went forward.
    pub boot_at: Option<Timestamp>,
    /// Tasks that it can run at a time; 0 until it says.
    pub slots: i32,
    /// Someone asked for its drain: it is not called off by itself.
    pub drain_asked: bool,
    /// It was found at the provider, not made by this scaler.
    pub adopted: bool,
    /// Calls made to request or end it.
    pub calls: i32,
    /// The last call's end is not known: list before the next one.
    pub unknown: bool,
    /// Raised when a call to end it was made: from then on nothing calls its end off.
    pub ending: bool,
}
