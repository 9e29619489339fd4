//! Millrace's gRPC contracts: the generated Rust code and the descriptors that reflection serves.
//!
//! The services are generated from a wire-identical form of the contracts in which every `TaskSpec spec` is `bytes`, so
//! that what a client submitted reaches an orchestrator byte for byte, fields of later releases included. Decode it with
//! [`common::v1::TaskSpec`] where its content is needed. Reflection and JSON use [`FILE_DESCRIPTOR_SET`], the public form.
//!
//! `src/gen` is committed; `make gen` writes it anew and a test compares.

#![allow(missing_docs, unreachable_pub, clippy::all)]

/// The public form of every contract, with comments: an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptors.bin");

pub mod common {
    pub mod v1 {
        include!("gen/millrace.common.v1.rs");
    }
}

pub mod distributor {
    pub mod v1 {
        include!("gen/millrace.distributor.v1.rs");
    }
}

pub mod queue {
    pub mod v1 {
        include!("gen/millrace.queue.v1.rs");
    }
}

pub mod scaler {
    pub mod v1 {
        include!("gen/millrace.scaler.v1.rs");
    }
}

pub mod provider {
    pub mod v1 {
        include!("gen/millrace.provider.v1.rs");
    }
}

/// Contracts of others that Millrace speaks.
pub mod foreign {
    /// KEDA's external scaler.
    pub mod externalscaler {
        include!("gen/externalscaler.rs");
    }

    /// The Kubernetes cluster-autoscaler's external provider.
    pub mod externalgrpc {
        include!("gen/clusterautoscaler.cloudprovider.v1.externalgrpc.rs");
    }
}
