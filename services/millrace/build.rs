//! Tells the binary which commit it was built from, for `millrace --version`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=MILLRACE_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    // A commit moves HEAD itself (detached), or the reference that HEAD names, or the reflog beside it. Only files that
    // exist are watched: cargo takes a missing one for changed and would run this at every build.
    for name in ["HEAD", "logs/HEAD", "packed-refs"] {
        watch(name);
    }
    if let Some(reference) = git(&["symbolic-ref", "-q", "HEAD"]) {
        watch(&reference);
    }
    // An image build has no repository at hand and says the commit itself.
    let commit = std::env::var("MILLRACE_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty())
        .or_else(|| git(&["rev-parse", "--short=12", "HEAD"]))
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=MILLRACE_BUILD_COMMIT={commit}");
}

/// Runs this script again when a file of the repository changes.
fn watch(name: &str) {
    if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// What git answers, or nothing when there is no git, no repository, or no commit yet.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
