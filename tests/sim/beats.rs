//! Heartbeats: one row a session; what was accepted since becomes RUNNING with it. Mirrors
//! `services/distributor/src/beats.rs`.

use std::time::Duration;

use millrace_store::{Heartbeat, HeartbeatResult, StoreError};

use crate::{
    replica,
    world::{Pid, World},
};

/// The heartbeat gate.
pub(crate) fn run(world: &mut World, pid: Pid) {
    let Some(replica) = world.replica(pid) else { return };
    let Some(mut items) = replica.beats.take() else { return };
    items.retain(|(receiver, _)| replica.stays.contains_key(receiver));
    let stays = items.iter().filter_map(|(receiver, _)| {
        replica.stays.get_mut(receiver).map(|stay| Heartbeat {
            session: stay.id,
            generation: stay.generation,
            accepted: stay.take_accepted().into_iter().map(|lease| (lease, None)).collect(),
        })
    });
    let batch: Vec<Heartbeat> = stays.collect();
    let given = batch.clone();
    world.persist(
        pid,
        "heartbeat",
        move |db, _| db.heartbeat(&given),
        move |world, results| {
            settle(world, pid, items, batch, results);
            if let Some(replica) = world.replica(pid) {
                replica.beats.busy = false;
            }
            run(world, pid);
        },
    );
}

fn settle(
    world: &mut World,
    pid: Pid,
    items: Vec<(u64, u64)>,
    batch: Vec<Heartbeat>,
    results: Result<Vec<HeartbeatResult>, StoreError>,
) {
    let (away, moved) = (world.span(Duration::ZERO, Duration::from_secs(1)), replica::moved(world));
    let results = results.ok();
    for (index, ((receiver, seq), beat)) in items.into_iter().zip(batch).enumerate() {
        let Some(replica) = world.replica(pid) else { return };
        let other = replica.other();
        let Some(stay) = replica.stays.get_mut(&receiver) else { continue };
        match results.as_ref().map(|results| &results[index]) {
            Some(result) if result.renewed => {
                stay.renewed(seq);
                stay.cancel(result.cancelling.iter().copied());
            }
            Some(_) => stay.end(moved),
            None => {
                stay.give_back_accepted(beat.accepted.into_iter().map(|(lease, _)| lease).collect());
                if other.is_some() {
                    stay.go_away(away, other);
                }
            }
        }
        replica::flush(world, pid, receiver);
    }
}
