//! Protobuf JSON of the public contracts.
//!
//! The generated Rust types keep a task's spec as bytes (see millrace-proto). Reading and writing JSON therefore goes
//! through the descriptors of the public form, in which the spec is a `TaskSpec`.
//!
//! An `Any` is JSON of its own kind: its content stands beside `@type`, which takes the content's descriptor. A
//! platform's own payloads have none here, so such a content is written and read as `{"@type": …, "value":
//! "<base64>"}`. The library knows that form for its own well-known wrapper types only; an unknown `Any` passes through
//! it dressed up as a `BytesValue` and is undressed on the other side.

use std::sync::LazyLock;

use bytes::Bytes;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};

/// The type URL of an unknown `Any` in disguise starts with this and ends with `DISGUISE_TAIL`; its own URL stands
/// between.
const DISGUISE_HEAD: &str = "millrace-opaque:";
/// The type that the library sees.
const DISGUISE_TAIL: &str = "/google.protobuf.BytesValue";
/// Messages nest at most this deep, as in every protobuf library; deeper JSON is refused before it can exhaust the
/// stack.
const MAX_DEPTH: usize = 100;

/// The descriptors of the contracts, on top of the well-known types.
static POOL: LazyLock<Result<DescriptorPool, String>> = LazyLock::new(|| {
    let mut pool = DescriptorPool::global();
    pool.decode_file_descriptor_set(millrace_proto::FILE_DESCRIPTOR_SET).map_err(|error| error.to_string())?;
    Ok(pool)
});

