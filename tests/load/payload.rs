//! The specs that are submitted.

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_proto::common::v1::{Command, TaskSpec, task_spec::Payload};
use prost::Message;

/// The variable whose value fills a spec up to its size.
const FILLER: &str = "MILLRACE_BENCH_FILLER";
/// The variable that carries a task's number.
const NUMBER: &str = "MILLRACE_BENCH_NUMBER";

/// What differs between the specs of the run.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    /// The tenant, by which the tasks of one measurement are counted.
    pub(crate) tenant: String,
    /// The executor, by which they are routed.
    pub(crate) executor: String,
    /// The command.
    pub(crate) argv: Vec<String>,
    /// The size of the encoded spec.
    pub(crate) bytes: usize,
}

impl Kind {
    /// Tasks of a tenant for the queue `default`, with specs of the run's size.
    pub(crate) fn of(tenant: &str) -> Self {
        Self::routed(tenant, "process")
    }

    /// The same for another executor.
    pub(crate) fn routed(tenant: &str, executor: &str) -> Self {
        Self {
            tenant: tenant.into(),
            executor: executor.into(),
            argv: vec!["/bin/true".into()],
            bytes: crate::plan::BYTES,
        }
    }

    /// An encoded spec.
    pub(crate) fn spec(&self) -> Bytes {
        self.filled(BTreeMap::new())
    }

    /// An encoded spec that carries a number.
    pub(crate) fn numbered(&self, number: u64) -> Bytes {
        self.filled(BTreeMap::from([(NUMBER.to_owned(), number.to_string())]))
    }

    fn filled(&self, env: BTreeMap<String, String>) -> Bytes {
        let mut command = Command { argv: self.argv.clone(), env, working_dir: String::new(), stdin: Bytes::new() };
        let with = |command: Command| TaskSpec {
            tenant: self.tenant.clone(),
            executor: self.executor.clone(),
            payload: Some(Payload::Command(command)),
            ..TaskSpec::default()
        };
        let mut fill = |length: usize| {
            command.env.insert(FILLER.to_owned(), "x".repeat(length));
            with(command.clone())
        };
        // The fields that hold the filler tell their own lengths, so the size grows by a little more than the filler.
        let mut length = self.bytes.saturating_sub(fill(0).encoded_len());
        while length > 0 && fill(length).encoded_len() > self.bytes {
            length -= 1;
        }
        fill(length).encode_to_vec().into()
    }
}

/// The number that a spec carries.
pub(crate) fn number(spec: &TaskSpec) -> Option<u64> {
    let Some(Payload::Command(command)) = &spec.payload else { return None };
    command.env.get(NUMBER)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_has_its_size_and_carries_its_number() {
        let kind = Kind::of("life");
        assert_eq!(kind.spec().len(), 500);
        let spec = kind.numbered(4711);
        assert_eq!(spec.len(), 500);
        assert_eq!(number(&TaskSpec::decode(spec).unwrap()), Some(4711));
        assert_eq!(number(&TaskSpec::decode(kind.spec()).unwrap()), None);
    }
}
