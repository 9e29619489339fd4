//! What orchestrators are told when their stream or their session ends.

use std::time::Duration;

use millrace_proto::distributor::v1 as wire;
use millrace_runtime::status::Fault;
use tonic::Status;

use crate::convert;

/// The session has expired, was closed, or is another replica's now.
pub(crate) fn session_gone() -> Status {
    Fault::precondition("SESSION_GONE", "the session is over, or was resumed elsewhere; open a new one").into()
}

/// The stream's generation is not the session's any more: it was resumed elsewhere, or it is over. A resume tells which, so
/// only that may say that it is over: an orchestrator stops its work when it hears that.
pub(crate) fn session_moved() -> Status {
    Fault::aborted("SESSION_MOVED", "the session goes on under a later generation, or is over; resume it").into()
}

/// Asks an orchestrator to leave, within a second so that not everybody comes at once.
pub(crate) fn go_away(reason: &str, endpoint: Option<String>) -> wire::GoAway {
    wire::GoAway {
        reason: reason.to_owned(),
        delay: Some(convert::span(Duration::from_millis(rand::random_range(0..1_000)))),
        endpoint: endpoint.unwrap_or_default(),
    }
}
