use super::*;

const FINE: References = References { queue: true, holder: Holder::Gone };

fn any_spec(_: &[u8]) -> SpecReading {
    SpecReading::default()
}

fn queued() -> Row {
    let integer = |number| Value::Integer(number);
    let text = |text: &str| Value::Text(text.into());
    [
        ("id", text("0198c0de-0000-7000-8000-000000000001")),
        ("tenant", text("default")),
        ("queue", text("default")),
        ("state", integer(2)),
        ("rank", integer(0)),
        ("executor", text("process")),
        ("resource_class", text("")),
        ("concurrency_key", text("")),
        ("exclusive", Value::Bool(false)),
        ("timeout_ms", Value::Null),
        ("attempt", integer(0)),
        ("failures", integer(0)),
        ("losses", integer(0)),
        ("unsupported", integer(0)),
        ("created_at_us", integer(1)),
        ("ready_at_us", integer(1)),
        ("trace_context", text("")),
        ("format", integer(1)),
        ("min_reader", integer(1)),
        ("spec", Value::Bytes(vec![1])),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn with(column: &str, value: Value) -> Reading {
    let mut row = queued();
    row.insert(column.into(), value);
    judge(&row, FINE, 1, &any_spec)
}

fn unreadable(reading: &Reading) -> Option<&str> {
    match &reading.verdict {
        Verdict::Unreadable(defect) => Some(&defect.column),
        _ => None,
    }
}

#[test]
fn a_row_of_this_release_is_readable_and_so_is_one_with_columns_of_a_later_one() {
    assert_eq!(with("colour", Value::Text("red".into())), Reading { verdict: Verdict::Readable, ignored: Vec::new() });
}

#[test]
fn every_required_column_that_is_null_or_missing_makes_the_row_unreadable_and_names_it() {
    let required =
        ["id", "tenant", "queue", "state", "rank", "concurrency_key", "attempt", "ready_at_us", "min_reader", "spec"];
    for column in required {
        assert_eq!(unreadable(&with(column, Value::Null)), Some(column));
        let mut row = queued();
        row.remove(column);
        assert_eq!(unreadable(&judge(&row, FINE, 1, &any_spec)), Some(column));
    }
}

#[test]
fn an_optional_column_that_cannot_be_read_is_ignored_and_named() {
    for column in OPTIONAL {
        let reading = with(column, Value::Real(0.5));
        assert_eq!(reading.verdict, Verdict::Readable, "{column}");
        assert_eq!(reading.ignored.iter().map(|defect| defect.column.as_str()).collect::<Vec<_>>(), [column]);
    }
}

#[test]
fn a_number_that_nobody_can_have_meant_is_unreadable_where_it_is_required() {
    let held = |attempt| {
        let mut row = queued();
        for (column, number) in [("state", 4), ("token", 1), ("attempt", attempt)] {
            row.insert(column.into(), Value::Integer(number));
        }
        row.insert("session_id".into(), Value::Bytes(vec![1; 16]));
        judge(&row, References { queue: true, holder: Holder::Live }, 1, &any_spec)
    };
    for bad in [-3, -1, 1_000_000, i64::from(i32::MAX), i64::MIN] {
        assert_eq!(unreadable(&with("attempt", Value::Integer(bad))), Some("attempt"), "{bad}");
    }
    for bad in [-2, 0, 1_000_001] {
        assert_eq!(unreadable(&held(bad)), Some("attempt"), "{bad}");
    }
    for good in [0, 1, 999_999] {
        assert_eq!(with("attempt", Value::Integer(good)).verdict, Verdict::Readable, "{good}");
        // The claim that raises it leaves it readable.
        assert_eq!(held(good + 1).verdict, Verdict::Readable, "{good}");
    }
    for bad in [i64::MIN, -1, i64::MAX] {
        assert_eq!(unreadable(&with("ready_at_us", Value::Integer(bad))), Some("ready_at_us"), "{bad}");
    }
    // Whatever a priority is beyond those that are taken now, it only orders.
    assert_eq!(with("rank", Value::Integer(5000)).verdict, Verdict::Readable);
}

#[test]
fn a_number_that_nobody_can_have_meant_is_ignored_where_it_is_optional() {
    let cases = [
        ("failures", -1),
        ("losses", i64::from(i32::MAX)),
        ("unsupported", -1),
        ("timeout_ms", 0),
        ("timeout_ms", -5),
        ("timeout_ms", i64::MAX),
        ("created_at_us", i64::MIN),
        ("dispatched_at_us", -1),
        ("started_at_us", i64::MAX),
    ];
    for (column, number) in cases {
        let reading = with(column, Value::Integer(number));
        assert_eq!(reading.verdict, Verdict::Readable, "{column}");
        assert_eq!(reading.ignored.iter().map(|defect| defect.column.as_str()).collect::<Vec<_>>(), [column]);
    }
    // A deadline that was missed long ago ends the task: that is not to read without it.
    assert_eq!(with("expires_at_us", Value::Integer(i64::MIN)).ignored, []);
}

#[test]
fn what_is_no_traceparent_is_ignored() {
    let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for fine in ["", good] {
        assert_eq!(with("trace_context", Value::Text(fine.into())).ignored, [], "{fine}");
    }
    let bad = [
        "x".repeat(300_000),
        "x".repeat(55),
        good.to_uppercase(),
        good.replace("-01", "-1\n"),
        good.replace("00-", "ff-"),
        good.replace("b7ad6b7169203331", "0000000000000000"),
        format!("{good}-00"),
    ];
    for bad in bad {
        let ignored = with("trace_context", Value::Text(bad.clone())).ignored;
        assert_eq!(ignored.len(), 1, "{bad:.60}");
        assert!(ignored[0].error.len() < 120, "{}", ignored[0]);
    }
}

#[test]
fn defects_read_as_sentences() {
    let said = |reading: Reading| match reading.verdict {
        Verdict::Unreadable(defect) | Verdict::TooNew(defect) => defect.to_string(),
        Verdict::Readable => panic!("it is readable"),
    };
    assert_eq!(said(with("state", Value::Integer(77))), "state is 77, which this build does not know");
    let finished = said(with("state", Value::Integer(6)));
    assert_eq!(finished, "state is SUCCEEDED, which only a finished task can be, and this one is not");
    assert_eq!(said(with("rank", Value::Bytes(vec![1]))), "rank holds 1 byte, not a whole number of its range");
    let attempt = said(with("attempt", Value::Integer(-3)));
    assert_eq!(attempt, "attempt holds -3, not the number of attempts so far, from 0 to 999999");
}

#[test]
fn a_type_that_was_widened_or_became_text_is_read() {
    assert_eq!(with("rank", Value::Text("-7".into())).verdict, Verdict::Readable);
    assert_eq!(with("exclusive", Value::Integer(1)).verdict, Verdict::Readable);
    assert_eq!(unreadable(&with("rank", Value::Text("high".into()))), Some("rank"));
    assert_eq!(unreadable(&with("rank", Value::Integer(1 << 40))), Some("rank"));
}

#[test]
fn what_a_later_release_may_have_meant_is_too_new_whatever_else_is_wrong() {
    assert!(matches!(with("state", Value::Integer(42)).verdict, Verdict::TooNew(defect) if defect.column == "state"));
    let mut row = queued();
    row.insert("min_reader".into(), Value::Integer(2));
    row.insert("tenant".into(), Value::Null);
    assert!(matches!(judge(&row, FINE, 1, &any_spec).verdict, Verdict::TooNew(_)));
    assert_eq!(unreadable(&judge(&row, FINE, 2, &any_spec)), Some("tenant"));
}

#[test]
fn a_broken_reference_makes_the_row_unreadable() {
    let no_queue = References { queue: false, holder: Holder::Gone };
    assert_eq!(unreadable(&judge(&queued(), no_queue, 1, &any_spec)), Some("queue"));
    let mut held = queued();
    held.insert("state".into(), Value::Integer(4));
    held.insert("attempt".into(), Value::Integer(1));
    held.insert("token".into(), Value::Integer(1));
    held.insert("session_id".into(), Value::Bytes(vec![1; 16]));
    assert_eq!(unreadable(&judge(&held, FINE, 1, &any_spec)), Some("session_id"));
    for holder in [Holder::Live, Holder::Over] {
        let references = References { queue: true, holder };
        assert_eq!(judge(&held, references, 1, &any_spec).verdict, Verdict::Readable);
    }
}

#[test]
fn a_row_that_nothing_would_find_is_unreadable() {
    for (state, column) in [(1, "wake_at_us"), (3, "session_id"), (6, "state")] {
        assert_eq!(unreadable(&with("state", Value::Integer(state))), Some(column));
    }
}

#[test]
fn the_spec_is_judged_last_and_by_its_own_reader() {
    let broken = |_: &[u8]| SpecReading {
        defect: Some(Defect::new("spec.payload", "is cut short")),
        ignored: vec![Defect::new("spec.labels", "has another type")],
    };
    let reading = judge(&queued(), FINE, 1, &broken);
    assert_eq!(unreadable(&reading), Some("spec.payload"));
    assert_eq!(reading.ignored.len(), 1);
}
