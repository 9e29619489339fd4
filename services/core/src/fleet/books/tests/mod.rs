//! The books against a small provider, step by step. Longer stories run in the drills.

mod crash;
mod desk;
mod fleets;
mod ways_in;
mod ways_out;
