//! Rows that are set aside, and their way back.

use std::ops::Bound::{Excluded, Unbounded};

use millrace_core::{
    foreign::{self, Defect, Row, Verdict},
    id::{SessionId, TaskId},
    retry::OutcomeKind,
    task::{Event, State},
};

use super::{
    damage::{apply, raw},
    model::{Finished, Model, Task, at_most, storable},
    waiting::unattempted,
};
use crate::{
    Audit, Examined, Inspected, LIST_SCAN_BOUND, QuarantineFilter, QuarantinePage, QuarantinedRow, Reader, Reexamined,
    Released, Repair, Repaired, Result, may_run, state_of,
};

/// A task that is set aside.
#[derive(Debug, Clone)]
pub(super) struct Aside {
    pub(super) task: Task,
    /// What stands in some of its columns instead.
    pub(super) damage: Row,
    defect: Defect,
    refused_by: Vec<String>,
    first_seen_us: i64,
}

impl Aside {
    fn row(&self) -> Row {
        raw(&self.task, Some(&self.damage))
    }

    fn shown(&self) -> QuarantinedRow {
        let mut row = self.row();
        let spec = foreign::bytes(&row, "spec").map(<[u8]>::to_vec).ok();
        if spec.is_some() {
            row.remove("spec");
        }
        QuarantinedRow {
            task: self.task.envelope.id,
            tenant: foreign::text(&row, "tenant").ok(),
            queue: foreign::text(&row, "queue").ok(),
            spec,
            defect: self.defect.clone(),
            writer_format: foreign::integer(&row, "format").ok(),
            refused_by: self.refused_by.clone(),
            first_seen_us: self.first_seen_us,
            row,
        }
    }
}

// ── Setting aside ───────────────────────────────────────────────────────────────────────────────────────────────────

impl Model {
    /// When the session that a row names was last heard of.
    fn heard(&self, row: &Row) -> Option<i64> {
        let session = foreign::uuid(row, "session_id").ok()?;
        self.sessions.get(&SessionId(session)).map(|session| session.seen_at_us)
    }

    pub(super) fn examine(&mut self, now: i64, reader: &Reader, id: TaskId) -> Examined {
        let Some(task) = self.tasks.get(&id) else { return Examined::Gone };
        let row = self.raw(task);
        let references = self.references(&row);
        match reader.judge(&row, references).verdict {
            Verdict::Readable => Examined::Readable,
            Verdict::TooNew(defect) => Examined::TooNew(defect),
            Verdict::Unreadable(defect) if may_run(&row, references.holder, self.heard(&row)) => Examined::Held(defect),
            Verdict::Unreadable(defect) => {
                self.set_aside(now, reader, id, defect.clone());
                Examined::Quarantined(defect)
            }
        }
    }

    pub(super) fn set_aside(&mut self, now: i64, reader: &Reader, id: TaskId, defect: Defect) {
        let Some(task) = self.tasks.remove(&id) else { return };
        let damage = self.damage.remove(&id).unwrap_or_default();
        let refused_by = reader.refused_too(&[]);
        self.quarantined.insert(id, Aside { task, damage, defect, refused_by, first_seen_us: now });
    }

    pub(super) fn inspect(&self, reader: &Reader, after: Option<TaskId>, limit: i64) -> Inspected {
        let tasks = self.tasks.range((after.map_or(Unbounded, Excluded), Unbounded)).take(at_most(limit.max(1)));
        let judged = tasks.map(|(id, task)| {
            let row = self.raw(task);
            (*id, reader.judge(&row, self.references(&row)))
        });
        let rows: Vec<_> = judged.collect();
        let next = rows.last().filter(|_| rows.len() == at_most(limit.max(1))).map(|(id, _)| *id);
        Inspected { rows, next }
    }

    pub(super) fn strays(&self, limit: i64) -> Vec<TaskId> {
        let waiting = self.tasks.iter().filter(|(_, task)| task.ready_at_us.is_some());
        let strays = waiting.filter(|(_, task)| {
            let fed = self.is_in_a_lane(task) && self.queues.contains_key(&task.envelope.queue);
            let queued = !self.damage.get(&task.envelope.id).is_some_and(|damage| damage.contains_key("ready_at_us"));
            !fed && queued
        });
        strays.map(|(id, _)| *id).take(at_most(limit)).collect()
    }
}

// ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────

impl Model {
    pub(super) fn quarantine_page(
        &self,
        filter: &QuarantineFilter,
        after: Option<TaskId>,
        limit: i64,
    ) -> QuarantinePage {
        let (mut rows, mut last) = (Vec::new(), None);
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        for (id, aside) in self.quarantined.range(range).take(at_most(LIST_SCAN_BOUND)) {
            if rows.len() == at_most(limit.max(1)) {
                break;
            }
            last = Some(*id);
            rows.extend(Some(aside.shown()).filter(|row| fits(filter, row)));
        }
        let more = |last: &TaskId| self.quarantined.range((Excluded(*last), Unbounded)).next().is_some();
        QuarantinePage { rows, next: last.filter(more) }
    }
}

fn fits(filter: &QuarantineFilter, row: &QuarantinedRow) -> bool {
    let is = |wanted: &Option<String>, given: Option<&String>| wanted.is_none() || wanted.as_ref() == given;
    (filter.tasks.is_empty() || filter.tasks.contains(&row.task))
        && is(&filter.tenant, row.tenant.as_ref())
        && is(&filter.queue, row.queue.as_ref())
        && is(&filter.column, Some(&row.defect.column))
        && filter.before_us.is_none_or(|moment| row.first_seen_us < moment)
}

