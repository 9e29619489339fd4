//! The calls about pools and nodes, over gRPC.

mod common;

use std::time::Duration;

use common::{Client, Service, database, invalid, refusal, refused, until};
use futures::StreamExt;
use millrace_proto::scaler::v1::*;
use millrace_store::FleetStore;
use prost_types::{Duration as Span, FieldMask};
use tonic::{Code, Status};

fn wanted(name: &str) -> Pool {
    Pool {
        name: name.into(),
        provider: "local".into(),
        queues: vec!["default".into()],
        min_nodes: Some(2),
        max_nodes: Some(20),
        target_wait: Some(Span { seconds: 10, nanos: 0 }),
        template: [("image".into(), "v1".into())].into(),
        ..Pool::default()
    }
}

async fn create(client: &mut Client, pool: Pool) -> Result<Pool, Status> {
    let response = client.create_pool(CreatePoolRequest { pool: Some(pool), ..Default::default() }).await?;
    Ok(response.into_inner().pool.unwrap())
}

async fn get(client: &mut Client, name: &str) -> Result<Pool, Status> {
    Ok(client.get_pool(GetPoolRequest { name: name.into() }).await?.into_inner().pool.unwrap())
}

fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: paths.iter().map(|path| (*path).into()).collect() })
}

async fn nodes(client: &mut Client) -> Vec<Node> {
    client.list_nodes(ListNodesRequest::default()).await.unwrap().into_inner().nodes
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_created_read_changed_overridden_and_deleted() {
    let store = database();
    let service = Service::start(&store, &[]).await;
    let mut client = service.client();
    let request = CreatePoolRequest { request_id: "once".into(), pool: Some(wanted("p")) };
    let created = client.create_pool(request.clone()).await.unwrap().into_inner().pool.unwrap();
    assert_eq!((created.executor.as_str(), created.min_nodes, created.status), ("process", Some(2), None));
    let again = client.create_pool(request.clone()).await.unwrap().into_inner().pool.unwrap();
    assert_eq!(again.create_time, created.create_time, "a repeat is harmless");
    let other = CreatePoolRequest { pool: Some(wanted("q")), ..request.clone() };
    assert_eq!(refusal(client.create_pool(other).await).0, Code::AlreadyExists, "an id is for one pool");
    let another = CreatePoolRequest { request_id: String::new(), ..request };
    assert_eq!(refusal(client.create_pool(another).await), refused(Code::AlreadyExists, "POOL_EXISTS"));

    until("two nodes", async || service.provider.made().len() == 2).await;
    let mut seen = client.clone();
    until("figures", async || get(&mut seen, "p").await.unwrap().status.unwrap().as_of.is_some()).await;
    let status = get(&mut client, "p").await.unwrap().status.unwrap();
    assert_eq!((status.desired, status.launches.unwrap().state()), (2, LaunchGateState::Proving));
    assert!(!status.summary.is_empty());

    let update = UpdatePoolRequest {
        pool: Some(Pool { min_nodes: Some(3), description: "more".into(), ..wanted("p") }),
        update_mask: mask(&["min_nodes", "target_wait"]),
        ..Default::default()
    };
    let updated = client.update_pool(update.clone()).await.unwrap().into_inner().pool.unwrap();
    assert_eq!((updated.min_nodes, updated.description.as_str()), (Some(3), ""), "only what the mask names");
    until("a third node", async || service.provider.made().len() == 3).await;
    let missing = UpdatePoolRequest { pool: Some(wanted("missing")), ..update.clone() };
    assert_eq!(refusal(client.update_pool(missing).await), refused(Code::NotFound, "POOL_NOT_FOUND"));
    let crossed = UpdatePoolRequest {
        pool: Some(Pool { max_nodes: Some(1), ..wanted("p") }),
        update_mask: mask(&["max_nodes"]),
        ..update
    };
    assert_eq!(refusal(client.update_pool(crossed).await), invalid("pool.min_nodes"));

    assert_eq!(
        refusal(client.delete_pool(DeletePoolRequest { name: "p".into(), ..Default::default() }).await),
        refused(Code::FailedPrecondition, "POOL_NOT_EMPTY")
    );
    let drain = DeletePoolRequest { name: "p".into(), drain: true, request_id: "gone".into() };
    let draining = client.delete_pool(drain.clone()).await.unwrap().into_inner().pool.unwrap();
    assert!(draining.deleting);
    let mut seen = client.clone();
    until("its end", async || get(&mut seen, "p").await.is_err_and(|status| status.code() == Code::NotFound)).await;
    assert_eq!(service.provider.there(), Vec::<String>::new());
    assert_eq!(client.delete_pool(drain).await.unwrap().into_inner().pool, None, "a repeat is harmless");
    let unknown = DeletePoolRequest { name: "p".into(), ..Default::default() };
    assert_eq!(refusal(client.delete_pool(unknown).await), refused(Code::NotFound, "POOL_NOT_FOUND"));
}

#[tokio::test(start_paused = true)]
async fn what_a_pool_names_must_exist_and_violations_are_named() {
    let store = database();
    let service = Service::start(&store, &[]).await;
    let mut client = service.client();
    for (bad, reason) in [
        (Pool { provider: "cloud".into(), ..wanted("p") }, "PROVIDER_UNKNOWN"),
        (Pool { queues: vec!["nowhere".into()], ..wanted("p") }, "QUEUE_NOT_FOUND"),
        (Pool { fallback_pools: vec!["nowhere".into()], ..wanted("p") }, "FALLBACK_NOT_FOUND"),
    ] {
        let request = CreatePoolRequest { pool: Some(bad), ..Default::default() };
        assert_eq!(refusal(client.create_pool(request).await), refused(Code::FailedPrecondition, reason));
    }
    for (bad, field) in [
        (Pool { name: "Not A Name".into(), ..wanted("p") }, "pool.name"),
        (Pool { queues: Vec::new(), ..wanted("p") }, "pool.queues"),
        (Pool { slots_per_node: Some(2_000), ..wanted("p") }, "pool.slots_per_node"),
        (Pool { min_nodes: Some(30), ..wanted("p") }, "pool.min_nodes"),
    ] {
        let request = CreatePoolRequest { pool: Some(bad), ..Default::default() };
        assert_eq!(refusal(client.create_pool(request).await), invalid(field));
    }
    assert_eq!(refusal(client.create_pool(CreatePoolRequest::default()).await), invalid("pool"));
    assert_eq!(store.pools().unwrap().rows.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_override_holds_until_its_end_and_shows_what_there_would_be_without_it() {
    let store = database();
    let service = Service::start(&store, &[]).await;
    let mut client = service.client();
    create(&mut client, wanted("p")).await.unwrap();
    let until_us = store.pools().unwrap().now_us + 60_000_000;
    let by_hand = PoolOverride {
        owner: "ada".into(),
        reason: "a launch".into(),
        expire_time: Some(prost_types::Timestamp { seconds: until_us / 1_000_000, nanos: 0 }),
        desired_nodes: Some(5),
        ..PoolOverride::default()
    };
    let request = OverridePoolRequest { name: "p".into(), r#override: Some(by_hand.clone()), ..Default::default() };
    let pool = client.override_pool(request.clone()).await.unwrap().into_inner().pool.unwrap();
    assert_eq!(pool.r#override.as_ref().map(|one| one.owner.as_str()), Some("ada"));
    let mut seen = client.clone();
    until("five", async || get(&mut seen, "p").await.unwrap().status.unwrap().desired == 5).await;
    let status = get(&mut client, "p").await.unwrap().status.unwrap();
    assert_eq!(status.desired_without_override, 2);
    let explain = client.explain_pool(ExplainPoolRequest { name: "p".into() }).await.unwrap().into_inner();
    assert!(explain.steps.iter().any(|step| step.rule == "override"), "{:?}", explain.steps);
    assert_eq!(explain.provider.unwrap().name, "local");
    assert_eq!(explain.pool.unwrap().status.unwrap().desired, 5);

    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(get(&mut client, "p").await.unwrap().r#override, None, "it ends by itself");
    let refused_again = OverridePoolRequest { name: "p".into(), r#override: Some(by_hand), ..Default::default() };
    assert_eq!(refusal(client.override_pool(refused_again).await), invalid("override.expire_time"));
    let clear = ClearPoolOverrideRequest { name: "p".into(), ..Default::default() };
    client.clear_pool_override(clear).await.unwrap();
    let actions: Vec<String> = store.audited().into_iter().map(|audit| audit.action).collect();
    assert!(
        ["CreatePool", "OverridePool", "ClearPoolOverride"].iter().all(|one| actions.contains(&(*one).to_owned())),
        "{actions:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn nodes_are_listed_in_pages_and_drained() {
    let store = database();
    let service = Service::start(&store, &[]).await;
    let mut client = service.client();
    create(&mut client, Pool { min_nodes: Some(5), ..wanted("p") }).await.unwrap();
    until("five nodes", async || service.provider.made().len() == 5).await;
    let mut request = ListNodesRequest { pool: "p".into(), page_size: 2, ..Default::default() };
    let mut ids = Vec::new();
    loop {
        let page = client.list_nodes(request.clone()).await.unwrap().into_inner();
        ids.extend(page.nodes.into_iter().map(|node| node.id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let mut newest_first = service.provider.made();
    newest_first.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(ids, newest_first);

    let drain = DrainNodeRequest { id: ids[0].clone(), reason: "a test".into(), ..Default::default() };
    client.drain_node(drain.clone()).await.unwrap();
    until("its end", async || service.provider.ended().len() == 1).await;
    let mut seen = client.clone();
    let gone = async || {
        let node = seen.get_node(GetNodeRequest { id: ids[0].clone() }).await.unwrap().into_inner().node.unwrap();
        node.state() == NodeState::Gone
    };
    until("gone", gone).await;
    let node = client.get_node(GetNodeRequest { id: ids[0].clone() }).await.unwrap().into_inner().node.unwrap();
    assert_eq!(node.history.first().map(NodeEvent::state), Some(NodeState::Requested));
    assert!(node.history.iter().any(|event| event.reason.contains("a test")), "{:?}", node.history);
    client.drain_node(drain.clone()).await.expect("one that is gone is as drained as can be");

    let unknown = DrainNodeRequest { id: uuid::Uuid::now_v7().to_string(), ..drain.clone() };
    assert_eq!(refusal(client.drain_node(unknown).await), refused(Code::NotFound, "NODE_NOT_FOUND"));
    let silent = DrainNodeRequest { reason: String::new(), ..drain };
    assert_eq!(refusal(client.drain_node(silent).await), invalid("reason"));
    let bad = ListNodesRequest { page_token: "x".into(), ..Default::default() };
    assert_eq!(refusal(client.list_nodes(bad).await), invalid("page_token"));
    let bad = ListNodesRequest { states: vec![99], ..Default::default() };
    assert_eq!(refusal(client.list_nodes(bad).await), invalid("states[0]"));
}

#[tokio::test(start_paused = true)]
async fn pools_are_listed_in_pages_and_watched() {
    let store = database();
    let service = Service::start(&store, &["--scaler-max-watchers", "1"]).await;
    let mut client = service.client();
    for name in ["a", "b", "c"] {
        create(&mut client, Pool { min_nodes: None, ..wanted(name) }).await.unwrap();
    }
    let first = client.list_pools(ListPoolsRequest { page_size: 2, ..Default::default() }).await.unwrap().into_inner();
    let names = |pools: &[Pool]| pools.iter().map(|pool| pool.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&first.pools), ["a", "b"]);
    let next = ListPoolsRequest { page_size: 2, page_token: first.next_page_token };
    let second = client.list_pools(next).await.unwrap().into_inner();
    assert_eq!((names(&second.pools), second.next_page_token.as_str()), (vec!["c".into()], ""));

    let watch = WatchPoolsRequest { names: vec!["b".into()], ..Default::default() };
    let mut watched = client.watch_pools(watch.clone()).await.unwrap().into_inner();
    for _ in 0..3 {
        assert_eq!(names(&watched.next().await.unwrap().unwrap().pools), ["b"]);
    }
    assert_eq!(refusal(client.watch_pools(watch).await), refused(Code::ResourceExhausted, "TOO_MANY_WATCHERS"));
    service.context.shutdown.begin();
    while watched.next().await.is_some_and(|item| item.is_ok()) {}
}

#[tokio::test(start_paused = true)]
async fn a_standby_answers_from_what_the_leader_wrote_and_says_when_there_is_none() {
    let store = database();
    let service = Service::start(&store, &[]).await;
    let mut client = service.client();
    create(&mut client, wanted("p")).await.unwrap();
    let mut seen = client.clone();
    until("figures", async || get(&mut seen, "p").await.unwrap().status.unwrap().as_of.is_some()).await;

    let standby = Service::standby(&store, 2, "http://standby", &service.provider, &[]);
    let mut other = standby.client();
    let mut seen = other.clone();
    until("figures there", async || get(&mut seen, "p").await.unwrap().status.unwrap().as_of.is_some()).await;
    assert_eq!(get(&mut other, "p").await.unwrap().status.unwrap().desired, 2);
    assert!(!standby.scaler.leads());
    assert_eq!(nodes(&mut other).await.len(), 2, "it answers although the leader cannot be reached");

    standby.context.shutdown.begin();
    service.context.shutdown.begin();
    assert!(service.context.shutdown.finish(Duration::from_secs(20)).await.is_empty());
    assert_eq!(store.leader("scaler").unwrap(), None, "the lease is given up");
    let status = get(&mut client, "p").await.unwrap().status.unwrap();
    assert_eq!((status.as_of, status.desired), (None, 2), "figures without a leader have no time");
    let explain = client.explain_pool(ExplainPoolRequest { name: "p".into() }).await.unwrap().into_inner();
    assert!(explain.obstacles[0].contains("no scaler leads"));
}
