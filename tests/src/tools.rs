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

/// pgbouncer with this file of settings. It does not serve as root, and becomes `nobody` once it has read them.
pub fn pgbouncer(settings: &std::path::Path) -> Command {
    let mut command = Command::new(tool("pgbouncer"));
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    if root {
        command.args(["-u", "nobody"]);
    }
    command.arg("-q").arg(settings);
    command
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
