//! Looks at what there is of each agent, and does what is due.

use std::{collections::BTreeMap, process::Child};

use millrace_core::{id::NodeId, time::Timestamp};

use super::{
    agent::{Identity, Life},
    files::{self, Ended, FilesError, Intent, NodeDir, Root, Stop, Turn},
    log,
    options::ProcessOptions,
};

/// How much of a log is in the error of an agent that ended, in bytes.
const TAIL: u64 = 2048;

/// An agent, as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) dir: NodeDir,
    /// None when its file was lost, as in a power cut.
    pub(super) intent: Option<Intent>,
    pub(super) standing: Standing,
}

/// Where an agent stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its process is being made, by this provider or by one that was killed.
    Starting,
    /// It runs.
    Running(Identity),
    /// It was told to end, or is about to be told.
    Stopping,
    /// It ended by itself.
    Ended(String),
}

/// What a round needs.
pub(super) struct Round<'a> {
    pub(super) options: &'a ProcessOptions,
    pub(super) root: &'a Root,
    pub(super) turn: &'a Turn,
    /// The processes that this provider started itself: it alone can ask how they ended, and has to.
    pub(super) children: &'a mut BTreeMap<NodeId, Child>,
    pub(super) now: Timestamp,
}

impl Round<'_> {
    /// Goes through all nodes: those that never were, are gone, or failed long ago are removed; what is to end is told so, and killed
    /// when its grace is over.
    pub(super) fn run(&mut self) -> Result<BTreeMap<NodeId, Found>, FilesError> {
        let mut found = BTreeMap::new();
        let boot = files::boot();
        for dir in self.root.nodes(self.turn)? {
            let intent = dir.intent();
            // No process outlives a start of the machine, however much its number and time look like another's.
            let rebooted = intent.as_ref().is_some_and(|intent| intent.boot != boot);
            match self.examine(&dir, rebooted)? {
                Some(standing) => {
                    found.insert(dir.id, Found { dir, intent, standing });
                }
                None => {
                    dir.remove()?;
                    self.children.remove(&dir.id);
                }
            }
        }
        Ok(found)
    }

    /// None when nothing is left of it.
    fn examine(&mut self, dir: &NodeDir, rebooted: bool) -> Result<Option<Standing>, FilesError> {
        if let Some(ended) = dir.ended() {
            let old = self.now.since(Timestamp(ended.at_us)) >= self.options.keep_failed;
            return Ok((!old && dir.stop().is_none()).then_some(Standing::Ended(ended.error)));
        }
        let Some(identity) = dir.identity().filter(|_| !rebooted) else {
            return match rebooted && dir.identity().is_some() {
                true => self.has_ended(dir, "the machine was restarted"),
                false => Ok(self.half_made(dir)),
            };
        };
        match identity.life() {
            Life::Alive if !self.has_exited(dir.id, identity) => self.lives(dir, identity).map(Some),
            Life::Zombie => {
                // Whatever it left in its group; while it is a zombie its number is nobody else's.
                identity.kill();
                let status = self.reap(dir.id);
                self.has_ended(dir, &status)
            }
            Life::Gone | Life::Alive => {
                let status = self.reap(dir.id);
                self.has_ended(dir, &status)
            }
        }
    }

    /// There is no record of a process: one is being made, or was never.
    fn half_made(&self, dir: &NodeDir) -> Option<Standing> {
        // A process that holds the lock records itself before it runs, and one that recorded itself since the first look may have
        // ended since: the next round finds out.
        if dir.is_locked() || dir.identity().is_some() {
            return Some(Standing::Starting);
        }
        tracing::info!(node = %dir.id, "an order that was never carried out is dropped");
        None
    }

    fn lives(&self, dir: &NodeDir, identity: Identity) -> Result<Standing, FilesError> {
        let log = dir.file("agent.log");
        if let Err(error) = log::cut(&log, self.options.log_bytes) {
            // It is no reason to leave the agent alone.
            tracing::debug!(node = %dir.id, %error, "the agent's log cannot be cut");
        }
        let Some(stop) = dir.stop() else { return Ok(Standing::Running(identity)) };
        self.end(dir, identity, &stop)?;
        Ok(Standing::Stopping)
    }

    /// Tells it to end, once, and kills it when it has not ended within its grace.
    pub(super) fn end(&self, dir: &NodeDir, identity: Identity, stop: &Stop) -> Result<(), FilesError> {
        if !stop.told {
            identity.terminate();
            dir.set_stop(&Stop { told: true, ..stop.clone() })?;
        }
        if self.now.since(Timestamp(stop.at_us)) >= self.options.grace {
            tracing::warn!(node = %dir.id, grace = ?self.options.grace, "the agent has not ended within its grace and is killed");
            identity.kill();
        }
        Ok(())
    }

    /// One that was told to end is gone; one that was not has failed, and stays to be seen for a while.
    fn has_ended(&mut self, dir: &NodeDir, status: &str) -> Result<Option<Standing>, FilesError> {
        if dir.stop().is_some() {
            return Ok(None);
        }
        let tail = log::tail(&dir.file("agent.log"), TAIL);
        let error = match tail.as_str() {
            "" => format!("the agent ended by itself ({status}) and had written nothing"),
            tail => format!("the agent ended by itself ({status}); the end of its log:\n{tail}"),
        };
        tracing::warn!(node = %dir.id, %status, log = %last_line(&tail), "an agent ended by itself");
        dir.set_ended(&Ended { at_us: self.now.0, error: error.clone() })?;
        Ok(Some(Standing::Ended(error)))
    }

    /// Where the system does not tell zombies from the living, a child is asked for; nobody has to ask elsewhere.
    fn has_exited(&mut self, id: NodeId, identity: Identity) -> bool {
        let child = self.children.get_mut(&id).filter(|_| identity.is_coarse());
        child.is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// How it ended, if it is a child of this process.
    fn reap(&mut self, id: NodeId) -> String {
        // It has ended, so that this does not have to wait.
        let status = self.children.remove(&id).map(|mut child| child.try_wait());
        match status {
            Some(Ok(Some(status))) => status.to_string(),
            _ => "exit status unknown: it was started by another provider".into(),
        }
    }
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}
