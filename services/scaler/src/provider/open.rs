//! Which providers an operator wants: `--provider NAME=process` and the like.

use std::{collections::BTreeSet, fmt, path::PathBuf, str::FromStr, sync::Arc};

use millrace_core::{fleet::Pool, id::is_name};
use millrace_proto::provider::v1::node_provider_service_server::NodeProviderService;

use super::{
    Clock, ExternalGrpc, InvalidEndpoint, Process, ProcessOptions, Remote, Simulated, externalgrpc,
    process::FilesError,
    simulated::{Script, ScriptError},
};

/// What may be written, for messages.
const FORMS: &str = "NAME=process, NAME=simulated:FILE.toml, NAME=grpc://HOST:PORT or NAME=externalgrpc://HOST:PORT";

/// A provider that an operator wants, as it was written. A `value_parser` of clap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// What pools call it.
    pub name: String,
    /// Of which kind.
    pub kind: Kind,
}

/// A kind of provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Agents on this machine.
    Process,
    /// One in memory, with the script in this file.
    Simulated(PathBuf),
    /// One that speaks Millrace's contract, at HOST:PORT.
    Remote(String),
    /// One that speaks the cluster-autoscaler's contract, at HOST:PORT.
    ExternalGrpc(String),
}

/// The text does not say which provider is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: {problem}; write {FORMS}")]
pub struct InvalidSpec {
    text: String,
    problem: String,
}

/// What providers need beside their spec.
#[derive(Clone)]
pub struct OpenOptions {
    /// How agents are run; each provider of processes has the directory of its name in this one's.
    pub process: ProcessOptions,
    /// How node groups are worked with.
    pub externalgrpc: externalgrpc::Options,
    /// The time of simulated providers.
    pub clock: Clock,
}

/// Why a provider could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The agents' directory cannot be used.
    #[error("provider {name}: {source}")]
    Process {
        /// The provider.
        name: String,
        /// What went wrong.
        source: FilesError,
    },
    /// The script cannot be used.
    #[error("provider {name}: {source}")]
    Script {
        /// The provider.
        name: String,
        /// What went wrong.
        source: ScriptError,
    },
    /// The address cannot be used.
    #[error("provider {name}: {source}")]
    Endpoint {
        /// The provider.
        name: String,
        /// What went wrong.
        source: InvalidEndpoint,
    },
}

/// A provider that can be called.
#[derive(Clone)]
pub struct Opened {
    /// What pools call it.
    pub name: String,
    /// What to call.
    pub service: Arc<dyn NodeProviderService>,
    process: Option<Arc<Process>>,
    external: Option<Arc<ExternalGrpc>>,
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions").field("process", &self.process).finish_non_exhaustive()
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("name", &self.name).finish_non_exhaustive()
    }
}

impl FromStr for Spec {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let invalid = |problem: String| InvalidSpec { text: text.to_owned(), problem };
        let (name, kind) = text.split_once('=').ok_or_else(|| invalid("there is no `=`".into()))?;
        if !is_name(name) {
            return Err(invalid(format!("`{name}` is no name: 1 to 63 of a-z, 0-9, `.`, `_` and `-`, not first")));
        }
        let kind = match kind.split_once(':') {
            None if kind == "process" => Kind::Process,
            Some(("simulated", file)) if !file.is_empty() => Kind::Simulated(file.into()),
            Some(("simulated", _)) => return Err(invalid("the file is missing".into())),
            None if kind == "simulated" => return Err(invalid("the file is missing".into())),
            Some(("grpc", rest)) => Kind::Remote(address(rest).map_err(invalid)?),
            Some(("externalgrpc", rest)) => Kind::ExternalGrpc(address(rest).map_err(invalid)?),
            _ => return Err(invalid(format!("there is no provider `{kind}`"))),
        };
        Ok(Self { name: name.into(), kind })
    }
}

/// Reads `//HOST:PORT`.
fn address(text: &str) -> Result<String, String> {
    let wrong = || format!("`{}` is not HOST:PORT", text.trim_start_matches('/'));
    let address = text.strip_prefix("//").ok_or_else(wrong)?;
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let good_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    match good_host && port.parse::<u16>().is_ok_and(|port| port > 0) {
        true => Ok(address.to_owned()),
        false => Err(wrong()),
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.kind {
            Kind::Process => write!(f, "{name}=process"),
            Kind::Simulated(file) => write!(f, "{name}=simulated:{}", file.display()),
            Kind::Remote(address) => write!(f, "{name}=grpc://{address}"),
            Kind::ExternalGrpc(address) => write!(f, "{name}=externalgrpc://{address}"),
        }
    }
}

