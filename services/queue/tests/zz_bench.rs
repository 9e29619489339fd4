//! ad hoc: latency and throughput of the exchange
mod common;
use common::{Database, Peer, Process, hello, offer, task};
use millrace_core::id::TaskId;
use millrace_proto::queue::v1::*;
use std::time::{Duration, Instant};
use uuid::Uuid;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench() {
    let database = Database::new();
    let process = Process::queue(&database, 1);
    process.owns(&["default"]).await;
    let mut peer = Peer::open(&process.host, hello(&database)).await;
    database.submit(1);
    peer.demand(1, 1, 0).await;
    let m = peer.one().await;
    peer.answer(&m, answer::Verdict::Claimed).await;
    database.pause(false);
    // latency
    let mut acked = 1;
    let mut lat = vec![];
    for i in 0..2000u128 {
        peer.demand(1, 1, acked).await;
        tokio::time::sleep(Duration::from_micros(300)).await;
        let t = Instant::now();
        peer.offer(vec![offer(TaskId(Uuid::from_u128(1000 + i)), database.now_us())]).await;
        let m = loop {
            let m = peer.matches().await.matches;
            if let Some(m) = m.into_iter().find(|m| task(m) == TaskId(Uuid::from_u128(1000 + i))) {
                break m;
            }
        };
        lat.push(t.elapsed());
        acked = m.seq;
        peer.answer(&m, answer::Verdict::Claimed).await;
    }
    lat.sort();
    println!("latency p50 {:?} p99 {:?} max {:?}", lat[1000], lat[1980], lat[1999]);
    // throughput: batches of 500 offers, answered as they come
    let n = 300_000usize;
    let t = Instant::now();
    let mut got = 0usize;
    let mut offered = 0usize;
    let mut id = 1_000_000u128;
    peer.demand(1, 20_000, acked).await;
    while got < n {
        while offered < n && offered - got < 8_000 {
            let now = database.now_us();
            peer.offer(
                (0..500)
                    .map(|_| {
                        id += 1;
                        offer(TaskId(Uuid::from_u128(id)), now)
                    })
                    .collect(),
            )
            .await;
            offered += 500;
        }
        let m = peer.matches().await.matches;
        got += m.len();
        acked = m.last().unwrap().seq;
        let answers = m.iter().map(|m| Answer { task_id: m.task_id.clone(), verdict: 1 }).collect();
        peer.send(exchange_request::Message::Answers(Answers { queue: "default".into(), answers })).await;
        peer.demand(1, 20_000, acked).await;
    }
    println!("{:.0} tasks/s", n as f64 / t.elapsed().as_secs_f64());
}
