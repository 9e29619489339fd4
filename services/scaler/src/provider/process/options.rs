//! How agents are started, and what they are told.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use millrace_core::id::NodeId;
use millrace_proto::provider::v1::RequestNodesRequest;

use crate::provider::{Clock, system_clock};

/// What agents get of this process's own environment. Not the rest: it may hold what is not theirs, and Millrace's variables would
/// configure them.
const INHERITED: [&str; 10] =
    ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "RUST_LOG", "MILLRACE_LOG", "RUST_BACKTRACE"];

/// How agents are run. [`ProcessOptions::new`] has the defaults.
#[derive(Clone)]
pub struct ProcessOptions {
    /// Where the agents' directories are. Made when it does not exist; providers that share it share the agents.
    pub dir: PathBuf,
    /// The program; none means the one that runs.
    pub program: Option<PathBuf>,
    /// Its arguments.
    pub args: Vec<String>,
    /// The distributors that agents connect to.
    pub distributors: Vec<String>,
    /// The scalers that agents attach to; none means that they attach to nobody.
    pub scalers: Vec<String>,
    /// More variables for agents; they come before those that this provider sets, and a template's come after.
    pub env: BTreeMap<String, String>,
    /// Agents at a time; more are OUT_OF_CAPACITY.
    pub max_nodes: usize,
    /// How long an agent has between SIGTERM and SIGKILL. An agent ends within its drain time-out (30 s), the grace of its commands
    /// (10 s) and 10 s more.
    pub grace: Duration,
    /// How long an agent that ended by itself is listed as FAILED.
    pub keep_failed: Duration,
    /// The largest log of an agent, in bytes; the older half of it is thrown away then. Looked at once a second while a provider runs.
    pub log_bytes: u64,
    /// The time.
    pub clock: Clock,
}

impl ProcessOptions {
    /// The defaults, with this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            program: None,
            args: vec!["orchestrator".into()],
            distributors: Vec::new(),
            scalers: Vec::new(),
            env: BTreeMap::new(),
            max_nodes: 64,
            grace: Duration::from_secs(60),
            keep_failed: Duration::from_secs(5 * 60),
            log_bytes: 1 << 20,
            clock: system_clock(),
        }
    }

    /// The program to run.
    pub(super) fn program(&self) -> std::io::Result<PathBuf> {
        match &self.program {
            Some(program) => Ok(program.clone()),
            None => Ok(installed(std::env::current_exe()?)),
        }
    }

    /// An agent's whole environment.
    ///
    /// # Errors
    /// What is wrong with the pool's template, for people.
    pub(super) fn environment(&self, order: &Order<'_>) -> Result<BTreeMap<String, String>, String> {
        let mut env: BTreeMap<String, String> = INHERITED
            .iter()
            .filter_map(|name| std::env::var(name).ok().map(|value| ((*name).to_owned(), value)))
            .chain(self.env.clone())
            .collect();
        let mut set = |name: &str, value: String| {
            if !value.is_empty() {
                env.insert(name.into(), value);
            }
        };
        let request = order.request;
        set("MILLRACE_ENDPOINT", self.distributors.join(","));
        set("MILLRACE_SCALER_ENDPOINT", self.scalers.join(","));
        set("MILLRACE_NODE_ID", order.id.to_string());
        set("MILLRACE_INSTANCE_ID", order.instance.into());
        set("MILLRACE_POOL", request.pool.clone());
        set("MILLRACE_NAME", name(&request.pool, order.id));
        set("MILLRACE_QUEUES", request.queues.join(","));
        set("MILLRACE_EXECUTORS", request.executor.clone());
        set("MILLRACE_STATE_DIR", order.state.display().to_string());
        if request.slots > 0 {
            set("MILLRACE_SLOTS", request.slots.to_string());
        }
        for (key, value) in &request.template {
            match variable(key) {
                Some(name) if !value.contains('\0') => set(name, value.clone()),
                Some(_) => return Err(format!("template key `{key}`: its value has a zero byte")),
                None => {
                    return Err(format!(
                        "template key `{key}` is not one of a process pool: boot, health, labels or env.NAME"
                    ));
                }
            }
        }
        Ok(env)
    }
}

