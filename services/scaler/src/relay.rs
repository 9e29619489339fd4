//! Calls that only the leader can answer, passed on to it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use millrace_proto::scaler::v1::scaler_service_client::ScalerServiceClient;
use millrace_runtime::{
    server::{MAX_DECODING_MESSAGE_SIZE, MAX_ENCODING_MESSAGE_SIZE},
    status::Fault,
};
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use crate::leader::Desk;

/// Marks a call that was passed on: whoever gets it does not pass it on again.
const RELAYED: &str = "millrace-relayed";

/// How long the leader may take to accept a connection, and to answer a ping on it.
const PATIENCE: Duration = Duration::from_secs(2);

/// The way to a leader in another process. One connection is kept: there is one leader.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    channel: Mutex<Option<(String, Channel)>>,
}

impl Relay {
    /// A client of the leader, when it is another process and is known.
    pub(crate) fn leader(&self, desk: &Desk) -> Option<ScalerServiceClient<Channel>> {
        let endpoint = desk.other_leader()?;
        let channel = self.channel(&endpoint)?;
        let client = ScalerServiceClient::new(channel)
            .max_decoding_message_size(MAX_DECODING_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_ENCODING_MESSAGE_SIZE);
        Some(client)
    }

    fn channel(&self, endpoint: &str) -> Option<Channel> {
        let mut kept = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((to, channel)) = &*kept
            && to == endpoint
        {
            return Some(channel.clone());
        }
        let built = Endpoint::from_shared(endpoint.to_owned())
            .inspect_err(|error| tracing::warn!(endpoint, %error, "the leader's endpoint cannot be dialled"))
            .ok()?;
        let channel = built
            .connect_timeout(PATIENCE)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(PATIENCE)
            .keep_alive_while_idle(true)
            .connect_lazy();
        *kept = Some((endpoint.to_owned(), channel.clone()));
        Some(channel)
    }
}

/// Marks a call as passed on.
pub(crate) fn mark<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(RELAYED, MetadataValue::from_static("1"));
    request
}

/// Whether a call was passed on by another replica.
pub(crate) fn is_marked<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(RELAYED)
}

/// UNAVAILABLE while nobody leads.
pub(crate) fn no_leader() -> Fault {
    Fault::unavailable("no scaler leads at the moment", Duration::from_secs(1)).with_reason("NO_LEADER")
}
