//! What goes wrong, and the end of it.

use std::time::Duration;

use rand::Rng;

use crate::{
    config::{FaultKind, Weather},
    host,
    message::Ended,
    net::Kind,
    orchestrator, replica,
    world::{Pid, Role, Target, World},
};

/// A lease and what is added to it.
const LONGEST_LEASE: Duration = Duration::from_secs(17);

/// Starts every process, and the faults.
pub(crate) fn start(world: &mut World) {
    for index in 0..world.processes.len() {
        let delay = world.span(Duration::ZERO, Duration::from_millis(500));
        world.after(delay, Target::World, "start", move |world| start_process(world, index));
    }
    let kinds: Vec<FaultKind> = world.config.faults.clone();
    if kinds.is_empty() {
        return;
    }
    for _ in 0..world.config.fault_count {
        let kind = kinds[world.pick(kinds.len())];
        let at = world.span(Duration::from_secs(2), world.config.chaos);
        world.after(at, Target::World, "fault", move |world| strike(world, kind));
    }
}

/// Starts whatever belongs in a place, unless it runs.
pub(crate) fn start_process(world: &mut World, index: usize) {
    if world.pid(index).is_some() {
        return;
    }
    world.wake(index);
    world.note(|| format!("place {index} starts"));
    if world.config.replica_places().contains(&index) {
        replica::start(world, index);
    } else if world.config.owner_places().contains(&index) {
        host::start(world, index);
    } else {
        orchestrator::start(world, index);
    }
}

/// The process is gone with all that it knew; another starts there after a while.
pub(crate) fn stop_process(world: &mut World, index: usize) {
    if world.pid(index).is_none() {
        return;
    }
    world.note(|| format!("place {index} stops"));
    world.processes[index].role = Role::Down;
    world.processes[index].life += 1;
    world.db.oracle.crashed(index);
    world.cut_all(|one, other| one == index || other == index);
    let most = if world.chance(0.7) { Duration::from_secs(2) } else { Duration::from_secs(20) };
    let delay = world.span(Duration::from_millis(10), most);
    world.after(delay, Target::World, "restart", move |world| start_process(world, index));
}

fn strike(world: &mut World, kind: FaultKind) {
    if world.settling {
        return;
    }
    world.note(|| format!("fault: {kind:?}"));
    match kind {
        FaultKind::CutStream => {
            // In worlds about owners, mostly their streams.
            let exchange = world.config.weather == Weather::Owners && world.chance(0.8);
            let open = world.net.open(exchange.then_some(Kind::Exchange));
            if !open.is_empty() {
                let stream = open[world.pick(open.len())];
                world.cut(stream);
            }
        }
        FaultKind::CrashReplica | FaultKind::CrashOwner | FaultKind::CrashOrchestrator => {
            if let Some(pid) = victim(world, kind) {
                stop_process(world, pid.index);
            }
        }
        FaultKind::LeaveOrchestrator => {
            if let Some(pid) = victim(world, FaultKind::CrashOrchestrator) {
                orchestrator::drain(world, pid);
            }
        }
        FaultKind::DrainReplica => {
            if let Some(pid) = victim(world, FaultKind::CrashReplica) {
                drain(world, pid);
            }
        }
        FaultKind::StallReplica | FaultKind::StallOwner | FaultKind::StallOrchestrator => stall(world, kind),
        FaultKind::Outage => outage(world),
        FaultKind::FailingCalls => failing_calls(world),
        FaultKind::Partition => {
            let places = world.processes.len();
            let pair = (world.pick(places), world.pick(places));
            part(world, vec![pair]);
        }
        FaultKind::IsolateOrchestrator => {
            if let Some(pid) = victim(world, FaultKind::CrashOrchestrator) {
                let pairs = world.config.replica_places().map(|replica| (pid.index, replica)).collect();
                part(world, pairs);
            }
        }
        FaultKind::JumpClock => {
            // A step that is a gap, or one that goes back.
            let far = world.rng.random_range(4_000_000..60_000_000);
            world.db.offset_us += if world.chance(0.5) { far } else { -far };
        }
        // Each step may age leases by a tick, so an honest clock does not step often.
        FaultKind::StepClock if world.now >= world.db.may_step_at => {
            world.db.may_step_at = world.now + LONGEST_LEASE;
            world.db.offset_us += world.rng.random_range(1_000..2_000_000);
            world.db.oracle.slips += 1;
        }
        FaultKind::StepClock => {}
        FaultKind::Unfit => {
            if let Some(pid) = victim(world, FaultKind::CrashOrchestrator) {
                orchestrator::set_unfit(world, pid, true);
                let delay = world.span(Duration::from_millis(100), Duration::from_secs(8));
                let fit = move |world: &mut World| orchestrator::set_unfit(world, pid, false);
                world.after(delay, Target::Process(pid), "fit", fit);
            }
        }
        FaultKind::LoseOffers | FaultKind::Pause | FaultKind::DeleteQueue => {}
    }
}

