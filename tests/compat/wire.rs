//! Golden bytes of every message of the contracts. Each was made of the release's own descriptors with every field set, one for each
//! choice of a `oneof`; it must decode into this build's types and come out again as the same bytes, and mean the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use millrace_proto::{
    common::v1 as common, distributor::v1 as distributor, provider::v1 as provider, queue::v1 as queue,
    scaler::v1 as scaler,
};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use serde_json::{Value as Json, json};

use crate::{goldens, manifest, newest_schema, versions, writing};

/// Decodes bytes into this build's type and encodes them again.
macro_rules! messages {
    ($($package:ident: $($message:ident),+;)+) => {
        fn pass(name: &str, bytes: &[u8]) -> Option<Result<Vec<u8>, prost::DecodeError>> {
            $($(if name == concat!("millrace.", stringify!($package), ".v1.", stringify!($message)) {
                return Some($package::$message::decode(bytes).map(|message| message.encode_to_vec()));
            })+)+
            None
        }
    };
}

messages! {
    common: TaskSpec, Command, RetryPolicy, OutputChunk, Outcome;
    distributor: ConnectOrchestratorRequest, ConnectOrchestratorResponse, LeaseRef, Hello, Grant, Accepted, Progress,
        Completions, Completion, CompletionResults, CompletionResult, Heartbeat, HeartbeatResult, Held, Goodbye, Welcome,
        Assignments, Assignment, CancelAttempts, RevokeAttempts, SendHeld, GoAway, Task, Attempt, SubmitTaskRequest,
        SubmitTaskResponse, BatchSubmitTasksRequest, BatchSubmitTasksResponse, BatchSubmitResult, Refusal, GetTaskRequest,
        GetTaskResponse, ListTasksRequest, ListTasksResponse, WatchTaskRequest, WatchTaskResponse, TaskOutput,
        CancelTaskRequest, CancelTaskResponse, RetryTaskRequest, RetryTaskResponse, ExplainTaskRequest,
        ExplainTaskResponse, Explanation, Route, ListRoutesRequest, ListRoutesResponse, SetRouteRequest, SetRouteResponse,
        DeleteRouteRequest, DeleteRouteResponse, GetStatusRequest, GetStatusResponse, Member, SessionStatus, QueueOwner,
        WatchOutputRequest, WatchOutputResponse, Defect, Quarantine, ColumnDrift, SuspectDeploy, QuarantinedRow, QuarantinedColumn, QuarantineFilter, ListQuarantinedRowsRequest, ListQuarantinedRowsResponse, GetQuarantinedRowRequest, GetQuarantinedRowResponse, RepairQuarantinedRowRequest, ColumnChange, RepairQuarantinedRowResponse, ReleaseQuarantinedRowsRequest, ReleaseQuarantinedRowsResponse, RefusedRow, DiscardQuarantinedRowsRequest, DiscardQuarantinedRowsResponse, LeftRows, LeftRow;
    queue: Queue, Pause, QueueStats, CreateQueueRequest, CreateQueueResponse, GetQueueRequest, GetQueueResponse,
        ListQueuesRequest, ListQueuesResponse, UpdateQueueRequest, UpdateQueueResponse, DeleteQueueRequest,
        DeleteQueueResponse, PauseQueueRequest, PauseQueueResponse, ResumeQueueRequest, ResumeQueueResponse,
        WatchQueuesRequest, WatchQueuesResponse, ExchangeRequest, ExchangeResponse, ExchangeHello, Ownership, OwnedQueue,
        Offers, Offer, Demands, Demand, Matches, Match, Answers, Answer;
    scaler: Node, NodeEvent, AttachNodeRequest, NodeHello, BootProgress, NodeReady, NodeHealth, BootFailed,
        NodeDrained, SpotNotice, AttachNodeResponse, NodeWelcome, NodeDrain, NodeResume, NodeGoAway, Pool,
        ScheduledMinimum, PoolOverride, PoolStatus, NodeCount, JoinGrace, LaunchGate, CreatePoolRequest,
        CreatePoolResponse, GetPoolRequest, GetPoolResponse, ListPoolsRequest, ListPoolsResponse, UpdatePoolRequest,
        UpdatePoolResponse, DeletePoolRequest, DeletePoolResponse, OverridePoolRequest, OverridePoolResponse,
        ClearPoolOverrideRequest, ClearPoolOverrideResponse, ExplainPoolRequest, ExplainPoolResponse, SizeStep,
        ProviderStatus, ZoneBlock, PoolDecision, ListNodesRequest, ListNodesResponse, GetNodeRequest, GetNodeResponse,
        DrainNodeRequest, DrainNodeResponse, WatchPoolsRequest, WatchPoolsResponse;
    provider: Instance, DescribeNodesRequest, DescribeNodesResponse, NodeRequest, RequestNodesRequest, NodeResult,
        RequestNodesResponse, NodeRef, TerminateNodesRequest, TerminateNodesResponse;
}

