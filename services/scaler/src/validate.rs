//! What requests may hold. Every violation of a request is collected before it is refused.

use std::time::Duration;

use millrace_core::id::{NodeId, is_name};
use millrace_runtime::status::Violations;

use crate::convert;

/// The longest text for people, in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 1_024;

/// The longest request id, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

const NAME: &str = "must be 1 to 63 characters of [a-z0-9._-], starting with a letter or a digit";

/// A request id: at most 128 bytes; empty means that a repeat is another call.
pub(crate) fn request_id(request_id: &str, violations: &mut Violations) {
    violations.require(request_id.len() <= MAX_REQUEST_ID_BYTES, "request_id", "must be at most 128 bytes");
}

/// The name of a pool, a queue, a provider or an executor.
pub(crate) fn name(field: &str, name: &str, violations: &mut Violations) {
    violations.require(is_name(name), field, NAME);
}

/// A text for people, which may be empty, of at most so many bytes.
pub(crate) fn text(field: &str, text: &str, most: usize, violations: &mut Violations) {
    violations.require(text.len() <= most, field, format!("must be at most {most} bytes"));
    // PostgreSQL has no text with NUL in it.
    violations.require(!text.contains('\0'), field, "must not contain NUL");
}

/// A text for people that must be there.
pub(crate) fn some_text(field: &str, given: &str, most: usize, violations: &mut Violations) {
    violations.require(!given.trim().is_empty(), field, "must be set");
    text(field, given, most, violations);
}

/// An id of a node.
pub(crate) fn node_id(field: &str, id: &str, violations: &mut Violations) -> Option<NodeId> {
    let id = id.parse().ok();
    violations.require(id.is_some(), field, "must be a UUID");
    id
}

/// A number that may be unset.
pub(crate) fn number(field: &str, given: Option<i32>, least: i32, most: i32, violations: &mut Violations) {
    let fits = given.is_none_or(|number| (least..=most).contains(&number));
    violations.require(fits, field, format!("must be from {least} to {most}"));
}

/// A span that may be unset.
pub(crate) fn span(
    field: &str,
    given: Option<&prost_types::Duration>,
    (least, most): (Duration, Duration),
    violations: &mut Violations,
) -> Option<Duration> {
    let span = convert::span(given?).filter(|span| (least..=most).contains(span));
    violations.require(span.is_some(), field, format!("must be from {least:?} to {most:?}"));
    span
}
