//! Lists of tasks: first the live and the finished ones, newest first, then what is set aside.

use millrace_core::{id::TaskId, task::State};
use millrace_proto::distributor::v1 as wire;
use millrace_runtime::status::Fault;
use millrace_store::{ListFilter, QuarantineFilter};
use prost::Message;

use super::{room::Room, tasks::page_size};
use crate::{convert, quarantine, shared::Shared, spec};

const DEFAULT_PAGE: i32 = 50;

/// Marks the token of a page of what is set aside.
const SET_ASIDE: char = 'q';

/// Where a page begins.
#[derive(Clone, Copy)]
enum From {
    /// Below this task, among the tasks.
    Tasks(Option<TaskId>),
    /// After this one, among those that are set aside.
    SetAside(Option<TaskId>),
}

impl From {
    fn read(token: &str, tasks: bool) -> Result<Self, Fault> {
        let id = |text: &str| match text {
            "" => Ok(None),
            text => {
                text.parse().map(Some).map_err(|_| Fault::invalid("page_token", "is not one that this list returned"))
            }
        };
        match token.strip_prefix(SET_ASIDE) {
            Some(rest) => id(rest).map(Self::SetAside),
            None if tasks => id(token).map(Self::Tasks),
            None => id(token).map(Self::SetAside),
        }
    }

    fn token(self) -> String {
        match self {
            Self::Tasks(id) => id.map(|id| id.to_string()).unwrap_or_default(),
            Self::SetAside(id) => format!("{SET_ASIDE}{}", id.map(|id| id.to_string()).unwrap_or_default()),
        }
    }
}

pub(super) async fn tasks(shared: &Shared, request: wire::ListTasksRequest) -> Result<wire::ListTasksResponse, Fault> {
    let size = page_size(request.page_size, DEFAULT_PAGE)? as usize;
    let (states, set_aside) = convert::states(&request.states)?;
    let live = request.states.is_empty() || !states.is_empty();
    let mut from = Some(From::read(&request.page_token, live)?);
    let mut page = Page { shared, request, size, tasks: Vec::new(), room: Room::of(shared) };
    if let Some(From::Tasks(below)) = from {
        from = page.add_tasks(states, below).await?;
        let then = set_aside && from.is_none();
        from = from.or(then.then_some(From::SetAside(None)));
    }
    if let Some(From::SetAside(after)) = from {
        from = page.add_set_aside(after).await?;
    }
    Ok(wire::ListTasksResponse { tasks: page.tasks, next_page_token: from.map(From::token).unwrap_or_default() })
}

/// A page as it is filled.
struct Page<'a> {
    shared: &'a Shared,
    request: wire::ListTasksRequest,
    size: usize,
    tasks: Vec<wire::Task>,
    room: Room,
}

