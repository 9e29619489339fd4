//! What the test suites share: databases of their own, free ports, and the binary under test.

pub mod binary;
pub mod clients;
pub mod history;
pub mod net;
pub mod postgres;
pub mod proxy;
pub mod sqlite;
pub mod suite;
pub mod tools;
