//! What `doctor` asks a scaler, where there is one, and what it makes of the answers.

use std::collections::BTreeMap;
use std::time::Instant;

use millrace_proto::scaler::v1::{LaunchGateState, NodeState, Pool, PoolStatus, ProviderStatus};
use tonic::Code;

use super::probe::{Probe, Wrong, connect};
use crate::cli::pool::{all, count, explanation, override_text};
use crate::client::{Client, ClientArgs};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::output::printable;
use crate::status;

/// Pools that are explained in one look; the explanations of others are what `pool explain` is for.
const EXPLAINED: usize = 20;

/// What a scaler tells.
pub(crate) struct Fleets {
    /// Every pool with its figures.
    pub(crate) pools: Vec<Pool>,
    /// What keeps pools from their sizes, by pool.
    pub(crate) obstacles: BTreeMap<String, Vec<String>>,
    /// Providers that some pool was explained with, by name.
    pub(crate) providers: BTreeMap<String, ProviderStatus>,
}

/// Looks at every endpoint of the scaler, at the same time. Where nobody has said that there is one, its absence is no
/// finding: a suite need not have a scaler.
pub(crate) async fn scalers(args: &ClientArgs) -> Result<Vec<Probe<Fleets>>, Failure> {
    let endpoints = Client::endpoints(args, Service::Scaler)?;
    let probes = futures::future::join_all(endpoints.into_iter().map(|endpoint| scaler(args, endpoint))).await;
    let meant = std::env::var(Service::Scaler.variable()).is_ok_and(|value| !value.trim().is_empty());
    match meant || probes.iter().any(|probe| probe.answer.is_ok()) {
        true => Ok(probes),
        false => Ok(Vec::new()),
    }
}

async fn scaler(args: &ClientArgs, endpoint: String) -> Probe<Fleets> {
    let (service, asked) = (Service::Scaler, Instant::now());
    let answer = async {
        let client = connect(args, service, &endpoint).await?;
        match fleets(&client).await {
            Ok(fleets) => Ok((fleets, asked.elapsed())),
            Err(status) => {
                let why = match status.code() {
                    Code::Unimplemented => "serves no scaler".to_owned(),
                    _ => status::cause(&status),
                };
                Err(Wrong { why, failure: client.failure(&status) })
            }
        }
    };
    Probe { service, answer: answer.await, endpoint }
}

/// The pools, and the explanations of those that have not the size that they should have, and of one pool of each provider.
async fn fleets(client: &Client) -> Result<Fleets, tonic::Status> {
    let pools = all(client).await?;
    let mut fleets = Fleets { pools, obstacles: BTreeMap::new(), providers: BTreeMap::new() };
    let (short, whole): (Vec<_>, Vec<_>) = fleets.pools.iter().partition(|pool| is_short(pool));
    for pool in short.iter().chain(&whole).take(EXPLAINED) {
        if !short.contains(pool) && fleets.providers.contains_key(&pool.provider) {
            continue;
        }
        // A pool that is deleted meanwhile, or a scaler that falls silent now, costs the explanation alone.
        let Ok(answer) = explanation(client, &pool.name).await else { continue };
        if let Some(provider) = answer.provider {
            fleets.providers.insert(provider.name.clone(), provider);
        }
        // What would stand in the way of more nodes is no news while there are enough.
        if !answer.obstacles.is_empty() && short.contains(pool) {
            fleets.obstacles.insert(pool.name.clone(), answer.obstacles);
        }
    }
    Ok(fleets)
}

/// Whether a pool has fewer nodes at work than it should have.
fn is_short(pool: &Pool) -> bool {
    let status = pool.status.clone().unwrap_or_default();
    count(&status, &[NodeState::Ready]) < status.desired
}

/// What is not well with the fleets.
pub(crate) fn remarks(fleets: &Fleets) -> Vec<String> {
    let mut remarks = Vec::new();
    // The leader computes the figures of all pools together.
    if !fleets.pools.is_empty() && fleets.pools.iter().all(|pool| status(pool).as_of.is_none()) {
        remarks.push("no scaler leads: fleets stay as they are".to_owned());
    }
    for provider in fleets.providers.values().filter(|provider| !matches!(provider.state.as_str(), "ok" | "")) {
        let error = match provider.last_error.as_str() {
            "" => String::new(),
            error => format!(": {error}"),
        };
        remarks.push(format!("the provider {} is {}{error}", provider.name, provider.state));
        let zones: Vec<_> = provider.blocked_zones.iter().map(|block| block.zone.as_str()).collect();
        if !zones.is_empty() {
            remarks.push(format!("the provider {} has no room in {}", provider.name, zones.join(", ")));
        }
    }
    for pool in &fleets.pools {
        let launches = status(pool).launches.unwrap_or_default();
        if launches.state() == LaunchGateState::Stopped {
            remarks.push(format!("pool {} launches nothing but probes: {}", pool.name, launches.reason));
        }
        for obstacle in fleets.obstacles.get(&pool.name).into_iter().flatten() {
            remarks.push(format!("pool {} is held back: {obstacle}", pool.name));
        }
        if let Some(by_hand) = &pool.r#override {
            remarks.push(format!("pool {} is set by hand: {}", pool.name, override_text(by_hand)));
        }
    }
    remarks
}

