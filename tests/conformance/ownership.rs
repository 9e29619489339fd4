//! Who matches a queue (R5).

use millrace_core::id::MemberId;
use millrace_store::{Claim, Claimed, OwnerRow};

use crate::world::{DEFAULT, SECOND_MS, World, hours, member, secs, sorted};

const HOUR_MS: i64 = 3600 * SECOND_MS;

fn own(world: &World, queue: &str, owner: MemberId) -> Option<i64> {
    world.own_queue(queue, owner, "http://127.0.0.1:7602", HOUR_MS).expect("owning")
}

fn owner_of(world: &World, queue: &str) -> Option<OwnerRow> {
    world.owners().expect("reading the owners").into_iter().find(|row| row.queue == queue && row.owner.is_some())
}

pub(crate) fn r5_ownership_is_taken_once_and_renewed_by_its_owner(world: &World) {
    let (one, other) = (member(), member());
    let epoch = own(world, DEFAULT, one).expect("nobody owns it");
    assert!(epoch > 0);
    assert_eq!(own(world, DEFAULT, other), None);
    assert_eq!(own(world, DEFAULT, one), Some(epoch), "the owner's second call renews");
    assert_eq!(world.gate(DEFAULT), epoch);
    // Another queue is another lease.
    let queue = world.queue_named("other");
    assert!(own(world, &queue, other).is_some());
}

pub(crate) fn r5_paused_owner_that_wakes_claims_nothing(world: &World) {
    let (paused, next) = (member(), member());
    let old = own(world, DEFAULT, paused).expect("nobody owns it");
    let worker = world.worker();
    // It matches, and stops before its matches are claimed; meanwhile its lease ends and another takes over.
    let stale = world.claim_of(worker, DEFAULT, world.queued());
    assert_eq!(stale.epoch, old);
    world.serve(secs(3500));
    assert_eq!(own(world, DEFAULT, next), None);
    world.serve(secs(200));
    let new = own(world, DEFAULT, next).expect("the lease has ended");
    assert!(new > old);
    // It wakes: its matches are refused, its renewal is, and it cannot take the queue back.
    assert_eq!(world.try_claim(&stale), Claimed::GateClosed);
    assert_eq!(world.renew_queues(paused, &[(DEFAULT.into(), old)], HOUR_MS).expect("renewing"), [DEFAULT]);
    assert_eq!(own(world, DEFAULT, paused), None);
    assert_eq!(world.try_claim(&stale), Claimed::GateClosed);
    assert!(matches!(world.try_claim(&Claim { epoch: new, ..stale }), Claimed::Won(_)));
}

pub(crate) fn r5_each_change_of_owner_raises_the_epoch(world: &World) {
    let (one, other) = (member(), member());
    let mut epoch = world.gate(DEFAULT);
    for owner in [one, other, one, other] {
        let taken = own(world, DEFAULT, owner).expect("the lease has ended");
        assert!(taken > epoch, "{taken} after {epoch}");
        epoch = taken;
        world.serve(hours(2));
    }
    // Renewing never does, however often.
    own(world, DEFAULT, one);
    let epoch = world.gate(DEFAULT);
    for _ in 0..3 {
        world.serve(secs(3000));
        assert_eq!(own(world, DEFAULT, one), Some(epoch));
    }
}

pub(crate) fn r5_an_owner_that_gives_up_is_followed_at_once(world: &World) {
    let (one, other) = (member(), member());
    let queue = world.queue_named("other");
    let old = own(world, DEFAULT, one).expect("nobody owns it");
    own(world, &queue, one).expect("nobody owns it");
    world.release_queues(one, &[DEFAULT.into(), queue.clone(), "nowhere".into()]).expect("giving up");
    assert_eq!((owner_of(world, DEFAULT), owner_of(world, &queue)), (None, None));
    let new = own(world, DEFAULT, other).expect("it was given up");
    assert!(new > old);
    assert_eq!(world.renew_queues(one, &[(queue.clone(), 1)], HOUR_MS).expect("renewing"), [queue]);
}

pub(crate) fn r5_only_the_owner_gives_up(world: &World) {
    let (owner, other) = (member(), member());
    let epoch = own(world, DEFAULT, owner).expect("nobody owns it");
    world.release_queues(other, &[DEFAULT.into()]).expect("giving up");
    assert_eq!(own(world, DEFAULT, other), None);
    assert_eq!(own(world, DEFAULT, owner), Some(epoch));
}

pub(crate) fn r5_renewals_tell_which_queues_were_lost(world: &World) {
    let (one, other) = (member(), member());
    let queues = ["kept", "lost", "taken"].map(|name| world.queue_named(name));
    let mut owned: Vec<(String, i64)> =
        queues.iter().map(|queue| (queue.clone(), own(world, queue, one).expect("nobody owns it"))).collect();
    assert_eq!(world.renew_queues(one, &owned, HOUR_MS).expect("renewing"), [""; 0]);
    world.release_queues(one, &["lost".into(), "taken".into()]).expect("giving up");
    own(world, "taken", other).expect("it was given up");
    owned.push(("nowhere".into(), 1));
    let lost = world.renew_queues(one, &owned, HOUR_MS).expect("renewing");
    assert_eq!(sorted(lost), ["lost", "nowhere", "taken"]);
    // An epoch that is not the one in force is lost too, even to the same member.
    let (kept, epoch) = owned[0].clone();
    assert_eq!(
        world.renew_queues(one, &[(kept.clone(), epoch - 1)], HOUR_MS).expect("renewing"),
        std::slice::from_ref(&kept)
    );
    assert_eq!(world.renew_queues(other, &[(kept.clone(), epoch)], HOUR_MS).expect("renewing"), [kept]);
}

pub(crate) fn r5_a_renewed_lease_lasts(world: &World) {
    let (one, other) = (member(), member());
    let epoch = own(world, DEFAULT, one).expect("nobody owns it");
    for _ in 0..3 {
        world.serve(secs(3000));
        let lost = world.renew_queues(one, &[(DEFAULT.into(), epoch)], HOUR_MS).expect("renewing");
        assert_eq!(lost, [""; 0]);
        assert_eq!(own(world, DEFAULT, other), None);
    }
    world.serve(hours(2));
    assert_eq!(owner_of(world, DEFAULT), None, "the lease has ended");
    assert!(own(world, DEFAULT, other) > Some(epoch));
}

pub(crate) fn r5_owners_are_listed(world: &World) {
    let queues = ["b", "a-b", "a.b"].map(|name| world.queue_named(name));
    let (one, other) = (member(), member());
    let epochs = [own(world, &queues[0], one), own(world, &queues[1], other)].map(|epoch| epoch.expect("an epoch"));
    let rows = world.owners().expect("reading the owners");
    assert!(rows.is_sorted_by(|a, b| a.queue < b.queue), "by name: {rows:?}");
    let endpoint = "http://127.0.0.1:7602";
    let of = |queue: &str| rows.iter().find(|row| row.queue == queue);
    let expected = OwnerRow { queue: "b".into(), epoch: epochs[0], owner: Some((one, endpoint.into())) };
    assert_eq!(of("b"), Some(&expected));
    let expected = OwnerRow { queue: "a-b".into(), epoch: epochs[1], owner: Some((other, endpoint.into())) };
    assert_eq!(of("a-b"), Some(&expected));
    assert!(of("a.b").is_none_or(|row| row.owner.is_none()));
}

pub(crate) fn r5_nobody_owns_a_queue_that_does_not_exist(world: &World) {
    assert_ne!(own(world, "nowhere", member()).map(|_| ()), Some(()));
    assert_eq!(owner_of(world, "nowhere"), None);
}
