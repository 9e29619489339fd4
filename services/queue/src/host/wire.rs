//! The exchange's messages, read and written. What cannot be understood is left out and counted: one bad item must not
//! end the work of its neighbours.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use millrace_core::{
    id::{MemberId, TaskId, is_name},
    matcher::{Answer, Entry, Lane, Matched, Receiver},
    time::Timestamp,
};
use millrace_proto::queue::v1::{self as proto, ExchangeHello, answer::Verdict as WireVerdict};

use super::{
    OwnedQueues,
    mailbox::{Demand, Grant, Offers, Verdict},
};

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) replica: MemberId,
    pub(super) newest_format: i16,
    pub(super) incarnation: i32,
}

/// Reads a hello; the error is the field that cannot be accepted and what it has to be.
pub(super) fn hello(hello: &ExchangeHello) -> Result<Hello, (&'static str, &'static str)> {
    let replica = hello.replica_id.parse().map_err(|_| ("hello.replica_id", "must be a member's id"))?;
    match (i16::try_from(hello.min_format), i16::try_from(hello.max_format)) {
        (Ok(min), Ok(newest_format)) if (1..=newest_format).contains(&min) => {
            Ok(Hello { replica, newest_format, incarnation: hello.incarnation })
        }
        _ => Err(("hello.max_format", "must be a format from min_format, which is 1 or more, to 32767")),
    }
}

/// Reads offers, and says how many could not be read.
pub(super) fn offers(offers: Vec<proto::Offer>) -> (Offers, usize) {
    let count = offers.len();
    let mut read = Vec::with_capacity(count);
    // Offers of one tenant mostly come together and share its name.
    let mut tenant: Arc<str> = Arc::default();
    for offer in offers {
        if *tenant != *offer.tenant {
            if !is_name(&offer.tenant) {
                continue;
            }
            tenant = offer.tenant.into();
        }
        if let (Ok(id), Ok(min_reader), true) =
            (TaskId::from_bytes(&offer.task_id), i16::try_from(offer.min_reader), !tenant.is_empty())
        {
            let lane = Lane { rank: offer.priority.saturating_neg(), tenant: tenant.clone() };
            let ready_at = Timestamp(offer.ready_at_us);
            let expires_at = offer.expires_at_us.map(Timestamp);
            read.push((lane, Entry { id, ready_at, expires_at, min_reader }));
        }
    }
    let unreadable = count - read.len();
    (read, unreadable)
}

/// Reads a demand.
pub(super) fn demand(demand: &proto::Demand) -> Demand {
    let grant = Grant { seq: demand.seq, credits: demand.credits, acked: demand.acked_seq };
    Demand { receiver: Receiver(demand.receiver), grant: (!demand.closed).then_some(grant) }
}

/// Reads answers, and says how many could not be read. A verdict that a later release has added counts as returned: whatever
/// it means, the claim in the database decides whether the task still waits.
pub(super) fn answers(answers: &[proto::Answer]) -> (Vec<(TaskId, Verdict)>, usize) {
    let read: Vec<_> = answers
        .iter()
        .filter_map(|answer| {
            let verdict = match WireVerdict::try_from(answer.verdict) {
                Ok(WireVerdict::Claimed) => Verdict::Answer(Answer::Claimed),
                Ok(WireVerdict::Stale) => Verdict::Answer(Answer::Stale),
                Ok(WireVerdict::Refused) => Verdict::Refused,
                Ok(WireVerdict::Returned | WireVerdict::Unspecified) | Err(_) => Verdict::Answer(Answer::Returned),
            };
            Some((TaskId::from_bytes(&answer.task_id).ok()?, verdict))
        })
        .collect();
    let unreadable = answers.len() - read.len();
    (read, unreadable)
}

/// Writes matches. Their ids share one allocation.
pub(super) fn matches(matched: &[Matched]) -> Vec<proto::Match> {
    let mut ids = BytesMut::with_capacity(matched.len() * 16);
    for matched in matched {
        ids.extend_from_slice(matched.task.as_bytes());
    }
    let mut ids: Bytes = ids.freeze();
    matched
        .iter()
        .map(|matched| proto::Match { task_id: ids.split_to(16), receiver: matched.receiver.0, seq: matched.seq })
        .collect()
}

/// Writes which queues are owned.
pub(super) fn ownership(owner: MemberId, owned: &OwnedQueues) -> proto::Ownership {
    let queues = owned.iter().map(|(queue, owned)| proto::OwnedQueue { queue: queue.to_string(), epoch: owned.epoch });
    proto::Ownership { owner_id: owner.to_string(), queues: queues.collect() }
}

#[cfg(test)]
mod tests {
    use millrace_core::matcher::Connection;
    use uuid::Uuid;

    use super::*;

    fn id(number: u128) -> Bytes {
        Bytes::copy_from_slice(Uuid::from_u128(number).as_bytes())
    }

    #[test]
    fn offers_are_read_one_by_one() {
        let good =
            proto::Offer { task_id: id(1), tenant: "a".into(), priority: 5, min_reader: 1, ..Default::default() };
        let bad = [
            proto::Offer { task_id: Bytes::from_static(b"short"), ..good.clone() },
            proto::Offer { tenant: "Not a name".into(), ..good.clone() },
            proto::Offer { tenant: String::new(), ..good.clone() },
            proto::Offer { min_reader: i32::MAX, ..good.clone() },
        ];
        let mut all = bad.to_vec();
        all.insert(2, good.clone());
        let (read, unreadable) = offers(all);
        assert_eq!((read.len(), unreadable), (1, 4));
        assert_eq!((read[0].0.rank, &*read[0].0.tenant), (-5, "a"));
        assert_eq!(offers(vec![proto::Offer { tenant: String::new(), ..good }]).1, 1, "no tenant at the start either");
    }

    #[test]
    fn an_unknown_verdict_returns_the_match() {
        let answer = |task_id, verdict| proto::Answer { task_id, verdict };
        let (read, unreadable) =
            answers(&[answer(id(1), 1), answer(id(2), 99), answer(Bytes::new(), 1), answer(id(3), 4)]);
        let verdicts: Vec<Verdict> = read.into_iter().map(|(_, verdict)| verdict).collect();
        assert_eq!(verdicts, [Verdict::Answer(Answer::Claimed), Verdict::Answer(Answer::Returned), Verdict::Refused]);
        assert_eq!(unreadable, 1);
    }

    #[test]
    fn matches_keep_their_ids_apart() {
        let matched = |number| Matched {
            connection: Connection(1),
            receiver: Receiver(number),
            seq: number,
            task: TaskId(Uuid::from_u128(number.into())),
        };
        let written = matches(&[matched(7), matched(8)]);
        assert_eq!((&written[0].task_id, &written[1].task_id), (&id(7), &id(8)));
    }

    #[test]
    fn r9_a_hello_without_formats_is_refused() {
        let good =
            ExchangeHello { replica_id: Uuid::from_u128(1).to_string(), min_format: 1, max_format: 2, incarnation: 3 };
        assert_eq!(hello(&good).map(|hello| hello.newest_format), Ok(2));
        for bad in [
            ExchangeHello { min_format: 0, ..good.clone() },
            ExchangeHello { min_format: 3, ..good.clone() },
            ExchangeHello { max_format: 40_000, ..good.clone() },
            ExchangeHello { replica_id: "me".into(), ..good.clone() },
        ] {
            assert!(hello(&bad).is_err(), "{bad:?}");
        }
    }
}
