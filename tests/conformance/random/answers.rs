//! Answers as text, without what the stores may differ in.

use std::fmt::{Debug, Write};

use super::*;

/// Where two answers differ, line by line.
pub(super) fn difference(answer: &impl Debug, expected: &impl Debug) -> String {
    let (answer, expected) = (format!("{answer:#?}"), format!("{expected:#?}"));
    let mut text = "the database's answer is not the model's:\n".to_owned();
    let (mut answers, mut expectations) = (answer.lines(), expected.lines());
    loop {
        match (answers.next(), expectations.next()) {
            (None, None) => return text,
            (got, wanted) if got != wanted => {
                let _ = writeln!(text, "database: {}\nmodel:    {}", got.unwrap_or("…"), wanted.unwrap_or("…"));
            }
            _ => {}
        }
    }
}

pub(super) fn submitted(answer: &Submitted) -> String {
    match answer {
        Submitted::Stored { state, ready_at_us, expires_at_us, .. } => {
            let scheduled = *state == State::Scheduled;
            format!("stored {scheduled} {} {}", ready_at_us.is_some(), expires_at_us.is_some())
        }
        // Which of the two is told first, when both are so, is the store's choice.
        Submitted::QueueClosed | Submitted::RoutesChanged => "sent back".into(),
        other => format!("{other:?}"),
    }
}

/// Of several reasons for a refusal any may be told.
pub(super) fn claimed(answer: &Claimed) -> String {
    match answer {
        Claimed::Won(dispatch) => format!("won {}", dispatch_text(dispatch)),
        _ => "lost".into(),
    }
}

pub(super) fn requeued(answer: &Requeued) -> String {
    match answer {
        Requeued::Waiting { .. } => "waiting".into(),
        other => format!("{other:?}"),
    }
}

pub(super) fn dispatch_text(dispatch: &Dispatch) -> String {
    let Dispatch { lease, queue, spec, timeout_ms, state, .. } = dispatch;
    format!("{lease:?} {queue} {spec:?} {timeout_ms:?} {state}")
}

pub(super) fn dispatches(held: &[Dispatch]) -> Vec<String> {
    let mut held: Vec<String> = held.iter().map(dispatch_text).collect();
    held.sort();
    held
}

pub(super) fn held_text(row: &HeldRow) -> String {
    format!("{:?}", HeldRow { expires_at_us: row.expires_at_us.map(|_| 0), ..row.clone() })
}

pub(super) fn row_text(row: &TaskRow) -> String {
    let set = |moment: Option<i64>| moment.map(|_| 0);
    // The words with which a task expires are the store's.
    let mut outcome = row.outcome.clone();
    if let Some(expired) = outcome.as_mut().filter(|outcome| outcome.kind == OutcomeKind::Expired) {
        expired.message.clear();
    }
    let row = TaskRow {
        outcome,
        created_at_us: 0,
        ready_at_us: set(row.ready_at_us),
        wake_at_us: set(row.wake_at_us),
        expires_at_us: set(row.expires_at_us),
        dispatched_at_us: set(row.dispatched_at_us),
        finished_at_us: set(row.finished_at_us),
        ..row.clone()
    };
    format!("{row:?}")
}

pub(super) fn session_text(row: &SessionRow) -> String {
    format!("{:?}", SessionRow { expires_served_ms: 0, seen_at_us: 0, ..row.clone() })
}

pub(super) fn queue_text(row: &QueueRow) -> String {
    let pause = row.pause.clone().map(|pause| (pause.reason, pause.until_us.is_some()));
    format!("{} {:?} {pause:?} {}", row.name, row.default_timeout_ms, row.draining)
}
