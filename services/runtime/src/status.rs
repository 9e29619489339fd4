//! The only place where an error becomes a gRPC status.
//!
//! A [`Fault`] is what a service knows about a failed call. As a [`tonic::Status`] it carries google.rpc details: an
//! ErrorInfo (domain `millrace`) with a reason that programs can match, a BadRequest that names fields, a RetryInfo
//! that says when to try again, a QuotaFailure that says whose quota is used up.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use millrace_store::StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of every `ErrorInfo` that Millrace sends.
pub const DOMAIN: &str = "millrace";

/// The retry delay sent when the database does not answer.
pub const DATABASE_RETRY: Duration = Duration::from_secs(1);

/// One field of a request that cannot be accepted, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's path in the request, as in the contract: `spec.labels`, `specs[3].tenant`.
    pub field: String,
    /// What the field has to be, for a person.
    pub description: String,
}

/// A quota that is used up, and whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Whose quota it is: `tenant:acme`.
    pub subject: String,
    /// What the quota is, for a person.
    pub description: String,
}

/// A failed call, before it is a gRPC status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The gRPC code.
    pub code: Code,
    /// What went wrong, for programs: UPPER_SNAKE_CASE, stable over releases. Empty when there is nothing to match on.
    pub reason: Cow<'static, str>,
    /// What went wrong, for a person.
    pub message: String,
    /// The fields that cannot be accepted.
    pub violations: Vec<Violation>,
    /// How long to wait before the same call may succeed; None when waiting alone does not help.
    pub retry_after: Option<Duration>,
    /// What few faults have, kept apart so that a `Result` with a fault stays small.
    more: Option<Box<More>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct More {
    quota: Option<Quota>,
    metadata: BTreeMap<String, String>,
}

impl Fault {
    /// INVALID_ARGUMENT: a field cannot be accepted. Collect more with [`Fault::and_invalid`] or [`Fault::violations`].
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Fault {
        Fault::violations([Violation { field: field.into(), description: description.into() }])
    }

    /// INVALID_ARGUMENT: several fields cannot be accepted. The message names them all.
    pub fn violations(violations: impl IntoIterator<Item = Violation>) -> Fault {
        let fault = Fault { violations: violations.into_iter().collect(), ..Fault::of(Code::InvalidArgument, "") };
        fault.with_reason("INVALID_REQUEST").describe_violations()
    }

    /// Adds a field to an INVALID_ARGUMENT.
    #[must_use]
    pub fn and_invalid(mut self, field: impl Into<String>, description: impl Into<String>) -> Fault {
        self.violations.push(Violation { field: field.into(), description: description.into() });
        self.describe_violations()
    }

