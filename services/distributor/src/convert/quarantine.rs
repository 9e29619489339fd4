//! Rows that are set aside.

use std::fmt::Write;

use millrace_core::{
    foreign::{MOMENT, Row, Value, integer, traceparent, within},
    id::TaskId,
};
use millrace_proto::{common::v1::TaskState, distributor::v1 as wire};
use millrace_runtime::status::{Fault, Violations};
use millrace_store::{QuarantineFilter, QuarantinedRow};

use super::{created, cut, defect, task_id, timestamp};
use crate::spec;

/// The longest value of a column that is shown whole.
const MAX_VALUE: usize = 64 * 1024;

/// The most tasks that a filter names.
const MAX_TASKS: usize = 1000;

/// Writes a task that is set aside, with what can be read of it.
pub(crate) fn set_aside(row: QuarantinedRow) -> wire::Task {
    let moment = |column: &str| within::<i64>(&row.row, column, &MOMENT).ok();
    let number = |column: &str| integer::<i32>(&row.row, column).unwrap_or_default();
    let create_time = created(row.task, moment("created_at_us"));
    let (wake_time, expire_time) = (moment("wake_at_us").map(timestamp), moment("expires_at_us").map(timestamp));
    let (attempt, failures, losses) = (number("attempt"), number("failures"), number("losses"));
    let traceparent = traceparent(&row.row, "trace_context").unwrap_or_default();
    let (spec, left_out) = spec::shown(row.spec.unwrap_or_default());
    let ignored = left_out.into_iter().filter(|one| one.column != row.defect.column);
    wire::Task {
        id: row.task.to_string(),
        spec,
        tenant: row.tenant.unwrap_or_default(),
        queue: row.queue.unwrap_or_default(),
        state: TaskState::Quarantined as i32,
        attempt,
        create_time,
        wake_time,
        expire_time,
        failures,
        losses,
        traceparent,
        ignored: ignored.map(defect).collect(),
        quarantine: Some(wire::Quarantine {
            defect: Some(defect(row.defect)),
            since: Some(timestamp(row.first_seen_us)),
        }),
        ..Default::default()
    }
}

/// Writes a row that is set aside; its spec's bytes only if they are asked for and no larger than `most`.
pub(crate) fn quarantined_row(row: QuarantinedRow, most: Option<usize>) -> wire::QuarantinedRow {
    let spec_size = row.spec.as_ref().map(|spec| i64::try_from(spec.len()).unwrap_or(i64::MAX));
    wire::QuarantinedRow {
        task_id: row.task.to_string(),
        tenant: row.tenant.unwrap_or_default(),
        queue: row.queue.unwrap_or_default(),
        columns: columns(row.row),
        spec_bytes: row.spec.filter(|spec| most.is_some_and(|most| spec.len() <= most)).map(Into::into),
        defect: Some(defect(row.defect)),
        writer_format: row.writer_format.map_or(0, i32::from),
        refused_by: row.refused_by,
        first_seen_time: Some(timestamp(row.first_seen_us)),
        spec_size,
    }
}

