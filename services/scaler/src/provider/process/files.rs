//! The files of the agents, in one directory each.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use millrace_core::{id::NodeId, time::Timestamp};
use millrace_runtime::status::Fault;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::agent::Identity;

/// How long a call waits for its turn, and how often it asks. Others hold the lock for as long as it takes to start a call's agents.
const TURN: (Duration, Duration) = (Duration::from_secs(4), Duration::from_millis(5));

/// Why the agents on this machine cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file or directory cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Another provider has held the directory for too long.
    #[error("another provider has worked in {} for {:?}", .0.display(), TURN.0)]
    Busy(PathBuf),
    /// The process shuts down.
    #[error("the work was interrupted by a shutdown")]
    Interrupted,
}

impl From<FilesError> for Fault {
    fn from(error: FilesError) -> Self {
        match error {
            FilesError::Io { .. } => Fault::internal(error.to_string()),
            FilesError::Busy(_) | FilesError::Interrupted => {
                Fault::unavailable(error.to_string(), Duration::from_secs(1))
            }
        }
    }
}

impl From<FilesError> for tonic::Status {
    fn from(error: FilesError) -> Self {
        Fault::from(error).into()
    }
}

/// Where all of them are.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
}

/// Held while files are read and written together.
#[derive(Debug)]
pub(super) struct Turn {
    _lock: File,
}

/// The directory of one node.
#[derive(Debug)]
pub(super) struct NodeDir {
    pub(super) id: NodeId,
    path: PathBuf,
}

/// What was asked; written before anything is done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Intent {
    pub(super) pool: String,
    pub(super) zone: String,
    /// When, in microseconds since 1970.
    pub(super) at_us: i64,
    /// Between which starts of the machine: no process outlives one.
    pub(super) boot: String,
}

/// That it is to end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Stop {
    /// Since when, in microseconds since 1970.
    pub(super) at_us: i64,
    /// Whether the agent has been told. A second signal would have it leave at once.
    pub(super) told: bool,
}

/// That it ended by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Ended {
    /// When that was found out, in microseconds since 1970.
    pub(super) at_us: i64,
    /// With what, for people.
    pub(super) error: String,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self, FilesError> {
        let nodes = path.join("nodes");
        // What agents write is for their user alone.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&nodes).map_err(failed(&nodes))?;
        // Agents are given their directory as it is, and work in it.
        Ok(Self { path: fs::canonicalize(path).map_err(failed(path))? })
    }

    /// Waits for the turn.
    pub(super) fn turn(&self) -> Result<Turn, FilesError> {
        let path = self.path.join("lock");
        let file = File::create(&path).map_err(failed(&path))?;
        let mut waited = Duration::ZERO;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Turn { _lock: file }),
                Err(fs::TryLockError::Error(source)) => return Err(failed(&path)(source)),
                Err(fs::TryLockError::WouldBlock) if waited >= TURN.0 => {
                    return Err(FilesError::Busy(self.path.clone()));
                }
                Err(fs::TryLockError::WouldBlock) => std::thread::sleep(TURN.1),
            }
            waited += TURN.1;
        }
    }

    pub(super) fn node(&self, id: NodeId) -> NodeDir {
        NodeDir { id, path: self.path.join("nodes").join(id.to_string()) }
    }

    /// All nodes, in the order of their ids. What is not named like a node is none.
    pub(super) fn nodes(&self, _turn: &Turn) -> Result<Vec<NodeDir>, FilesError> {
        let path = self.path.join("nodes");
        let mut ids = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed(&path))? {
            let name = entry.map_err(failed(&path))?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<NodeId>().ok()));
        }
        ids.sort_unstable();
        Ok(ids.into_iter().map(|id| self.node(id)).collect())
    }
}

impl NodeDir {
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it, with the intent in it.
    pub(super) fn intend(&self, intent: &Intent) -> Result<(), FilesError> {
        let state = self.file("state");
        fs::create_dir_all(&state).map_err(failed(&state))?;
        self.write("intent.json", intent)
    }

    /// None when it was not written whole, as after a power cut, or never.
    pub(super) fn intent(&self) -> Option<Intent> {
        self.read("intent.json")
    }

    pub(super) fn stop(&self) -> Option<Stop> {
        self.read("stop.json")
    }

    pub(super) fn set_stop(&self, stop: &Stop) -> Result<(), FilesError> {
        self.write("stop.json", stop)
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        self.read("ended.json")
    }

    pub(super) fn set_ended(&self, ended: &Ended) -> Result<(), FilesError> {
        self.write("ended.json", ended)
    }

    /// What its process has recorded of itself.
    pub(super) fn identity(&self) -> Option<Identity> {
        Identity::read(&fs::read_to_string(self.file("process")).ok()?)
    }

    /// The file for the process to record itself in, emptied.
    pub(super) fn record(&self) -> Result<File, FilesError> {
        let path = self.file("process");
        File::create(&path).map_err(failed(&path))
    }

    /// Locks it for the process that is about to be started. None when a process holds it already.
    pub(super) fn lock(&self) -> Result<Option<File>, FilesError> {
        let path = self.file("alive");
        let file = File::create(&path).map_err(failed(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(source)) => Err(failed(&path)(source)),
        }
    }

    /// Whether a process holds the lock.
    pub(super) fn is_locked(&self) -> bool {
        File::open(self.file("alive")).is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
    }

    /// Removes it with all that is in it. One that is gone already is as good.
    pub(super) fn remove(&self) -> Result<(), FilesError> {
        // The intent last, as far as that can be had: a half-removed directory is one of a node that never was.
        let gone = |result: io::Result<()>, path: &Path| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path)(error)),
            _ => Ok(()),
        };
        for name in ["stop.json", "ended.json", "process"] {
            let path = self.file(name);
            gone(fs::remove_file(&path), &path)?;
        }
        gone(fs::remove_dir_all(&self.path), &self.path)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.file(name)).ok()?).ok()
    }

    /// All or nothing: a reader sees the file before or after.
    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), FilesError> {
        let (path, new) = (self.file(name), self.file(&format!("{name}.new")));
        let bytes = serde_json::to_vec(value).map_err(|error| failed(&path)(error.into()))?;
        fs::write(&new, bytes).map_err(failed(&new))?;
        fs::rename(&new, &path).map_err(failed(&path))
    }
}

impl Intent {
    pub(super) fn at(&self) -> Timestamp {
        Timestamp(self.at_us)
    }
}

/// Which start of the machine this is; empty where the system does not tell.
pub(super) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

pub(super) fn failed(path: &Path) -> impl Fn(io::Error) -> FilesError + use<> {
    let path = path.to_owned();
    move |source| FilesError::Io { path: path.clone(), source }
}
