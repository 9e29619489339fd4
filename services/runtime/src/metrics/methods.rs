//! Every method that a process of the suite can serve, read from the contracts' descriptors.
//!
//! A caller chooses the path of its call, so a path may become a label only if it is one of these; all others share
//! the label `unknown`.

use std::{collections::HashMap, sync::LazyLock};

use prost::Message;
use prost_types::FileDescriptorSet;

/// One method of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Method {
    pub(super) service: &'static str,
    pub(super) name: &'static str,
}

pub(super) const UNKNOWN: Method = Method { service: "unknown", name: "unknown" };

/// How a call is admitted when the process is busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Health is always answered: a process that is shed by its own probes is restarted when it can bear that least.
    Free,
    /// Streams on which the peers of a service work, so that submitters cannot keep orchestrators away.
    Streams,
    /// Everything else.
    Calls,
}

struct Known {
    method: Method,
    lane: Lane,
}

static KNOWN: LazyLock<HashMap<String, Known>> = LazyLock::new(|| {
    let sets = [
        millrace_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    // The sets are compiled in; a test reads each of them.
    sets.into_iter().filter_map(|set| FileDescriptorSet::decode(set).ok()).flat_map(methods_of).collect()
});

/// The method that a path names.
pub(super) fn method(path: &str) -> Method {
    KNOWN.get(path).map_or(UNKNOWN, |known| known.method)
}

/// How a call of this path is admitted.
pub(crate) fn lane(path: &str) -> Lane {
    KNOWN.get(path).map_or(Lane::Calls, |known| known.lane)
}

/// Runs once in a process, so the names may be leaked: labels then cost nothing per call.
fn methods_of(set: FileDescriptorSet) -> Vec<(String, Known)> {
    let mut found = Vec::new();
    for file in set.file {
        for service in &file.service {
            let service_name: &'static str = format!("{}.{}", file.package(), service.name()).leak();
            for method in &service.method {
                let name: &'static str = method.name().to_owned().leak();
                let lane = match (service_name, method.client_streaming()) {
                    (crate::health::SERVICE, _) => Lane::Free,
                    (name, true) if name.starts_with("millrace.") => Lane::Streams,
                    _ => Lane::Calls,
                };
                let known = Known { method: Method { service: service_name, name }, lane };
                found.push((format!("/{service_name}/{name}"), known));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_are_known_and_nothing_else() {
        let submit = method("/millrace.distributor.v1.DistributorService/SubmitTask");
        assert_eq!((submit.service, submit.name), ("millrace.distributor.v1.DistributorService", "SubmitTask"));
        assert_ne!(method("/grpc.health.v1.Health/Check"), UNKNOWN);
        assert_ne!(method("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), UNKNOWN);
        assert_ne!(method("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"), UNKNOWN);
        assert_eq!(method("/millrace.distributor.v1.DistributorService/Steal"), UNKNOWN);
        assert_eq!(method("/"), UNKNOWN);
    }

    #[test]
    fn peers_streams_have_a_lane_of_their_own() {
        assert_eq!(lane("/millrace.distributor.v1.DistributorService/ConnectOrchestrator"), Lane::Streams);
        assert_eq!(lane("/millrace.queue.v1.QueueService/Exchange"), Lane::Streams);
        assert_eq!(lane("/millrace.distributor.v1.DistributorService/WatchTask"), Lane::Calls);
        assert_eq!(lane("/millrace.distributor.v1.DistributorService/SubmitTask"), Lane::Calls);
        assert_eq!(lane("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), Lane::Calls);
        assert_eq!(lane("/grpc.health.v1.Health/Watch"), Lane::Free);
        assert_eq!(lane("/anything"), Lane::Calls);
    }
}
