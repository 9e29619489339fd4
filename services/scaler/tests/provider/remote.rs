//! Providers of other processes, and any provider as a `dyn`.

use std::{sync::Arc, time::Duration};

use millrace_proto::provider::v1::{
    DescribeNodesRequest, RequestResult, node_provider_service_server::NodeProviderService,
};
use millrace_runtime::status::Fault;
use millrace_scaler::provider::{
    OpenOptions, ProcessOptions, Remote, Shared, Simulated, Spec, simulated::Script, system_clock,
};
use tonic::{Code, Request};

use crate::support::{Hands, ids, list, order, request, results, serve};

fn simulated(script: &str) -> Simulated {
    Simulated::new(Script::parse(script).unwrap(), Hands::at(1_000_000).clock())
}

#[tokio::test]
async fn a_dyn_provider_works_here_and_in_another_process_alike() {
    let here: Arc<dyn NodeProviderService> = Arc::new(simulated(""));
    let there = Remote::new(&serve(Shared(Arc::clone(&here))).await).unwrap();
    let ids = ids(3);
    let accepted = [RequestResult::Accepted; 3];
    assert_eq!(results(&request(&there, order("p", "", &ids, 3)).await.unwrap()), accepted);
    assert_eq!(results(&request(&*here, order("p", "", &ids, 3)).await.unwrap()), accepted);
    assert_eq!(list(&there, 0).await.unwrap(), list(&*here, 0).await.unwrap());
    assert_eq!(list(&there, 2).await.unwrap().len(), 3);
}

#[tokio::test]
async fn refusals_come_as_they_are() {
    let throttled = simulated("throttle.per_second = 0.5\nthrottle.burst = 1");
    let remote = Remote::new(&serve(throttled).await).unwrap();
    list(&remote, 0).await.unwrap();
    let fault = Fault::from(list(&remote, 0).await.unwrap_err());
    assert_eq!((fault.code, &*fault.reason), (Code::ResourceExhausted, "THROTTLED"));
    assert_eq!(fault.retry_after, Some(Duration::from_secs(2)));
    let remote = Remote::new(&serve(simulated("")).await).unwrap();
    let fault = Fault::from(list(&remote, -1).await.unwrap_err());
    assert_eq!((fault.code, &*fault.violations[0].field), (Code::InvalidArgument, "page_size"));
}

#[tokio::test]
async fn nobody_there_and_no_answer_are_told_apart() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = Remote::new(&format!("http://{free}")).unwrap();
    assert_eq!(list(&nobody, 0).await.unwrap_err().code(), Code::Unavailable);

    // The provider's answer comes in a minute.
    let slow = Remote::new(&serve(simulated("latency = \"1m\"")).await).unwrap().with_limit(Duration::from_millis(200));
    let status = slow.describe_nodes(Request::new(DescribeNodesRequest::default())).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "no answer within 200ms"));

    assert!(Remote::new("not an address").unwrap_err().to_string().contains("`not an address`"));
}

#[tokio::test]
async fn specs_open_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("fleet.toml");
    std::fs::write(&script, "max_nodes_per_call = 7").unwrap();
    let address = serve(simulated("max_nodes_per_call = 8")).await.replace("http", "grpc");
    let options = OpenOptions {
        process: ProcessOptions::new(dir.path()),
        externalgrpc: Default::default(),
        clock: system_clock(),
    };
    for (spec, per_call) in [
        (format!("sim=simulated:{}", script.display()), 7),
        (format!("cloud={address}"), 8),
        ("local=process".into(), 50),
    ] {
        let spec: Spec = spec.parse().unwrap();
        spec.check().unwrap();
        let opened = spec.open(&options).unwrap();
        opened.assign(&[]);
        let page = opened.service.describe_nodes(Request::new(DescribeNodesRequest::default())).await.unwrap();
        assert_eq!(page.into_inner().max_nodes_per_call, per_call, "{spec}");
        opened.end_all().await.unwrap();
    }
    assert!(dir.path().join("local/nodes").is_dir());

    std::fs::write(&script, "max_nodes_per_cal = 7").unwrap();
    let spec: Spec = format!("sim=simulated:{}", script.display()).parse().unwrap();
    let error = spec.check().unwrap_err().to_string();
    assert!(error.starts_with("provider sim: ") && error.contains("max_nodes_per_cal"), "{error}");
}
