//! From an assignment on the wire to an attempt that an executor can be given.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, SystemTime},
};

use millrace_proto::{common::v1::TaskSpec, distributor::v1::Assignment};
use prost::Message;
use uuid::Uuid;

use crate::{Attempt, Executor, Outcome};

/// Reads the assignment. What this build cannot read, or the executor cannot run, is unsupported: the task waits for an
/// orchestrator that can (R12). Parts that are not the task's (timeout, times) are left out when they make no sense.
pub(crate) fn read(assignment: Assignment, task_id: Uuid, executor: &dyn Executor) -> Result<Attempt, Box<Outcome>> {
    let spec = match TaskSpec::decode(assignment.spec.clone()) {
        Ok(spec) => spec,
        Err(error) => return Err(Box::new(Outcome::unsupported(format!("the spec cannot be read: {error}")))),
    };
    if spec.payload.is_none() {
        return Err(Box::new(Outcome::unsupported("the spec holds no payload that this build knows")));
    }
    match catch_unwind(AssertUnwindSafe(|| executor.supports(&spec))) {
        Ok(Ok(())) => {}
        Ok(Err(message)) => return Err(Box::new(Outcome::unsupported(message))),
        Err(panic) => return Err(Box::new(crate::supervise::panicked(&*panic))),
    }
    Ok(Attempt {
        task_id,
        attempt: assignment.attempt,
        queue: assignment.queue,
        spec,
        spec_bytes: assignment.spec,
        timeout: assignment.timeout.and_then(|timeout| Duration::try_from(timeout).ok()),
        traceparent: assignment.traceparent,
        dispatch_time: assignment.dispatch_time.and_then(|time| SystemTime::try_from(time).ok()),
    })
}

/// Runs the attempt at once where the executor does such things. A panic is the attempt's failure.
pub(crate) fn run_inline(attempt: &Attempt, executor: &dyn Executor) -> Option<Outcome> {
    match catch_unwind(AssertUnwindSafe(|| executor.run_inline(attempt))) {
        Ok(outcome) => outcome,
        Err(panic) => Some(crate::supervise::panicked(&*panic)),
    }
}
