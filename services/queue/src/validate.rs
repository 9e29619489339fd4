//! What requests may hold. Every violation of a request is collected before it is refused.

use std::time::Duration;

use millrace_core::id::is_name;
use millrace_runtime::status::Violations;

use crate::convert;

/// The longest text for people, in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 1_024;

/// The longest request id, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Longer than this no timeout and no expiry is.
const MAX_SPAN: Duration = Duration::from_secs(10 * 365 * 86_400);

const NAME: &str = "must be 1 to 63 characters of [a-z0-9._-], starting with a letter or a digit";

/// A request id: at most 128 bytes; empty means that a repeat is another call.
pub(crate) fn request_id(request_id: &str, violations: &mut Violations) {
    violations.require(request_id.len() <= MAX_REQUEST_ID_BYTES, "request_id", "must be at most 128 bytes");
}

/// A queue's name.
pub(crate) fn name(field: &str, name: &str, violations: &mut Violations) {
    violations.require(is_name(name), field, NAME);
}

/// A text for people, which may be empty.
pub(crate) fn text(field: &str, text: &str, violations: &mut Violations) {
    violations.require(text.len() <= MAX_TEXT_BYTES, field, "must be at most 1 KiB");
    // PostgreSQL has no text with NUL in it.
    violations.require(!text.contains('\0'), field, "must not contain NUL");
}

/// A default of tasks, in milliseconds; unset stays unset.
pub(crate) fn span_ms(field: &str, given: Option<&prost_types::Duration>, violations: &mut Violations) -> Option<i64> {
    let span = convert::span(given?).filter(|span| (Duration::from_millis(1)..=MAX_SPAN).contains(span));
    violations.require(span.is_some(), field, "must be from 1 ms to 10 years");
    i64::try_from(span?.as_millis()).ok()
}
