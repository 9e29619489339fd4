//! What this build is.

/// The release.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from; "unknown" outside a repository.
const COMMIT: &str = env!("MILLRACE_BUILD_COMMIT");

/// Release and commit, as services announce themselves.
pub(crate) fn build() -> String {
    format!("{VERSION} (commit {COMMIT})")
}

/// Release, commit, and the schemas that this build works with.
pub(crate) fn long() -> String {
    let (oldest, newest) = millrace_store::migrate::schema_range();
    format!("{VERSION} (commit {COMMIT}, schema {oldest}..{newest})")
}
