//! Events as JSON: one object a line, in which no key comes twice.
//!
//! `timestamp`, `level`, `target` and `message` come first, then the event's own fields, then `spans`, the spans around it,
//! outermost first, each with its name as `span` and its fields. A field whose name is taken is written as `field.NAME`.
//! tracing has no values with parts: a list, logged by its Debug form, is written as the array that this form spells.

use std::fmt::{self, Debug};

use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// Where events that came through the `log` crate say they are from; their own fields say where that is.
const LOG_TARGET: &str = "log";

/// Writes events, and the fields of spans.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Entries::default();
        event.record(&mut fields);
        let mut target = Value::from(event.metadata().target());
        if event.metadata().target() == LOG_TARGET {
            target = fields.take("log.target").unwrap_or(target);
            fields.0.retain(|(name, _)| !name.starts_with("log."));
        }
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;

        let mut line = Entries::default();
        line.put("timestamp", timestamp.into());
        line.put("level", event.metadata().level().as_str().into());
        line.put("target", target);
        if let Some(message) = fields.take("message") {
            line.put("message", message);
        }
        let spans: Vec<Value> = ctx.event_scope().map_or_else(Vec::new, |scope| {
            scope
                .from_root()
                .map(|span| span_value(span.name(), span.extensions().get::<FormattedFields<N>>()))
                .collect()
        });
        fields.0.into_iter().for_each(|(name, value)| line.put(&name, value));
        if !spans.is_empty() {
            line.put("spans", spans.into());
        }
        line.write(&mut writer)?;
        writer.write_char('\n')
    }
}

impl<'w> FormatFields<'w> for Json {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut entries = Entries::default();
        fields.record(&mut entries);
        entries.write(&mut writer)
    }
}

/// A span with its fields. Fields that were recorded later were written as further objects behind the first.
fn span_value<N>(name: &str, fields: Option<&FormattedFields<N>>) -> Value {
    let text = fields.map_or("", |fields| fields.fields.as_str());
    let objects = serde_json::Deserializer::from_str(text).into_iter::<Map<String, Value>>();
    // The later value of a field is the one that holds.
    let fields: Map<String, Value> = objects.map_while(Result::ok).flatten().collect();
    let mut entries = Entries::default();
    entries.put("span", name.into());
    fields.into_iter().for_each(|(name, value)| entries.put(&name, value));
    Value::Object(entries.0.into_iter().collect())
}

/// Names and values in their order.
#[derive(Debug, Default)]
struct Entries(Vec<(String, Value)>);

impl Entries {
    /// Adds a value, under another name when this one is taken.
    fn put(&mut self, name: &str, value: Value) {
        let mut name = name.to_owned();
        while self.0.iter().any(|(taken, _)| *taken == name) || name == "spans" && !value.is_array() {
            name.insert_str(0, "field.");
        }
        self.0.push((name, value));
    }

    /// Takes the value of this name out.
    fn take(&mut self, name: &str) -> Option<Value> {
        let index = self.0.iter().position(|(taken, _)| taken == name)?;
        Some(self.0.remove(index).1)
    }

    fn write(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let mut before = '{';
        for (name, value) in &self.0 {
            write!(writer, "{before}{}:{value}", Value::from(name.as_str()))?;
            before = ',';
        }
        writer.write_str(if before == '{' { "{}" } else { "}" })
    }

    fn record(&mut self, field: &Field, value: Value) {
        self.put(field.name().trim_start_matches("r#"), value);
    }
}

impl Visit for Entries {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        let list = (field.name() != "message").then(|| list(&text)).flatten();
        self.record(field, list.unwrap_or_else(|| text.into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.record(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.record(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.record(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // What JSON has no number for becomes null.
        self.record(field, value.into());
    }
}

/// The array that a Debug text spells, when it spells one of texts and numbers.
fn list(text: &str) -> Option<Value> {
    let items: Vec<Value> = text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()?;
    items.iter().all(|item| item.is_string() || item.is_number()).then(|| items.into())
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// A place that keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written while `log` logs.
    fn written(log: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = tracing_subscriber::fmt::layer().event_format(Json).fmt_fields(Json);
        let layer = layer.with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn an_event_is_one_object_with_its_fields_and_spans() {
        let text = written(|| {
            let _outer = tracing::error_span!("task", name = "owners", found = tracing::field::Empty).entered();
            tracing::Span::current().record("found", 3);
            let _inner = tracing::error_span!("grpc", path = "/a.B/C").entered();
            tracing::info!(queues = ?["a", "b"], slots = 4_u32, load = 0.5, up = true, "agent \"starts\"");
        });
        assert!(text.starts_with("{\"timestamp\":\"2") && text.ends_with("}\n") && text.lines().count() == 1, "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["level"], &value["message"]), (&"INFO".into(), &"agent \"starts\"".into()));
        assert_eq!(value["queues"], serde_json::json!(["a", "b"]));
        assert_eq!((&value["slots"], &value["load"], &value["up"]), (&4.into(), &0.5.into(), &true.into()));
        assert_eq!(
            value["spans"],
            serde_json::json!([{"span": "task", "name": "owners", "found": 3}, {"span": "grpc", "path": "/a.B/C"}])
        );
    }

    #[test]
    fn no_key_comes_twice() {
        let text = written(|| {
            let _span = tracing::error_span!("work", span = "mine").entered();
            tracing::warn!(level = "high", target = "moon", spans = 2, timestamp = 0, "x");
        });
        for key in ["timestamp", "level", "target", "spans", "span"] {
            assert_eq!(text.matches(&format!("\"{key}\":")).count(), 1, "{key}: {text}");
        }
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["field.level"], &value["field.spans"]), (&"high".into(), &2.into()));
        assert_eq!(value["spans"][0]["field.span"], "mine");
    }

    #[test]
    fn only_lists_are_written_as_lists() {
        assert_eq!(list("[]"), Some(serde_json::json!([])));
        assert_eq!(list("[1, 2]"), Some(serde_json::json!([1, 2])));
        for text in ["[::1]:7600", "Some([1])", "[[1]]", "x", "[\"\\u{1b}\"]"] {
            assert_eq!(list(text), None, "{text}");
        }
        let text = written(|| tracing::info!("[1]"));
        assert!(text.contains("\"message\":\"[1]\""), "{text}");
    }
}
