//! Where the services are, and the connection to one of them.

use std::error::Error;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Uri};

use crate::exit::Failure;

/// Where `millrace dev` serves everything.
pub(crate) const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7600";

/// A service that client commands talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Tasks and routes.
    Distributor,
    /// Queues.
    Queue,
    /// Pools and nodes.
    Scaler,
}

impl Service {
    /// Its name in a sentence.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Service::Distributor => "distributor",
            Service::Queue => "queue service",
            Service::Scaler => "scaler",
        }
    }

    /// The variable that says where this one service is.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Service::Distributor => "MILLRACE_DISTRIBUTOR_ENDPOINT",
            Service::Queue => "MILLRACE_QUEUE_ENDPOINT",
            Service::Scaler => "MILLRACE_SCALER_ENDPOINT",
        }
    }
}

/// `--endpoint`, and whether it was typed: what the configuration file says counts less than the environment, whose
/// variables clap cannot know, as they depend on the service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EndpointFlag {
    /// From the command line; empty when it was not given.
    typed: Vec<String>,
    /// From the configuration file.
    configured: Vec<String>,
}

impl clap::Args for EndpointFlag {
    fn augment_args(command: clap::Command) -> clap::Command {
        let help = "Where the service is: http://HOST:PORT or HOST:PORT, or several with commas between them, of which \
                    the next is tried when one does not answer. Without it MILLRACE_DISTRIBUTOR_ENDPOINT, \
                    MILLRACE_QUEUE_ENDPOINT or MILLRACE_SCALER_ENDPOINT counts, then MILLRACE_ENDPOINT, then \
                    http://127.0.0.1:7600";
        let flag = clap::Arg::new("endpoint").long("endpoint").value_name("URL").help(help);
        command.arg(flag.action(clap::ArgAction::Append).value_delimiter(','))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for EndpointFlag {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let values = matches.get_many::<String>("endpoint").unwrap_or_default().cloned().collect();
        Ok(match matches.value_source("endpoint") {
            Some(clap::parser::ValueSource::CommandLine) => EndpointFlag { typed: values, configured: Vec::new() },
            _ => EndpointFlag { typed: Vec::new(), configured: values },
        })
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The endpoints of a service, at least one, in the order in which they are tried: the flag's, else those of the service's
/// own variable, else of MILLRACE_ENDPOINT, else of the configuration file, else the default. `variable` reads the
/// environment; an empty variable counts as unset.
pub(crate) fn resolve(
    flag: &EndpointFlag,
    service: Service,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, Failure> {
    let set = |name: &'static str| {
        let values: Vec<_> = variable(name)?.split(',').map(str::to_owned).collect();
        values.iter().any(|value| !value.trim().is_empty()).then_some((name, values))
    };
    let given = |source: &'static str, values: &[String]| (!values.is_empty()).then(|| (source, values.to_vec()));
    let (source, values) = given("--endpoint", &flag.typed)
        .or_else(|| set(service.variable()))
        .or_else(|| set("MILLRACE_ENDPOINT"))
        .or_else(|| given("endpoint in the configuration file", &flag.configured))
        .unwrap_or_else(|| ("default", vec![DEFAULT_ENDPOINT.to_owned()]));
    let mut endpoints = Vec::new();
    for value in values {
        let wrong = |why| Failure::Usage(format!("{source}: '{value}' is no endpoint: {why}"));
        let endpoint = parse(&value).map_err(wrong)?;
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    Ok(endpoints)
}

/// Checks an endpoint and completes it: `host:port` becomes `http://host:port`.
pub(crate) fn parse(value: &str) -> Result<String, &'static str> {
    let value = value.trim().trim_end_matches('/');
    let full = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let uri: Uri = full.parse().map_err(|_| "write http://HOST:PORT or HOST:PORT")?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err("this release speaks plain http:// only"),
        _ => return Err("only http:// is served"),
    }
    if uri.port_u16().is_none_or(|port| port == 0) {
        return Err("it needs a port, such as 127.0.0.1:7600");
    }
    if uri.path() != "/" || uri.query().is_some() {
        return Err("it is a host and a port, without a path");
    }
    Ok(full)
}

/// How one endpoint is dialled.
pub(crate) fn dial(endpoint: &str, connect_timeout: Duration) -> Result<Endpoint, Failure> {
    let dial = Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| Failure::Usage(format!("'{endpoint}' is no endpoint: {error}")))?;
    Ok(dial
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        // A watch may be silent for hours: pings tell a quiet peer from one that is gone.
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true))
}