/// Why JSON could not be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JsonError {
    /// The descriptors of this build do not have the type; a fault of the build.
    #[error("the contracts have no message {0}: {1}")]
    NoType(&'static str, String),
    /// The bytes of the message do not decode.
    #[error("cannot decode {0}: {1}")]
    Decode(&'static str, prost::DecodeError),
    /// The message cannot be said in JSON, for instance a time beyond the year 9999.
    #[error("cannot write {0} as JSON: {1}")]
    Write(&'static str, serde_json::Error),
    /// The JSON is not that message.
    #[error("{0}")]
    Read(String),
}

/// A message as a JSON value. `name` is its full name in the contracts.
pub(crate) fn to_value(name: &'static str, message: &impl Message) -> Result<serde_json::Value, JsonError> {
    to_json(name, &message.encode_to_vec())
}

/// The same for a message's bytes.
pub(crate) fn to_json(name: &'static str, bytes: &[u8]) -> Result<serde_json::Value, JsonError> {
    let mut dynamic =
        DynamicMessage::decode(descriptor(name)?, bytes).map_err(|error| JsonError::Decode(name, error))?;
    each_any(&mut dynamic, &mut |any| {
        if !is_known(any) {
            disguise(any);
        }
    });
    let mut json = serde_json::to_value(&dynamic).map_err(|error| JsonError::Write(name, error))?;
    each_object(&mut json, 0, &mut |object| {
        if let Some(url) = object.get("@type").and_then(serde_json::Value::as_str).and_then(undisguised) {
            let url = url.to_owned();
            object.insert("@type".to_owned(), url.into());
        }
    });
    Ok(json)
}

/// Reads a message from its JSON and gives its encoded bytes. Unknown fields are refused by name: a mistyped field that
/// is passed over is a task that runs otherwise than its writer meant.
pub(crate) fn to_bytes(name: &'static str, mut json: serde_json::Value) -> Result<Bytes, JsonError> {
    let descriptor = descriptor(name)?;
    let too_deep = each_object(&mut json, 0, &mut |object| {
        let opaque = object.get("@type").and_then(serde_json::Value::as_str).filter(|url| !has_type(url));
        if let Some(url) = opaque.filter(|_| object.len() == 2 && object.contains_key("value")) {
            let url = format!("{DISGUISE_HEAD}{url}{DISGUISE_TAIL}");
            object.insert("@type".to_owned(), url.into());
        }
    });
    if too_deep {
        return Err(JsonError::Read(format!("it nests deeper than {MAX_DEPTH} levels")));
    }
    let mut dynamic = read(&descriptor, &json).map_err(|error| JsonError::Read(locate(&descriptor, &json, error)))?;
    each_any(&mut dynamic, &mut |any| undress(any));
    Ok(dynamic.encode_to_vec().into())
}

fn read(descriptor: &MessageDescriptor, json: &serde_json::Value) -> Result<DynamicMessage, String> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(descriptor.clone(), json, &options).map_err(|error| error.to_string())
}

/// The error with the path of the field that it is about. The library does not tell the path; each field is read alone to
/// find it. An error that no field has alone, such as two that exclude each other, has no path.
fn locate(descriptor: &MessageDescriptor, json: &serde_json::Value, error: String) -> String {
    match wrong_field(descriptor, json, "") {
        Some((path, error)) => format!("{path}: {error}"),
        None => error,
    }
}

/// The innermost field that cannot be read, and why. Its callers have bounded the depth.
fn wrong_field(descriptor: &MessageDescriptor, json: &serde_json::Value, path: &str) -> Option<(String, String)> {
    json.as_object()?.iter().find_map(|(key, value)| {
        let error = read_alone(descriptor, key, value.clone())?;
        let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let field = descriptor.fields().find(|field| field.name() == key || field.json_name() == key);
        let inner = field.and_then(|field| match value {
            serde_json::Value::Array(items) if field.is_list() => items.iter().enumerate().find_map(|(index, item)| {
                let error = read_alone(descriptor, key, vec![item.clone()].into())?;
                let here = format!("{here}[{index}]");
                wrong_in(&field.kind(), item, &here).or(Some((here, error)))
            }),
            serde_json::Value::Object(entries) if field.is_map() => entries.iter().find_map(|(name, entry)| {
                let alone = serde_json::Map::from_iter([(name.clone(), entry.clone())]);
                Some((format!("{here}[{name}]"), read_alone(descriptor, key, alone.into())?))
            }),
            value => wrong_in(&field.kind(), value, &here),
        });
        inner.or(Some((here, error)))
    })
}

fn wrong_in(kind: &Kind, json: &serde_json::Value, path: &str) -> Option<(String, String)> {
    wrong_field(kind.as_message()?, json, path)
}

/// Why a message with this field alone cannot be read, if it cannot.
fn read_alone(descriptor: &MessageDescriptor, key: &str, value: serde_json::Value) -> Option<String> {
    let alone = serde_json::Map::from_iter([(key.to_owned(), value)]);
    read(descriptor, &alone.into()).err()
}

fn descriptor(name: &'static str) -> Result<MessageDescriptor, JsonError> {
    let pool = POOL.as_ref().map_err(|error| JsonError::NoType(name, error.clone()))?;
    pool.get_message_by_name(name).ok_or_else(|| JsonError::NoType(name, "not found".to_owned()))
}

/// Whether this build has the descriptor that a type URL names.
fn has_type(url: &str) -> bool {
    let name = url.rsplit_once('/').map(|(_, name)| name);
    matches!((name, POOL.as_ref()), (Some(name), Ok(pool)) if pool.get_message_by_name(name).is_some())
}

/// Whether the content of an `Any` can be written out: its type is known, its bytes decode, and so does every `Any`
/// inside.
fn is_known(any: &prost_types::Any) -> bool {
    let name = any.type_url.rsplit_once('/').map(|(_, name)| name);
    let Some(descriptor) = name.and_then(|name| POOL.as_ref().ok()?.get_message_by_name(name)) else { return false };
    // Trying is the only complete answer: the content may hold an Any in turn, or a time that JSON has no form for.
    DynamicMessage::decode(descriptor, any.value.as_slice()).is_ok_and(|content| serde_json::to_value(&content).is_ok())
}

fn disguise(any: &mut prost_types::Any) {
    // BytesValue: field 1, the bytes.
    any.value = std::mem::take(&mut any.value).encode_to_vec();
    any.type_url = format!("{DISGUISE_HEAD}{}{DISGUISE_TAIL}", any.type_url);
}

fn undress(any: &mut prost_types::Any) {
    if let Some(url) = undisguised(&any.type_url).map(str::to_owned) {
        any.value = Vec::<u8>::decode(any.value.as_slice()).unwrap_or_default();
        any.type_url = url;
    }
}

fn undisguised(url: &str) -> Option<&str> {
    url.strip_prefix(DISGUISE_HEAD)?.strip_suffix(DISGUISE_TAIL)
}

/// Calls `change` on every `Any` in a message and puts back what it made of it. Decoding has bounded the depth.
fn each_any(message: &mut DynamicMessage, change: &mut dyn FnMut(&mut prost_types::Any)) {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        if let Ok(mut any) = message.transcode_to::<prost_types::Any>() {
            change(&mut any);
            // An Any always transcodes into an Any; were it not to, the message would stay as it was.
            let _ = message.transcode_from(&any);
        }
        return;
    }
    for (_, value) in message.fields_mut() {
        match value {
            Value::Message(inner) => each_any(inner, change),
            Value::List(items) => items.iter_mut().for_each(|item| {
                if let Value::Message(inner) = item {
                    each_any(inner, change);
                }
            }),
            Value::Map(entries) => entries.iter_mut().for_each(|(_, entry): (&MapKey, &mut Value)| {
                if let Value::Message(inner) = entry {
                    each_any(inner, change);
                }
            }),
            _ => {}
        }
    }
}

