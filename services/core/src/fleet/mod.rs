//! Fleets: how large each should be, how long its nodes may take to join, and what to ask of whose provider next.
//!
//! - [`size`]: the desired size of a pool, from what waits, what comes in and how long it runs.
//! - [`joins`]: how long nodes may take to join, learnt from the joins seen and from the launches still under way.
//! - [`gate`]: whether launches go on, when launches since a moment have all failed.
//! - [`budget`]: how many calls a provider takes, learnt from its refusals.
//! - [`books`]: the books of all pools, nodes and providers, and the rounds that decide.
//! - [`state`], [`node`], [`pool`]: what the books hold.
//!
//! The caller stores an intent before it calls a provider; nothing here does either.

pub mod books;
pub mod budget;
pub mod gate;
pub mod joins;
pub mod node;
pub mod pool;
pub mod size;
pub mod state;

pub use books::Fleet;
pub use node::Node;
pub use pool::{Override, Pool, Schedule};
pub use state::{Event, Illegal, State};
