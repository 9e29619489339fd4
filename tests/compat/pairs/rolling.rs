//! Deploys and rollbacks under load, in both orders: nothing is lost, doubled or taken from a running command.

use millrace_tests::suite::Process;

use crate::{AGENT, Pair, Version, history, load::Load, make_waiting_room, open_waiting_room};

/// Which services a deploy replaces first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    DistributorsFirst,
    QueuesFirst,
}

/// The processes of a site, in the order in which they are named.
struct Site {
    distributors: [Process; 2],
    queue: Process,
    agents: [Process; 2],
}

impl Site {
    fn start(pair: &Pair) -> Self {
        let suite = pair.of(Version::Before);
        let queue = suite.queue(&[]);
        let distributors = [suite.distributor(&[]), suite.distributor(&[])];
        let endpoints = distributors.each_ref().map(|process| process.endpoint.as_str());
        let agents = [(); 2].map(|()| suite.agent(&endpoints, &AGENT));
        Self { distributors, queue, agents }
    }

    /// The processes in the order in which a deploy replaces them.
    fn steps(&mut self, order: Order) -> Vec<&mut Process> {
        let [first, second] = &mut self.distributors;
        let mut steps = match order {
            Order::DistributorsFirst => vec![first, second, &mut self.queue],
            Order::QueuesFirst => vec![&mut self.queue, first, second],
        };
        steps.extend(&mut self.agents);
        steps
    }
}

/// Replaces one process after the other, with rows written in between that wait until all is done.
async fn roll(pair: &Pair, site: &mut Site, load: &Load, order: Order, to: Version) {
    let binary = pair.binary(to);
    for (number, process) in site.steps(order).into_iter().enumerate() {
        for row in 0..3 {
            load.submit(&format!("{to:?}-{number}-{row}"), "later").await;
        }
        let code = process.stop();
        assert_eq!(code, Some(0), "{}", process.log());
        process.set_binary(&binary);
        process.start();
        if !process.http.is_empty() {
            process.wait_serving();
        }
        load.progress(10).await;
    }
}

async fn deploy_and_roll_back(order: Order) {
    let pair = Pair::start();
    let mut site = Site::start(&pair);
    let endpoints = site.distributors.each_ref().map(|process| process.endpoint.clone());
    make_waiting_room(&pair.before, &endpoints[0], &site.queue.endpoint);
    let load = Load::start(&endpoints.each_ref().map(String::as_str), history(&pair.now), 4);
    load.submit("before-all", "later").await;
    load.progress(15).await;
    // The schema first, then the processes; back the other way round.
    pair.now.migrate();
    load.progress(10).await;
    roll(&pair, &mut site, &load, order, Version::Now).await;
    roll(&pair, &mut site, &load, order, Version::Before).await;
    pair.migrate_down();
    load.progress(15).await;
    // What waited was written by either release, at every stage.
    open_waiting_room(&pair.before, &site.queue.endpoint);
    let (tasks, slowest) = load.finish().await;
    eprintln!("compat: {order:?}: {tasks} tasks, slowest submission {slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distributors_first_and_back() {
    deploy_and_roll_back(Order::DistributorsFirst).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_services_first_and_back() {
    deploy_and_roll_back(Order::QueuesFirst).await;
}