    /// FAILED_PRECONDITION: the call is sound but the state does not allow it; trying again does not help by itself.
    pub fn precondition(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Fault {
        Fault::of(Code::FailedPrecondition, message).with_reason(reason)
    }

    /// NOT_FOUND.
    pub fn not_found(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Fault {
        Fault::of(Code::NotFound, message).with_reason(reason)
    }

    /// ALREADY_EXISTS.
    pub fn already_exists(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Fault {
        Fault::of(Code::AlreadyExists, message).with_reason(reason)
    }

    /// UNAVAILABLE: this replica cannot answer now; another may, or this one after `retry_after`.
    pub fn unavailable(message: impl Into<String>, retry_after: Duration) -> Fault {
        Fault { retry_after: Some(retry_after), ..Fault::of(Code::Unavailable, message) }.with_reason("UNAVAILABLE")
    }

    /// RESOURCE_EXHAUSTED: a limit is reached; it may have room after `retry_after`.
    pub fn exhausted(reason: impl Into<Cow<'static, str>>, message: impl Into<String>, retry_after: Duration) -> Fault {
        Fault { retry_after: Some(retry_after), ..Fault::of(Code::ResourceExhausted, message) }.with_reason(reason)
    }

    /// INTERNAL: a defect. The message is sent to the caller, so it must hold no secret.
    pub fn internal(message: impl Into<String>) -> Fault {
        Fault::of(Code::Internal, message).with_reason("INTERNAL")
    }

    /// ABORTED: another call came between; read the state again, then decide whether to repeat.
    pub fn aborted(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Fault {
        Fault::of(Code::Aborted, message).with_reason(reason)
    }

    /// A fault of any code, for the codes that have no constructor of their own.
    pub fn of(code: Code, message: impl Into<String>) -> Fault {
        Fault {
            code,
            reason: Cow::Borrowed(""),
            message: message.into(),
            violations: Vec::new(),
            retry_after: None,
            more: None,
        }
    }

    /// Sets the reason.
    #[must_use]
    pub fn with_reason(mut self, reason: impl Into<Cow<'static, str>>) -> Fault {
        self.reason = reason.into();
        self
    }

    /// Sets the retry delay.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Fault {
        self.retry_after = Some(delay);
        self
    }

    /// Names the quota that stopped the call.
    #[must_use]
    pub fn with_quota(mut self, subject: impl Into<String>, description: impl Into<String>) -> Fault {
        self.more().quota = Some(Quota { subject: subject.into(), description: description.into() });
        self
    }

    /// Adds a fact for programs.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Fault {
        self.more().metadata.insert(key.into(), value.into());
        self
    }

    /// The quota that stopped the call, if one did.
    pub fn quota(&self) -> Option<&Quota> {
        self.more.as_ref().and_then(|more| more.quota.as_ref())
    }

    /// A fact that goes with the reason.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.more.as_ref().and_then(|more| more.metadata.get(key)).map(String::as_str)
    }

    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    fn describe_violations(mut self) -> Fault {
        let fields: Vec<_> = self.violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
        self.message = fields.join("; ");
        self
    }

    fn details(&self) -> ErrorDetails {
        let mut details = ErrorDetails::new();
        if !self.reason.is_empty() {
            let metadata = self.more.as_ref().map(|more| more.metadata.clone()).unwrap_or_default();
            details.set_error_info(self.reason.clone(), DOMAIN, metadata.into_iter().collect::<HashMap<_, _>>());
        }
        if !self.violations.is_empty() {
            let violations = self.violations.iter();
            details.set_bad_request(
                violations
                    .map(|v| tonic_types::FieldViolation::new(v.field.clone(), v.description.clone()))
                    .collect::<Vec<_>>(),
            );
        }
        if let Some(delay) = self.retry_after {
            details.set_retry_info(Some(delay));
        }
        if let Some(quota) = self.quota() {
            details.add_quota_failure_violation(quota.subject.clone(), quota.description.clone());
        }
        details
    }
}

/// Says whether a batch of fields can be accepted, collecting every violation first.
#[derive(Debug, Default)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// No violation yet.
    pub fn new() -> Violations {
        Violations::default()
    }

    /// Adds a violation.
    pub fn push(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(Violation { field: field.into(), description: description.into() });
    }

    /// Adds a violation unless the field is as it has to be.
    pub fn require(&mut self, holds: bool, field: impl Into<String>, description: impl Into<String>) {
        if !holds {
            self.push(field, description);
        }
    }

    /// Ok when nothing was added.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with everything that was added.
    pub fn finish(self) -> Result<(), Fault> {
        if self.0.is_empty() { Ok(()) } else { Err(Fault::violations(self.0)) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = crate::metrics::code_name(self.code);
        if self.reason.is_empty() || self.reason == code {
            write!(f, "{code}: {}", self.message)
        } else {
            write!(f, "{code} ({}): {}", self.reason, self.message)
        }
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Status {
        let details = fault.details();
        Status::with_error_details(fault.code, fault.message, details)
    }
}

/// Reads a status that a peer sent. Details that cannot be read are left out: the code and the message remain.
impl From<&Status> for Fault {
    fn from(status: &Status) -> Fault {
        let details = status.get_error_details();
        let mut fault = Fault::of(status.code(), status.message());
        if let Some(info) = details.error_info() {
            fault.reason = Cow::Owned(info.reason.clone());
            if !info.metadata.is_empty() {
                fault.more().metadata = info.metadata.clone().into_iter().collect();
            }
        }
        if let Some(request) = details.bad_request() {
            let violations = request.field_violations.iter();
            fault.violations =
                violations.map(|v| Violation { field: v.field.clone(), description: v.description.clone() }).collect();
        }
        fault.retry_after = details.retry_info().and_then(|retry| retry.retry_delay);
        if let Some(violation) = details.quota_failure().and_then(|quota| quota.violations.first()) {
            fault = fault.with_quota(violation.subject.clone(), violation.description.clone());
        }
        fault
    }
}

impl From<Status> for Fault {
    fn from(status: Status) -> Fault {
        Fault::from(&status)
    }
}

/// What the database's error means to a caller: whether the same call with the same `request_id` is worth repeating.
impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        let message = error.to_string();
        match error {
            StoreError::Unavailable(_) | StoreError::Timeout(_) => {
                Fault::unavailable(message, DATABASE_RETRY).with_reason("DATABASE_UNAVAILABLE")
            }
            // The caller repeats with the same request id and finds out what the first try did (R11).
            StoreError::UnknownOutcome(_) => Fault::unavailable(message, DATABASE_RETRY).with_reason("OUTCOME_UNKNOWN"),
            StoreError::Conflict(_) => Fault::aborted("CONFLICT", message).with_retry_after(Duration::ZERO),
            StoreError::Data { ref sqlstate, .. } => Fault::of(Code::InvalidArgument, message)
                .with_reason("DATA_REFUSED")
                .with_metadata("sqlstate", sqlstate),
            StoreError::Unreadable(_) => Fault::precondition("ROW_UNREADABLE", message),
            StoreError::Schema(_) => Fault::precondition("SCHEMA_MISMATCH", message),
            StoreError::Config(_) | StoreError::Internal(_) => Fault::internal(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::foreign::Defect;

    use super::*;

    fn round_trip(fault: &Fault) -> (Status, Fault) {
        let status = Status::from(fault.clone());
        let back = Fault::from(&status);
        (status, back)
    }

    #[test]
    fn every_detail_survives_the_wire() {
        let fault =
            Fault::exhausted("TENANT_QUOTA", "tenant acme may have 10 tasks waiting", Duration::from_millis(1500))
                .with_quota("tenant:acme", "10 waiting tasks")
                .with_metadata("waiting", "10");
        let (status, back) = round_trip(&fault);
        assert_eq!(back, fault);
        assert_eq!((back.metadata("waiting"), back.quota().unwrap().subject.as_str()), (Some("10"), "tenant:acme"));
        assert_eq!(status.code(), Code::ResourceExhausted);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().domain, "millrace");
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(1500)));
        assert_eq!(details.quota_failure().unwrap().violations[0].subject, "tenant:acme");
    }

