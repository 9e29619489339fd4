//! The background loops of the scaler beside the leader's, one a file.

mod health;
mod retention;

use millrace_runtime::Context;

use crate::{Settings, leader::Desk};

/// Starts all loops; each ends with the context's shutdown.
pub(crate) fn start(context: &Context, settings: &Settings, desk: &Desk) {
    health::start(context);
    retention::start(context, settings.scaler_keep_nodes, desk);
}
