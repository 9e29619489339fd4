//! Listings of all groups that pools have named.

use std::sync::{Arc, atomic::Ordering};

use millrace_proto::{
    foreign::externalgrpc::{Instance as Foreign, instance_status::InstanceState as ForeignState},
    provider::v1::{DescribeNodesRequest, DescribeNodesResponse, Instance, InstanceState},
};
use tonic::Status;

use super::{
    ExternalGrpc,
    group::{self, Group},
};
use crate::provider::{MAX_NODES, answer};

/// The class of errors that say that resources are out.
const OUT_OF_RESOURCES: i32 = 1;

impl ExternalGrpc {
    /// One group after the other, each in the order of its instances' ids, so that a page goes on where the one before it ended, whatever
    /// has come or gone meanwhile. An error of any group is one of the listing: its nodes would seem to be gone.
    pub(super) async fn describe(&self, request: &DescribeNodesRequest) -> Result<DescribeNodesResponse, Status> {
        let size = answer::page_size(request.page_size)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(read_token(token).ok_or_else(answer::invalid_token)?),
        };
        let groups = self.groups.all()?;
        if after.is_none() {
            self.client.refresh().await?;
        }
        let sizes = self.client.sizes().await?;
        let mut page: Vec<(Arc<Group>, Foreign)> = Vec::new();
        for group in groups {
            let meant = request.pool.is_empty() || request.pool == group.pool;
            let passed = after.is_some_and(|(last, _)| *group.id < *last);
            if !meant || passed || !exists(&group, sizes.contains_key(&group.id)) {
                continue;
            }
            let mut instances = self.client.nodes(&group.id).await?;
            instances.sort_unstable_by(|one, other| one.id.cmp(&other.id));
            let last = after.filter(|(last, _)| *last == group.id).map(|(_, instance)| instance);
            let rest = instances.into_iter().filter(|instance| last.is_none_or(|last| *instance.id > *last));
            page.extend(rest.take(size + 1 - page.len()).map(|instance| (Arc::clone(&group), instance)));
            if page.len() > size {
                break;
            }
        }
        let more = page.len() > size;
        page.truncate(size);
        let next = page.last().filter(|_| more).map(|(group, last)| token(&group.id, &last.id)).unwrap_or_default();
        Ok(DescribeNodesResponse {
            instances: page.iter().map(|(group, foreign)| instance(group, foreign)).collect(),
            next_page_token: next,
            max_nodes_per_call: i32::try_from(MAX_NODES).unwrap_or(i32::MAX),
        })
    }
}

/// A group that the provider does not have is said to be missing, once, and does not keep others from being listed.
fn exists(group: &Group, exists: bool) -> bool {
    if group.missed.swap(!exists, Ordering::Relaxed) == exists && !exists {
        tracing::warn!(group = %group.id, pool = %group.pool, "the provider has no such node group");
    }
    exists
}

fn instance(group: &Group, foreign: &Foreign) -> Instance {
    let error = group::error(foreign);
    let state = match group::state(foreign) {
        ForeignState::InstanceDeleting => InstanceState::Stopping,
        _ if error.is_some() => InstanceState::Failed,
        ForeignState::InstanceRunning => InstanceState::Running,
        ForeignState::InstanceCreating => InstanceState::Pending,
        ForeignState::Unspecified => InstanceState::Unspecified,
    };
    Instance {
        id: foreign.id.clone(),
        node_id: String::new(),
        pool: group.pool.clone(),
        zone: group.zone.clone(),
        state: state.into(),
        error: error.map(|error| format!("{}: {}", error.error_code, error.error_message)).unwrap_or_default(),
        create_time: None,
        out_of_capacity: error.is_some_and(|error| error.instance_error_class == OUT_OF_RESOURCES),
    }
}

/// The last instance of a page; the length tells where its group's id ends.
fn token(group: &str, instance: &str) -> String {
    format!("{}:{group}{instance}", group.len())
}

fn read_token(token: &str) -> Option<(&str, &str)> {
    let (length, rest) = token.split_once(':')?;
    rest.split_at_checked(length.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keep_ids_of_any_form() {
        for (group, instance) in [("g", "i"), ("a:b/1", "3:x"), ("", ""), ("ä", "ö")] {
            assert_eq!(read_token(&token(group, instance)), Some((group, instance)));
        }
        for bad in ["", "x", "9:abc", "x:abc", "1:ä"] {
            assert_eq!(read_token(bad), None, "{bad}");
        }
    }
}
