//! How a task ended: in words, and as the exit code of `task run`.

use millrace_proto::common::v1::{Outcome, OutcomeKind, TaskState};
use millrace_proto::distributor::v1::Task;

use crate::exit::{Failure, NOT_THE_COMMANDS, TIMED_OUT};
use crate::output::printable;

/// The state's name as people write it; a state of a later release shows as its number.
pub(crate) fn state_name(state: i32) -> String {
    match TaskState::try_from(state) {
        Ok(known) => known.as_str_name().trim_start_matches("TASK_STATE_").to_ascii_lowercase(),
        Err(_) => format!("state {state}"),
    }
}

/// The kind's name as people write it.
pub(crate) fn kind_name(kind: i32) -> String {
    match OutcomeKind::try_from(kind) {
        Ok(known) => known.as_str_name().trim_start_matches("OUTCOME_KIND_").to_ascii_lowercase().replace('_', " "),
        Err(_) => format!("outcome {kind}"),
    }
}

/// Whether nothing more happens to a task by itself: it has ended, or is set aside until an operator looks at it.
pub(crate) fn is_over(task: &Task) -> bool {
    matches!(
        TaskState::try_from(task.state),
        Ok(TaskState::Succeeded
            | TaskState::Failed
            | TaskState::Cancelled
            | TaskState::Expired
            | TaskState::Quarantined)
    )
}

/// How an attempt ended, in a few words: `failed, exit code 3: …`.
pub(crate) fn describe(outcome: &Outcome) -> String {
    let mut text = kind_name(outcome.kind);
    if let Some(code) = outcome.exit_code {
        text.push_str(&format!(", exit code {code}"));
    }
    if let Some(signal) = outcome.signal {
        text.push_str(&format!(", signal {signal}"));
    }
    // An agent may have nothing to say but the same in words.
    let said = [
        outcome.exit_code.map(|code| format!("exit code {code}")),
        outcome.signal.map(|signal| format!("killed by signal {signal}")),
    ];
    if !outcome.message.is_empty() && !said.contains(&Some(outcome.message.clone())) {
        text.push_str(&format!(": {}", printable(&outcome.message)));
    }
    text
}

/// How `task run` ends after a task did: the command's code, 128 + signal, 124 after the timeout, 125 for every other
/// end.
pub(crate) fn verdict(task: &Task) -> Result<(), Failure> {
    let outcome = task.outcome.clone().unwrap_or_default();
    let kind = OutcomeKind::try_from(outcome.kind).unwrap_or(OutcomeKind::Unspecified);
    let other = || {
        // A task that lost its last attempt is FAILED with the outcome LOST, and so on: the outcome says more than the
        // state.
        let how = if task.outcome.is_some() { describe(&outcome) } else { state_name(task.state) };
        Failure::Ended(NOT_THE_COMMANDS, Some(format!("task {} did not run to its end: {how}", task.id)))
    };
    match (TaskState::try_from(task.state), kind) {
        (Ok(TaskState::Succeeded), _) => Ok(()),
        (Ok(TaskState::Failed), OutcomeKind::TimedOut) => {
            Err(Failure::Ended(TIMED_OUT, Some(format!("task {} ran past its timeout and was stopped", task.id))))
        }
        (Ok(TaskState::Failed), OutcomeKind::Failed) => {
            Err(own_code(&outcome).map_or_else(other, |code| Failure::Ended(code, None)))
        }
        _ => Err(other()),
    }
}

