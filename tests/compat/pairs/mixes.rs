//! Every mix of distributor, queue service and agent of the two releases does its work.

use millrace_proto::{
    common::v1::TaskState,
    distributor::v1::{self as wire, watch_task_response::Event},
};
use millrace_tests::clients::{command, distributor, submission};

use crate::{AGENT, Pair, VERSIONS, Version, history, load::Load, make_waiting_room, open_waiting_room};

async fn works(queue: Version, of_distributor: Version, agent: Version) {
    let pair = Pair::start();
    pair.now.migrate();
    let queue = pair.of(queue).queue(&[]);
    let service = pair.of(of_distributor).distributor(&[]);
    let _agent = pair.of(agent).agent(&[&service.endpoint], &AGENT);
    make_waiting_room(&pair.now, &service.endpoint, &queue.endpoint);
    let load = Load::start(&[&service.endpoint], history(&pair.now), 3);
    for number in 0..5 {
        load.submit(&format!("later-{number}"), "later").await;
    }
    load.progress(12).await;
    watches(&service.endpoint).await;
    fails_and_is_retried(&service.endpoint).await;
    is_cancelled(&service.endpoint).await;
    open_waiting_room(&pair.now, &queue.endpoint);
    load.progress(12).await;
    load.finish().await;
}

async fn submit(endpoint: &str, script: &str) -> String {
    let request = submission("", &command(&["sh", "-c", script]));
    distributor(endpoint).submit_task(request).await.expect("submitting").into_inner().task.expect("a task").id
}

/// Follows a task to its end and returns it, with its output.
async fn watch(endpoint: &str, id: &str) -> (wire::Task, Vec<u8>) {
    let request = wire::WatchTaskRequest { id: id.into(), without_output: false };
    let mut events = distributor(endpoint).watch_task(request).await.expect("watching").into_inner();
    let (mut task, mut output) = (None, Vec::new());
    while let Some(event) = events.message().await.expect("no error") {
        match event.event.expect("an event") {
            Event::Task(now) => task = Some(now),
            Event::Output(piece) => output.extend_from_slice(&piece.chunk.expect("a chunk").data),
        }
    }
    (task.expect("the task"), output)
}

async fn watches(endpoint: &str) {
    let (task, output) = watch(endpoint, &submit(endpoint, "printf hello").await).await;
    assert_eq!((task.state, output.as_slice()), (i32::from(TaskState::Succeeded), b"hello".as_slice()));
}

async fn fails_and_is_retried(endpoint: &str) {
    let id = submit(endpoint, "[ $MILLRACE_ATTEMPT -ge 2 ] || exit 7").await;
    let (task, _) = watch(endpoint, &id).await;
    assert_eq!(
        (task.state, task.outcome.and_then(|outcome| outcome.exit_code)),
        (i32::from(TaskState::Failed), Some(7))
    );
    let retry = wire::RetryTaskRequest { request_id: "again".into(), id: id.clone() };
    distributor(endpoint).retry_task(retry).await.expect("retrying");
    assert_eq!(watch(endpoint, &id).await.0.state, i32::from(TaskState::Succeeded));
}

async fn is_cancelled(endpoint: &str) {
    let id = submit(endpoint, "echo running; exec sleep 600").await;
    let request = wire::WatchTaskRequest { id: id.clone(), without_output: false };
    let mut events = distributor(endpoint).watch_task(request).await.expect("watching").into_inner();
    let mut last = None;
    while let Some(event) = events.message().await.expect("no error") {
        match event.event.expect("an event") {
            Event::Task(now) => last = Some(now.state),
            Event::Output(_) => {
                let cancel = wire::CancelTaskRequest { id: id.clone(), reason: "enough".into(), ..Default::default() };
                distributor(endpoint).cancel_task(cancel).await.expect("cancelling");
            }
        }
    }
    assert_eq!(last, Some(i32::from(TaskState::Cancelled)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mix_works() {
    for queue in VERSIONS {
        for distributor in VERSIONS {
            for agent in VERSIONS {
                eprintln!("compat: queue {queue:?}, distributor {distributor:?}, agent {agent:?}");
                works(queue, distributor, agent).await;
            }
        }
    }
}
