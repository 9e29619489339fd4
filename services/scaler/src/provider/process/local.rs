//! The calls, as work on files and processes; it blocks.

use std::{
    collections::BTreeMap,
    process::Child,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use millrace_core::{id::NodeId, time::Timestamp};
use millrace_proto::provider::v1::{
    DescribeNodesRequest, DescribeNodesResponse, Instance, InstanceState, NodeRef, NodeResult, RequestNodesRequest,
    RequestNodesResponse, TerminateNodesRequest, TerminateNodesResponse,
};
use millrace_runtime::{failpoint, status::Fault};

use super::{
    agent::Launch,
    files::{self, FilesError, Intent, NodeDir, Root, Stop, Turn, failed},
    log,
    options::{Order, ProcessOptions},
    round::{Found, Round, Standing},
};
use crate::provider::answer;

/// Nodes of one call. Starting an agent takes some milliseconds.
const MAX_CALL: usize = 50;

/// Agents on this machine.
#[derive(Debug)]
pub(super) struct Local {
    options: ProcessOptions,
    root: Root,
    /// At most as many as there are nodes; taken for the length of a call, so that calls of one process wait here and not at the files.
    children: Mutex<BTreeMap<NodeId, Child>>,
    closed: AtomicBool,
}

impl Local {
    pub(super) fn open(options: ProcessOptions) -> Result<Self, FilesError> {
        let root = Root::open(&options.dir)?;
        Ok(Self { options, root, children: Mutex::default(), closed: AtomicBool::new(false) })
    }

    /// Takes no more orders.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(super) fn look_after(&self) -> Result<(), FilesError> {
        self.with_round(|round| round.run().map(|_| ()))
    }

    /// Tells all to end. How many have not.
    pub(super) fn end_all(&self) -> Result<usize, FilesError> {
        self.with_round(|round| {
            let found = round.run()?;
            let mut left = 0;
            for found in found.values() {
                self.end(round, found)?;
                left += usize::from(!matches!(found.standing, Standing::Ended(_)));
            }
            Ok(left)
        })
    }

    pub(super) fn describe(&self, request: &DescribeNodesRequest) -> Result<DescribeNodesResponse, Fault> {
        let size = answer::page_size(request.page_size)?;
        let after: Option<NodeId> = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| answer::invalid_token())?),
        };
        let found = self.with_round(|round| round.run())?;
        let mut instances: Vec<Instance> = found
            .values()
            .filter(|found| after.is_none_or(|after| found.dir.id > after))
            .map(instance)
            .filter(|instance| request.pool.is_empty() || instance.pool == request.pool)
            .take(size + 1)
            .collect();
        let more = instances.len() > size;
        instances.truncate(size);
        let next = instances.last().filter(|_| more).map(|last| last.node_id.clone()).unwrap_or_default();
        Ok(DescribeNodesResponse {
            instances,
            next_page_token: next,
            max_nodes_per_call: i32::try_from(MAX_CALL).unwrap_or(i32::MAX),
        })
    }

    pub(super) fn request(&self, request: &RequestNodesRequest) -> Result<RequestNodesResponse, Fault> {
        let ids = answer::ids(request, MAX_CALL)?;
        if self.closed.load(Ordering::Acquire) {
            return Err(Fault::unavailable("the provider shuts down", Duration::from_secs(5)));
        }
        let results = self.with_round(|round| {
            let mut found = round.run()?;
            ids.into_iter().map(|id| self.request_one(round, &mut found, id, request)).collect()
        });
        Ok(RequestNodesResponse { results: results? })
    }

    fn request_one(
        &self,
        round: &mut Round<'_>,
        found: &mut BTreeMap<NodeId, Found>,
        id: NodeId,
        request: &RequestNodesRequest,
    ) -> Result<NodeResult, FilesError> {
        let name = id.to_string();
        match found.get(&id).map(|found| &found.standing) {
            Some(Standing::Starting | Standing::Running(_)) => return Ok(answer::accepted(&name, &instance_id(id))),
            Some(Standing::Stopping) => return Ok(answer::failed(&name, "the node is being ended")),
            Some(Standing::Ended(error)) => return Ok(answer::failed(&name, error)),
            None => {}
        }
        let running = found.values().filter(|found| !matches!(found.standing, Standing::Ended(_))).count();
        if running >= self.options.max_nodes {
            let error = format!("this machine runs at most {} agents", self.options.max_nodes);
            return Ok(answer::out_of_capacity(&name, &error, None));
        }
        let dir = self.root.node(id);
        match self.launch(round, &dir, request) {
            Ok(intent) => {
                found.insert(id, Found { dir, intent: Some(intent), standing: Standing::Starting });
                Ok(answer::accepted(&name, &instance_id(id)))
            }
            Err(error) => {
                // Nothing runs; a directory that cannot be removed either is dropped by a later round.
                dir.remove()?;
                Ok(answer::failed(&name, &error))
            }
        }
    }

    /// The intent first, then the process, which records itself: see the module's documentation.
    fn launch(&self, round: &mut Round<'_>, dir: &NodeDir, request: &RequestNodesRequest) -> Result<Intent, String> {
        let (instance, state) = (instance_id(dir.id), dir.file("state"));
        let env = self.options.environment(&Order { id: dir.id, instance: &instance, state: &state, request })?;
        let program = self.options.program().map_err(|error| format!("the program that runs is not known: {error}"))?;
        let intent =
            Intent { pool: request.pool.clone(), zone: request.zone.clone(), at_us: round.now.0, boot: files::boot() };
        let text = |error: FilesError| error.to_string();
        dir.intend(&intent).map_err(text)?;
        failpoint::hit("provider.process.intended");
        let Some(alive) = dir.lock().map_err(text)? else { return Err("a process of this node is being made".into()) };
        let path = dir.file("agent.log");
        let launch = Launch {
            program: &program,
            args: &self.options.args,
            env: &env,
            dir: dir.path(),
            log: log::open(&path).map_err(|error| failed(&path)(error).to_string())?,
            record: dir.record().map_err(text)?,
            alive,
        };
        let child = launch.start().map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
        failpoint::hit("provider.process.started");
        round.children.insert(dir.id, child);
        tracing::info!(node = %dir.id, pool = %intent.pool, "an agent starts");
        Ok(intent)
    }

    pub(super) fn terminate(&self, request: &TerminateNodesRequest) -> Result<TerminateNodesResponse, Fault> {
        answer::check_terminate(request, MAX_CALL)?;
        let results = self.with_round(|round| {
            let found = round.run()?;
            request.nodes.iter().map(|node| self.terminate_one(round, &found, node)).collect()
        });
        Ok(TerminateNodesResponse { results: results? })
    }

    fn terminate_one(
        &self,
        round: &mut Round<'_>,
        found: &BTreeMap<NodeId, Found>,
        node: &NodeRef,
    ) -> Result<NodeResult, FilesError> {
        let id = match node.node_id.as_str() {
            "" => node.instance_id.strip_prefix(INSTANCE).unwrap_or_default(),
            id => id,
        };
        // What is not one of this provider's ids does not exist here.
        if let Some(found) = id.parse().ok().and_then(|id: NodeId| found.get(&id)) {
            self.end(round, found)?;
        }
        Ok(answer::accepted(&node.node_id, &node.instance_id))
    }

    /// Writes that it is to end, and tells it. One that has ended is removed by the next round.
    fn end(&self, round: &mut Round<'_>, found: &Found) -> Result<(), FilesError> {
        if found.standing == Standing::Stopping || found.dir.stop().is_some() {
            return Ok(());
        }
        let stop = Stop { at_us: round.now.0, told: false };
        found.dir.set_stop(&stop)?;
        failpoint::hit("provider.process.stopping");
        match found.standing {
            Standing::Running(identity) => round.end(&found.dir, identity, &stop),
            // One that is being made is told by the round that finds it running.
            Standing::Starting | Standing::Stopping | Standing::Ended(_) => Ok(()),
        }
    }

    fn with_round<T>(&self, work: impl FnOnce(&mut Round<'_>) -> Result<T, FilesError>) -> Result<T, FilesError> {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let turn: Turn = self.root.turn()?;
        let now: Timestamp = (self.options.clock)();
        let (options, root, turn) = (&self.options, &self.root, &turn);
        work(&mut Round { options, root, turn, children: &mut children, now })
    }
}

/// What instances' names begin with.
const INSTANCE: &str = "agent-";

/// The provider's name of it.
fn instance_id(id: NodeId) -> String {
    format!("{INSTANCE}{id}")
}

fn instance(found: &Found) -> Instance {
    let (state, error) = match &found.standing {
        Standing::Starting => (InstanceState::Pending, ""),
        Standing::Running(_) => (InstanceState::Running, ""),
        Standing::Stopping => (InstanceState::Stopping, ""),
        Standing::Ended(error) => (InstanceState::Failed, error.as_str()),
    };
    let intent = found.intent.as_ref();
    Instance {
        id: instance_id(found.dir.id),
        node_id: found.dir.id.to_string(),
        pool: intent.map(|intent| intent.pool.clone()).unwrap_or_default(),
        zone: intent.map(|intent| intent.zone.clone()).unwrap_or_default(),
        state: state.into(),
        error: error.into(),
        create_time: intent.map(|intent| answer::wire_time(intent.at())),
        out_of_capacity: false,
    }
}
