//! The list of goldens with their sums. It only grows: a golden is what a release wrote, and no later release can change that.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use millrace_tests::tools::repository;

use crate::goldens;

/// The manifest, as `sha256sum --check` reads it.
const MANIFEST: &str = "tests/compat/goldens/MANIFEST";

/// Serializes the tests of this process that write goldens.
static WRITING: Mutex<()> = Mutex::new(());

/// Writes a golden that is not there yet, and its line. One that is there stays as it is.
pub(crate) fn write(path: &Path, bytes: &[u8]) {
    let _writing = WRITING.lock().expect("no writer has panicked");
    let file = goldens().join(path);
    if file.exists() {
        return;
    }
    fs::create_dir_all(file.parent().expect("a golden lies in a folder")).expect("making the golden's folder");
    fs::write(&file, bytes).expect("writing a golden");
    let mut manifest =
        fs::File::options().create(true).append(true).open(repository().join(MANIFEST)).expect("opening the manifest");
    let sum = sums(&[path.to_owned()]).remove(path).expect("the sum of the golden");
    writeln!(manifest, "{sum}  {}", path.display()).expect("writing the manifest");
}

/// The sums of these goldens.
fn sums(paths: &[PathBuf]) -> BTreeMap<PathBuf, String> {
    if paths.is_empty() {
        return BTreeMap::new();
    }
    // The program that people would check the manifest with.
    let output = Command::new("sha256sum").arg("--").args(paths).current_dir(goldens()).output();
    let output = output.expect("running sha256sum, of coreutils");
    assert!(output.status.success(), "sha256sum: {}", String::from_utf8_lossy(&output.stderr));
    parse(&String::from_utf8(output.stdout).expect("sums in UTF-8"))
}

fn parse(manifest: &str) -> BTreeMap<PathBuf, String> {
    let line = |line: &str| match line.split_once("  ") {
        Some((sum, path)) if sum.len() == 64 => (PathBuf::from(path), sum.to_owned()),
        _ => panic!("not a line of a manifest: {line:?}"),
    };
    manifest.lines().map(line).collect()
}

fn listed() -> String {
    fs::read_to_string(repository().join(MANIFEST)).expect("reading the manifest")
}

/// Every file below the goldens' folder but the manifest.
fn found() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![goldens()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).expect("reading a folder of goldens") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => pending.push(path),
                false => found.push(path.strip_prefix(goldens()).expect("below the goldens").to_owned()),
            }
        }
    }
    found.retain(|path| path != Path::new("MANIFEST"));
    found.sort();
    found
}

#[test]
fn goldens_are_what_the_manifest_says_and_all_are_in_it() {
    if crate::writing() {
        return; // Others are writing them now.
    }
    let listed = parse(&listed());
    let paths: Vec<PathBuf> = listed.keys().cloned().collect();
    assert_eq!(paths, found(), "the manifest names other files than there are");
    assert_eq!(sums(&paths), listed, "a golden was changed: what a release wrote stays as it is");
}

/// Every manifest that was ever committed is how each later one begins. Without a repository there is nothing to compare.
#[test]
fn the_manifest_only_grows() {
    if crate::writing() {
        return; // Others are writing it now.
    }
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        let output = command.args(arguments).current_dir(repository()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).expect("git speaks UTF-8"))
    };
    let commits = git(&["log", "--format=%H", "--reverse", "--", MANIFEST]).unwrap_or_default();
    let mut before = String::new();
    for commit in commits.lines() {
        // A commit without the file has removed it, which is a change like any other.
        let then = git(&["show", &format!("{commit}:{MANIFEST}")]).unwrap_or_default();
        assert!(then.starts_with(&before), "commit {commit} changed or removed a line of {MANIFEST}");
        before = then;
    }
    assert!(listed().starts_with(&before), "a committed line of {MANIFEST} was changed or removed");
}

#[test]
fn lines_are_read_as_sha256sum_writes_them() {
    let sum = "a".repeat(64);
    assert_eq!(parse(&format!("{sum}  one/two\n")), BTreeMap::from([(PathBuf::from("one/two"), sum)]));
}
