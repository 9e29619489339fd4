use millrace_proto::{FILE_DESCRIPTOR_SET, common::v1 as wire};
use proptest::prelude::*;
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};

use super::*;

fn spec() -> wire::TaskSpec {
    wire::TaskSpec {
        tenant: "team-a".into(),
        executor: "process".into(),
        labels: [("branch".to_owned(), "main".to_owned())].into(),
        priority: Some(-7),
        timeout: Some(prost_types::Duration { seconds: 60, nanos: 5 }),
        not_before: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        exclusive: true,
        retry: Some(wire::RetryPolicy {
            max_attempts: Some(3),
            min_backoff: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            ..Default::default()
        }),
        payload: Some(wire::task_spec::Payload::Command(wire::Command {
            argv: vec!["make".into(), "test".into()],
            env: [("CI".to_owned(), "1".to_owned())].into(),
            stdin: vec![0xFF, 0].into(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// A field of bytes.
fn bytes_field(tag: u32, bytes: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut field);
    prost::encoding::encode_varint(bytes.len() as u64, &mut field);
    field.extend(bytes);
    field
}

fn number_field(tag: u32, number: u64) -> Vec<u8> {
    let mut field = Vec::new();
    prost::encoding::encode_key(tag, prost::encoding::WireType::Varint, &mut field);
    prost::encoding::encode_varint(number, &mut field);
    field
}

fn names(defects: impl IntoIterator<Item = Defect>) -> Vec<String> {
    defects.into_iter().map(|defect| defect.column).collect()
}

/// The spec with a field put behind it, which replaces what stood there or joins it.
fn with(field: &[u8]) -> Vec<u8> {
    [&spec().encode_to_vec(), field].concat()
}

#[test]
fn a_spec_of_this_release_passes_untouched_and_so_does_what_a_later_one_adds() {
    for bytes in [spec().encode_to_vec(), with(&bytes_field(900, b"new")), with(&number_field(12, 7))] {
        assert_eq!(read_foreign(&bytes), SpecReading::default());
        assert!(matches!(cleaned(&bytes), Cow::Borrowed(same) if same == bytes));
    }
}

#[test]
fn an_optional_field_that_cannot_be_read_is_left_out_and_named() {
    let impossible = prost_types::Duration { seconds: 1, nanos: i32::MAX };
    let backward = prost_types::Duration { seconds: -1, nanos: 0 };
    let retry = wire::RetryPolicy { max_backoff: Some(backward), ..Default::default() };
    for (name, field) in [
        ("spec.resource_class", bytes_field(3, &[0xFF])),
        ("spec.resource_class", number_field(3, 1)),
        ("spec.labels", bytes_field(4, &[0x0A, 9])),
        ("spec.labels", bytes_field(4, &bytes_field(2, &[0xC0]))),
        ("spec.priority", bytes_field(5, b"high")),
        ("spec.not_before", number_field(7, 1)),
        ("spec.expire_after", bytes_field(8, &impossible.encode_to_vec())),
        ("spec.timeout", bytes_field(9, &backward.encode_to_vec())),
        ("spec.timeout", bytes_field(9, &[0x80])),
        ("spec.retry", bytes_field(11, &bytes_field(1, b"3"))),
        ("spec.retry", bytes_field(11, &retry.encode_to_vec())),
    ] {
        let bytes = with(&field);
        let reading = read_foreign(&bytes);
        assert_eq!((reading.defect, names(reading.ignored)), (None, vec![name.to_owned()]), "{field:?}");
        let clean = cleaned(&bytes);
        let decoded = wire::TaskSpec::decode(&*clean).unwrap();
        assert_eq!(decoded.payload, spec().payload);
        assert_eq!(read_foreign(&clean), SpecReading::default(), "nothing is wrong with what is left");
        let (sent, left_out) = shown(bytes.clone());
        assert_eq!((&sent[..], names(left_out)), (&*clean, vec![name.to_owned()]));
    }
}

#[test]
fn what_is_left_is_byte_for_byte_what_was_there() {
    let unknown = [bytes_field(900, b"new"), number_field(901, 5)].concat();
    let bytes = [&unknown[..], &bytes_field(5, b"high"), &spec().encode_to_vec()].concat();
    let rest = wire::TaskSpec { priority: None, ..spec() }.encode_to_vec();
    assert_eq!(cleaned(&bytes), [unknown, rest].concat());
}

#[test]
fn a_required_field_that_cannot_be_read_is_a_defect() {
    for (name, field) in [
        ("spec.tenant", bytes_field(1, &[0xFF])),
        ("spec.executor", number_field(2, 1)),
        ("spec.concurrency_key", bytes_field(6, &[0xFF])),
        ("spec.exclusive", bytes_field(10, b"yes")),
        ("spec.payload", bytes_field(16, &bytes_field(1, &[0xFF]))),
        ("spec.payload", bytes_field(16, &[0x0A, 200])),
        ("spec.payload", bytes_field(17, &number_field(1, 1))),
    ] {
        let reading = read_foreign(&with(&field));
        assert_eq!(names(reading.defect), [name], "{field:?}");
        assert!(wire::TaskSpec::decode(&*cleaned(&with(&field))).is_ok());
    }
}

#[test]
fn what_is_no_message_or_cut_short_is_a_defect_of_the_whole() {
    let bytes = spec().encode_to_vec();
    assert_eq!(names(read_foreign(&[0xFF; 20]).defect), ["spec"]);
    for cut in 0..bytes.len() {
        let reading = read_foreign(&bytes[..cut]);
        assert!(reading.defect.is_some(), "cut at {cut}");
        assert!(wire::TaskSpec::decode(&*cleaned(&bytes[..cut])).is_ok());
    }
}

#[test]
fn r12_a_payload_of_a_later_release_is_for_the_orchestrator_to_judge() {
    let without = wire::TaskSpec { payload: None, ..spec() }.encode_to_vec();
    assert_eq!(names(read_foreign(&without).defect), ["spec.payload"]);
    assert_eq!(names(read_foreign(&[&without[..], &number_field(18, 1)].concat()).defect), ["spec.payload"]);
    let later = [without, bytes_field(18, b"from the future")].concat();
    assert_eq!(read_foreign(&later), SpecReading::default());
}

#[test]
fn a_spec_that_no_message_can_carry_is_a_defect() {
    let large = bytes_field(16, &bytes_field(4, &vec![0; 15 * 1024 * 1024]));
    assert!(shown(large.clone()).0.is_empty());
    let reading = read_foreign(&large);
    assert!(reading.defect.is_some_and(|defect| defect.column == "spec" && defect.error.contains("bytes")));
}

#[test]
fn times_in_pieces_are_judged_together() {
    let seconds = bytes_field(9, &number_field(1, 5));
    assert_eq!(read_foreign(&with(&seconds)), SpecReading::default());
    let piece = bytes_field(9, &number_field(2, 5_000_000_000));
    let reading = read_foreign(&with(&piece));
    // As much as 32 bits hold of it, as decoders have it.
    assert_eq!(reading.ignored.is_empty(), (0..1_000_000_000).contains(&(5_000_000_000_u64 as i32)));
}

/// Whoever adds a field to the contract says here whether a task runs without it.
#[test]
fn the_table_of_fields_is_the_contract() {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let find = |name: &str| -> DescriptorProto {
        let (package, name) = name.trim_start_matches('.').rsplit_once('.').unwrap();
        let (package, outer) = match package.strip_suffix(".TaskSpec").or(package.strip_suffix(".Command")) {
            Some(outer) => (outer, package.rsplit_once('.').map(|(_, name)| name)),
            None => (package, None),
        };
        let file = set.file.iter().filter(|file| file.package() == package);
        let messages = file.flat_map(|file| &file.message_type);
        let mut messages: Vec<&DescriptorProto> = messages.collect();
        if let Some(outer) = outer {
            messages =
                messages.into_iter().filter(|one| one.name() == outer).flat_map(|one| &one.nested_type).collect();
        }
        messages.into_iter().find(|one| one.name() == name).unwrap().clone()
    };
    fn same(kind: Kind, field: &prost_types::FieldDescriptorProto, find: &dyn Fn(&str) -> DescriptorProto) {
        let fits = match (kind, field.r#type()) {
            (Kind::Number, Type::Int32 | Type::Int64 | Type::Bool) | (Kind::Text, Type::String) => true,
            (Kind::Bytes, Type::Bytes) => true,
            (Kind::Time(Slot::NotBefore), Type::Message) => field.type_name() == ".google.protobuf.Timestamp",
            (Kind::Time(_), Type::Message) => field.type_name() == ".google.protobuf.Duration",
            (Kind::Message(fields), Type::Message) => {
                let message = find(field.type_name());
                assert_eq!(message.field.len(), fields.len(), "{}", field.type_name());
                for inner in &message.field {
                    let known = fields.iter().find(|(tag, _)| *tag as i32 == inner.number());
                    same(known.expect("a field").1, inner, find);
                }
                true
            }
            _ => false,
        };
        assert!(fits, "{} is {:?}", field.name(), field.r#type());
    }
    let message = find(".millrace.common.v1.TaskSpec");
    assert_eq!(message.field.len(), KNOWN.len());
    for field in &message.field {
        let known = KNOWN.iter().find(|known| known.tag as i32 == field.number()).expect("a field");
        same(known.kind, field, &find);
        let in_payload = field.oneof_index.is_some() && !field.proto3_optional();
        let column = if in_payload { PAYLOAD.to_owned() } else { format!("spec.{}", field.name()) };
        assert_eq!(known.column, column);
    }
}

/// Fields that look like those of a spec, and some that do not.
fn any_field() -> impl Strategy<Value = Vec<u8>> {
    let inner = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..12),
        "[a-z]{0,6}".prop_map(String::into_bytes),
        (1_u32..5, any::<u64>()).prop_map(|(tag, number)| number_field(tag, number)),
        (1_u32..5, "[a-z]{0,6}").prop_map(|(tag, text)| bytes_field(tag, text.as_bytes())),
    ];
    prop_oneof![
        (1_u32..20, inner).prop_map(|(tag, inner)| bytes_field(tag, &inner)),
        (1_u32..20, any::<u64>()).prop_map(|(tag, number)| number_field(tag, number)),
        proptest::collection::vec(any::<u8>(), 0..6),
    ]
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let damaged = (any::<proptest::sample::Index>(), any::<u8>(), any::<proptest::sample::Index>()).prop_map(
        |(at, byte, cut)| {
            let mut bytes = spec().encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(cut.index(bytes.len()) + 1);
            bytes
        },
    );
    prop_oneof![
        proptest::collection::vec(any_field(), 0..8).prop_map(|fields| fields.concat()),
        damaged,
        proptest::collection::vec(any::<u8>(), 0..64),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_is_stored_what_is_sent_decodes(bytes in any_bytes()) {
        let reading = read_foreign(&bytes);
        let clean = cleaned(&bytes);
        prop_assert!(wire::TaskSpec::decode(&*clean).is_ok(), "{clean:?}");
        prop_assert!(matches!(cleaned(&clean), Cow::Borrowed(_)), "cleaning twice is cleaning once");
        if reading == SpecReading::default() {
            prop_assert!(matches!(clean, Cow::Borrowed(_)));
        }
    }

    #[test]
    fn what_decodes_is_only_ever_found_impossible(bytes in any_bytes()) {
        let findings = Findings::of(&bytes);
        if wire::TaskSpec::decode(&*bytes).is_ok() {
            prop_assert_eq!(findings.broken, None);
            prop_assert!(findings.wrong.iter().flatten().all(|wrong| *wrong == Wrong::Time), "{findings:?}");
        }
    }
}
