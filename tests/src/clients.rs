//! gRPC clients and raw bytes for tests.

use millrace_proto::{
    common::v1::{Command, TaskSpec, task_spec::Payload},
    distributor::v1::{SubmitTaskRequest, distributor_service_client::DistributorServiceClient},
};
use prost::Message;
use tonic::transport::{Channel, Endpoint};

/// A client of the distributor.
pub type Distributor = DistributorServiceClient<Channel>;

/// Connects to a distributor, now or at the first call.
pub fn distributor(endpoint: &str) -> Distributor {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).expect("an endpoint");
    DistributorServiceClient::new(endpoint.connect_lazy()).max_decoding_message_size(64 * 1024 * 1024)
}

/// A spec that runs a command.
pub fn command(argv: &[&str]) -> TaskSpec {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    TaskSpec {
        executor: "process".into(),
        payload: Some(Payload::Command(Command { argv, ..Default::default() })),
        ..Default::default()
    }
}

/// A submission of this spec.
pub fn submission(request_id: &str, spec: &TaskSpec) -> SubmitTaskRequest {
    SubmitTaskRequest { request_id: request_id.to_owned(), spec: spec.encode_to_vec().into() }
}

/// A field that no release knows: number 9999, these bytes.
pub fn unknown_field(bytes: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    prost::encoding::encode_key(9999, prost::encoding::WireType::LengthDelimited, &mut field);
    prost::encoding::encode_varint(bytes.len() as u64, &mut field);
    field.extend_from_slice(bytes);
    field
}