/// Opens a connection, which then reconnects by itself. The error is the reason why the first attempt failed.
pub(crate) async fn connect(dial: &Endpoint, timeout: Duration) -> Result<Channel, String> {
    match tokio::time::timeout(timeout, dial.connect()).await {
        Ok(connected) => connected.map_err(|error| root_cause(&error)),
        Err(_) => Err(format!("no connection within {}", crate::time::short(timeout))),
    }
}

/// The sentence for a service that does not answer at any of these endpoints, each with the reason.
pub(crate) fn unreachable(service: Service, tried: &[(&str, String)]) -> String {
    let tried: Vec<_> = tried.iter().map(|(endpoint, why)| format!("at {endpoint}: {why}")).collect();
    format!(
        "cannot reach the {} {}; is it running? `millrace dev` starts everything, --endpoint or {} says where it is",
        service.name(),
        tried.join(", nor "),
        service.variable()
    )
}

/// The innermost error of a chain, which is the one that says something.
pub(crate) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    // A chain of errors is finite in practice; the bound keeps a cyclic one from hanging the command.
    for _ in 0..16 {
        match innermost.source() {
            Some(source) => innermost = source,
            None => break,
        }
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    fn typed(value: &str) -> EndpointFlag {
        EndpointFlag { typed: vec![value.into()], configured: Vec::new() }
    }

    #[test]
    fn the_closest_word_wins() {
        let both = with(&[("MILLRACE_ENDPOINT", "all:1"), ("MILLRACE_QUEUE_ENDPOINT", "queue:2")]);
        let none = EndpointFlag::default();
        assert_eq!(resolve(&none, Service::Queue, &both).unwrap(), ["http://queue:2"]);
        assert_eq!(resolve(&none, Service::Distributor, &both).unwrap(), ["http://all:1"]);
        assert_eq!(resolve(&typed("flag:3"), Service::Queue, &both).unwrap(), ["http://flag:3"]);
        assert_eq!(resolve(&none, Service::Queue, with(&[])).unwrap(), [DEFAULT_ENDPOINT]);
        assert_eq!(resolve(&none, Service::Queue, with(&[("MILLRACE_ENDPOINT", " ")])).unwrap(), [DEFAULT_ENDPOINT]);
        let configured = EndpointFlag { typed: Vec::new(), configured: vec!["file:4".into()] };
        assert_eq!(resolve(&configured, Service::Distributor, &both).unwrap(), ["http://all:1"]);
        assert_eq!(resolve(&configured, Service::Distributor, with(&[])).unwrap(), ["http://file:4"]);
    }

    #[test]
    fn a_list_keeps_its_order_and_names_each_once() {
        let list = with(&[("MILLRACE_ENDPOINT", "http://a:1, b:2,a:1")]);
        let none = EndpointFlag::default();
        assert_eq!(resolve(&none, Service::Distributor, list).unwrap(), ["http://a:1", "http://b:2"]);
        let wrong = resolve(&none, Service::Distributor, with(&[("MILLRACE_ENDPOINT", "a:1,,b:2")])).unwrap_err();
        assert_eq!(wrong.code(), 64);
    }

    #[test]
    fn a_scheme_is_not_needed_and_a_port_is() {
        assert_eq!(parse("127.0.0.1:7600").as_deref(), Ok("http://127.0.0.1:7600"));
        assert_eq!(parse("[::1]:7600").as_deref(), Ok("http://[::1]:7600"));
        assert_eq!(parse("http://host:7600/").as_deref(), Ok("http://host:7600"));
        for wrong in [
            "",
            "host",
            "http://host",
            "https://host:1",
            "ftp://host:1",
            "host:port",
            "host:0",
            "http://host:1/path",
            "a b:1",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_endpoint_names_its_source() {
        let failure =
            resolve(&EndpointFlag::default(), Service::Queue, with(&[("MILLRACE_ENDPOINT", "nowhere")])).unwrap_err();
        assert_eq!(failure.code(), 64);
        assert!(failure.to_string().starts_with("MILLRACE_ENDPOINT: 'nowhere'"), "{failure}");
    }
}