fn columns(row: Row) -> Vec<wire::QuarantinedColumn> {
    let column = |(name, value)| {
        let (r#type, value) = match value {
            Value::Null => ("null", None),
            Value::Bool(value) => ("boolean", Some(value.to_string())),
            Value::Integer(number) => ("integer", Some(number.to_string())),
            Value::Real(number) => ("real", Some(number.to_string())),
            Value::Text(text) => ("text", Some(text)),
            Value::Bytes(bytes) => ("bytes", Some(hex(&bytes))),
            Value::Other(text) => ("other", Some(text)),
        };
        wire::QuarantinedColumn { name, value: value.map(|value| cut(&value, MAX_VALUE)), r#type: r#type.to_owned() }
    };
    row.into_iter().map(column).collect()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes.iter().take(MAX_VALUE) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Reads a filter. None means every row.
pub(crate) fn quarantine_filter(filter: Option<wire::QuarantineFilter>) -> Result<QuarantineFilter, Fault> {
    let filter = filter.unwrap_or_default();
    let mut broken = Violations::new();
    broken.require(filter.task_ids.len() <= MAX_TASKS, "filter.task_ids", format!("at most {MAX_TASKS} are accepted"));
    for (field, value) in [("tenant", &filter.tenant), ("queue", &filter.queue), ("column", &filter.column)] {
        broken.require(!value.contains('\0'), format!("filter.{field}"), "holds a NUL byte");
    }
    let before = filter.before.map(|moment| {
        let us = moment.seconds.checked_mul(1_000_000).filter(|_| (0..1_000_000_000).contains(&moment.nanos));
        us.and_then(|us| us.checked_add(i64::from(moment.nanos) / 1000))
    });
    broken.require(before != Some(None), "filter.before", "is not a time");
    broken.finish()?;
    let some = |text: String| (!text.is_empty()).then_some(text);
    Ok(QuarantineFilter {
        tasks: filter.task_ids.iter().map(|id| task_id(id, "filter.task_ids")).collect::<Result<Vec<TaskId>, _>>()?,
        tenant: some(filter.tenant),
        queue: some(filter.queue),
        column: some(filter.column),
        before_us: before.flatten(),
    })
}

#[cfg(test)]
mod tests {
    use millrace_core::foreign::Defect;
    use uuid::Uuid;

    use super::*;

    fn row(columns: &[(&str, Value)]) -> QuarantinedRow {
        QuarantinedRow {
            task: TaskId(Uuid::from_u128(7)),
            tenant: None,
            queue: Some("builds".into()),
            row: columns.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            spec: Some(vec![0x3A, 0xFF]),
            defect: Defect::new("spec", "is cut short"),
            writer_format: None,
            refused_by: vec!["1".into()],
            first_seen_us: 5_000_000,
        }
    }

    #[test]
    fn a_task_that_is_set_aside_shows_what_can_be_read_and_why() {
        let columns = [
            ("created_at_us", Value::Integer(i64::MAX)),
            ("expires_at_us", Value::Integer(6_000_000)),
            ("trace_context", Value::Text("x".repeat(100))),
            ("attempt", Value::Text("3".into())),
            ("failures", Value::Text("many".into())),
        ];
        let id = TaskId("0198c0de-0000-7000-8000-000000000001".parse().unwrap());
        let task = set_aside(QuarantinedRow { task: id, tenant: Some("t2".into()), ..row(&columns) });
        assert_eq!((task.tenant.as_str(), task.traceparent.as_str()), ("t2", ""));
        assert_eq!((task.state, task.attempt, task.failures, task.queue.as_str()), (10, 3, 0, "builds"));
        assert!(task.spec.is_empty() && task.ignored.is_empty(), "the defect says it");
        assert_eq!(task.create_time.unwrap().seconds, 1_755_582_431, "as its id tells");
        assert_eq!(task.expire_time.unwrap().seconds, 6);
        let quarantine = task.quarantine.unwrap();
        assert_eq!(quarantine.since.unwrap().seconds, 5);
        assert_eq!(quarantine.defect.unwrap().column, "spec");
    }

    #[test]
    fn every_value_has_a_text_and_null_has_none() {
        let columns = [
            ("a", Value::Null),
            ("b", Value::Bool(true)),
            ("c", Value::Real(0.5)),
            ("d", Value::Bytes(vec![0, 255])),
            ("e", Value::Text("x".repeat(MAX_VALUE + 1))),
        ];
        let shown = quarantined_row(row(&columns), Some(2));
        let texts: Vec<_> = shown.columns.iter().map(|one| (one.r#type.as_str(), one.value.as_deref())).collect();
        assert_eq!(
            texts[..4],
            [("null", None), ("boolean", Some("true")), ("real", Some("0.5")), ("bytes", Some("00ff"))]
        );
        assert_eq!(texts[4].1.map(str::len), Some(MAX_VALUE));
        assert_eq!((shown.spec_bytes.as_deref(), shown.spec_size), (Some(&[0x3A, 0xFF][..]), Some(2)));
        let cut = quarantined_row(row(&[]), Some(1));
        assert_eq!((cut.spec_bytes, cut.spec_size), (None, Some(2)));
    }

    #[test]
    fn a_filter_is_judged_whole() {
        let wire = wire::QuarantineFilter {
            tenant: "a\0".into(),
            before: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }),
            ..Default::default()
        };
        let fields: Vec<_> =
            quarantine_filter(Some(wire)).unwrap_err().violations.into_iter().map(|one| one.field).collect();
        assert_eq!(fields, ["filter.tenant", "filter.before"]);
        assert_eq!(quarantine_filter(None).unwrap(), QuarantineFilter::default());
    }
}
