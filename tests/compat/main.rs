//! What another release wrote, and what it would write: golden rows and bytes of every schema version, the next release as a
//! profile, and migrations under load. The release before runs for real in `make compat` (`pairs/`).

mod hand;
mod live;
mod load;
mod manifest;
mod next;
mod rows;
mod wire;

use std::path::PathBuf;

use millrace_tests::tools::repository;

/// The folder of the goldens.
fn goldens() -> PathBuf {
    repository().join("tests/compat/goldens")
}

/// Whether goldens that are missing are to be written. Those that are there are never touched.
fn writing() -> bool {
    std::env::var("MILLRACE_GEN").as_deref() == Ok("write")
}

/// The newest schema version of this build.
fn newest_schema() -> &'static str {
    millrace_store::migrate::schema_range().1
}

/// The folders of schema versions that have goldens, oldest first.
fn versions() -> Vec<String> {
    let entries = std::fs::read_dir(goldens()).expect("reading the goldens' folder");
    let folders = entries.map(|entry| entry.expect("an entry")).filter(|entry| entry.path().is_dir());
    let mut versions: Vec<String> =
        folders.map(|entry| entry.file_name().into_string().expect("a name in UTF-8")).collect();
    versions.sort();
    versions
}
