//! What this replica sees, for `millrace doctor`.

use std::time::Instant;

use millrace_core::served::TickRule;
use millrace_proto::distributor::v1 as wire;
use millrace_runtime::status::Fault;
use millrace_store::{MemberKind, MemberRow, OwnerRow, SessionRow};

use crate::{convert, shared::Shared};

const SESSIONS: i64 = 1000;

pub(super) async fn get(shared: &Shared) -> Result<wire::GetStatusResponse, Fault> {
    let (build, replica_id) = (shared.context.build.clone(), shared.id().to_string());
    shared
        .read(move |store| {
            let asked = Instant::now();
            store.cluster()?;
            let latency = asked.elapsed();
            Ok(wire::GetStatusResponse {
                build,
                replica_id,
                members: store.members()?.into_iter().map(member).collect(),
                sessions: store.sessions(SESSIONS)?.into_iter().map(session).collect(),
                owners: store.owners()?.into_iter().map(owner).collect(),
                database_latency: Some(convert::span(latency)),
                clock_frozen: store.tick(TickRule::default())?.clock.is_frozen(),
                schema_version: store.schema_version()?,
                quarantined: store.quarantined()?,
            })
        })
        .await
}

fn member(row: MemberRow) -> wire::Member {
    wire::Member {
        id: row.id.to_string(),
        kind: match row.kind {
            MemberKind::Distributor => "distributor".into(),
            MemberKind::Queue => "queue".into(),
        },
        endpoint: row.endpoint,
        build: row.build,
        seen_time: Some(convert::timestamp(row.seen_at_us)),
    }
}

fn session(row: SessionRow) -> wire::SessionStatus {
    wire::SessionStatus {
        id: row.session.id.to_string(),
        name: row.session.name,
        queues: row.session.queues,
        slots: row.session.slots,
        held: row.held,
        replica: row.session.replica,
        seen_time: Some(convert::timestamp(row.seen_at_us)),
    }
}

fn owner(row: OwnerRow) -> wire::QueueOwner {
    let (owner_id, endpoint) = match row.owner {
        Some((id, endpoint)) => (id.to_string(), endpoint),
        None => (String::new(), String::new()),
    };
    wire::QueueOwner { queue: row.queue, owner_id, endpoint, epoch: row.epoch }
}
