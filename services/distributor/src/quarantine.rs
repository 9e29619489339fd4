//! Looking at what is set aside, beyond what the store itself offers.

use millrace_core::id::TaskId;
use millrace_proto::distributor::v1 as wire;
use millrace_store::{QuarantineFilter, QuarantinePage, QuarantinedRow, Store, StoreError, TaskRow};
use uuid::Uuid;

use crate::convert;

/// A task as it stands: among the tasks, or set aside.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    Task(Box<TaskRow>),
    SetAside(Box<QuarantinedRow>),
}

impl Seen {
    /// Looks for a task in both places.
    pub(crate) fn look(store: &dyn Store, id: TaskId) -> Result<Option<Self>, StoreError> {
        if let Some(task) = store.task(id)? {
            return Ok(Some(Self::Task(Box::new(task))));
        }
        if let Some(row) = row(store, id)? {
            return Ok(Some(Self::SetAside(Box::new(row))));
        }
        // Released in between, perhaps.
        Ok(store.task(id)?.map(|task| Self::Task(Box::new(task))))
    }

    /// Reads the tasks that exist of these, wherever they are, in any order.
    pub(crate) fn look_at_all(store: &dyn Store, ids: &[TaskId]) -> Result<Vec<Self>, StoreError> {
        let tasks = store.tasks(ids)?;
        let missing: Vec<TaskId> =
            ids.iter().filter(|id| !tasks.iter().any(|task| task.envelope.id == **id)).copied().collect();
        let mut seen: Vec<Self> = tasks.into_iter().map(|task| Self::Task(Box::new(task))).collect();
        for id in missing {
            seen.extend(row(store, id)?.map(|row| Self::SetAside(Box::new(row))));
        }
        Ok(seen)
    }

    pub(crate) fn id(&self) -> TaskId {
        match self {
            Self::Task(task) => task.envelope.id,
            Self::SetAside(row) => row.task,
        }
    }

    /// Whether it has ended. What is set aside has not: it may be released.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Self::Task(task) if task.state.is_terminal())
    }

    pub(crate) fn task(&self) -> Option<&TaskRow> {
        match self {
            Self::Task(task) => Some(task),
            Self::SetAside(_) => None,
        }
    }

    pub(crate) fn to_wire(&self) -> wire::Task {
        match self.clone() {
            Self::Task(task) => convert::task(*task),
            Self::SetAside(row) => convert::set_aside(*row),
        }
    }
}

/// A row that is set aside.
pub(crate) fn row(store: &dyn Store, id: TaskId) -> Result<Option<QuarantinedRow>, StoreError> {
    // A look at one key first: there is hardly ever anything.
    if !store.is_quarantined(id)? {
        return Ok(None);
    }
    let filter = QuarantineFilter { tasks: vec![id], ..QuarantineFilter::default() };
    Ok(page(store, &filter, None, 1)?.rows.pop())
}

/// Rows that match, after an id. Where the filter names tasks, only the part of the quarantine is looked at in which they are.
pub(crate) fn page(
    store: &dyn Store,
    filter: &QuarantineFilter,
    after: Option<TaskId>,
    limit: i64,
) -> Result<QuarantinePage, StoreError> {
    let first = filter.tasks.iter().min().and_then(|id| id.0.as_u128().checked_sub(1)).map(Uuid::from_u128);
    let after = after.max(first.map(TaskId));
    let mut page = store.quarantine(filter, after, limit)?;
    let last = filter.tasks.iter().max();
    page.next = page.next.filter(|next| last.is_none_or(|last| next < last));
    Ok(page)
}
