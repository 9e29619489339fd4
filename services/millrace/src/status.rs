//! What a gRPC status means to the person at the terminal: one line, and whether trying again can help.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::endpoint::{Service, root_cause, unreachable};
use crate::exit::{Failure, one_line};

/// Turns a status into the failure that the command ends with.
pub(crate) fn failure(status: &Status, service: Service, endpoint: &str) -> Failure {
    if is_transport(status) {
        return Failure::Unavailable(unreachable(service, &[(endpoint, root_cause(status))]));
    }
    let text = describe(status, service);
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => {
            Failure::Unavailable(format!("the {} at {endpoint}: {text}", service.name()))
        }
        _ => Failure::Request(text),
    }
}

/// Whether the same request, sent again, may fare better: the service is away, sheds load, or the connection broke
/// under it.
pub(crate) fn is_transient(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::Aborted | Code::DeadlineExceeded)
        || is_transport(status)
}

/// Whether another endpoint of the service may do what this one does not: it cannot be reached, is silent, or says that
/// it cannot serve now.
pub(crate) fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) || is_transport(status)
}

/// Why a call failed, in a few words.
pub(crate) fn cause(status: &Status) -> String {
    match is_transport(status) {
        true => root_cause(status),
        false => one_line(status.message()),
    }
}

/// Whether the status was made on this side because the connection failed, and no service spoke. Only such a status has
/// a source.
fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// How long the service asks to wait before another try.
pub(crate) fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_error_details().retry_info().and_then(|info| info.retry_delay)
}

/// The reason in the status's ErrorInfo; empty when it has none.
fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// Message, reason, fields, and what to do next, on one line.
fn describe(status: &Status, service: Service) -> String {
    let details = status.get_error_details();
    let reason = reason(status);
    let message = one_line(status.message());
    let mut text = if message.is_empty() { format!("the request failed: {}", status.code()) } else { message };
    if !reason.is_empty() {
        text = format!("{text} ({reason})");
    }
    for violation in details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default() {
        // A service may well say the same in its message; once is enough.
        let said = text.contains(&violation.field) && text.contains(&violation.description);
        if !said {
            text = format!("{text}; {}", one_line(&format!("{}: {}", violation.field, violation.description)));
        }
    }
    match next_step(status.code(), &reason, service) {
        Some(hint) => format!("{text}; {hint}"),
        None => text,
    }
}

/// What to do about a refusal, where there is something to do.
pub(crate) fn next_step(code: Code, reason: &str, service: Service) -> Option<String> {
    let hint = match (reason, code) {
        ("NO_ROUTE", _) => "`millrace route list` shows what is routed where, `millrace route set` adds a route",
        ("NO_SUCH_QUEUE", _) => "`millrace queue list` shows the queues, `millrace queue create` adds one",
        ("QUEUE_NOT_EMPTY", _) => {
            "let it empty itself with --mode drain, or move the work with --mode move --move-to QUEUE"
        }
        ("POOL_NOT_EMPTY", _) => "drain its nodes with --drain; the pool goes once the last has ended",
        ("POOL_NOT_FOUND", _) => "`millrace pool list` shows the pools, `millrace pool create` adds one",
        ("PROVIDER_UNKNOWN", _) => "the scaler's own --provider flags name its providers",
        ("NODE_NOT_FOUND", _) => "`millrace node list` shows the nodes; those long gone are forgotten",
        ("POOL_CHANGED", _) => "somebody else changed it meanwhile: look at it, and try again",
        ("QUEUE_ROUTED", _) => "point its routes elsewhere first: `millrace route list`",
        ("QUEUE_CLOSED", _) => "route the task elsewhere: `millrace route set`",
        ("REQUEST_ID_REUSED", _) => "use another --idempotency-key, or send the same content",
        ("ALREADY_FINISHED", _) => "`millrace task get` shows how it ended",
        ("NOT_FINISHED", _) => "cancel it first, or wait: `millrace task watch`",
        (_, Code::Unimplemented) => {
            return Some(format!(
                "this endpoint does not serve the {}; say where it is with --endpoint or {}",
                service.name(),
                service.variable()
            ));
        }
        (_, Code::Unavailable | Code::DeadlineExceeded) => "try again, and see `millrace doctor`",
        (_, Code::ResourceExhausted) => "it sheds load: try again later, or raise --retry-for",
        _ => return None,
    };
    Some(hint.to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tonic_types::ErrorDetails;

    use super::*;

    fn text(status: &Status) -> String {
        failure(status, Service::Distributor, "http://x:1").to_string()
    }

    #[test]
    fn codes_map_to_exit_codes() {
        for (code, exit) in [
            (Code::Unavailable, 69),
            (Code::DeadlineExceeded, 69),
            (Code::InvalidArgument, 1),
            (Code::NotFound, 1),
            (Code::FailedPrecondition, 1),
            (Code::ResourceExhausted, 1),
            (Code::Internal, 1),
        ] {
            let status = Status::new(code, "x");
            assert_eq!(failure(&status, Service::Queue, "http://x:1").code(), exit, "{code:?}");
        }
    }

    #[test]
    fn a_broken_connection_is_unavailable_whatever_its_code() {
        let mut status = Status::unknown("transport error");
        status.set_source(Arc::new(std::io::Error::other("connection reset")));
        assert!(is_transient(&status));
        let failure = failure(&status, Service::Distributor, "http://x:1");
        assert_eq!(failure.code(), 69);
        assert!(
            failure.to_string().contains("cannot reach the distributor at http://x:1: connection reset"),
            "{failure}"
        );
    }

    #[test]
    fn the_line_has_reason_fields_and_next_step() {
        let mut details = ErrorDetails::with_error_info("NO_ROUTE", "millrace", std::collections::HashMap::new());
        details.add_bad_request_violation("spec.executor", "no route\ntakes it");
        let status = Status::with_error_details(Code::FailedPrecondition, "no route takes the task", details);
        assert_eq!(
            text(&status),
            "no route takes the task (NO_ROUTE); spec.executor: no route takes it; `millrace route list` shows what is routed where, \
             `millrace route set` adds a route"
        );
    }

    #[test]
    fn a_field_that_the_message_names_is_not_named_twice() {
        let details = ErrorDetails::with_bad_request_violation("spec.timeout", "must be positive");
        let status = Status::with_error_details(Code::InvalidArgument, "spec.timeout: must be positive", details);
        assert_eq!(text(&status), "spec.timeout: must be positive");
    }

    #[test]
    fn a_service_at_the_wrong_place_is_explained() {
        let line = failure(&Status::unimplemented(""), Service::Queue, "http://x:1").to_string();
        assert!(line.contains("MILLRACE_QUEUE_ENDPOINT"), "{line}");
    }

    #[test]
    fn the_services_delay_is_read() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(2)));
        let status = Status::with_error_details(Code::Unavailable, "x", details);
        assert_eq!(retry_delay(&status), Some(Duration::from_secs(2)));
        assert_eq!(retry_delay(&Status::unavailable("x")), None);
    }
}