/// An agent to be started.
pub(super) struct Order<'a> {
    pub(super) id: NodeId,
    pub(super) instance: &'a str,
    pub(super) state: &'a Path,
    pub(super) request: &'a RequestNodesRequest,
}

/// The variable that a key of a template sets; none when no template has such a key.
fn variable(key: &str) -> Option<&str> {
    match key {
        "boot" => Some("MILLRACE_BOOT_COMMAND"),
        "health" => Some("MILLRACE_HEALTH_COMMAND"),
        "labels" => Some("MILLRACE_LABELS"),
        other => other
            .strip_prefix("env.")
            .filter(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')),
    }
}

/// What the agent is called among the sessions: its pool, and what tells its node from others.
fn name(pool: &str, id: NodeId) -> String {
    let id = id.to_string();
    format!("{pool}-{}", id.rsplit('-').next().unwrap_or(&id))
}

/// The path of the program that runs, also after a new release was put in its place: the system then says that it is deleted.
fn installed(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(text) => PathBuf::from(text),
        None => path,
    }
}

impl fmt::Debug for ProcessOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the environment, which may hold what is nobody's business.
        f.debug_struct("ProcessOptions")
            .field("dir", &self.dir)
            .field("program", &self.program)
            .field("args", &self.args)
            .field("max_nodes", &self.max_nodes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(template: &[(&str, &str)]) -> Result<BTreeMap<String, String>, String> {
        let options = ProcessOptions {
            distributors: vec!["http://127.0.0.1:7601".into(), "http://127.0.0.1:7602".into()],
            scalers: vec!["http://127.0.0.1:7603".into()],
            env: BTreeMap::from([("EXTRA".into(), "1".into()), ("MILLRACE_POOL".into(), "not this".into())]),
            ..ProcessOptions::new("/nowhere")
        };
        let request = RequestNodesRequest {
            pool: "builds".into(),
            executor: "process".into(),
            slots: 2,
            queues: vec!["a".into(), "b".into()],
            template: template.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            ..RequestNodesRequest::default()
        };
        let id = "0190a0b0-0000-7000-8000-00000000002a".parse().unwrap();
        options.environment(&Order { id, instance: "agent-x", state: Path::new("/nowhere/state"), request: &request })
    }

    #[test]
    fn an_agent_is_told_what_it_needs_and_no_more() {
        let env = environment(&[("boot", "echo progress: 40 unpacking"), ("env.COLOR", "red")]).unwrap();
        let of = |name: &str| env.get(name).map(String::as_str);
        assert_eq!(of("MILLRACE_ENDPOINT"), Some("http://127.0.0.1:7601,http://127.0.0.1:7602"));
        assert_eq!(of("MILLRACE_SCALER_ENDPOINT"), Some("http://127.0.0.1:7603"));
        assert_eq!(of("MILLRACE_NODE_ID"), Some("0190a0b0-0000-7000-8000-00000000002a"));
        assert_eq!((of("MILLRACE_POOL"), of("MILLRACE_NAME")), (Some("builds"), Some("builds-00000000002a")));
        assert_eq!((of("MILLRACE_QUEUES"), of("MILLRACE_SLOTS")), (Some("a,b"), Some("2")));
        assert_eq!(of("MILLRACE_BOOT_COMMAND"), Some("echo progress: 40 unpacking"));
        assert_eq!((of("EXTRA"), of("COLOR")), (Some("1"), Some("red")));
        let own = std::env::vars().filter(|(name, _)| name.starts_with("CARGO")).count();
        assert!(own > 0 && !env.keys().any(|name| name.starts_with("CARGO")));
    }

    #[test]
    fn a_key_that_nobody_knows_is_named() {
        assert!(environment(&[("image", "x")]).unwrap_err().contains("`image`"));
        assert!(environment(&[("env.A=B", "x")]).is_err() && environment(&[("env.", "x")]).is_err());
        assert!(environment(&[("boot", "a\0b")]).is_err());
    }

    #[test]
    fn a_replaced_program_is_found_where_it_was() {
        assert_eq!(installed("/usr/bin/millrace (deleted)".into()), Path::new("/usr/bin/millrace"));
        assert_eq!(installed("/usr/bin/millrace".into()), Path::new("/usr/bin/millrace"));
    }
}
