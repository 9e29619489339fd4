//! What the distributor itself needs of a stored spec.

use std::{collections::BTreeMap, time::Duration};

use millrace_core::retry::RetryPolicy;
use millrace_proto::common::v1 as wire;
use prost::Message;

use super::cleaned;

/// The retry policy of a stored spec. What cannot be read falls back to the defaults: the task still runs.
pub(crate) fn retry_policy(bytes: &[u8]) -> RetryPolicy {
    let defaults = RetryPolicy::default();
    let Some(retry) = decoded(bytes).retry else { return defaults };
    RetryPolicy {
        max_attempts: retry.max_attempts.and_then(|count| u32::try_from(count).ok()).unwrap_or(defaults.max_attempts),
        max_losses: retry.max_losses.and_then(|count| u32::try_from(count).ok()).unwrap_or(defaults.max_losses),
        min_backoff: retry.min_backoff.and_then(|span| Duration::try_from(span).ok()).unwrap_or(defaults.min_backoff),
        max_backoff: retry.max_backoff.and_then(|span| Duration::try_from(span).ok()).unwrap_or(defaults.max_backoff),
    }
}

/// The labels of a stored spec; none when they cannot be read.
pub(crate) fn labels_of(bytes: &[u8]) -> BTreeMap<String, String> {
    decoded(bytes).labels
}

/// A stored spec, as far as it can be read.
fn decoded(bytes: &[u8]) -> wire::TaskSpec {
    wire::TaskSpec::decode(&*cleaned(bytes)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_policy_is_read_back_and_garbage_gives_the_defaults() {
        let retry = Some(wire::RetryPolicy { max_attempts: Some(5), ..Default::default() });
        let bytes = wire::TaskSpec { retry, ..Default::default() }.encode_to_vec();
        assert_eq!(retry_policy(&bytes), RetryPolicy { max_attempts: 5, ..RetryPolicy::default() });
        assert_eq!(retry_policy(&[0xFF]), RetryPolicy::default());
    }

    #[test]
    fn a_bad_field_costs_neither_the_policy_nor_the_labels() {
        let spec = wire::TaskSpec {
            labels: [("a".to_owned(), "b".to_owned())].into(),
            retry: Some(wire::RetryPolicy { max_losses: Some(9), ..Default::default() }),
            ..Default::default()
        };
        // A timeout that is a number.
        let bytes = [spec.encode_to_vec(), vec![0x48, 1]].concat();
        assert!(wire::TaskSpec::decode(&*bytes).is_err());
        assert_eq!(retry_policy(&bytes).max_losses, 9);
        assert_eq!(labels_of(&bytes)["a"], "b");
    }
}
