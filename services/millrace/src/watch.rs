//! Streams of figures that are followed until the reader leaves.

use std::future::Future;
use std::io::IsTerminal;
use std::time::Duration;

use comfy_table::Table;
use tonic::{Code, Response, Status, Streaming};

use crate::client::{Backoff, Client};
use crate::exit::Failure;
use crate::output;
use crate::status;

/// Opens the stream and shows what it brings, again and again: a service that goes away is waited for.
pub(crate) async fn follow<T, F>(
    client: &Client,
    mut call: impl FnMut() -> F,
    mut show: impl FnMut(T) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    F: Future<Output = Result<Response<Streaming<T>>, Status>>,
{
    let mut backoff = Backoff::default();
    let mut seen = false;
    loop {
        let broken = match client.open(&mut call).await {
            // A service that has never answered may be one that never will.
            Err(status) if !seen && status.code() == Code::DeadlineExceeded => return Err(client.failure(&status)),
            Err(status) => Some(status),
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(figures)) => {
                        (backoff, seen) = (Backoff::default(), true);
                        show(figures)?;
                    }
                    Ok(None) => break None,
                    Err(status) => break Some(status),
                }
            },
        };
        let delay = match &broken {
            Some(status) if !status::is_transient(status) && status.code() != Code::Cancelled => {
                return Err(client.failure(status));
            }
            Some(status) => {
                eprintln!("millrace: the watch broke off, reconnecting");
                client.turn(client.at(), status);
                status::retry_delay(status)
            }
            None => None,
        };
        tokio::time::sleep(backoff.next(delay).unwrap_or(Duration::from_secs(5))).await;
    }
}

/// Prints the figures of one moment: over those before on a terminal, after them elsewhere.
pub(crate) fn print_moment(table: &Table) -> Result<(), Failure> {
    if std::io::stdout().is_terminal() {
        // The cursor goes to the top left and what was there is wiped out.
        print!("\u{1b}[H\u{1b}[J");
    }
    output::print_table(table)?;
    if std::io::stdout().is_terminal() { Ok(()) } else { output::line("") }
}
