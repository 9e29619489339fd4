//! The background loops of the queue service, one a file. The host has its own.

mod drains;
mod health;
mod membership;
mod pauses;

use millrace_core::id::MemberId;
use millrace_runtime::Context;

use crate::Host;

/// Starts all loops; each ends with the context's shutdown.
pub(crate) fn start(context: &Context, host: &Host, member: MemberId) {
    health::start(context);
    membership::start(context, host, member);
    pauses::start(context, host);
    drains::start(context, host);
}
