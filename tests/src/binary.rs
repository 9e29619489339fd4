//! The `millrace` binary under test.

use std::path::PathBuf;

/// The `millrace` binary that the same build made: it lies in the folder above the test executable's.
///
/// # Panics
/// When it has not been built, with the command that builds it.
pub fn millrace() -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own path");
    // Test executables lie in `target/PROFILE/deps`, binaries in `target/PROFILE`.
    let found = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(format!("millrace{}", std::env::consts::EXE_SUFFIX)))
        .find(|path| path.is_file());
    match found {
        Some(path) => path,
        None => panic!("there is no `millrace` binary beside {}: run `cargo build -p millrace` first", test.display()),
    }
}
