//! Programs that `make setup` installs for the tests.

use std::{path::PathBuf, process::Command};

/// grpcurl.
pub fn grpcurl() -> Command {
    Command::new(tool("grpcurl"))
}

/// Python with a gRPC client and its code generator.
pub fn python() -> Command {
    Command::new(tool("venv/bin/python"))
}

fn tool(name: &str) -> PathBuf {
    let folder = match std::env::var_os("MILLRACE_TOOLS") {
        Some(folder) => PathBuf::from(folder),
        None => repository().join("target/tools"),
    };
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run `make setup`", path.display());
    path
}

/// The top of the repository.
pub fn repository() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests lie in the repository").to_owned()
}