fn victim(world: &mut World, kind: FaultKind) -> Option<Pid> {
    let places: Vec<usize> = match kind {
        FaultKind::CrashReplica | FaultKind::StallReplica => world.config.replica_places().collect(),
        FaultKind::CrashOwner | FaultKind::StallOwner => world.config.owner_places().collect(),
        _ => world.config.orchestrator_places().collect(),
    };
    if places.is_empty() {
        return None;
    }
    let place = places[world.pick(places.len())];
    world.pid(place)
}

fn stall(world: &mut World, kind: FaultKind) {
    let (least, most) = world.config.stall;
    let span = world.span(least, most);
    let until = world.now + span;
    if let Some(pid) = victim(world, kind) {
        world.stall(pid.index, until);
    }
}

fn outage(world: &mut World) {
    if world.db.is_out || world.db.failing.1 == 1.0 {
        return;
    }
    // What it commits last, nobody hears of.
    let last = world.db.failing;
    world.db.failing = (0.0, 1.0);
    let dying = world.span(Duration::ZERO, Duration::from_millis(50));
    world.after(dying, Target::World, "outage", move |world| {
        if world.settling {
            return;
        }
        let (least, most) = world.config.outage;
        let span = world.span(least, most);
        world.db.failing = last;
        world.db.is_out = true;
        world.db.out_since = world.now;
        world.after(span, Target::World, "outage ends", end_outage);
    });
}

fn end_outage(world: &mut World) {
    if std::mem::take(&mut world.db.is_out) {
        world.db.oracle.down += world.now - world.db.out_since;
        world.db.oracle.slips += 1;
    }
}

fn failing_calls(world: &mut World) {
    let share = [0.02, 0.1, 0.4][world.pick(3)];
    world.db.failing = if world.chance(0.5) { (share, share) } else { (0.0, share) };
    let span = world.span(Duration::from_millis(200), Duration::from_secs(12));
    world.after(span, Target::World, "calls work", |world| world.db.failing = (0.0, 0.0));
}

/// These pairs of places cannot reach each other for a while.
fn part(world: &mut World, pairs: Vec<(usize, usize)>) {
    for &(one, other) in &pairs {
        world.net.blocked.push((one, other));
        world.cut_all(|a, b| (a, b) == (one, other) || (b, a) == (one, other));
    }
    let span = world.span(Duration::from_millis(200), Duration::from_secs(20));
    world.after(span, Target::World, "partition ends", move |world| {
        world.net.blocked.retain(|pair| !pairs.contains(pair));
    });
}

/// Leaves in good order: orchestrators are sent elsewhere before their streams are cut. Mirrors the distributor's
/// `tasks/drain.rs`.
fn drain(world: &mut World, pid: Pid) {
    let Some(replica) = world.replica(pid) else { return };
    replica.draining = true;
    let (member, other) = (replica.member, replica.other());
    let receivers: Vec<u64> = replica.stays.keys().copied().collect();
    for receiver in &receivers {
        let delay = world.span(Duration::ZERO, Duration::from_secs(1));
        if let Some(stay) = world.replica(pid).and_then(|replica| replica.stays.get_mut(receiver)) {
            stay.go_away(delay, other);
            replica::flush(world, pid, *receiver);
        }
    }
    host::leave(world, pid);
    world.after(Duration::from_secs(2), Target::Process(pid), "grace over", move |world| {
        let left: Vec<u64> =
            world.replica(pid).map(|replica| replica.stays.keys().copied().collect()).unwrap_or_default();
        for receiver in left {
            replica::end(world, pid, receiver, Ended::Silent);
        }
        world.call(pid, "leave", move |db| db.store().remove_member(member), |_, _| {});
        let gone = move |world: &mut World| stop_process(world, pid.index);
        world.after(Duration::from_millis(200), Target::Process(pid), "gone", gone);
    });
}

/// Everything heals, and stays well.
pub(crate) fn settle(world: &mut World) {
    world.note(|| "faults stop".to_owned());
    world.settling = true;
    world.db.failing = (0.0, 0.0);
    world.net.blocked.clear();
    end_outage(world);
    for index in 0..world.processes.len() {
        world.wake(index);
    }
    for index in world.config.orchestrator_places() {
        if let Some(pid) = world.pid(index) {
            orchestrator::set_unfit(world, pid, false);
        }
    }
}
