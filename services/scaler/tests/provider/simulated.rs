//! The simulated provider: what its script says happens, its ledger tells, and its nodes say.

use std::{collections::BTreeSet, time::Duration};

use millrace_core::{id::NodeId, time::Timestamp};
use millrace_proto::provider::v1::{
    DescribeNodesRequest, Instance, InstanceState, NodeResult, RequestNodesRequest, RequestResult,
};
use millrace_runtime::status::Fault;
use millrace_scaler::provider::{
    Remote, Simulated,
    simulated::{CallFate, Fate, Happening, HowDead, Script, Tally},
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::support::{Hands, by_id, by_instance, ids, list, order, request, results, serve};

const START: Timestamp = Timestamp(1_700_000_000_000_000);
const ACCEPTED: RequestResult = RequestResult::Accepted;

/// A simulation on the test's own time.
struct Sim(Simulated);

fn sim(script: &str) -> Sim {
    Sim(Simulated::new(Script::parse(script).unwrap(), Hands::at(START.0).clock()))
}

fn at(seconds: u64) -> Timestamp {
    START.after(Duration::from_secs(seconds))
}

/// The same ids in every run.
fn numbered(count: u128) -> Vec<NodeId> {
    (1..=count).map(|number| NodeId(Uuid::from_u128(number))).collect()
}

impl Sim {
    fn request(&self, now: Timestamp, order: &RequestNodesRequest) -> Result<Vec<NodeResult>, Status> {
        Ok(self.0.request_at(now, order).result?.results)
    }

    /// In as many calls as it takes.
    fn make(&self, now: Timestamp, zone: &str, ids: &[NodeId]) {
        for ids in ids.chunks(20) {
            assert_eq!(
                results(&self.request(now, &order("p", zone, ids, ids.len())).unwrap()),
                vec![ACCEPTED; ids.len()]
            );
        }
    }

    fn list(&self, now: Timestamp) -> Vec<Instance> {
        let request = DescribeNodesRequest { page_size: 10_000, ..DescribeNodesRequest::default() };
        self.0.describe_at(now, &request).result.unwrap().instances
    }

    fn tally(&self, now: Timestamp) -> Tally {
        self.0.tally(now)
    }

    fn joins(&self) -> Vec<u64> {
        let seconds = |joins: Timestamp| joins.since(START).as_secs();
        self.0.ledger(|ledger| ledger.nodes.iter().filter_map(|node| node.joins().map(seconds)).collect())
    }

    /// What happened until then, without the words.
    fn happenings(&self, now: Timestamp) -> Vec<(u64, Happening)> {
        self.0
            .happenings(now)
            .into_iter()
            .map(|happened| (happened.at.since(START).as_secs(), happened.happening))
            .collect()
    }
}

#[tokio::test]
async fn thousands_of_nodes_are_listed_in_pages_over_grpc() {
    let simulated = Simulated::new(Script::parse("max_nodes_per_call = 1000").unwrap(), Hands::at(START.0).clock());
    let remote = Remote::new(&serve(simulated).await).unwrap();
    let ids = ids(2500);
    for ids in ids.chunks(1000) {
        assert_eq!(request(&remote, order("p", "a", ids, 2500)).await.unwrap().len(), ids.len());
    }
    for page_size in [0, 700, 2499, 2500, 10_000] {
        let listed = list(&remote, page_size).await.unwrap();
        let unique: BTreeSet<_> = listed.iter().map(|node| node.node_id.clone()).collect();
        assert_eq!((listed.len(), unique.len()), (2500, 2500), "pages of {page_size}");
        assert!(ids.iter().all(|id| unique.contains(&id.to_string())));
    }
    assert_eq!(list(&remote, 10_001).await.unwrap_err().code(), Code::InvalidArgument);
}

#[test]
fn the_median_jumps_when_the_script_says_so_and_zones_have_their_own() {
    let sim = sim(r#"
        join.median = "2m"
        join.spread = 0.0
        zones.slow.median = "5m"
        [[change]]
        at = "10m"
        join.median = "12m"
    "#);
    let ids = numbered(5);
    sim.make(START, "", &ids[..1]);
    sim.make(START, "elsewhere", &ids[1..2]);
    sim.make(at(599), "elsewhere", &ids[2..3]);
    sim.make(at(600), "elsewhere", &ids[3..4]);
    sim.make(at(600), "slow", &ids[4..]);
    // The first went to the only zone that the script knows.
    assert_eq!(sim.joins(), [300, 120, 719, 1320, 900]);
}

#[test]
fn a_crowd_joins_more_slowly() {
    let sim = sim("join.median = \"100s\"\njoin.spread = 0.0\nsurge.free = 2\nsurge.per_node = 0.5\nsurge.most = 2.2");
    sim.make(START, "", &numbered(6));
    assert_eq!(sim.joins(), [100, 100, 100, 150, 200, 220]);
    // Those that have joined are no crowd any more.
    sim.make(at(1000), "", &[NodeId(Uuid::from_u128(99))]);
    assert_eq!(sim.joins()[6], 1100);
}

#[test]
fn the_same_script_gives_the_same_fates_whatever_is_asked_meanwhile() {
    let script = "seed = 5\ndead.share = 0.3\nflapping.share = 0.1\nspot.per_hour = 0.5\nlost.answers = 0.2";
    let (one, other) = (sim(script), sim(script));
    for ids in numbered(200).chunks(10) {
        let _ = one.request(START, &order("p", "", ids, 10));
        let _ = other.request(START, &order("p", "", ids, 10));
        let _ = one.0.describe_at(START, &DescribeNodesRequest::default());
    }
    let fates = |sim: &Sim| sim.0.ledger(|ledger| ledger.nodes.iter().map(|node| node.fate).collect::<Vec<_>>());
    assert_eq!(fates(&one), fates(&other));
    assert_eq!(one.0.happenings(at(36_000)), other.0.happenings(at(36_000)));
    let dead = fates(&one).iter().filter(|fate| matches!(fate, Fate::Never(..))).count();
    assert!((40..80).contains(&dead), "{dead}");
    let changed = sim("seed = 6\ndead.share = 0.3");
    changed.make(START, "", &numbered(200));
    assert_ne!(fates(&one), fates(&changed));
}

#[test]
fn a_lost_answer_hides_work_that_was_done_and_a_token_makes_no_node_twice() {
    let sim = sim(r#"
        lost.answers = 1.0
        [[change]]
        at = "1m"
        lost.answers = 0.0
        lost.requests = 1.0
        [[change]]
        at = "2m"
        lost.requests = 0.0
    "#);
    let nodes = numbered(3);
    let order = order("p", "", &nodes, 3);
    let reply = sim.0.request_at(START, &order);
    assert_eq!((reply.result.unwrap_err().code(), reply.at), (Code::DeadlineExceeded, at(5)));
    assert_eq!(sim.request(at(60), &order).unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(results(&sim.request(at(120), &order).unwrap()), [ACCEPTED; 3]);
    let tally = sim.tally(at(120));
    assert_eq!((tally.created, tally.calls_total, tally.answers_lost, tally.calls_lost), (3, 3, 1, 1));
    assert_eq!(sim.0.ledger(|ledger| ledger.orphans(at(120), |node| node.node_id == nodes[0])), 2);
}

#[test]
fn without_tokens_only_what_is_missing_is_made() {
    let sim = sim("keeps_tokens = false\nlost.answers = 1.0\n[[change]]\nat = \"1m\"\nlost.answers = 0.0");
    let ids = numbered(6);
    sim.request(START, &order("p", "", &ids[..3], 3)).unwrap_err();
    assert_eq!(results(&sim.request(at(60), &order("p", "", &ids[..3], 3)).unwrap()), [ACCEPTED; 3]);
    let made = sim.request(at(60), &order("p", "", &ids[3..], 5)).unwrap();
    assert_eq!((results(&made), sim.tally(at(60)).created), (vec![ACCEPTED; 3], 5));
    let listed = sim.list(at(60));
    assert!(listed.iter().all(|node| node.node_id.is_empty() && node.pool == "p"));
    sim.0.terminate_at(at(61), &by_instance("p", "", &[&listed[0].id])).result.unwrap();
    assert_eq!(sim.tally(at(61)).alive, 4);
    assert!(sim.request(at(61), &order("p", "", &ids, 3)).unwrap_err().message().contains("expected_total"));
}

#[test]
fn zones_run_out_by_time_and_by_count() {
    let sim = sim(r#"
        zones.a.capacity = 2
        zones.a.retry_after = "45s"
        zones.b = {}
        stop = "10s"
        [[change]]
        at = "1m"
        zones.b.out_of_capacity = true
        [[change]]
        at = "2m"
        zones.b.out_of_capacity = false
    "#);
    let ids = numbered(10);
    let full = sim.request(START, &order("p", "a", &ids[..3], 3)).unwrap();
    assert_eq!(results(&full), [ACCEPTED, ACCEPTED, RequestResult::OutOfCapacity]);
    assert_eq!(full[2].retry_after.unwrap().seconds, 45);
    // Where the provider may choose it takes the next zone.
    let chosen = sim.request(START, &order("p", "", &ids[3..4], 1)).unwrap();
    assert_eq!((results(&chosen), &*sim.list(START)[2].zone), (vec![ACCEPTED], "b"));
    for zone in ["", "b"] {
        let none = sim.request(at(60), &order("p", zone, &ids[4..5], 1)).unwrap();
        assert_eq!(results(&none), [RequestResult::OutOfCapacity]);
    }
    assert_eq!(results(&sim.request(at(120), &order("p", "", &ids[4..5], 1)).unwrap()), [ACCEPTED]);
    // A node that goes leaves its room only when it is gone.
    sim.0.terminate_at(at(121), &by_id("p", "a", &ids[..1])).result.unwrap();
    assert_eq!(
        results(&sim.request(at(130), &order("p", "a", &ids[5..6], 1)).unwrap()),
        [RequestResult::OutOfCapacity]
    );
    assert_eq!(results(&sim.request(at(131), &order("p", "a", &ids[5..6], 1)).unwrap()), [ACCEPTED]);
}

#[test]
fn throttling_refuses_calls_and_the_quota_says_how_many_may_pass() {
    let sim = sim("throttle.per_second = 1.0\nthrottle.burst = 3\n[[change]]\nat = \"1m\"\nthrottle.per_second = 0.1");
    for tick in 0..1200 {
        let now = START.after(Duration::from_millis(100 * tick));
        let reply = sim.0.describe_at(now, &DescribeNodesRequest::default());
        if let Err(status) = reply.result {
            let fault = Fault::from(status);
            assert!(fault.code == Code::ResourceExhausted && fault.retry_after.is_some());
        }
    }
    let tally = sim.tally(at(120));
    let quota = sim.0.quota(START, at(120)).unwrap();
    let passed = tally.calls_total - tally.calls_throttled;
    assert_eq!((tally.calls_total, quota), (1200, 69.0));
    assert!((67..=69).contains(&passed), "{passed}");

    let by_node = self::sim("throttle.share = 1.0\nthrottle.per_node = true");
    let ids = numbered(2);
    let answers = by_node.request(START, &order("p", "", &ids, 2)).unwrap();
    assert_eq!(results(&answers), [RequestResult::Throttled; 2]);
    assert_eq!((answers[0].retry_after.unwrap().seconds, by_node.tally(START).created), (1, 0));
    assert_eq!(by_node.0.ledger(|ledger| ledger.calls_that(CallFate::Throttled)), 1);
}

#[test]
fn a_node_tells_of_its_boot_and_its_life() {
    let sim = sim("join.median = \"100s\"\njoin.spread = 0.0\njoin.machine = 0.2\njoin.reports = 3\nstop = \"5s\"");
    let ids = numbered(1);
    sim.make(START, "", &ids);
    assert_eq!(sim.0.next_at(), Some(at(20)));
    assert_eq!(sim.happenings(at(19)), []);
    assert_eq!(sim.list(at(19))[0].state(), InstanceState::Pending);
    let boot = |step: u8| Happening::Boot { stage: format!("step {step} of 4"), percent: step * 25 };
    let expected = [(20, boot(0)), (40, boot(1)), (60, boot(2)), (80, boot(3)), (100, Happening::Ready)];
    assert_eq!(sim.happenings(at(200)), expected);
    assert_eq!(sim.list(at(200))[0].state(), InstanceState::Running);
    sim.0.terminate_at(at(201), &by_id("p", "", &ids)).result.unwrap();
    assert_eq!(sim.list(at(202))[0].state(), InstanceState::Stopping);
    assert_eq!(sim.happenings(at(300)), [(206, Happening::Exited)]);
    assert!(sim.list(at(300)).is_empty());
    let again = sim.request(at(300), &order("p", "", &ids, 1)).unwrap();
    assert_eq!(results(&again), [RequestResult::Failed], "its token is used up");
    assert_eq!(sim.0.next_at(), None);
}

#[test]
fn launches_are_dead_in_every_way() {
    let of = |how: &str| {
        let sim = sim(&format!("dead.share = 1.0\ndead.how = \"{how}\"\ndead.error = \"no image\"\njoin.reports = 0"));
        sim.make(START, "", &numbered(1));
        (sim.happenings(at(3600)), sim.list(at(60)), sim)
    };
    let (silent, listed, sim) = of("silent");
    assert_eq!((silent.len(), listed[0].state()), (0, InstanceState::Running));
    sim.0.terminate_at(at(3600), &by_id("p", "", &numbered(1))).result.unwrap();
    let tally = sim.tally(at(3600));
    assert_eq!((tally.killed, tally.killed_dead, tally.killed_that_would_have_joined), (1, 1, 0));

    let (says, listed, _) = of("boot-failed");
    assert_eq!(says, [(60, Happening::BootFailed { error: "no image".into() })]);
    assert_eq!(listed[0].state(), InstanceState::Running);

    let sim = self::sim("dead.share = 1.0\ndead.how = \"provider-failed\"\ndead.error = \"no image\"");
    sim.make(START, "", &numbered(1));
    assert_eq!(sim.list(at(59))[0].state(), InstanceState::Running);
    let failed = &sim.list(at(60))[0];
    assert_eq!((failed.state(), &*failed.error), (InstanceState::Failed, "no image"));
    assert_eq!((sim.tally(at(60)).alive, sim.list(at(660)).len()), (0, 0));
    assert_eq!(results(&sim.request(at(70), &order("p", "", &numbered(1), 1)).unwrap()), [RequestResult::Failed]);
    assert!(matches!(sim.0.ledger(|ledger| ledger.nodes[0].fate), Fate::Never(HowDead::ProviderFailed, _)));
}

#[test]
fn the_ledger_knows_who_was_killed_too_soon() {
    let sim = sim("join.median = \"100s\"\njoin.spread = 0.0\n[[change]]\nat = \"1s\"\ndead.share = 1.0");
    let ids = numbered(4);
    sim.make(START, "", &ids[..3]);
    sim.make(at(1), "", &ids[3..]);
    let kill = |seconds, id: &NodeId| sim.0.terminate_at(at(seconds), &by_id("p", "", &[*id])).result.unwrap();
    kill(50, &ids[0]);
    kill(99, &ids[3]);
    kill(100, &ids[1]);
    kill(101, &ids[1]);
    let Tally { created, joined, killed, killed_that_would_have_joined, killed_dead, alive, .. } = sim.tally(at(500));
    assert_eq!((created, joined, killed, killed_that_would_have_joined, killed_dead, alive), (4, 2, 3, 1, 1, 1));
}

#[test]
fn nodes_flap_and_are_taken_away() {
    let script = r#"
        join.median = "10s"
        join.spread = 0.0
        join.reports = 1
        flapping = { share = 1.0, how = "HOW", up = "60s", down = "30s" }
        [[reclaim]]
        at = "5m"
        share = 1.0
        notice = "1m"
    "#;
    for (how, down, up) in [
        ("health", Happening::Unhealthy { reason: "the executor does not answer".into() }, Happening::Healthy),
        ("stream", Happening::Lost, Happening::Ready),
    ] {
        let sim = sim(&script.replace("HOW", how));
        sim.make(START, "", &numbered(1));
        let all: Vec<Happening> = sim.happenings(at(1000)).into_iter().map(|(_, happening)| happening).collect();
        assert_eq!(all[2..6], [Happening::Ready, down.clone(), up, down]);
        assert!(all.contains(&Happening::SpotNotice { at: at(360) }));
        assert_eq!(all.last(), Some(&Happening::Exited));
        let tally = sim.tally(at(1000));
        assert_eq!((tally.reclaimed, tally.alive, tally.killed), (1, 0, 0));
    }
}

#[test]
fn spot_nodes_are_taken_at_their_rate_and_told_before() {
    let sim = sim("seed = 2\njoin.median = \"1m\"\nspot.per_hour = 1.0\nspot.notice = \"2m\"");
    sim.make(START, "", &numbered(1000));
    let taken = sim.tally(at(3600)).reclaimed;
    // Of nodes that live for an hour on average, 1 - 1/e are gone after one.
    assert!((590..675).contains(&taken), "{taken}");
    let told = sim.happenings(at(3600)).into_iter().filter(|(_, what)| matches!(what, Happening::SpotNotice { .. }));
    let told = told.count();
    assert!(told > taken - 60, "told {told}, taken {taken}");
}

#[test]
fn listings_may_be_late() {
    let sim = sim("listing.delay = \"30s\"\njoin.median = \"10s\"\njoin.spread = 0.0\nstop = \"5s\"");
    let ids = numbered(1);
    sim.make(START, "", &ids);
    assert!(sim.list(at(29)).is_empty());
    assert_eq!(sim.list(at(30)).len(), 1);
    sim.0.terminate_at(at(60), &by_id("p", "", &ids)).result.unwrap();
    assert_eq!(sim.list(at(70))[0].state(), InstanceState::Running, "it is gone, and still listed as it was");
    assert!(sim.list(at(95)).is_empty());
    let tally = sim.tally(at(95));
    assert_eq!((tally.killed, tally.alive), (1, 0));
}

#[test]
fn orders_are_refused_by_share() {
    let sim = sim("refused.share = 1.0\nrefused.error = \"no quota\"");
    let refused = sim.request(START, &order("p", "", &numbered(1), 1)).unwrap();
    assert_eq!((results(&refused), &*refused[0].error), (vec![RequestResult::Failed], "no quota"));
    let limited = self::sim("capacity = 1");
    let answers = limited.request(START, &order("p", "", &numbered(2), 2)).unwrap();
    assert_eq!(results(&answers), [ACCEPTED, RequestResult::OutOfCapacity]);
}

#[test]
fn ten_thousand_nodes_live_and_die() {
    let sim = sim("max_nodes_per_call = 1000\nsurge.per_node = 0.0001\nflapping.share = 0.1\ndead.share = 0.1");
    let ids = numbered(10_000);
    for ids in ids.chunks(1000) {
        sim.request(START, &order("p", "a", ids, 10_000)).unwrap();
    }
    let mut ready = 0;
    for minute in 1..=60 {
        let heard = sim.0.happenings(at(60 * minute));
        ready += heard.iter().filter(|happened| happened.happening == Happening::Ready).count();
        assert_eq!(sim.list(at(60 * minute)).len(), 10_000);
    }
    assert_eq!(ready, sim.tally(at(3600)).joined);
    for ids in ids.chunks(1000) {
        sim.0.terminate_at(at(3600), &by_id("p", "a", ids)).result.unwrap();
    }
    assert!(sim.list(at(3700)).is_empty());
    assert_eq!(sim.0.happenings(at(3700)).len(), 10_000);
}