/// What a pool does for a queue that no orchestrator serves: a sentence, when nodes are on their way to it.
pub(crate) fn on_the_way(pools: &[Pool], queue: &str) -> Option<String> {
    let coming = [NodeState::Requested, NodeState::Starting, NodeState::Joining];
    pools.iter().filter(|pool| pool.queues.iter().any(|served| served == queue)).find_map(|pool| {
        let status = status(pool);
        let stopped = status.launches.as_ref().is_some_and(|gate| gate.state() == LaunchGateState::Stopped);
        let alive = status.as_of.is_some() && status.desired > 0 && !stopped;
        let nodes = count(&status, &coming);
        alive.then(|| {
            let wants = crate::output::count(status.desired, "node");
            format!("no orchestrator serves it yet; pool {} wants {wants}, {nodes} on the way", printable(&pool.name))
        })
    })
}

fn status(pool: &Pool) -> PoolStatus {
    pool.status.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use millrace_proto::scaler::v1::{LaunchGate, NodeCount, PoolOverride, ZoneBlock};

    use super::*;

    fn pool(desired: i32, ready: i32) -> Pool {
        let nodes = vec![
            NodeCount { state: NodeState::Ready.into(), count: ready },
            NodeCount { state: NodeState::Joining.into(), count: 2 },
        ];
        let status = PoolStatus { desired, nodes, as_of: Some(Default::default()), ..Default::default() };
        Pool { name: "builds".into(), queues: vec!["q".into()], status: Some(status), ..Default::default() }
    }

    fn fleets(pools: Vec<Pool>) -> Fleets {
        Fleets { pools, obstacles: BTreeMap::new(), providers: BTreeMap::new() }
    }

    fn stopped() -> Pool {
        let mut pool = pool(5, 3);
        let reason = "no such image".to_owned();
        let gate = LaunchGate { state: LaunchGateState::Stopped.into(), reason, ..Default::default() };
        pool.status.as_mut().unwrap().launches = Some(gate);
        pool
    }

    #[test]
    fn fleets_that_are_well_are_not_remarked_upon() {
        assert!(remarks(&fleets(vec![pool(3, 3)])).is_empty() && remarks(&fleets(Vec::new())).is_empty());
        assert!(is_short(&pool(4, 3)) && !is_short(&pool(3, 3)) && !is_short(&Pool::default()));
    }

    #[test]
    fn what_is_not_well_with_the_fleets_is_told() {
        let leaderless = Pool { name: "p".into(), ..Default::default() };
        assert_eq!(remarks(&fleets(vec![leaderless])), ["no scaler leads: fleets stay as they are"]);
        let by_hand =
            PoolOverride { owner: "me".into(), reason: "why".into(), no_launches: true, ..Default::default() };
        let mut fleets = fleets(vec![Pool { r#override: Some(by_hand), ..stopped() }]);
        fleets.obstacles.insert("builds".into(), vec!["launches are stopped".into()]);
        let provider = ProviderStatus {
            name: "cloud".into(),
            state: "throttled".into(),
            last_error: "too fast".into(),
            blocked_zones: vec![ZoneBlock { zone: "eu-1a".into(), ..Default::default() }],
            ..Default::default()
        };
        fleets.providers.insert("cloud".into(), provider);
        let text = remarks(&fleets).join("\n");
        for part in [
            "the provider cloud is throttled: too fast",
            "no room in eu-1a",
            "pool builds launches nothing but probes: no such image",
            "pool builds is held back: launches are stopped",
            "pool builds is set by hand: no launches by me: why",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_queue_for_which_nodes_are_made_is_not_forsaken() {
        let text = on_the_way(&[pool(4, 0)], "q").unwrap();
        assert_eq!(text, "no orchestrator serves it yet; pool builds wants 4 nodes, 2 on the way");
        assert_eq!(on_the_way(&[pool(4, 0)], "other"), None);
        assert_eq!(on_the_way(&[pool(0, 0)], "q"), None);
        assert_eq!(on_the_way(&[stopped()], "q"), None);
    }
}
