//! Regenerates `src/gen` from the contracts and compares it with what is committed. With `MILLRACE_GEN=write` (which is
//! `make gen`) it writes the files instead.

use std::{collections::BTreeMap, fs, path::Path};

use prost_types::{FileDescriptorSet, field_descriptor_proto::Type};

const CONTRACTS: [&str; 11] = [
    "foreign/externalgrpc/externalgrpc.proto",
    "foreign/externalscaler/externalscaler.proto",
    "millrace/common/v1/task.proto",
    "millrace/distributor/v1/distributor.proto",
    "millrace/distributor/v1/orchestrator.proto",
    "millrace/distributor/v1/peer.proto",
    "millrace/distributor/v1/quarantine.proto",
    "millrace/provider/v1/provider.proto",
    "millrace/queue/v1/queue.proto",
    "millrace/scaler/v1/node.proto",
    "millrace/scaler/v1/scaler.proto",
];

#[test]
fn committed_code_is_what_the_contracts_generate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/gen");
    let fresh = generate(root);
    if std::env::var("MILLRACE_GEN").as_deref() == Ok("write") {
        for (name, bytes) in &fresh {
            fs::write(committed.join(name), bytes).unwrap();
        }
        return;
    }
    let names = |dir: &Path| -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(
        names(&committed),
        fresh.keys().cloned().collect::<Vec<_>>(),
        "src/gen holds other files; run `make gen`"
    );
    for (name, bytes) in &fresh {
        assert!(fs::read(committed.join(name)).unwrap() == *bytes, "src/gen/{name} is out of date; run `make gen`");
    }
}

#[test]
fn every_contract_is_generated() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut pending = vec![root.join("millrace"), root.join("foreign")];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert_eq!(found, CONTRACTS);
}

fn generate(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut compiler = protox::Compiler::new([root]).unwrap();
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(CONTRACTS).unwrap();
    let public = compiler.encode_file_descriptor_set();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .out_dir(out.path())
        .compile_fds(with_specs_as_bytes(compiler.file_descriptor_set()))
        .unwrap();
    let mut files: BTreeMap<String, Vec<u8>> = fs::read_dir(out.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .filter(|(name, _)| !name.starts_with("google."))
        .collect();
    files.insert("descriptors.bin".into(), public);
    files
}

/// The wire-identical form: a `TaskSpec` in a field called `spec` becomes `bytes`, which nothing decodes on its way.
fn with_specs_as_bytes(mut set: FileDescriptorSet) -> FileDescriptorSet {
    let fields = set.file.iter_mut().flat_map(|file| &mut file.message_type).flat_map(|message| &mut message.field);
    for field in fields.filter(|field| field.type_name() == ".millrace.common.v1.TaskSpec" && field.name() == "spec") {
        field.set_type(Type::Bytes);
        field.type_name = None;
    }
    set
}
