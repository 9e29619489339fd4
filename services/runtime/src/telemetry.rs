//! Logs: structured events on stderr, as text for a person at a terminal and as JSON, one object a line, for a
//! collector.
//!
//! `MILLRACE_LOG`, else `RUST_LOG`, is a filter in tracing's syntax (`info,millrace_queue=debug`); without one, `info`.

mod json;

use std::{io::IsTerminal, panic::PanicHookInfo};

use tracing_subscriber::{EnvFilter, filter::ParseError, layer::SubscriberExt, util::SubscriberInitExt};

const VARIABLES: [&str; 2] = ["MILLRACE_LOG", "RUST_LOG"];
const DEFAULT_FILTER: &str = "info";

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text when stderr is a terminal, JSON otherwise.
    #[default]
    Auto,
    /// One line of text per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in tracing's syntax.
    #[error("{variable} is not a log filter: {source}")]
    Filter {
        /// The variable that holds the filter.
        variable: &'static str,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The process has a logger already.
    #[error("logging is already set up in this process")]
    AlreadySet,
}

/// Starts logging for the whole process and sends panics to the log too, so that a collector sees them as events.
///
/// # Errors
/// When the filter cannot be read, or the process logs already.
pub fn init(format: LogFormat) -> Result<(), TelemetryError> {
    let registry = tracing_subscriber::registry().with(filter_from(|name| std::env::var(name).ok())?);
    let terminal = std::io::stderr().is_terminal();
    let set = if format == LogFormat::Json || (format == LogFormat::Auto && !terminal) {
        let layer = tracing_subscriber::fmt::layer().event_format(json::Json).fmt_fields(json::Json);
        let layer = layer.with_writer(std::io::stderr);
        registry.with(layer).try_init()
    } else {
        let layer = tracing_subscriber::fmt::layer().with_ansi(terminal).with_writer(std::io::stderr);
        registry.with(layer).try_init()
    };
    set.map_err(|_| TelemetryError::AlreadySet)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Checks what [`init`] would read, without starting to log.
///
/// # Errors
/// When the filter cannot be read.
pub fn check() -> Result<(), TelemetryError> {
    filter_from(|name| std::env::var(name).ok()).map(drop)
}

fn filter_from(variable: impl Fn(&str) -> Option<String>) -> Result<EnvFilter, TelemetryError> {
    let set = VARIABLES.into_iter().find_map(|name| variable(name).filter(|v| !v.is_empty()).map(|v| (name, v)));
    match set {
        Some((variable, text)) => {
            EnvFilter::try_new(text).map_err(|source| TelemetryError::Filter { variable, source })
        }
        None => Ok(EnvFilter::new(DEFAULT_FILTER)),
    }
}

/// The one place where a panic is logged; whoever catches it later answers its caller and logs nothing.
fn log_panic(info: &PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let message = panic_message(info.payload());
    let backtrace = std::backtrace::Backtrace::capture();
    tracing::error!(%location, %message, %backtrace, "panic");
}

/// The text of a panic, when it has one.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_variable_that_is_set_wins() {
        let filter = |millrace: Option<&str>, rust: Option<&str>| {
            filter_from(|name| if name == "MILLRACE_LOG" { millrace } else { rust }.map(str::to_owned))
        };
        assert_eq!(filter(None, None).unwrap().to_string(), "info");
        assert_eq!(filter(None, Some("warn")).unwrap().to_string(), "warn");
        assert_eq!(filter(Some("debug"), Some("warn")).unwrap().to_string(), "debug");
        assert_eq!(filter(Some(""), Some("warn")).unwrap().to_string(), "warn");
    }

    #[test]
    fn a_bad_filter_is_refused_by_name() {
        let error = filter_from(|name| (name == "RUST_LOG").then(|| "millrace=loudly".to_owned())).unwrap_err();
        assert!(error.to_string().starts_with("RUST_LOG is not a log filter"), "{error}");
    }
}