// ── The goldens ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// A golden: which message, its bytes, and what they mean as protobuf JSON.
struct Golden {
    path: PathBuf,
    message: String,
    bytes: Vec<u8>,
    means: Json,
}

fn committed() -> Vec<Golden> {
    let mut found = Vec::new();
    for folder in versions().iter().map(|version| goldens().join(version).join("wire")) {
        // A version that changed no message has none.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("an entry").path();
            let text = fs::read_to_string(&path).expect("reading a golden");
            let golden: Json = serde_json::from_str(&text).expect("a golden is JSON");
            let text = |key: &str| golden[key].as_str().unwrap_or_else(|| panic!("{key} of {}", path.display()));
            let bytes = from_hex(text("bytes"));
            found.push(Golden {
                message: text("message").to_owned(),
                bytes,
                means: golden["means"].clone(),
                path: path.clone(),
            });
        }
    }
    found
}

fn pool() -> DescriptorPool {
    DescriptorPool::decode(millrace_proto::FILE_DESCRIPTOR_SET).expect("the contracts' descriptors")
}

fn contracts(pool: &DescriptorPool) -> Vec<MessageDescriptor> {
    let own = |message: &MessageDescriptor| message.full_name().starts_with("millrace.") && !message.is_map_entry();
    pool.all_messages().filter(own).collect()
}

/// Writes goldens of messages with a field that no golden has, under the newest schema version.
fn write_missing(pool: &DescriptorPool) {
    let folder = PathBuf::from(newest_schema()).join("wire");
    for message in missing(pool) {
        for (choice, filled) in choices(&message) {
            let bytes = filled.encode_to_vec();
            let text = json!({ "message": message.full_name(), "bytes": hex(&bytes), "means": means(&filled) });
            let text = serde_json::to_string_pretty(&text).expect("JSON") + "\n";
            let name =
                format!("{}{}", message.full_name(), choice.map_or(String::new(), |choice| format!(".{choice}")));
            // A message that has grown since its golden of this version was written gets another.
            let names =
                (1..).map(|number| if number == 1 { format!("{name}.json") } else { format!("{name}.{number}.json") });
            let path = names.map(|name| folder.join(name)).find(|path| !goldens().join(path).exists());
            manifest::write(&path.expect("names do not end"), text.as_bytes());
        }
    }
}

/// The messages with a field that is set in none of their goldens, or without any golden.
fn missing(pool: &DescriptorPool) -> Vec<MessageDescriptor> {
    let mut covered: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for golden in committed() {
        let Some(descriptor) = pool.get_message_by_name(&golden.message) else { continue };
        let read = DynamicMessage::decode(descriptor, golden.bytes.as_slice()).expect("decoding by the descriptors");
        let fields = read.fields().map(|(field, _)| field.number());
        covered.entry(golden.message).or_default().extend(fields);
    }
    let is_missing = |message: &MessageDescriptor| match covered.get(message.full_name()) {
        None => true,
        Some(covered) => message.fields().any(|field| !covered.contains(&field.number())),
    };
    contracts(pool).into_iter().filter(is_missing).collect()
}

fn means(message: &DynamicMessage) -> Json {
    serde_json::to_value(message).expect("a message as JSON")
}

#[test]
fn golden_bytes_come_out_as_they_went_in_and_mean_what_they_meant() {
    let pool = pool();
    if writing() {
        write_missing(&pool);
    }
    let goldens = committed();
    assert!(!goldens.is_empty(), "there are no golden bytes");
    for Golden { path, message, bytes, means: meant } in goldens {
        let path = path.display();
        let again = pass(&message, &bytes).unwrap_or_else(|| panic!("{path}: name {message} in the list above"));
        let again = again.unwrap_or_else(|error| panic!("{path} cannot be decoded any more: {error}"));
        assert_eq!(hex(&again), hex(&bytes), "{path} comes out as other bytes");
        let descriptor = pool.get_message_by_name(&message).unwrap_or_else(|| panic!("{path}: {message} is gone"));
        let read = DynamicMessage::decode(descriptor, bytes.as_slice()).expect("decoding by the descriptors");
        assert_eq!(means(&read), meant, "{path} means something else");
    }
}

