//! What this build is.

/// The release.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from; "unknown" outside a repository.
const COMMIT: &str = env!("MILLRACE_BUILD_COMMIT");

/// Release and commit, as services announce themselves.
pub(crate) fn build() -> String {
    format!("{VERSION} (commit {COMMIT}){}", millrace_runtime::failpoint::release_mark())
}

/// Release, commit, and the schemas and row formats that this build works with.
pub(crate) fn long() -> String {
    let (oldest, newest) = millrace_store::migrate::schema_range();
    let (reads_from, reads_to) = millrace_core::READER_RANGE;
    format!("{VERSION} (commit {COMMIT}, schema {oldest}..{newest}, reads row formats {reads_from}..{reads_to})")
}
