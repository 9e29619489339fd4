//! Reading and judging the spec of a submission. Bounds are those that the contract states.

use std::time::Duration;

use millrace_core::{id::is_name, retry::RetryPolicy, time::Timestamp};
use millrace_proto::common::v1 as wire;
use millrace_runtime::status::{Fault, Violations};
use prost::Message;

use super::drill;

/// The tenant of a spec that names none.
pub(crate) const DEFAULT_TENANT: &str = "default";

const MAX_LABELS: usize = 32;
const MAX_LABEL_KEY: usize = 63;
const MAX_TEXT: usize = 255;
const DAY: Duration = Duration::from_secs(24 * 3600);
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// A spec that keeps every bound, decoded.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// As decoded; fields of later releases are only in the bytes.
    pub(crate) wire: wire::TaskSpec,
    /// The tenant, filled in.
    pub(crate) tenant: String,
    /// Minus the priority.
    pub(crate) rank: i32,
    /// Not before this moment.
    pub(crate) not_before: Option<Timestamp>,
    /// Expires after waiting this long.
    pub(crate) expire_after: Option<Duration>,
    /// One attempt may run this long.
    pub(crate) timeout: Option<Duration>,
}

/// Decodes and judges a spec. Every broken bound is named, under `field`.
pub(crate) fn read(bytes: &[u8], field: &str, max_bytes: usize) -> Result<Spec, Fault> {
    if bytes.is_empty() {
        return Err(Fault::invalid(field, "is required"));
    }
    if bytes.len() > max_bytes {
        return Err(Fault::invalid(field, format!("has {} bytes; at most {max_bytes} are accepted", bytes.len())));
    }
    let decoded =
        wire::TaskSpec::decode(&*drill::seen(bytes)).map_err(|error| Fault::invalid(field, error.to_string()))?;
    judge(decoded, field)
}

fn judge(spec: wire::TaskSpec, field: &str) -> Result<Spec, Fault> {
    let mut broken = Violations::new();
    let at = |name: &str| format!("{field}.{name}");
    let name_rule = "must be 1 to 63 characters of [a-z0-9._-], starting with a letter or a digit";
    broken.require(spec.tenant.is_empty() || is_name(&spec.tenant), at("tenant"), name_rule);
    broken.require(is_name(&spec.executor), at("executor"), name_rule);
    broken.require(spec.resource_class.is_empty() || is_name(&spec.resource_class), at("resource_class"), name_rule);
    broken.require(
        spec.priority.is_none_or(|priority| (-1000..=1000).contains(&priority)),
        at("priority"),
        "must lie between -1000 and 1000",
    );
    text(&mut broken, &at("concurrency_key"), &spec.concurrency_key, MAX_TEXT);
    labels(&mut broken, &at("labels"), &spec.labels);
    let not_before = spec.not_before.as_ref().and_then(|moment| timestamp(&mut broken, &at("not_before"), moment));
    let shortest = Duration::from_millis(1);
    let expire_after =
        spec.expire_after.as_ref().and_then(|span| bounded(&mut broken, &at("expire_after"), span, shortest, LONGEST));
    let timeout = spec.timeout.as_ref().and_then(|span| bounded(&mut broken, &at("timeout"), span, shortest, LONGEST));
    if let Some(retry) = &spec.retry {
        retry_bounds(&mut broken, &at("retry"), retry);
    }
    match &spec.payload {
        None => broken.push(at("payload"), "is required: command or custom"),
        Some(wire::task_spec::Payload::Command(command)) => command_bounds(&mut broken, &at("command"), command),
        Some(wire::task_spec::Payload::Custom(any)) => broken.require(
            !any.type_url.is_empty() && !any.type_url.contains('\0'),
            at("custom.type_url"),
            "must not be empty",
        ),
    }
    broken.finish()?;
    let tenant = if spec.tenant.is_empty() { DEFAULT_TENANT.into() } else { spec.tenant.clone() };
    Ok(Spec { tenant, rank: -spec.priority.unwrap_or(0), not_before, expire_after, timeout, wire: spec })
}

/// Judges labels.
pub(crate) fn labels(broken: &mut Violations, field: &str, labels: &std::collections::BTreeMap<String, String>) {
    broken.require(labels.len() <= MAX_LABELS, field, format!("has {} labels; at most {MAX_LABELS}", labels.len()));
    for (key, value) in labels.iter().take(MAX_LABELS) {
        broken.require(!key.is_empty(), field, "has an empty key");
        text(broken, field, key, MAX_LABEL_KEY);
        text(broken, &format!("{field}[{key:.63}]"), value, MAX_TEXT);
    }
}

fn text(broken: &mut Violations, field: &str, value: &str, most: usize) {
    broken.require(value.len() <= most, field, format!("has {} bytes; at most {most}", value.len()));
    broken.require(!value.contains('\0'), field, "holds a NUL byte");
}

fn command_bounds(broken: &mut Violations, field: &str, command: &wire::Command) {
    let argv = format!("{field}.argv");
    broken.require(command.argv.first().is_some_and(|program| !program.is_empty()), &argv, "must name a program");
    broken.require(command.argv.iter().all(|word| !word.contains('\0')), &argv, "holds a NUL byte");
    let env = format!("{field}.env");
    broken.require(
        command.env.keys().all(|key| !key.is_empty() && !key.contains(['=', '\0'])),
        &env,
        "has a key that is empty or holds '=' or a NUL byte",
    );
    broken.require(command.env.values().all(|value| !value.contains('\0')), &env, "has a value with a NUL byte");
    broken.require(!command.working_dir.contains('\0'), format!("{field}.working_dir"), "holds a NUL byte");
}

