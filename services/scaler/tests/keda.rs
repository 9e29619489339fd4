//! What KEDA asks, over gRPC, with the database up and down.

mod common;

use std::time::Duration;

use common::{KedaClient, Service, database, invalid, refusal, refused, until};
use futures::StreamExt;
use millrace_core::id::TaskId;
use millrace_proto::foreign::externalscaler::*;
use millrace_scaler::AGE;
use millrace_store::{Envelope, MemoryStore, NewTask, Store, memory::Fault};
use tonic::{Code, Status};
use uuid::Uuid;

fn object(metadata: &[(&str, &str)]) -> ScaledObjectRef {
    let scaler_metadata = metadata.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    ScaledObjectRef { name: "workers".into(), namespace: "ci".into(), scaler_metadata }
}

fn submit(store: &MemoryStore, count: usize) -> Vec<TaskId> {
    let version = store.routing().unwrap().version;
    let task = |id| NewTask {
        envelope: Envelope {
            id,
            tenant: "acme".into(),
            queue: "default".into(),
            rank: 0,
            executor: "process".into(),
            resource_class: String::new(),
            concurrency_key: String::new(),
            exclusive: false,
            timeout_ms: None,
            trace_context: String::new(),
            format: 1,
            min_reader: 1,
        },
        spec: Vec::new(),
        request: None,
        not_before: None,
        expire_after: None,
        route_version: version,
    };
    let ids: Vec<TaskId> = (0..count).map(|_| TaskId(Uuid::now_v7())).collect();
    store.submit(&ids.iter().map(|id| task(*id)).collect::<Vec<_>>(), false).unwrap();
    ids
}

async fn value(client: &mut KedaClient, metadata: &[(&str, &str)]) -> Result<f64, Status> {
    let request = GetMetricsRequest { scaled_object_ref: Some(object(metadata)), metric_name: "m".into() };
    let values = client.get_metrics(request).await?.into_inner().metric_values;
    assert_eq!((values.len(), values[0].metric_name.as_str()), (1, "m"));
    Ok(values[0].metric_value_float)
}

async fn target(client: &mut KedaClient, metadata: &[(&str, &str)]) -> f64 {
    let specs = client.get_metric_spec(object(metadata)).await.unwrap().into_inner().metric_specs;
    assert_eq!(specs.len(), 1);
    specs[0].target_size_float
}

const QUEUE: &[(&str, &str)] = &[("queue", "default")];

#[tokio::test(start_paused = true)]
async fn with_everything_down_the_spec_is_answered_and_last_figures_are_used() {
    let store = database();
    store.fail_when(|_| Some(Fault::BeforeCommit));
    let service = Service::standby(&store, 1, "http://here", &Default::default(), &[]);
    let mut keda = service.keda();
    assert_eq!(target(&mut keda, QUEUE).await, 1.0);
    assert_eq!(target(&mut keda, &[("queue", "default"), ("targetWaiting", "2.5")]).await, 2.5);
    assert_eq!(target(&mut keda, &[("pool", "never-seen")]).await, 1.0);
    assert_eq!(refusal(keda.is_active(object(QUEUE)).await), refused(Code::Unavailable, "UNAVAILABLE"));
    assert_eq!(value(&mut keda, QUEUE).await.unwrap_err().code(), Code::Unavailable, "nothing was ever read");

    store.heal();
    submit(&store, 7);
    let mut asked = keda.clone();
    until("figures", async || value(&mut asked, QUEUE).await.is_ok_and(|value| value == 7.0)).await;
    assert!(keda.is_active(object(QUEUE)).await.unwrap().into_inner().result);

    store.fail_when(|_| Some(Fault::BeforeCommit));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(value(&mut keda, QUEUE).await.unwrap(), 7.0, "the last figures are used");
    let active = keda.is_active(object(QUEUE)).await.unwrap();
    let age: u64 = active.metadata().get(AGE).unwrap().to_str().unwrap().parse().unwrap();
    assert!((110_000..130_000).contains(&age) && active.into_inner().result, "{age}");
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_asked_for_its_part_and_its_slots() {
    let store = database();
    let service = Service::start(&store, &[]).await;
    for (name, max) in [("big", 30), ("small", 10)] {
        let pool = millrace_proto::scaler::v1::Pool {
            slots_per_node: Some(4),
            max_nodes: Some(max),
            min_nodes: None,
            ..common::pool(name, 0)
        };
        let request = millrace_proto::scaler::v1::CreatePoolRequest { pool: Some(pool), ..Default::default() };
        service.client().create_pool(request).await.unwrap();
    }
    submit(&store, 40);
    let mut keda = service.keda();
    let mut asked = keda.clone();
    until("its part", async || value(&mut asked, &[("pool", "big")]).await.is_ok_and(|value| value == 30.0)).await;
    assert_eq!(target(&mut keda, &[("pool", "big")]).await, 4.0, "as many as a node has slots");
    assert_eq!(value(&mut keda, &[("pool", "nowhere")]).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(value(&mut keda, &[("queue", "nowhere")]).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(refusal(keda.is_active(object(&[])).await), invalid("scalerMetadata.queue"));
    let bad = object(&[("queue", "default"), ("targetWaiting", "-1")]);
    assert_eq!(refusal(keda.get_metric_spec(bad).await), invalid("scalerMetadata.targetWaiting"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_tells_of_every_change_and_ends_with_the_process() {
    let store = database();
    let service = Service::start(&store, &["--scaler-max-watchers", "1"]).await;
    let mut keda = service.keda();
    let mut changes = keda.stream_is_active(object(QUEUE)).await.unwrap().into_inner();
    assert!(!changes.next().await.unwrap().unwrap().result);
    let ids = submit(&store, 1);
    assert!(changes.next().await.unwrap().unwrap().result);
    store.cancel(ids[0], "a test", None).unwrap();
    assert!(!changes.next().await.unwrap().unwrap().result);
    assert_eq!(
        refusal(keda.stream_is_active(object(QUEUE)).await),
        refused(Code::ResourceExhausted, "TOO_MANY_WATCHERS")
    );
    service.context.shutdown.begin();
    assert!(changes.next().await.is_none());
}
