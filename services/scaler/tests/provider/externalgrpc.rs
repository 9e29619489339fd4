//! Node groups of the cluster-autoscaler's contract, against a server written from it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use millrace_core::{fleet::Pool, id::NodeId};
use millrace_proto::{
    foreign::externalgrpc::instance_status::InstanceState as Foreign,
    provider::v1::{InstanceState, NodeRef, RequestNodesRequest, RequestResult, TerminateNodesRequest},
};
use millrace_scaler::provider::{ExternalGrpc, Remote, externalgrpc::Options};
use tokio::sync::Notify;
use tonic::Code;

use crate::{
    cloud::{Handle, Trouble, instance},
    support::{by_id, by_instance, ids, list, order as bare_order, request, results, serve, states, terminate, until},
};

const ACCEPTED: RequestResult = RequestResult::Accepted;

/// Pool `builds`, with the group g-a in zone a and g-b in zone b.
fn pool() -> Pool {
    let mut pool = Pool::new("builds", "cloud", &["default"]);
    pool.zones = vec!["a".into(), "b".into()];
    pool.template = template();
    pool
}

fn template() -> BTreeMap<String, String> {
    [("node-group.a", "g-a"), ("node-group.b", "g-b")].map(|(key, value)| (key.into(), value.into())).into()
}

fn order(zone: &str, ids: &[NodeId], expected: usize) -> RequestNodesRequest {
    RequestNodesRequest { template: template(), ..bare_order("builds", zone, ids, expected) }
}

async fn provider(cloud: &Handle, options: Options) -> ExternalGrpc {
    let provider = ExternalGrpc::new(&cloud.serve().await, options).unwrap();
    provider.assign(&[pool()]);
    provider
}

fn groups() -> Handle {
    Handle::with(&[("g-a", 10), ("g-b", 10), ("somebody-elses", 10)])
}

#[tokio::test]
async fn nodes_are_made_listed_and_ended_over_grpc() {
    let cloud = groups();
    cloud.lock().groups.get_mut("somebody-elses").unwrap().target = 4;
    cloud.make("somebody-elses");
    let remote = Remote::new(&serve(provider(&cloud, Options::default()).await).await).unwrap();
    let ids = ids(5);
    assert_eq!(results(&request(&remote, order("a", &ids[..3], 3)).await.unwrap()), [ACCEPTED; 3]);
    assert_eq!(results(&request(&remote, order("b", &ids[3..], 2)).await.unwrap()), [ACCEPTED; 2]);
    assert_eq!(cloud.lock().changes, [("g-a".into(), 3), ("g-b".into(), 2)]);
    cloud.make("g-a");
    cloud.make("g-b");

    let listed = list(&remote, 2).await.unwrap();
    assert_eq!(states(&listed), [InstanceState::Running; 5]);
    let places: Vec<_> = listed.iter().map(|node| (&*node.pool, &*node.zone)).collect();
    assert_eq!(places, [("builds", "a"), ("builds", "a"), ("builds", "a"), ("builds", "b"), ("builds", "b")]);
    assert_eq!(cloud.lock().refreshes, 1, "once a listing, not once a page");

    let ended = by_instance("builds", "a", &[&listed[0].id, "i-unknown"]);
    assert_eq!(results(&terminate(&remote, ended.clone()).await.unwrap()), [ACCEPTED; 2]);
    assert_eq!(states(&list(&remote, 0).await.unwrap())[0], InstanceState::Stopping);
    assert_eq!(cloud.target("g-a"), 2);
    // Once more, also when it is not listed any more, takes nothing else away.
    terminate(&remote, ended.clone()).await.unwrap();
    cloud.lock().groups.get_mut("g-a").unwrap().instances.retain(|instance| instance.id != listed[0].id);
    terminate(&remote, ended).await.unwrap();
    assert_eq!((cloud.target("g-a"), cloud.lock().deletions.len()), (2, 1));
}

#[tokio::test]
async fn an_increase_whose_answer_was_lost_is_not_made_again() {
    for code in [Code::DeadlineExceeded, Code::Unavailable, Code::Unknown] {
        let cloud = groups();
        let provider = provider(&cloud, Options::default()).await;
        let ids = ids(3);
        cloud.lock().troubles.push_back(Trouble::LostAnswer(code));
        assert_eq!(request(&provider, order("a", &ids, 3)).await.unwrap_err().code(), code);
        assert_eq!(results(&request(&provider, order("a", &ids, 3)).await.unwrap()), [ACCEPTED; 3]);
        assert_eq!((cloud.target("g-a"), cloud.raised()), (3, 3));

        // Nor by a provider that has just started and remembers nothing.
        cloud.lock().troubles.push_back(Trouble::LostAnswer(code));
        request(&provider, order("a", &crate::support::ids(2), 5)).await.unwrap_err();
        let fresh = ExternalGrpc::new(&cloud.serve().await, Options::default()).unwrap();
        request(&fresh, order("a", &crate::support::ids(2), 5)).await.unwrap();
        assert_eq!((cloud.target("g-a"), cloud.raised()), (5, 5));
    }
}

