//! What a ScaledObject asks about: the metadata of its trigger.

use std::collections::BTreeMap;

use millrace_core::id::is_name;
use millrace_proto::foreign::externalscaler::ScaledObjectRef;
use millrace_runtime::status::{Fault, Violations};

/// Queues of one trigger.
const MAX_QUEUES: usize = 64;

/// A metric's name is at most this long: it becomes part of a label of Kubernetes.
const MAX_METRIC_NAME: usize = 50;

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// These queues together.
    Queues(Vec<String>),
    /// A pool: its part of its queues.
    Pool(String),
}

/// A trigger.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trigger {
    /// What it is about.
    pub(crate) subject: Subject,
    /// Tasks for each replica; none when the trigger does not say.
    pub(crate) target: Option<f64>,
}

impl Trigger {
    /// Reads the metadata. Keys that are not ours (KEDA adds some) are passed over.
    ///
    /// # Errors
    /// INVALID_ARGUMENT that names each key that cannot be accepted.
    pub(crate) fn read(object: Option<&ScaledObjectRef>) -> Result<Self, Fault> {
        let none = BTreeMap::new();
        let metadata = object.map_or(&none, |object| &object.scaler_metadata);
        let given = |key: &str| metadata.get(key).map(|value| value.trim()).filter(|value| !value.is_empty());
        let mut violations = Violations::new();
        let subject = match (given("queue"), given("pool")) {
            (Some(queues), None) => Some(queues_of(queues, &mut violations)),
            (None, Some(pool)) => {
                violations.require(is_name(pool), "scalerMetadata.pool", "must be the name of a pool");
                Some(Subject::Pool(pool.into()))
            }
            (None, None) => {
                let text = "must be the name of a queue, or several with commas; or `pool` must be that of a pool";
                violations.push("scalerMetadata.queue", text);
                None
            }
            (Some(_), Some(_)) => {
                violations.push("scalerMetadata.queue", "must not be there together with `pool`");
                None
            }
        };
        let target = given("targetWaiting").map(|text| text.parse::<f64>().ok().filter(|n| *n > 0.0 && n.is_finite()));
        let text = "must be a number above 0: how many tasks there may be for each replica";
        violations.require(target != Some(None), "scalerMetadata.targetWaiting", text);
        violations.finish()?;
        match subject {
            Some(subject) => Ok(Self { subject, target: target.flatten() }),
            None => Err(Fault::internal("a trigger without a subject was accepted")),
        }
    }

    /// The metric's name: the same for the same trigger, and of letters that Kubernetes takes.
    pub(crate) fn metric(&self) -> String {
        let (kind, names) = match &self.subject {
            Subject::Queues(queues) => ("queue", queues.join("-")),
            Subject::Pool(pool) => ("pool", pool.clone()),
        };
        let name = format!("millrace-{kind}-{names}");
        let letter = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
        name.chars().map(letter).take(MAX_METRIC_NAME).collect()
    }
}

fn queues_of(text: &str, violations: &mut Violations) -> Subject {
    let mut queues: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    queues.sort_unstable();
    queues.dedup();
    let named = queues.iter().all(|name| is_name(name));
    violations.require(named, "scalerMetadata.queue", "must be names of queues, with commas between them");
    violations.require(queues.len() <= MAX_QUEUES, "scalerMetadata.queue", "must be at most 64 queues");
    Subject::Queues(queues)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(metadata: &[(&str, &str)]) -> Result<Trigger, Fault> {
        let scaler_metadata = metadata.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Trigger::read(Some(&ScaledObjectRef { name: "x".into(), namespace: "y".into(), scaler_metadata }))
    }

    #[test]
    fn metadata_names_queues_or_a_pool() {
        let trigger = read(&[("queue", "b, a,a"), ("targetWaiting", "2.5"), ("scalerAddress", "z")]).unwrap();
        assert_eq!(trigger, Trigger { subject: Subject::Queues(vec!["a".into(), "b".into()]), target: Some(2.5) });
        assert_eq!(trigger.metric(), "millrace-queue-a-b");
        let trigger = read(&[("pool", "gpu.large")]).unwrap();
        assert_eq!((trigger.metric().as_str(), trigger.target), ("millrace-pool-gpu-large", None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (metadata, field) in [
            (&[][..], "scalerMetadata.queue"),
            (&[("queue", "a"), ("pool", "b")], "scalerMetadata.queue"),
            (&[("queue", "A")], "scalerMetadata.queue"),
            (&[("queue", "a,,b")], "scalerMetadata.queue"),
            (&[("pool", "!")], "scalerMetadata.pool"),
            (&[("pool", "a"), ("targetWaiting", "0")], "scalerMetadata.targetWaiting"),
            (&[("pool", "a"), ("targetWaiting", "NaN")], "scalerMetadata.targetWaiting"),
            (&[("pool", "a"), ("targetWaiting", "many")], "scalerMetadata.targetWaiting"),
        ] {
            assert_eq!(read(metadata).unwrap_err().violations[0].field, field, "{metadata:?}");
        }
        assert!(Trigger::read(None).is_err());
    }
}