/// Calls `change` on every JSON object, outer ones first. True when it stopped at `MAX_DEPTH`.
fn each_object(
    json: &mut serde_json::Value,
    depth: usize,
    change: &mut dyn FnMut(&mut serde_json::Map<String, serde_json::Value>),
) -> bool {
    if depth > MAX_DEPTH {
        return true;
    }
    match json {
        serde_json::Value::Object(object) => {
            change(object);
            object.values_mut().any(|value| each_object(value, depth + 1, change))
        }
        serde_json::Value::Array(items) => items.iter_mut().any(|item| each_object(item, depth + 1, change)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use millrace_proto::common::v1::{Command, TaskSpec, task_spec};
    use millrace_proto::distributor::v1::Task;
    use serde_json::json;

    use super::*;

    const SPEC: &str = "millrace.common.v1.TaskSpec";
    const TASK: &str = "millrace.distributor.v1.Task";

    fn spec_with(type_url: &str, value: Vec<u8>) -> TaskSpec {
        let custom = prost_types::Any { type_url: type_url.to_owned(), value };
        TaskSpec { executor: "vm".into(), payload: Some(task_spec::Payload::Custom(custom)), ..Default::default() }
    }

    #[test]
    fn a_tasks_spec_comes_out_whole() {
        let command = Command { argv: vec!["true".into()], ..Default::default() };
        let spec = TaskSpec {
            executor: "process".into(),
            priority: Some(0),
            payload: Some(task_spec::Payload::Command(command)),
            timeout: Some(prost_types::Duration { seconds: 90, nanos: 0 }),
            ..Default::default()
        };
        let task = Task { id: "t".into(), spec: spec.encode_to_vec().into(), state: 2, ..Default::default() };
        assert_eq!(
            to_value(TASK, &task).unwrap(),
            json!({"id": "t", "state": "TASK_STATE_QUEUED", "spec": {
                "executor": "process", "priority": 0, "timeout": "90s", "command": {"argv": ["true"]}}})
        );
    }

    #[test]
    fn fields_and_states_of_a_later_release_do_not_break_the_printing() {
        let mut bytes = spec_with("a/b", vec![]).encode_to_vec();
        // Field 9999, a string.
        bytes.extend([0xfa, 0xf0, 0x04, 0x02, b'h', b'i']);
        let task = Task { id: "t".into(), spec: bytes.into(), state: 77, ..Default::default() };
        let json = to_value(TASK, &task).unwrap();
        assert_eq!(json["state"], 77);
        assert_eq!(json["spec"]["executor"], "vm");
    }

    #[test]
    fn an_any_of_an_unknown_type_is_written_as_base64() {
        for url in ["type.example.com/acme.Vm", "no-slash", ""] {
            let json = to_value(SPEC, &spec_with(url, vec![1, 2, 3])).unwrap();
            assert_eq!(json["custom"], json!({"@type": url, "value": "AQID"}), "{url}");
        }
    }

    #[test]
    fn an_any_of_a_known_type_is_written_out() {
        let command = Command { argv: vec!["ls".into()], ..Default::default() };
        let spec = spec_with("type.googleapis.com/millrace.common.v1.Command", command.encode_to_vec());
        let json = to_value(SPEC, &spec).unwrap();
        assert_eq!(json["custom"], json!({"@type": "type.googleapis.com/millrace.common.v1.Command", "argv": ["ls"]}));
    }

    #[test]
    fn an_any_whose_bytes_are_not_its_type_is_written_as_base64() {
        let url = "type.googleapis.com/millrace.common.v1.Command";
        let json = to_value(SPEC, &spec_with(url, vec![0xff])).unwrap();
        assert_eq!(json["custom"], json!({"@type": url, "value": "/w=="}));
        // A spec in an Any that holds an unknown Any in turn.
        let outer = spec_with("x/millrace.common.v1.TaskSpec", spec_with("x/acme.Vm", vec![7]).encode_to_vec());
        assert!(to_value(SPEC, &outer).unwrap()["custom"]["value"].is_string());
    }

    #[test]
    fn what_was_written_can_be_read_again() {
        for spec in [
            spec_with("type.example.com/acme.Vm", vec![1, 2, 3]),
            spec_with("type.example.com/acme.Empty", vec![]),
            spec_with("type.googleapis.com/google.protobuf.BytesValue", vec![0x0a, 1, 9]),
        ] {
            let bytes = to_bytes(SPEC, to_value(SPEC, &spec).unwrap()).unwrap();
            assert_eq!(TaskSpec::decode(bytes).unwrap(), spec);
        }
    }

    #[test]
    fn both_spellings_of_a_field_are_read_and_unknown_ones_refused() {
        for json in [json!({"resourceClass": "small"}), json!({"resource_class": "small"})] {
            let spec = TaskSpec::decode(to_bytes(SPEC, json).unwrap()).unwrap();
            assert_eq!(spec.resource_class, "small");
        }
        let error = to_bytes(SPEC, json!({"resourceClas": "small"})).unwrap_err().to_string();
        assert!(error.contains("resourceClas"), "{error}");
        assert!(to_bytes(SPEC, json!({"priority": "high"})).is_err());
        assert!(to_bytes(SPEC, json!(["no object"])).is_err());
    }

    #[test]
    fn a_field_that_cannot_be_read_is_named_with_its_path() {
        for (json, path) in [
            (json!({"executor": "a", "resourceClas": "b"}), "resourceClas: "),
            (json!({"priority": "high"}), "priority: "),
            (json!({"command": {"argv": ["a", 7]}}), "command.argv[1]: "),
            (json!({"command": {"env": {"A": "1", "B": 2}}}), "command.env[B]: "),
            (json!({"retry": {"max_attempts": 2, "minBackoff": "soon"}}), "retry.minBackoff: "),
            (json!({"command": {"stdin": "not base64!"}}), "command.stdin: "),
        ] {
            let error = to_bytes(SPEC, json.clone()).unwrap_err().to_string();
            assert!(error.starts_with(path), "{json}: {error}");
        }
        let both = json!({"command": {"argv": ["a"]}, "custom": {"@type": "x/acme.Vm", "value": ""}});
        assert!(to_bytes(SPEC, both).is_err());
    }

    #[test]
    fn deep_json_is_refused() {
        let mut json = json!({});
        for _ in 0..120 {
            json = json!({ "custom": json });
        }
        assert!(to_bytes(SPEC, json).unwrap_err().to_string().contains("deeper"));
    }
}
