//! Nodes between their rows, what they say, and the wire.

use millrace_core::fleet::{State, books::News};
use millrace_proto::scaler::v1::{self as wire, attach_node_request::Message};
use millrace_store::{NodeEventRow, NodeRow};

use super::{cut, moment, time, timestamp};

/// The longest stage of a boot, in bytes.
const MAX_STAGE_BYTES: usize = 256;

/// The longest error of a boot, in bytes.
const MAX_ERROR_BYTES: usize = 4_096;

/// What is known of a node that is in no row: what it said on its stream to the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Live {
    /// Its stream is up.
    pub(crate) attached: bool,
    /// Its executor can work.
    pub(crate) healthy: bool,
    /// Why not.
    pub(crate) health_reason: String,
    /// Tasks that it runs.
    pub(crate) running: u32,
}

impl Default for Live {
    fn default() -> Self {
        Self { attached: false, healthy: true, health_reason: String::new(), running: 0 }
    }
}

/// A node as people see it, without its history.
pub(crate) fn shown(row: NodeRow, live: Option<&Live>) -> wire::Node {
    let node = row.node;
    let live = live.cloned().unwrap_or_default();
    wire::Node {
        id: node.id.to_string(),
        pool: node.pool,
        provider: node.provider,
        zone: node.zone,
        instance_id: node.instance,
        state: state(node.state).into(),
        reason: node.reason,
        request_time: Some(moment(node.requested_at)),
        start_time: node.started_at.map(moment),
        attach_time: node.attached_at.map(moment),
        ready_time: node.ready_at.map(moment),
        gone_time: node.gone_at.map(moment),
        boot_stage: node.boot_stage,
        boot_percent: node.boot_percent.map(i32::from),
        slots: node.slots,
        running: super::count(live.running),
        healthy: live.healthy,
        health_reason: live.health_reason,
        attached: live.attached,
        adopted: node.adopted,
        calls: node.calls,
        update_time: Some(time(row.updated_at_us)),
        history: Vec::new(),
    }
}

/// Something that happened to a node.
pub(crate) fn event(row: NodeEventRow) -> wire::NodeEvent {
    wire::NodeEvent { time: Some(time(row.at_us)), state: state(row.state).into(), reason: row.reason }
}

/// A state as the contract has it.
pub(crate) fn state(state: State) -> wire::NodeState {
    match state {
        State::Requested => wire::NodeState::Requested,
        State::Starting => wire::NodeState::Starting,
        State::Joining => wire::NodeState::Joining,
        State::Ready => wire::NodeState::Ready,
        State::Suspect => wire::NodeState::Suspect,
        State::Draining => wire::NodeState::Draining,
        State::Terminating => wire::NodeState::Terminating,
        State::Gone => wire::NodeState::Gone,
    }
}

/// Reads a state; none for one that is not set or not known.
pub(crate) fn read_state(number: i32) -> Option<State> {
    State::of(i16::try_from(number).ok()?)
}

/// What a node says; none for a message of a later release, and for a second hello.
pub(crate) fn news(message: Message) -> Option<News> {
    Some(match message {
        Message::Hello(_) => return None,
        Message::Boot(boot) => News::Boot {
            stage: cut(&boot.stage, MAX_STAGE_BYTES),
            percent: boot.percent.map(|percent| u8::try_from(percent.clamp(0, 100)).unwrap_or(0)),
        },
        Message::Ready(_) => News::Ready,
        Message::Health(health) => News::Health {
            healthy: health.healthy,
            reason: cut(&health.reason, MAX_ERROR_BYTES),
            running: u32::try_from(health.running).unwrap_or(0),
            slots: u32::try_from(health.slots).unwrap_or(0),
        },
        Message::BootFailed(failed) => News::BootFailed { error: cut(&failed.error, MAX_ERROR_BYTES) },
        Message::Drained(_) => News::Drained,
        Message::SpotNotice(notice) => News::Spot { at: notice.at.as_ref().and_then(timestamp) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_numbered_alike() {
        for one in State::ALL {
            assert_eq!((state(one) as i32, read_state(state(one) as i32)), (i32::from(one.number()), Some(one)));
        }
        assert_eq!((read_state(0), read_state(9), read_state(i32::MAX)), (None, None, None));
    }

    #[test]
    fn what_nodes_say_is_cut_to_size() {
        let long = "x".repeat(10_000);
        let boot = Message::Boot(wire::BootProgress { stage: long.clone(), percent: Some(-4) });
        assert_eq!(news(boot), Some(News::Boot { stage: "x".repeat(256), percent: Some(0) }));
        let failed = Message::BootFailed(wire::BootFailed { error: long });
        assert_eq!(news(failed), Some(News::BootFailed { error: "x".repeat(4_096) }));
        assert_eq!(news(Message::Hello(wire::NodeHello::default())), None);
    }
}