// ── The way back ────────────────────────────────────────────────────────────────────────────────────────────────────

impl Model {
    pub(super) fn reexamine(
        &mut self,
        now: i64,
        reader: &Reader,
        after: Option<TaskId>,
        limit: i64,
    ) -> Result<Reexamined> {
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        let page: Vec<TaskId> = self.quarantined.range(range).map(|(id, _)| *id).take(at_most(limit.max(1))).collect();
        let mut rows = Vec::new();
        for id in &page {
            if self.quarantined.get(id).is_some_and(|aside| !aside.refused_by.contains(&reader.build)) {
                rows.push((*id, self.release(now, reader, *id, None)?));
            }
        }
        Ok(Reexamined { rows, next: page.last().copied().filter(|_| page.len() == at_most(limit.max(1))) })
    }

    pub(super) fn release(&mut self, now: i64, reader: &Reader, id: TaskId, audit: Option<&Audit>) -> Result<Released> {
        let Some(aside) = self.quarantined.get(&id) else { return Ok(Released::NotFound) };
        if let Some(defect) = self.refusal(reader, aside) {
            if let Some(aside) = self.quarantined.get_mut(&id) {
                aside.refused_by = reader.refused_too(&aside.refused_by);
                aside.defect = defect.clone();
            }
            return Ok(Released::Refused(defect));
        }
        self.put_back(now, id)?;
        self.audit.extend(audit.map(|audit| (now, Audit { subject: id.to_string(), ..audit.clone() })));
        Ok(Released::Done)
    }

    /// Why this build cannot release a row, if it cannot.
    fn refusal(&self, reader: &Reader, aside: &Aside) -> Option<Defect> {
        let row = aside.row();
        reader.refusal(&row, self.references(&row).queue)
    }

    /// Puts a readable row back among the live tasks. One that was being cancelled ends.
    fn put_back(&mut self, now: i64, id: TaskId) -> Result<()> {
        let Some(Aside { mut task, mut damage, .. }) = self.quarantined.remove(&id) else { return Ok(()) };
        let state = state_of(&raw(&task, Some(&damage))).unwrap_or(task.state);
        task.token = None;
        task.session = None;
        damage.retain(|column, _| !matches!(column.as_str(), "token" | "session_id"));
        if state != State::Scheduled {
            task.state = State::Queued;
            task.wake_at_us = None;
            task.ready_at_us = Some(now);
            damage.retain(|column, _| !matches!(column.as_str(), "state" | "wake_at_us" | "ready_at_us"));
        }
        self.tasks.insert(id, task);
        if !damage.is_empty() {
            self.damage.insert(id, damage);
        }
        if state == State::Cancelling {
            let why = "its cancellation was under way when its row was set aside";
            self.finish(now, id, Event::Cancel, unattempted(OutcomeKind::Cancelled, why))?;
        }
        Ok(())
    }

    pub(super) fn repair(
        &mut self,
        now: i64,
        reader: &Reader,
        id: TaskId,
        repair: &Repair,
        only_try: bool,
        audit: &Audit,
    ) -> Result<Repaired> {
        let Some(aside) = self.quarantined.get(&id) else { return Ok(Repaired::NotFound) };
        let mut aside = aside.clone();
        let columns = aside.row();
        for name in repair.columns.keys() {
            if name == "id" || name == "spec" || !columns.contains_key(name) {
                return Ok(Repaired::Refused(format!("{name} is not a column of tasks that can be changed")));
            }
        }
        aside.damage.extend(repair.columns.clone());
        if let Some(spec) = &repair.spec {
            aside.damage.insert("spec".into(), foreign::Value::Bytes(spec.clone()));
        }
        if let Some(defect) = self.refusal(reader, &aside) {
            return Ok(Repaired::StillUnreadable(defect));
        }
        if only_try {
            return Ok(Repaired::Done);
        }
        let changed = aside.damage.clone();
        for column in changed.keys() {
            apply(&mut aside.task, &changed, column);
        }
        // What the task now says by itself is not kept twice.
        let typed = raw(&aside.task, None);
        aside.damage.retain(|column, value| typed.get(column) != Some(value));
        self.quarantined.insert(id, aside);
        self.put_back(now, id)?;
        self.audit.push((now, audit.clone()));
        Ok(Repaired::Done)
    }

    pub(super) fn discard(&mut self, now: i64, id: TaskId, reason: &str, audit: &Audit) -> bool {
        let Some(aside) = self.quarantined.remove(&id) else { return false };
        let detail = format!("{}; {}; {:?}", audit.detail, aside.defect, aside.row());
        self.audit.push((now, Audit { subject: id.to_string(), detail, ..audit.clone() }));
        let mut task = aside.task;
        task.state = State::Cancelled;
        task.token = None;
        task.session = None;
        task.ready_at_us = None;
        task.wake_at_us = None;
        let message = storable(&format!("discarded from quarantine: {reason}"));
        let mut outcome = unattempted(OutcomeKind::Cancelled, &message);
        outcome.started_at_us = task.started_at_us;
        let slot = now.div_euclid(self.slice_us).rem_euclid(8);
        self.finished.insert(id, Finished { task, slot, finished_at_us: now, outcome });
        true
    }
}
