//! Background loops, one per file. Each step is idempotent and any replica may run it.

mod drain;
mod examine;
mod membership;
mod owners;
mod reaper;
mod reexamine;
mod resend;
mod retention;
mod survey;
mod waker;

use std::sync::Arc;

use millrace_core::id::MemberId;
use millrace_queue::{Host, HostContext, HostSettings};
use millrace_runtime::Context;
use millrace_store::MemberKind;

use crate::{shared::Shared, watch};

/// Starts the host that matches while no queue service does. It also ticks the served clock, ends timed pauses and deletes queues
/// that have drained, whoever matches.
pub(crate) fn host(context: &Context) -> Host {
    let member = MemberId(context.member_id);
    Host::start(HostSettings::default(), HostContext::new(context, member, MemberKind::Distributor))
}

/// Starts every loop.
pub(crate) fn start(shared: &Arc<Shared>) {
    examine::start(shared);
    membership::start(shared);
    owners::start(shared);
    reaper::start(shared);
    reexamine::start(shared);
    resend::start(shared);
    retention::start(shared);
    survey::start(shared);
    waker::start(shared);
    shared.context.shutdown.spawn("watches", watch::run(shared.clone()));
    shared.context.shutdown.spawn("drain", drain::run(shared.clone()));
}