/// Whether every provider has a name of its own.
///
/// # Errors
/// The first name that two have.
pub fn check_names(specs: &[Spec]) -> Result<(), InvalidSpec> {
    let mut names = BTreeSet::new();
    match specs.iter().find(|spec| !names.insert(&spec.name)) {
        Some(spec) => {
            Err(InvalidSpec { text: spec.to_string(), problem: format!("there is a provider {} already", spec.name) })
        }
        None => Ok(()),
    }
}

impl Spec {
    /// Whether it can be opened, as far as can be told without opening it: a script is read.
    ///
    /// # Errors
    /// A script that cannot be read.
    pub fn check(&self) -> Result<(), OpenError> {
        match &self.kind {
            Kind::Simulated(file) => self.script(file).map(drop),
            Kind::Process | Kind::Remote(_) | Kind::ExternalGrpc(_) => Ok(()),
        }
    }

    /// Opens it. Nobody is called yet: those of other processes are connected to with the first call. To be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// A directory, a script or an address that cannot be used.
    pub fn open(&self, options: &OpenOptions) -> Result<Opened, OpenError> {
        let name = self.name.clone();
        let endpoint = |source| OpenError::Endpoint { name: self.name.clone(), source };
        match &self.kind {
            Kind::Process => {
                let own = ProcessOptions { dir: options.process.dir.join(&name), ..options.process.clone() };
                let process = Process::open(own).map_err(|source| OpenError::Process { name: name.clone(), source })?;
                let process = Arc::new(process);
                Ok(Opened { name, service: process.clone(), process: Some(process), external: None })
            }
            Kind::Simulated(file) => {
                let simulated = Simulated::unwatched(self.script(file)?, Arc::clone(&options.clock));
                Ok(Opened { name, service: Arc::new(simulated), process: None, external: None })
            }
            Kind::Remote(address) => {
                let remote = Remote::new(&format!("http://{address}")).map_err(endpoint)?;
                Ok(Opened { name, service: Arc::new(remote), process: None, external: None })
            }
            Kind::ExternalGrpc(address) => {
                let external = ExternalGrpc::new(&format!("http://{address}"), options.externalgrpc);
                let external = Arc::new(external.map_err(endpoint)?);
                Ok(Opened { name, service: external.clone(), process: None, external: Some(external) })
            }
        }
    }

    fn script(&self, file: &std::path::Path) -> Result<Script, OpenError> {
        Script::read(file).map_err(|source| OpenError::Script { name: self.name.clone(), source })
    }
}

impl Opened {
    /// Tells it which pools are its own, before the first listing and whenever they have changed. Pools of other providers are left out
    /// here. Only node groups need to know.
    pub fn assign(&self, pools: &[Pool]) {
        if let Some(external) = &self.external {
            let own = |pool: &&Pool| pool.provider == self.name;
            external.assign(&pools.iter().filter(own).cloned().collect::<Vec<_>>());
        }
    }

    /// Ends every node that would not be there without this process: agents on this machine, and waits until they have ended. Nothing
    /// calls it by itself: a scaler that stops leaves fleets as they are.
    ///
    /// # Errors
    /// A directory that cannot be used.
    pub async fn end_all(&self) -> Result<(), FilesError> {
        match &self.process {
            Some(process) => process.end_all().await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_alike() {
        for (text, kind) in [
            ("local=process", Kind::Process),
            ("sim=simulated:fleet/a=b.toml", Kind::Simulated("fleet/a=b.toml".into())),
            ("cloud=grpc://cloud.example:7700", Kind::Remote("cloud.example:7700".into())),
            ("k8s=externalgrpc://[::1]:8086", Kind::ExternalGrpc("[::1]:8086".into())),
        ] {
            let spec: Spec = text.parse().unwrap();
            assert_eq!(spec.kind, kind);
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_allowed() {
        for (text, says) in [
            ("process", "no `=`"),
            ("Local=process", "`Local` is no name"),
            ("=process", "`` is no name"),
            ("a=proces", "no provider `proces`"),
            ("a=process:x", "no provider `process:x`"),
            ("a=simulated", "the file is missing"),
            ("a=simulated:", "the file is missing"),
            ("a=grpc:host:1", "not HOST:PORT"),
            ("a=grpc://host", "`host` is not HOST:PORT"),
            ("a=grpc://host:0", "not HOST:PORT"),
            ("a=grpc://host:99999", "not HOST:PORT"),
            ("a=externalgrpc://:80", "not HOST:PORT"),
            ("a=grpc://ho st:80", "not HOST:PORT"),
            ("a=http://host:80", "no provider `http://host:80`"),
        ] {
            let error = text.parse::<Spec>().unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("externalgrpc://HOST:PORT"), "{text}: {error}");
        }
        let specs: Vec<Spec> = ["a=process", "b=process", "a=grpc://h:1"].map(|text| text.parse().unwrap()).into();
        assert!(check_names(&specs[..2]).is_ok());
        assert!(check_names(&specs).unwrap_err().to_string().contains("a provider a already"));
    }
}
