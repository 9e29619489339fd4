//! Commands of the operator's: shell lines that run with the agent's own environment.

use std::{io, path::Path};

use bytes::Bytes;

use super::process::{Launch, Process};

/// Starts `/bin/sh -c COMMAND` in the agent's working directory.
pub(super) async fn start(command: &str) -> io::Result<Process> {
    let argv = ["/bin/sh".to_owned(), "-c".to_owned(), command.to_owned()];
    // What is not UTF-8 is left out: the environment of a command is text.
    let env = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    Process::start(Launch { argv: &argv, env: &env, dir: Path::new("."), stdin: Bytes::new() }).await
}
