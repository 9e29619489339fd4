//! Rows that are set aside: shown, repaired, released, discarded.

use std::collections::BTreeSet;

use millrace_core::{foreign::Value, id::TaskId};
use millrace_proto::distributor::v1 as wire;
use millrace_runtime::status::{Fault, Violations};
use millrace_store::{Audit, QuarantineFilter, QuarantinePage, QuarantinedRow, Released, Repair, Repaired, Store};
use prost::Message;
use uuid::Uuid;

use super::{
    room::Room,
    tasks::{MAX_REASON, find, key, page_size},
};
use crate::{convert, quarantine, shared::Shared, spec};

const DEFAULT_PAGE: i32 = 50;
const MOST: i32 = 1000;

/// Rows of one transaction, and of one read: each comes with its spec.
const PART: usize = 100;

/// Reads of one call: a filter that hardly matches looks at many rows for few.
const PARTS: usize = 20;

/// Refusals named in one answer.
const NAMED: usize = 100;

/// Columns changed by one repair; no table has more.
const MAX_COLUMNS: usize = 100;

pub(super) async fn list(
    shared: &Shared,
    request: wire::ListQuarantinedRowsRequest,
) -> Result<wire::ListQuarantinedRowsResponse, Fault> {
    let size = page_size(request.page_size, DEFAULT_PAGE)? as usize;
    let filter = convert::quarantine_filter(request.filter)?;
    let mut after = page_token(&request.page_token)?;
    let mut room = Room::of(shared);
    let mut rows = Vec::new();
    for _ in 0..PARTS {
        let page = read(shared, &filter, after, PART.min(size - rows.len())).await?;
        after = page.next;
        for row in page.rows {
            let id = row.task;
            let row = convert::quarantined_row(row, None);
            if !room.take(row.encoded_len()) && !rows.is_empty() {
                // The row stays for the next page.
                return Ok(wire::ListQuarantinedRowsResponse { rows, next_page_token: before(id).to_string() });
            }
            rows.push(row);
        }
        if after.is_none() || rows.len() == size {
            break;
        }
    }
    Ok(wire::ListQuarantinedRowsResponse { rows, next_page_token: next_page(after) })
}

pub(super) async fn get(
    shared: &Shared,
    request: wire::GetQuarantinedRowRequest,
) -> Result<wire::GetQuarantinedRowResponse, Fault> {
    let id = convert::task_id(&request.task_id, "task_id")?;
    let row = shared.read(move |store| quarantine::row(store, id)).await?.ok_or_else(|| not_quarantined(id))?;
    Ok(wire::GetQuarantinedRowResponse {
        row: Some(convert::quarantined_row(row, Some(shared.settings.max_message_bytes / 2))),
    })
}

pub(super) async fn repair(
    shared: &Shared,
    request: wire::RepairQuarantinedRowRequest,
) -> Result<wire::RepairQuarantinedRowResponse, Fault> {
    let id = convert::task_id(&request.task_id, "task_id")?;
    let key = key("RepairQuarantinedRow", &request.request_id)?;
    if let Some(answer) = shared.answered.before(key, &request, shared.now())? {
        return Ok(answer);
    }
    let repair = read_repair(shared, &request)?;
    let only_try = request.validate_only;
    let detail = format!("{} request_id={}", describe(&repair), request.request_id);
    let audit = Audit { action: "RepairQuarantinedRow".into(), subject: id.to_string(), detail };
    match shared.write(move |store| store.repair(id, &repair, only_try, &audit)).await? {
        Repaired::Done if only_try => return Ok(wire::RepairQuarantinedRowResponse { task: None }),
        Repaired::Done => {}
        Repaired::StillUnreadable(defect) => {
            let message = format!("with the change the row still cannot be read: {defect}; nothing was changed");
            return Err(Fault::precondition("STILL_UNREADABLE", message));
        }
        Repaired::Refused(why) => return Err(Fault::invalid("columns", why)),
        Repaired::NotFound => return Err(not_quarantined(id)),
    }
    shared.released(vec![id]).await;
    let task = find(shared, id).await?.to_wire();
    let answer = wire::RepairQuarantinedRowResponse { task: Some(task) };
    shared.answered.keep(key, &request, &answer, shared.now());
    Ok(answer)
}