#[test]
fn every_field_of_the_contracts_has_golden_bytes() {
    if writing() {
        return; // Another test is writing them now.
    }
    let missing: Vec<String> = missing(&pool()).iter().map(|message| message.full_name().to_owned()).collect();
    assert_eq!(missing, [""; 0], "`make goldens` writes what is missing; name the messages in wire.rs");
}

// ── Filling messages ────────────────────────────────────────────────────────────────────────────────────────────────

/// The message with every field set: once for each choice of its first `oneof`.
fn choices(message: &MessageDescriptor) -> Vec<(Option<String>, DynamicMessage)> {
    let chooses = message.oneofs().find(|oneof| !oneof.is_synthetic());
    match chooses {
        None => vec![(None, filled(message, None))],
        Some(oneof) => {
            let choose = |field: FieldDescriptor| (Some(field.name().to_owned()), filled(message, Some(&field)));
            oneof.fields().map(choose).collect()
        }
    }
}

fn filled(message: &MessageDescriptor, choice: Option<&FieldDescriptor>) -> DynamicMessage {
    if let Some(special) = well_known(message) {
        return special;
    }
    let mut filled = DynamicMessage::new(message.clone());
    for field in message.fields() {
        let of_choice = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
        let chosen = match (&of_choice, choice) {
            (None, _) => true,
            (Some(_), Some(choice)) => *choice == field,
            // Inside another message the first choice will do: the message has goldens of its own.
            (Some(oneof), None) => oneof.fields().next().as_ref() == Some(&field),
        };
        if chosen {
            filled.set_field(&field, value(&field));
        }
    }
    filled
}

fn value(field: &FieldDescriptor) -> Value {
    if field.is_map() {
        // One entry: maps have no order, so that more would come out as other bytes.
        let entry = BTreeMap::from([(MapKey::String(format!("{}-key", field.name())), Value::String("value".into()))]);
        return Value::Map(entry.into_iter().collect());
    }
    match field.is_list() {
        true => Value::List(vec![single(field), single(field)]),
        false => single(field),
    }
}

/// A value that no other field of the message has, and never the default.
fn single(field: &FieldDescriptor) -> Value {
    let number = field.number();
    match field.kind() {
        Kind::Bool => Value::Bool(true),
        Kind::String => Value::String(format!("{} ü", field.name())),
        Kind::Bytes => Value::Bytes([field.name().as_bytes(), &[0, 0xFF]].concat().into()),
        Kind::Double => Value::F64(f64::from(number) + 0.5),
        Kind::Float => Value::F32(number as f32 + 0.5),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(-1000 - number as i32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(-(1i64 << 40) - i64::from(number)),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(3_000_000_000 + number),
        Kind::Uint64 | Kind::Fixed64 => Value::U64((1 << 63) + u64::from(number)),
        Kind::Enum(kind) => Value::EnumNumber(kind.values().last().map_or(0, |value| value.number())),
        Kind::Message(message) => Value::Message(filled(&message, None)),
    }
}

/// Messages of Google's whose fields cannot hold just anything.
fn well_known(message: &MessageDescriptor) -> Option<DynamicMessage> {
    let of = |fields: Vec<(&str, Value)>| {
        let mut filled = DynamicMessage::new(message.clone());
        fields.into_iter().for_each(|(name, value)| filled.set_field_by_name(name, value));
        Some(filled)
    };
    match message.full_name() {
        "google.protobuf.Timestamp" => {
            of(vec![("seconds", Value::I64(1_700_000_000)), ("nanos", Value::I32(123_456_000))])
        }
        "google.protobuf.Duration" => of(vec![("seconds", Value::I64(90)), ("nanos", Value::I32(500_000_000))]),
        "google.protobuf.FieldMask" => {
            of(vec![("paths", Value::List(vec![Value::String("description".into()), Value::String("stats".into())]))])
        }
        "google.protobuf.Any" => {
            let command = common::Command { argv: vec!["true".into()], ..Default::default() };
            let type_url = Value::String("type.googleapis.com/millrace.common.v1.Command".into());
            of(vec![("type_url", type_url), ("value", Value::Bytes(command.encode_to_vec().into()))])
        }
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(byte).collect()
}
