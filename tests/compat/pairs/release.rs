//! The releases of `releases.toml`, and the binary of one of them, built in a worktree of its commit.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, OnceLock},
};

use millrace_tests::{suite::said, tools::repository};
use serde::Deserialize;

/// A release that this one must work beside.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Release {
    pub(crate) name: String,
    pub(crate) commit: String,
    pub(crate) schema: String,
    pub(crate) readers: (i16, i16),
    pub(crate) contract: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Releases {
    release: Vec<Release>,
}

impl Release {
    /// Every release, oldest first.
    pub(crate) fn all() -> Vec<Self> {
        let path = repository().join("tests/compat/releases.toml");
        let text = fs::read_to_string(&path).expect("reading releases.toml");
        let releases: Releases = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        releases.release
    }

    /// The last release: the one that this build replaces.
    pub(crate) fn before_this() -> Self {
        Self::all().pop().expect("releases.toml names a release")
    }

    /// Its binary. Builds it the first time, which takes minutes.
    pub(crate) fn binary(&self) -> &'static Path {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        static BUILDING: Mutex<()> = Mutex::new(());
        // Every test needs the same one, so the others wait for the first.
        let _building = BUILDING.lock();
        BUILT.get_or_init(|| {
            let folder = repository().join("target/compat").join(&self.commit);
            let binary = folder.join("millrace");
            if !self.made(&binary) {
                self.build(&folder, &binary);
                assert!(self.made(&binary), "{} is not of commit {}", binary.display(), self.commit);
            }
            binary
        })
    }

    /// Whether this binary is there and of this commit.
    fn made(&self, binary: &Path) -> bool {
        let output = Command::new(binary).arg("--version").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(&self.commit[..12]))
    }

    fn build(&self, folder: &Path, binary: &Path) {
        let source = folder.join("source");
        let known = git(&["cat-file", "-e", &format!("{}^{{commit}}", self.commit)]);
        assert!(
            known.status.success(),
            "release {} is built from commit {}, which this checkout does not have: get its history with \
             `git fetch --unshallow` (or fetch that commit), and run this again\n{}",
            self.name,
            self.commit,
            said(&known)
        );
        fs::create_dir_all(folder).expect("making the release's folder");
        // What a run that was killed has left.
        drop(Worktree(source.clone()));
        let added = git(&["worktree", "add", "--force", "--detach", &source.to_string_lossy(), &self.commit]);
        assert!(added.status.success(), "git worktree add: {}", said(&added));
        let worktree = Worktree(source.clone());
        // Not that of this build, whose lock the caller may hold; one for all releases, which share most of what they depend on.
        let target = repository().join("target/compat/build");
        eprintln!("compat: building release {} in {}", self.name, folder.display());
        let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--workspace", "--locked", "--bin", "millrace"])
            .current_dir(&source)
            .env("CARGO_TARGET_DIR", &target)
            // Set by whoever runs this test, for this build and not for that one.
            .env_remove("MILLRACE_COMMIT")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET")
            .output()
            .expect("running cargo");
        assert!(built.status.success(), "building release {}: {}", self.name, said(&built));
        drop(worktree);
        // Whole or not at all: a run that is killed here leaves no half of a binary.
        let copy = folder.join("millrace.new");
        fs::copy(target.join("debug/millrace"), &copy).expect("keeping the binary");
        fs::rename(&copy, binary).expect("keeping the binary");
    }
}

/// A worktree, removed with this value.
struct Worktree(PathBuf);

impl Drop for Worktree {
    fn drop(&mut self) {
        // Forced, as a build may have written into it; and pruned, as the folder may be gone while git still knows of it.
        git(&["worktree", "remove", "--force", &self.0.to_string_lossy()]);
        let _ = fs::remove_dir_all(&self.0);
        git(&["worktree", "prune"]);
    }
}

fn git(arguments: &[&str]) -> Output {
    Command::new("git").args(arguments).current_dir(repository()).output().expect("running git")
}

#[test]
fn releases_are_complete_and_in_order() {
    let releases = Release::all();
    for release in &releases {
        assert_eq!(release.commit.len(), 40, "the commit of {} is not in full", release.name);
        assert!(
            repository().join("tests/compat").join(&release.contract).is_file(),
            "the contract of {}",
            release.name
        );
        assert!(release.readers.0 <= release.readers.1, "the readers of {}", release.name);
        assert!(release.schema.as_str() <= millrace_store::migrate::schema_range().1);
    }
    assert!(releases.is_sorted_by(|one, next| one.schema <= next.schema));
    // Two that follow each other can read what the other writes, or no deploy and no rollback is possible.
    let this = millrace_core::READER_RANGE;
    let last = Release::before_this().readers;
    assert!(this.0 <= last.1 && last.0 <= this.1, "{last:?} and {this:?} have no format in common");
}
