//! The notice that a machine is about to be taken away.

use std::{process::ExitStatus, time::Duration};

use prost_types::Timestamp;
use tokio::time::{sleep, timeout};

use super::{process::Patience, shell};

/// How often the command is run. The shortest notice that clouds give is 30 s.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long what it left in the background may keep its output open.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes of its output that are read.
const OUTPUT_BYTES: usize = 256;

/// Runs the command until it succeeds once. Its output may say when the machine goes: RFC 3339.
pub(super) async fn noticed(command: &str) -> Option<Timestamp> {
    let mut warned = false;
    loop {
        match timeout(LIMIT, ask(command)).await {
            Ok(Ok((status, output))) if status.success() => return output.trim().parse().ok(),
            Ok(Ok(_)) => {}
            Ok(Err(error)) if !warned => {
                warned = true;
                tracing::warn!(%error, "the spot command cannot be run");
            }
            Ok(Err(_)) => {}
            Err(_) => tracing::debug!("the spot command took too long and was killed"),
        }
        sleep(INTERVAL).await;
    }
}

/// Runs the command once. Dropping the future kills it.
async fn ask(command: &str) -> std::io::Result<(ExitStatus, String)> {
    let mut read = Vec::new();
    let output = |_, bytes: &[u8]| {
        let room = OUTPUT_BYTES.saturating_sub(read.len()).min(bytes.len());
        read.extend_from_slice(&bytes[..room]);
    };
    let patience = Patience { kill_grace: Duration::ZERO, linger: LINGER };
    let finished = shell::start(command).await?.finish(std::future::pending(), patience, output).await?;
    Ok((finished.status, String::from_utf8_lossy(&read).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn success_is_the_notice_and_its_output_the_time() {
        assert_eq!(noticed("echo 2027-01-31T08:00:00Z").await.map(|at| at.seconds), Some(1_801_382_400));
        assert_eq!(noticed("echo soon").await, None);
    }
}