    #[test]
    fn violations_are_collected_and_named_in_the_message() {
        let mut violations = Violations::new();
        violations.require(true, "spec.priority", "fine");
        violations.require(false, "spec.tenant", "must be set");
        violations.push("spec.labels", "at most 64");
        let fault = violations.finish().unwrap_err();
        assert_eq!(fault.message, "spec.tenant: must be set; spec.labels: at most 64");
        let (status, back) = round_trip(&fault);
        assert_eq!(back, fault);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_error_details().bad_request().unwrap().field_violations.len(), 2);
        assert_eq!(Violations::new().finish(), Ok(()));
        assert_eq!(Fault::invalid("a", "b").and_invalid("c", "d").violations.len(), 2);
    }

    #[test]
    fn constructors_have_their_codes() {
        let second = Duration::from_secs(1);
        for (fault, code) in [
            (Fault::precondition("SESSION_GONE", "m"), Code::FailedPrecondition),
            (Fault::not_found("TASK", "m"), Code::NotFound),
            (Fault::already_exists("QUEUE", "m"), Code::AlreadyExists),
            (Fault::unavailable("m", second), Code::Unavailable),
            (Fault::internal("m"), Code::Internal),
            (Fault::aborted("RACE", "m"), Code::Aborted),
        ] {
            let (status, back) = round_trip(&fault);
            assert_eq!(status.code(), code);
            assert_eq!(back, fault);
        }
    }

    #[test]
    fn a_status_without_details_keeps_code_and_message() {
        let fault = Fault::from(Status::permission_denied("no"));
        assert_eq!(fault, Fault::of(Code::PermissionDenied, "no"));
        assert_eq!(fault.to_string(), "PERMISSION_DENIED: no");
        assert_eq!(Fault::not_found("NO_TASK", "no task x").to_string(), "NOT_FOUND (NO_TASK): no task x");
    }

    #[test]
    fn a_database_that_does_not_answer_is_unavailable_with_a_delay() {
        let text = || "x".to_owned();
        for error in [StoreError::Unavailable(text()), StoreError::Timeout(text()), StoreError::UnknownOutcome(text())]
        {
            let status = Status::from(Fault::from(error));
            assert_eq!(status.code(), Code::Unavailable);
            assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(DATABASE_RETRY));
        }
    }

    #[test]
    fn other_database_errors_say_what_to_do() {
        let text = || "x".to_owned();
        let data = StoreError::Data { sqlstate: "22021".into(), message: text() };
        for (error, code) in [
            (StoreError::Conflict(text()), Code::Aborted),
            (data, Code::InvalidArgument),
            (StoreError::Schema(text()), Code::FailedPrecondition),
            (StoreError::Unreadable(Defect::new("rank", "is null")), Code::FailedPrecondition),
            (StoreError::Config(text()), Code::Internal),
            (StoreError::Internal(text()), Code::Internal),
        ] {
            assert_eq!(Fault::from(error).code, code);
        }
    }
}
