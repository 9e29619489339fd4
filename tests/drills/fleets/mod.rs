//! Drills of the scaler on a virtual clock: its own books against the simulated provider, whose ledger judges.
//!
//! [`world`] is the clock, the tasks and the wire between the two; [`tasks`] runs tasks on what has joined; [`oracle`] is the best that could
//! be done. Nothing here waits: an hour takes seconds.
//!
//! - [`d1b`]: nodes join six times slower in the middle of a surge, and the provider takes a tenth of the calls.
//! - [`d2`]: a zone runs out of capacity while calls are throttled; and answers get lost.
//! - [`d4`]: new machines never become healthy, some of them or all.
//! - [`large`]: ten thousand nodes and two hundred pools.

pub(crate) mod d1b;
pub(crate) mod d2;
pub(crate) mod d4;
pub(crate) mod large;
mod oracle;
mod tasks;
mod world;

use crate::form::{Band, More};

/// What is drawn over time.
pub(crate) const BANDS: &[Band] = &[
    Band { column: "desired", label: "desired", more_is: More::Neither },
    Band { column: "ready", label: "ready", more_is: More::Better },
    Band { column: "joining", label: "joining", more_is: More::Neither },
    Band { column: "killed", label: "killed", more_is: More::Worse },
    Band { column: "queue_wait_s", label: "queue wait,s", more_is: More::Worse },
];
