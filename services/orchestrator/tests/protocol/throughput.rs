//! How fast one client is. Run with `--release -- --ignored --nocapture throughput`.

use millrace_proto::distributor::v1::{CompletionResult, CompletionResults, connect_orchestrator_response::Message};

use super::*;

const TASKS: u64 = 500_000;

/// Sends whatever was asked for and records whatever comes back, as fast as the client lets it.
async fn serve(mut world: World) -> Duration {
    let mut stream = world.welcome(1).await;
    let begin = std::time::Instant::now();
    let (mut sent, mut done) = (0, 0);
    while done < TASKS {
        let message = stream.next(|message| Some(message.clone())).await;
        stream.log.clear();
        match message {
            Request::Grant(grant) => {
                let until = (grant.acked_seq + u64::from(grant.credits)).min(TASKS);
                if until > sent {
                    stream.assign((sent + 1..=until).map(|seq| assignment(seq, u128::from(seq), 1)).collect()).await;
                    sent = until;
                }
            }
            Request::Completions(completions) => {
                done += completions.completions.len() as u64;
                let status = ResultStatus::Recorded as i32;
                let answer = |completion: millrace_proto::distributor::v1::Completion| CompletionResult {
                    lease: completion.lease,
                    status,
                };
                let results = completions.completions.into_iter().map(answer).collect();
                stream.send(Message::CompletionResults(CompletionResults { results })).await;
            }
            _ => {}
        }
    }
    begin.elapsed()
}

fn report(name: &str, elapsed: Duration) {
    println!("{name}: {:.0} tasks/s", TASKS as f64 / elapsed.as_secs_f64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput_of_tasks_that_run_inline() {
    report("inline", serve(World::start(options(1000), InstantExecutor::default())).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput_of_tasks_that_are_spawned() {
    struct Spawned;
    impl millrace_orchestrator::Executor for Spawned {
        fn name(&self) -> &str {
            "fake"
        }
        fn run(&self, _: millrace_orchestrator::AttemptHandle) -> futures::future::BoxFuture<'_, Outcome> {
            Box::pin(std::future::ready(Outcome::succeeded()))
        }
    }
    report("spawned", serve(World::start(options(1000), Spawned)).await);
}
