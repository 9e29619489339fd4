//! What this replica sees, for `millrace doctor`.

use std::time::{Duration, Instant};

use millrace_core::{foreign::Defect, id::TaskId, served::TickRule};
use millrace_proto::distributor::v1 as wire;
use millrace_runtime::status::Fault;
use millrace_store::{Drift, MemberKind, MemberRow, OwnerRow, SessionRow};

use crate::{
    convert,
    shared::{Shared, lock},
    suspicion::{Left, Suspect},
};

const SESSIONS: i64 = 1000;

/// How long the database may take. Whoever asks waits a few seconds, and is to hear that it is the database that hangs and
/// not this replica.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn get(shared: &Shared) -> Result<wire::GetStatusResponse, Fault> {
    let silent = |_| Fault::unavailable("the database has not answered within 3 s", Duration::from_secs(1));
    tokio::time::timeout(PATIENCE, look(shared)).await.map_err(silent)?
}

async fn look(shared: &Shared) -> Result<wire::GetStatusResponse, Fault> {
    let (build, replica_id) = (shared.context.build.clone(), shared.id().to_string());
    let (drift, suspects, left) = {
        let survey = lock(&shared.survey);
        let (drift, suspects) = (survey.drift.iter().map(drifted), survey.suspects.iter().map(suspect));
        (drift.collect(), suspects.collect(), survey.left.as_ref().map(left_rows))
    };
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
                drift,
                suspects,
                left,
            })
        })
        .await
}

fn left_rows(left: &Left) -> wire::LeftRows {
    let count = |rows: u64| i64::try_from(rows).unwrap_or(i64::MAX);
    let example = |(task, defect, too_new): &(TaskId, Defect, bool)| wire::LeftRow {
        task_id: task.to_string(),
        defect: Some(convert::defect(defect.clone())),
        too_new: *too_new,
    };
    wire::LeftRows {
        too_new: count(left.too_new),
        held: count(left.held),
        examples: left.examples.iter().map(example).collect(),
        seen_time: Some(convert::timestamp(left.seen_us)),
    }
}

fn drifted(drift: &Drift) -> wire::ColumnDrift {
    wire::ColumnDrift {
        table: drift.table.clone(),
        column: drift.column.clone(),
        expected: drift.expected.clone(),
        found: drift.found.clone().unwrap_or_default(),
    }
}

fn suspect(suspect: &Suspect) -> wire::SuspectDeploy {
    wire::SuspectDeploy {
        build: suspect.build.clone(),
        since: Some(convert::timestamp(suspect.since_us)),
        rows_per_minute: i64::try_from(suspect.rows).unwrap_or(i64::MAX),
    }
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