#[tokio::test]
async fn an_increase_that_may_still_come_true_is_waited_for() {
    let cloud = groups();
    let settle = Duration::from_secs(60);
    let provider = provider(&cloud, Options { limit: Duration::from_millis(200), settle, ..Options::default() }).await;
    let (go, ids) = (Arc::new(Notify::new()), ids(3));
    cloud.lock().troubles.push_back(Trouble::Late(Arc::clone(&go)));
    let status = request(&provider, order("a", &ids, 3)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    // The target does not show it yet, and a second increase would double it.
    let waiting = request(&provider, order("a", &ids, 3)).await.unwrap();
    assert_eq!(results(&waiting), [RequestResult::Throttled; 3]);
    let after = Duration::try_from(waiting[0].retry_after.unwrap()).unwrap();
    assert!(after > settle / 2 && after <= settle, "{after:?}");
    // Another zone's group is none of its business.
    assert_eq!(results(&request(&provider, order("b", &ids[..1], 1)).await.unwrap()), [ACCEPTED]);

    go.notify_one();
    until("the late increase is made", || async { cloud.target("g-a") == 3 }).await;
    assert_eq!(results(&request(&provider, order("a", &ids, 3)).await.unwrap()), [ACCEPTED; 3]);
    assert_eq!((cloud.target("g-a"), cloud.raised()), (3, 4));
}

#[tokio::test]
async fn an_increase_that_was_lost_is_made_once_it_cannot_come_true_any_more() {
    let cloud = groups();
    let settle = Duration::ZERO;
    let provider = provider(&cloud, Options { limit: Duration::from_millis(200), settle, ..Options::default() }).await;
    cloud.lock().troubles.push_back(Trouble::Refused(Code::Unavailable));
    let ids = ids(2);
    request(&provider, order("a", &ids, 2)).await.unwrap_err();
    assert_eq!(results(&request(&provider, order("a", &ids, 2)).await.unwrap()), [ACCEPTED; 2]);
    assert_eq!(cloud.raised(), 2);
}

#[tokio::test]
async fn a_refusal_is_passed_on_and_holds_nothing_up() {
    let cloud = groups();
    let provider = provider(&cloud, Options::default()).await;
    let ids = ids(2);
    for code in [Code::ResourceExhausted, Code::PermissionDenied, Code::FailedPrecondition] {
        cloud.lock().troubles.push_back(Trouble::Refused(code));
        assert_eq!(request(&provider, order("a", &ids, 2)).await.unwrap_err().code(), code);
    }
    assert_eq!(results(&request(&provider, order("a", &ids, 2)).await.unwrap()), [ACCEPTED; 2]);
}

#[tokio::test]
async fn a_target_that_others_change_is_only_raised_by_what_is_missing() {
    let cloud = groups();
    let provider = provider(&cloud, Options::default()).await;
    let ids = ids(4);
    request(&provider, order("a", &ids[..2], 2)).await.unwrap();
    cloud.lock().groups.get_mut("g-a").unwrap().target = 3;
    assert_eq!(results(&request(&provider, order("a", &ids[2..], 4)).await.unwrap()), [ACCEPTED; 2]);
    assert_eq!(cloud.target("g-a"), 4, "one was there already");
    cloud.lock().groups.get_mut("g-a").unwrap().target = 0;
    request(&provider, order("a", &ids[3..], 4)).await.unwrap();
    assert_eq!(cloud.target("g-a"), 1, "no more than was asked for");
    let bad = request(&provider, order("a", &ids, 3)).await.unwrap_err();
    assert!(bad.code() == Code::InvalidArgument && bad.message().contains("expected_total"));
}

#[tokio::test]
async fn concurrent_orders_of_a_group_take_turns() {
    let cloud = groups();
    let provider = Arc::new(provider(&cloud, Options::default()).await);
    let nodes = ids(10);
    // Ten calls at once, of which each has counted what the ones before it asked for.
    let calls = (0..10).map(|index| {
        let (provider, order) = (Arc::clone(&provider), order("a", &nodes[index..=index], index + 1));
        async move { request(&*provider, order).await.unwrap() }
    });
    futures::future::join_all(calls).await;
    assert_eq!((cloud.target("g-a"), cloud.raised()), (10, 10));
}

#[tokio::test]
async fn a_full_group_is_out_of_capacity() {
    let cloud = Handle::with(&[("g-a", 2)]);
    let provider = provider(&cloud, Options::default()).await;
    let ids = ids(3);
    let answers = request(&provider, order("a", &ids, 3)).await.unwrap();
    assert_eq!(results(&answers), [ACCEPTED, ACCEPTED, RequestResult::OutOfCapacity]);
    assert_eq!(answers[2].error, "node group g-a is at its greatest size, 2");
    assert_eq!(cloud.target("g-a"), 2);
    // The provider does not have the other zone's group, which does not keep the first from being listed.
    let missing = request(&provider, order("b", &ids[..1], 1)).await.unwrap();
    assert_eq!(
        (results(&missing), &*missing[0].error),
        (vec![RequestResult::Failed], "the provider has no node group g-b")
    );
    cloud.make("g-a");
    assert_eq!(list(&provider, 0).await.unwrap().len(), 2);
    let unnamed = request(&provider, bare_order("other", "a", &ids[..1], 1)).await.unwrap();
    assert!(unnamed[0].error.contains("no `node-group.a`"), "{}", unnamed[0].error);
}

#[tokio::test]
async fn instances_that_cannot_be_made_are_failed_and_made_good() {
    let cloud = groups();
    let provider = provider(&cloud, Options::default()).await;
    let ids = ids(5);
    request(&provider, order("a", &ids[..3], 3)).await.unwrap();
    cloud.lock().groups.get_mut("g-a").unwrap().instances = vec![
        instance("i-1", Foreign::InstanceRunning, None),
        instance("i-2", Foreign::InstanceCreating, Some((1, "no room"))),
        instance("i-3", Foreign::InstanceCreating, Some((99, "no image"))),
    ];
    let listed = list(&provider, 0).await.unwrap();
    assert_eq!(states(&listed), [InstanceState::Running, InstanceState::Failed, InstanceState::Failed]);
    assert_eq!((&*listed[1].error, listed[1].out_of_capacity), ("code: no room", true));
    assert_eq!((&*listed[2].error, listed[2].out_of_capacity), ("code: no image", false));
    // They are in the target, and no help.
    request(&provider, order("a", &ids[3..], 3)).await.unwrap();
    assert_eq!(cloud.target("g-a"), 5);
    request(&provider, order("a", &ids[3..], 3)).await.unwrap();
    assert_eq!(cloud.target("g-a"), 5);
    terminate(&provider, by_instance("builds", "a", &["i-2", "i-3"])).await.unwrap();
    request(&provider, order("a", &ids[3..], 3)).await.unwrap();
    assert_eq!((cloud.target("g-a"), cloud.raised()), (3, 5));
}

#[tokio::test]
async fn a_node_without_an_instance_is_withdrawn_once() {
    let cloud = groups();
    let provider = provider(&cloud, Options::default()).await;
    let ids = ids(4);
    request(&provider, order("a", &ids, 4)).await.unwrap();
    cloud.lock().groups.get_mut("g-a").unwrap().instances =
        vec![instance("i-1", Foreign::InstanceRunning, None), instance("i-2", Foreign::InstanceCreating, None)];
    // The answer is lost, and the call repeated.
    cloud.lock().troubles.push_back(Trouble::LostAnswer(Code::Unavailable));
    terminate(&provider, by_id("builds", "a", &ids[3..])).await.unwrap_err();
    assert_eq!(results(&terminate(&provider, by_id("builds", "a", &ids[3..])).await.unwrap()), [ACCEPTED]);
    assert_eq!(cloud.target("g-a"), 3);
    // More than there are places without an instance; together with one that has one.
    let mut nodes = by_id("builds", "a", &ids[1..]).nodes;
    nodes.push(NodeRef { node_id: ids[0].to_string(), instance_id: "i-1".into() });
    let all = TerminateNodesRequest { pool: "builds".into(), zone: "a".into(), nodes };
    let answers = terminate(&provider, all.clone()).await.unwrap();
    // The place of i-1 is not free before it is gone; the others have nothing to withdraw, whatever was asked before.
    assert_eq!(results(&answers), [RequestResult::Throttled, ACCEPTED, ACCEPTED, ACCEPTED]);
    assert_eq!(cloud.target("g-a"), 2);
    cloud.lock().groups.get_mut("g-a").unwrap().instances.remove(0);
    assert_eq!(results(&terminate(&provider, all).await.unwrap()), [ACCEPTED; 4]);
    assert_eq!(cloud.target("g-a"), 1, "i-2 stays");
    assert_eq!(cloud.lock().deletions, ["i-1"]);

    let unknown = terminate(&provider, by_id("other", "a", &ids[..1])).await.unwrap();
    assert!(results(&unknown) == [RequestResult::Failed] && unknown[0].error.contains("pool `other` zone `a`"));
}

#[tokio::test]
async fn listings_need_to_know_the_groups_and_tolerate_what_the_contract_allows() {
    let cloud = groups();
    let provider = ExternalGrpc::new(&cloud.serve().await, Options::default()).unwrap();
    request(&provider, order("a", &ids(1), 1)).await.unwrap();
    // A listing of one zone alone would look as if the other's nodes were gone.
    assert_eq!(list(&provider, 0).await.unwrap_err().code(), Code::FailedPrecondition);
    provider.assign(&[pool()]);
    cloud.lock().refresh = Some(Code::Unimplemented);
    cloud.make("g-a");
    assert_eq!(list(&provider, 0).await.unwrap().len(), 1);
    cloud.lock().refresh = Some(Code::Internal);
    assert_eq!(list(&provider, 0).await.unwrap_err().code(), Code::Internal);
}