fn read_repair(shared: &Shared, request: &wire::RepairQuarantinedRowRequest) -> Result<Repair, Fault> {
    let mut broken = Violations::new();
    broken.require(!request.columns.is_empty() || request.spec.is_some(), "columns", "nothing is to be changed");
    broken.require(request.columns.len() <= MAX_COLUMNS, "columns", format!("at most {MAX_COLUMNS} are accepted"));
    let mut repair = Repair::default();
    for (index, change) in request.columns.iter().take(MAX_COLUMNS).enumerate() {
        let field = format!("columns[{index}]");
        let fixed = matches!(change.name.as_str(), "" | "id" | "spec") || change.name.contains('\0');
        broken.require(!fixed, format!("{field}.name"), "is not a column that can be changed so");
        let value = change.value.clone().map_or(Value::Null, Value::Text);
        broken.require(!matches!(&value, Value::Text(text) if text.contains('\0')), &field, "holds a NUL byte");
        let known = repair.columns.insert(change.name.clone(), value);
        broken.require(known.is_none(), &field, "is given twice");
    }
    broken.finish()?;
    if let Some(bytes) = &request.spec {
        spec::read(bytes, "spec", shared.settings.max_spec_bytes)?;
        repair.spec = Some(bytes.to_vec());
    }
    Ok(repair)
}

/// What a repair changes, for the audit trail.
fn describe(repair: &Repair) -> String {
    let columns = repair.columns.iter().map(|(name, value)| match value {
        Value::Text(text) => format!("{name}={}", convert::cut(text, 256)),
        _ => format!("{name}=NULL"),
    });
    let spec = repair.spec.as_ref().map(|spec| format!("spec of {} bytes", spec.len()));
    columns.chain(spec).collect::<Vec<_>>().join(", ")
}

pub(super) async fn release(
    shared: &Shared,
    request: wire::ReleaseQuarantinedRowsRequest,
) -> Result<wire::ReleaseQuarantinedRowsResponse, Fault> {
    let key = key("ReleaseQuarantinedRows", &request.request_id)?;
    if let Some(answer) = shared.answered.before(key, &request, shared.now())? {
        return Ok(answer);
    }
    let mut sweep = Sweep::new(request.filter.clone(), request.page_size, &request.page_token)?;
    let detail = format!("request_id={}", request.request_id);
    let audit = Audit { action: "ReleaseQuarantinedRows".into(), subject: String::new(), detail };
    let not_found = not_found(shared, &sweep.filter, &request.page_token).await?;
    let mut answer = wire::ReleaseQuarantinedRowsResponse { not_found, ..Default::default() };
    while let Some(part) = sweep.next(shared).await? {
        answer.matched += part.len() as i32;
        if request.dry_run || part.is_empty() {
            continue;
        }
        let (tasks, audit) = (part.clone(), audit.clone());
        let released = shared.write(move |store| store.release(&tasks, &audit)).await;
        let Some(released) = sweep.settled(released, &mut answer.matched, part.len())? else { break };
        let mut done = Vec::new();
        for (task, became) in part.into_iter().zip(released) {
            match became {
                Released::Done => done.push(task),
                Released::Refused(defect) if answer.refused.len() < NAMED => answer
                    .refused
                    .push(wire::RefusedRow { task_id: task.to_string(), defect: Some(convert::defect(defect)) }),
                Released::Refused(_) => {}
                // Released by itself meanwhile, or discarded: it is no business of this call any more.
                Released::NotFound => answer.matched -= 1,
            }
        }
        answer.released += done.len() as i32;
        shared.released(done).await;
    }
    answer.next_page_token = next_page(sweep.after);
    if !request.dry_run {
        shared.answered.keep(key, &request, &answer, shared.now());
    }
    Ok(answer)
}

pub(super) async fn discard(
    shared: &Shared,
    request: wire::DiscardQuarantinedRowsRequest,
) -> Result<wire::DiscardQuarantinedRowsResponse, Fault> {
    let reason = request.reason.clone();
    let mut broken = Violations::new();
    let reasoned = request.dry_run || !reason.trim().is_empty();
    broken.require(reasoned, "reason", "is required: what is discarded is not run");
    let fits = reason.len() <= MAX_REASON && !reason.contains('\0');
    broken.require(fits, "reason", "must have at most 1024 bytes, none of them NUL");
    let conditions = request.filter.clone().unwrap_or_default() != wire::QuarantineFilter::default();
    broken.require(conditions, "filter", "must have a condition: `before` names every row set aside until then");
    broken.finish()?;
    let key = key("DiscardQuarantinedRows", &request.request_id)?;
    if let Some(answer) = shared.answered.before(key, &request, shared.now())? {
        return Ok(answer);
    }
    let mut sweep = Sweep::new(request.filter.clone(), request.page_size, &request.page_token)?;
    let detail = format!("{reason} request_id={}", request.request_id);
    let audit = Audit { action: "DiscardQuarantinedRows".into(), subject: String::new(), detail };
    let not_found = not_found(shared, &sweep.filter, &request.page_token).await?;
    let mut answer = wire::DiscardQuarantinedRowsResponse { not_found, ..Default::default() };
    while let Some(part) = sweep.next(shared).await? {
        answer.matched += part.len() as i32;
        if request.dry_run || part.is_empty() {
            continue;
        }
        let (count, audit, reason) = (part.len(), audit.clone(), reason.clone());
        let discarded = shared.write(move |store| store.discard(&part, &reason, &audit)).await;
        let Some(discarded) = sweep.settled(discarded, &mut answer.matched, count)? else { break };
        answer.discarded += discarded.len() as i32;
        discarded.iter().for_each(|task| shared.watches.nudge(*task));
    }
    answer.next_page_token = next_page(sweep.after);
    if !request.dry_run {
        shared.answered.keep(key, &request, &answer, shared.now());
    }
    Ok(answer)
}

