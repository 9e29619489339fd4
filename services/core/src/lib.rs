//! Millrace's rules, without anything that runs them.
//!
//! Task states, retry decisions, leases, credits, matching, routing and the size of fleets as plain values and functions. Nothing here knows
//! of tokio, tonic, diesel, a clock or a random source: time and randomness come in as arguments, so that the services,
//! the recovery paths and the simulation all run the same rules.

pub mod credit;
pub mod fleet;
pub mod foreign;
pub mod held;
pub mod id;
pub mod lease;
pub mod matcher;
pub mod owners;
pub mod retry;
pub mod route;
pub mod served;
pub mod task;
pub mod time;

/// The format that this build writes into rows.
pub const ROW_FORMAT: i16 = 1;

/// The oldest and the newest row format that this build can act on.
pub const READER_RANGE: (i16, i16) = (1, 1);