fn retry_bounds(broken: &mut Violations, field: &str, retry: &wire::RetryPolicy) {
    let count = |count: Option<i32>| count.is_none_or(|count| (1..=100).contains(&count));
    broken.require(count(retry.max_attempts), format!("{field}.max_attempts"), "must lie between 1 and 100");
    broken.require(count(retry.max_losses), format!("{field}.max_losses"), "must lie between 1 and 100");
    let mut pace = |name: &str, span: &Option<prost_types::Duration>| {
        span.as_ref().and_then(|span| bounded(broken, &format!("{field}.{name}"), span, Duration::ZERO, DAY))
    };
    let defaults = RetryPolicy::default();
    let shortest = pace("min_backoff", &retry.min_backoff).unwrap_or(defaults.min_backoff);
    let longest = pace("max_backoff", &retry.max_backoff);
    broken.require(
        longest.is_none_or(|longest| longest >= shortest),
        format!("{field}.max_backoff"),
        "must not be shorter than min_backoff",
    );
}

/// A duration within its bounds, or a violation.
fn bounded(
    broken: &mut Violations,
    field: &str,
    span: &prost_types::Duration,
    shortest: Duration,
    longest: Duration,
) -> Option<Duration> {
    let read = (span.nanos.abs() < 1_000_000_000).then(|| Duration::try_from(*span).ok()).flatten();
    match read {
        Some(read) if (shortest..=longest).contains(&read) => Some(read),
        _ => {
            broken.push(field, format!("must lie between {shortest:?} and {} days", longest.as_secs() / 86_400));
            None
        }
    }
}

/// A moment that the database can hold, or a violation.
fn timestamp(broken: &mut Violations, field: &str, moment: &prost_types::Timestamp) -> Option<Timestamp> {
    let valid = (0..=253_402_300_799).contains(&moment.seconds) && (0..1_000_000_000).contains(&moment.nanos);
    broken.require(valid, field, "must be a time between 1970 and 9999");
    valid.then(|| Timestamp(moment.seconds * 1_000_000 + i64::from(moment.nanos) / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(argv: &[&str]) -> wire::TaskSpec {
        wire::TaskSpec {
            executor: "process".into(),
            payload: Some(wire::task_spec::Payload::Command(wire::Command {
                argv: argv.iter().map(|word| word.to_string()).collect(),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn fields(spec: wire::TaskSpec) -> Vec<String> {
        match read(&spec.encode_to_vec(), "spec", 1000) {
            Ok(_) => Vec::new(),
            Err(fault) => fault.violations.into_iter().map(|violation| violation.field).collect(),
        }
    }

    #[test]
    fn a_plain_command_is_accepted_with_the_defaults_filled_in() {
        let spec = read(&command(&["true"]).encode_to_vec(), "spec", 1000).unwrap();
        assert_eq!((spec.tenant.as_str(), spec.rank), ("default", 0));
    }

    #[test]
    fn every_broken_bound_is_named() {
        let span = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        assert_eq!(fields(command(&[])), ["spec.command.argv"]);
        assert_eq!(fields(command(&[""])), ["spec.command.argv"]);
        assert_eq!(fields(command(&["a\0b"])), ["spec.command.argv"]);
        assert_eq!(fields(wire::TaskSpec { executor: String::new(), ..command(&["a"]) }), ["spec.executor"]);
        assert_eq!(fields(wire::TaskSpec { tenant: "A B".into(), ..command(&["a"]) }), ["spec.tenant"]);
        assert_eq!(fields(wire::TaskSpec { priority: Some(1001), ..command(&["a"]) }), ["spec.priority"]);
        assert_eq!(fields(wire::TaskSpec { timeout: span(-1, 0), ..command(&["a"]) }), ["spec.timeout"]);
        assert_eq!(fields(wire::TaskSpec { timeout: span(0, 0), ..command(&["a"]) }), ["spec.timeout"]);
        assert_eq!(fields(wire::TaskSpec { timeout: span(1, i32::MAX), ..command(&["a"]) }), ["spec.timeout"]);
        assert_eq!(
            fields(wire::TaskSpec { expire_after: span(i64::MAX, 0), ..command(&["a"]) }),
            ["spec.expire_after"]
        );
        assert_eq!(fields(wire::TaskSpec { payload: None, ..command(&["a"]) }), ["spec.payload"]);
        let labels = (0..33).map(|number| (number.to_string(), String::new())).collect();
        assert_eq!(fields(wire::TaskSpec { labels, ..command(&["a"]) }), ["spec.labels"]);
        let retry = Some(wire::RetryPolicy { max_attempts: Some(0), max_backoff: span(0, 1), ..Default::default() });
        assert_eq!(
            fields(wire::TaskSpec { retry, ..command(&["a"]) }),
            ["spec.retry.max_attempts", "spec.retry.max_backoff"]
        );
    }

    #[test]
    fn oversize_missing_and_garbled_specs_are_refused() {
        assert!(read(&command(&[&"x".repeat(2000)]).encode_to_vec(), "spec", 1000).is_err());
        assert!(read(&[], "spec", 1000).is_err());
        assert!(read(&[0xFF, 0xFF, 0xFF], "spec", 1000).is_err());
    }
}