/// How many of the tasks that a filter names are not set aside. Told with the first page, of all of them.
async fn not_found(shared: &Shared, filter: &QuarantineFilter, page_token: &str) -> Result<i32, Fault> {
    if filter.tasks.is_empty() || !page_token.is_empty() {
        return Ok(0);
    }
    let named: BTreeSet<TaskId> = filter.tasks.iter().copied().collect();
    let missing = move |store: &dyn Store| {
        named.iter().try_fold(0, |missing, id| Ok(missing + i32::from(!store.is_quarantined(*id)?)))
    };
    shared.read(missing).await
}

/// A walk over the rows that match, a part at a time, up to the size of a page.
struct Sweep {
    filter: QuarantineFilter,
    open: usize,
    parts: usize,
    /// Where to go on; none at the end, once it has begun.
    after: Option<TaskId>,
    /// Where the part began that was given last.
    before: Option<TaskId>,
    begun: bool,
    changed: bool,
}

impl Sweep {
    fn new(filter: Option<wire::QuarantineFilter>, size: i32, token: &str) -> Result<Self, Fault> {
        let (filter, after) = (convert::quarantine_filter(filter)?, page_token(token)?);
        let open = page_size(size, MOST)? as usize;
        Ok(Self { filter, open, parts: PARTS, after, before: None, begun: false, changed: false })
    }

    async fn next(&mut self, shared: &Shared) -> Result<Option<Vec<TaskId>>, Fault> {
        let ended = self.begun && self.after.is_none();
        if ended || self.open == 0 || self.parts == 0 {
            return Ok(None);
        }
        let page = match read(shared, &self.filter, self.after, PART.min(self.open)).await {
            Ok(page) => page,
            // What was done is told, and the caller goes on from there.
            Err(_) if self.changed => return Ok(None),
            Err(fault) => return Err(fault),
        };
        (self.before, self.after, self.begun) = (self.after, page.next, true);
        self.open -= page.rows.len();
        self.parts -= 1;
        Ok(Some(page.rows.into_iter().map(|row: QuarantinedRow| row.task).collect()))
    }

    /// The result of a change to the last part. A failure after other parts were changed ends the call with what was done; the part is
    /// then the next call's.
    fn settled<T>(&mut self, result: Result<T, Fault>, matched: &mut i32, part: usize) -> Result<Option<T>, Fault> {
        match result {
            Ok(done) => {
                self.changed = true;
                Ok(Some(done))
            }
            Err(fault) if !self.changed => Err(fault),
            Err(_) => {
                *matched -= part as i32;
                self.after = self.before;
                Ok(None)
            }
        }
    }
}

async fn read(
    shared: &Shared,
    filter: &QuarantineFilter,
    after: Option<TaskId>,
    limit: usize,
) -> Result<QuarantinePage, Fault> {
    let filter = filter.clone();
    shared.read(move |store| quarantine::page(store, &filter, after, limit as i64)).await
}

fn page_token(token: &str) -> Result<Option<TaskId>, Fault> {
    match token {
        "" => Ok(None),
        token => {
            token.parse().map(Some).map_err(|_| Fault::invalid("page_token", "is not one that this call returned"))
        }
    }
}

fn next_page(after: Option<TaskId>) -> String {
    after.map(|id| id.to_string()).unwrap_or_default()
}

/// The id just before this one, from which a page begins with it.
fn before(id: TaskId) -> TaskId {
    TaskId(Uuid::from_u128(id.0.as_u128().saturating_sub(1)))
}

fn not_quarantined(id: TaskId) -> Fault {
    Fault::not_found("NOT_QUARANTINED", format!("task {id} is not set aside"))
}

#[cfg(test)]
mod tests;