impl Page<'_> {
    /// Adds tasks below an id; where to go on.
    async fn add_tasks(&mut self, states: Vec<State>, below: Option<TaskId>) -> Result<Option<From>, Fault> {
        let filter = ListFilter { tenant: some(&self.request.tenant), queue: some(&self.request.queue), states };
        let limit = self.size as i64;
        let page = self.shared.read(move |store| store.list(&filter, below, limit)).await?;
        let mut last = below;
        for row in page.rows {
            let id = row.envelope.id;
            if self.has_labels(&row.spec) && !self.add(convert::task(row)) {
                return Ok(Some(From::Tasks(last)));
            }
            last = Some(id);
        }
        Ok(page.next.map(|next| From::Tasks(Some(next))))
    }

    /// Adds what is set aside after an id; where to go on.
    async fn add_set_aside(&mut self, after: Option<TaskId>) -> Result<Option<From>, Fault> {
        let (tenant, queue) = (some(&self.request.tenant), some(&self.request.queue));
        let filter = QuarantineFilter { tenant, queue, ..QuarantineFilter::default() };
        // One more than fits tells whether there is a next page.
        let limit = (self.size - self.tasks.len() + 1) as i64;
        let page = self.shared.read(move |store| quarantine::page(store, &filter, after, limit)).await?;
        let mut last = after;
        for row in page.rows {
            let id = row.task;
            if self.has_labels(row.spec.as_deref().unwrap_or_default()) && !self.add(convert::set_aside(row)) {
                return Ok(Some(From::SetAside(last)));
            }
            last = Some(id);
        }
        Ok(page.next.map(|next| From::SetAside(Some(next))))
    }

    /// Adds a task; false when the page is full.
    fn add(&mut self, task: wire::Task) -> bool {
        let fits = self.tasks.len() < self.size && (self.room.take(task.encoded_len()) || self.tasks.is_empty());
        if fits {
            self.tasks.push(task);
        }
        fits
    }

    /// Labels live in the spec, so they are compared here, within the page's bound.
    fn has_labels(&self, spec: &[u8]) -> bool {
        if self.request.labels.is_empty() {
            return true;
        }
        let labels = spec::labels_of(spec);
        self.request.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use millrace_core::foreign::Value;
    use millrace_proto::common::v1::TaskState;
    use millrace_store::Store;

    use super::*;
    use crate::fixture::{self, Replica};

    /// Six tasks, of which the first two are set aside.
    fn replica() -> (Replica, Vec<String>) {
        let replica = fixture::replica();
        let tasks: Vec<TaskId> = (1..=6).map(|number| replica.submit(number)).collect();
        tasks[..2].iter().for_each(|task| replica.store.quarantine(*task));
        (replica, tasks.iter().map(ToString::to_string).collect())
    }

    async fn all(replica: &Replica, mut request: wire::ListTasksRequest) -> (Vec<String>, usize) {
        let (mut ids, mut pages) = (Vec::new(), 0);
        loop {
            let page = tasks(&replica.shared, request.clone()).await.unwrap();
            assert!(page.tasks.len() <= request.page_size as usize);
            ids.extend(page.tasks.into_iter().map(|task| task.id));
            pages += 1;
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return (ids, pages);
            }
        }
    }

    #[tokio::test]
    async fn what_is_set_aside_comes_last_and_can_be_asked_for_alone() {
        let (replica, ids) = replica();
        let states = |states: &[TaskState]| states.iter().map(|state| *state as i32).collect::<Vec<_>>();
        let newest = [&ids[5], &ids[4], &ids[3], &ids[2], &ids[0], &ids[1]].map(Clone::clone);
        for page_size in 1..=7 {
            let request = wire::ListTasksRequest { page_size, ..Default::default() };
            let (found, pages) = all(&replica, request.clone()).await;
            assert_eq!(found, newest, "{page_size} a page");
            assert!(pages <= 6 / page_size as usize + 2, "{pages} pages of {page_size}");
            let only = wire::ListTasksRequest { states: states(&[TaskState::Quarantined]), ..request.clone() };
            assert_eq!(all(&replica, only).await.0, ids[..2]);
            let both = states(&[TaskState::Queued, TaskState::Quarantined]);
            assert_eq!(all(&replica, wire::ListTasksRequest { states: both, ..request.clone() }).await.0, newest);
            let queued = wire::ListTasksRequest { states: states(&[TaskState::Queued]), ..request };
            assert_eq!(all(&replica, queued).await.0, newest[..4]);
        }
    }

    #[tokio::test]
    async fn one_that_is_set_aside_says_why() {
        let (replica, ids) = replica();
        let states = vec![TaskState::Quarantined as i32];
        let page = tasks(&replica.shared, wire::ListTasksRequest { states, ..Default::default() }).await.unwrap();
        let task = &page.tasks[0];
        assert_eq!((&task.id, task.state), (&ids[0], TaskState::Quarantined as i32));
        let quarantine = task.quarantine.as_ref().unwrap();
        assert_eq!(quarantine.defect.as_ref().unwrap().column, "spec");
        assert!(quarantine.since.is_some() && !task.spec.is_empty());
        let elsewhere = wire::ListTasksRequest { queue: "elsewhere".into(), ..Default::default() };
        assert!(tasks(&replica.shared, elsewhere).await.unwrap().tasks.is_empty());
    }

    #[tokio::test]
    async fn a_bad_field_of_one_spec_leaves_the_list_readable() {
        let (replica, _) = replica();
        // A timeout that is a number.
        let bad = replica.submit(9);
        let mut spec = replica.store.task(bad).unwrap().unwrap().spec;
        spec.extend([0x48, 1]);
        replica.store.damage(bad, "spec", Value::Bytes(spec));
        let page = tasks(&replica.shared, wire::ListTasksRequest::default()).await.unwrap();
        let task = &page.tasks[0];
        assert_eq!(task.id, bad.to_string());
        assert_eq!(task.ignored[0].column, "spec.timeout");
        assert!(millrace_proto::common::v1::TaskSpec::decode(task.spec.clone()).is_ok());
    }
}
