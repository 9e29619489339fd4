//! The background loops of the queue service, one a file. The host has its own, which run wherever matchers do.

mod health;
mod membership;

use millrace_core::id::MemberId;
use millrace_runtime::{Context, foreign::ForeignRows};

use crate::Host;

/// Starts all loops; each ends with the context's shutdown.
pub(crate) fn start(context: &Context, host: &Host, member: MemberId) {
    health::start(context);
    membership::start(context, host, member);
    // The host reads lanes, and so meets rows that cannot be read.
    ForeignRows::start(context);
}
