//! The flags of an agent that is a node of a pool.

use millrace_core::id::is_name;
use uuid::Uuid;

use crate::InvalidOptions;

/// Most bytes of a provider's name of a node.
const INSTANCE_BYTES: usize = 256;

/// What makes an agent a node of a pool: a provider sets it when it makes the machine.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "On a node of a pool")]
pub struct NodeSettings {
    /// A scaler; repeat it for several. An agent that knows its node attaches to it from the start of its boot, and goes on
    /// working while no scaler answers
    #[arg(
        long = "scaler-endpoint",
        env = "MILLRACE_SCALER_ENDPOINT",
        value_name = "URI",
        value_delimiter = ',',
        value_parser = super::settings::with_scheme
    )]
    pub scaler_endpoints: Vec<String>,

    /// The node that this machine is: the UUID that its provider was given
    #[arg(long, env = "MILLRACE_NODE_ID", value_name = "UUID")]
    pub node_id: Option<String>,

    /// The pool that the node belongs to
    #[arg(long, env = "MILLRACE_POOL", value_name = "NAME")]
    pub pool: Option<String>,

    /// The provider's own name of this machine; with --pool it stands in for --node-id
    #[arg(long, env = "MILLRACE_INSTANCE_ID", value_name = "NAME")]
    pub instance_id: Option<String>,

    /// A shell command to run before any work is asked for. Lines of its output such as `progress: 40 fetching the image`
    /// tell the scaler how far the boot is; when it fails, the agent says why and exits. What it leaves running is killed
    /// with it unless it has left its process group
    #[arg(long, env = "MILLRACE_BOOT_COMMAND", value_name = "COMMAND")]
    pub boot_command: Option<String>,

    /// A shell command, run every 5 s, that succeeds once the provider is about to take this machine away; its output may be
    /// the time, in RFC 3339. From then on no work is asked for
    #[arg(long, env = "MILLRACE_SPOT_COMMAND", value_name = "COMMAND")]
    pub spot_command: Option<String>,
}

/// How a node calls itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Empty until it is known.
    pub(crate) node_id: String,
    /// May be empty.
    pub(crate) instance_id: String,
    /// May be empty when the id is known.
    pub(crate) pool: String,
}

impl NodeSettings {
    /// Whether they make sense.
    ///
    /// # Errors
    /// The first that is out of its bounds.
    pub(crate) fn check(&self) -> Result<(), InvalidOptions> {
        let check = |good: bool, option, problem: String| match good {
            true => Ok(()),
            false => Err(InvalidOptions { option, problem }),
        };
        for endpoint in &self.scaler_endpoints {
            let uri: Result<http::Uri, _> = endpoint.parse();
            let good = uri.is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
            check(good, "scaler_endpoint", format!("`{endpoint}` is not a URI such as http://127.0.0.1:7603"))?;
        }
        if let Some(id) = given(&self.node_id) {
            check(Uuid::try_parse(id).is_ok(), "node_id", format!("`{id:.64}` is not a UUID"))?;
        }
        if let Some(pool) = given(&self.pool) {
            check(is_name(pool), "pool", format!("`{pool:.64}` is not a pool's name"))?;
        }
        let instance = given(&self.instance_id).unwrap_or_default();
        check(instance.len() <= INSTANCE_BYTES, "instance_id", format!("at most {INSTANCE_BYTES} bytes are allowed"))?;
        let nameless = !instance.is_empty() && given(&self.node_id).is_none() && given(&self.pool).is_none();
        check(!nameless, "instance_id", "without --node-id it needs --pool".into())
    }

    /// How this node calls itself to its scaler; none when the agent is no node, or knows no scaler.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let own = |value: &Option<String>| given(value).unwrap_or_default().to_owned();
        let identity =
            Identity { node_id: own(&self.node_id), instance_id: own(&self.instance_id), pool: own(&self.pool) };
        let known = !identity.node_id.is_empty() || !identity.instance_id.is_empty();
        if !known && !self.scaler_endpoints.is_empty() {
            // The variable is also that of the commands that talk to a scaler, so this is no mistake in itself.
            tracing::warn!("a scaler is set but neither --node-id nor --instance-id: this agent is no node of a pool");
        }
        (known && !self.scaler_endpoints.is_empty()).then_some(identity)
    }
}

/// A value that is set; an empty variable counts as unset.
fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(node: &str, pool: &str, instance: &str) -> NodeSettings {
        let set = |value: &str| Some(value.to_owned());
        NodeSettings {
            scaler_endpoints: vec!["http://127.0.0.1:7603".into()],
            node_id: set(node),
            pool: set(pool),
            instance_id: set(instance),
            ..NodeSettings::default()
        }
    }

    #[test]
    fn a_node_names_itself_or_its_machine_and_pool() {
        let id = Uuid::from_u128(7).to_string();
        for (node, pool, instance, problem) in [
            (id.as_str(), "", "", None),
            (id.as_str(), "builds", "i-1", None),
            ("", "builds", "i-1", None),
            ("", "", "", None),
            ("", "", "i-1", Some("instance_id")),
            ("seven", "", "", Some("node_id")),
            (id.as_str(), "No Name", "", Some("pool")),
        ] {
            let found = settings(node, pool, instance).check().err().map(|error| error.option);
            assert_eq!(found, problem, "{node} {pool} {instance}");
        }
        let elsewhere = NodeSettings { scaler_endpoints: vec!["127.0.0.1:7603".into()], ..NodeSettings::default() };
        assert_eq!(elsewhere.check().unwrap_err().option, "scaler_endpoint");
    }

    #[test]
    fn an_agent_without_a_name_or_a_scaler_attaches_to_none() {
        let id = Uuid::from_u128(7).to_string();
        assert!(settings(&id, "", "").identity().is_some() && settings("", "builds", "i-1").identity().is_some());
        assert_eq!(settings("", "builds", "").identity(), None);
        let alone = NodeSettings { scaler_endpoints: Vec::new(), ..settings(&id, "", "") };
        assert_eq!(alone.identity(), None);
    }
}