/// The code of a command that failed by itself. None when it says nothing, or something that no command can: then the
/// caller would read a failure as success.
fn own_code(outcome: &Outcome) -> Option<u8> {
    match (outcome.exit_code, outcome.signal) {
        (Some(code), _) => u8::try_from(code).ok().filter(|code| *code != 0),
        (None, Some(signal)) => u8::try_from(signal.checked_add(128)?).ok().filter(|code| *code > 128),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(state: TaskState, kind: OutcomeKind, exit_code: Option<i32>, signal: Option<i32>) -> u8 {
        let outcome = Outcome { kind: kind.into(), exit_code, signal, ..Default::default() };
        let task = Task { id: "t".into(), state: state.into(), outcome: Some(outcome), ..Default::default() };
        match verdict(&task) {
            Ok(()) => 0,
            Err(failure) => {
                let silent = matches!(kind, OutcomeKind::Failed) && failure.code() != NOT_THE_COMMANDS;
                assert_eq!(failure.line().is_none(), silent, "{failure}");
                failure.code()
            }
        }
    }

    #[test]
    fn a_commands_own_end_is_its_exit_code() {
        assert_eq!(ended(TaskState::Succeeded, OutcomeKind::Succeeded, Some(0), None), 0);
        assert_eq!(ended(TaskState::Failed, OutcomeKind::Failed, Some(3), None), 3);
        assert_eq!(ended(TaskState::Failed, OutcomeKind::Failed, Some(255), None), 255);
        assert_eq!(ended(TaskState::Failed, OutcomeKind::Failed, None, Some(9)), 137);
        assert_eq!(ended(TaskState::Failed, OutcomeKind::Failed, None, Some(15)), 143);
    }

    #[test]
    fn a_timeout_is_124_whatever_killed_it() {
        assert_eq!(ended(TaskState::Failed, OutcomeKind::TimedOut, None, Some(9)), 124);
        assert_eq!(ended(TaskState::Failed, OutcomeKind::TimedOut, Some(0), None), 124);
    }

    #[test]
    fn every_other_end_is_125() {
        for (state, kind) in [
            (TaskState::Cancelled, OutcomeKind::Cancelled),
            (TaskState::Expired, OutcomeKind::Expired),
            (TaskState::Failed, OutcomeKind::Lost),
            (TaskState::Failed, OutcomeKind::NotStarted),
            (TaskState::Failed, OutcomeKind::Unsupported),
            (TaskState::Quarantined, OutcomeKind::Unspecified),
        ] {
            assert_eq!(ended(state, kind, None, None), 125, "{kind:?}");
            // A cancelled command has a signal, and is no less cancelled.
            assert_eq!(ended(state, kind, None, Some(15)), 125, "{kind:?}");
        }
    }

    #[test]
    fn a_failure_never_reads_as_success() {
        assert_eq!(ended(TaskState::Failed, OutcomeKind::Failed, Some(0), None), 125);
        assert_eq!(ended(TaskState::Failed, OutcomeKind::Failed, None, None), 125);
        assert_eq!(ended(TaskState::Failed, OutcomeKind::Failed, Some(256), None), 125);
        assert_eq!(ended(TaskState::Failed, OutcomeKind::Failed, None, Some(-128)), 125);
        let without_outcome = Task { state: TaskState::Failed.into(), ..Default::default() };
        assert_eq!(verdict(&without_outcome).unwrap_err().code(), 125);
        let of_a_later_release = Task { state: 99, ..Default::default() };
        assert_eq!(verdict(&of_a_later_release).unwrap_err().code(), 125);
    }

    #[test]
    fn outcomes_read_well() {
        let outcome =
            Outcome { kind: OutcomeKind::NotStarted.into(), message: "no such\nfile".into(), ..Default::default() };
        assert_eq!(describe(&outcome), "not started: no such\\nfile");
        let failed = |exit_code, signal, message: &str| {
            let kind = OutcomeKind::Failed.into();
            describe(&Outcome { kind, exit_code, signal, message: message.into(), ..Default::default() })
        };
        assert_eq!(failed(Some(3), None, "exit code 3"), "failed, exit code 3");
        assert_eq!(failed(None, Some(9), "killed by signal 9"), "failed, signal 9");
        assert_eq!(failed(Some(3), None, "out of disk"), "failed, exit code 3: out of disk");
        assert_eq!(state_name(4), "running");
        assert_eq!(state_name(99), "state 99");
    }
}
