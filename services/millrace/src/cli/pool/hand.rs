//! A pool's size by hand: `pool override` and `clear-override`.

use std::time::{Duration, SystemTime};

use millrace_proto::scaler::v1::{ClearPoolOverrideRequest, OverridePoolRequest, PoolOverride};
use prost_types::Timestamp;

use super::edit::print;
use super::show::override_text;
use super::spec::nodes;
use crate::client::{Client, ClientArgs, request_id};
use crate::endpoint::Service;
use crate::exit::Failure;
use crate::time::{parse_duration, parse_moment};

/// Flags of `pool override`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("end").required(true).args(["until", "for_time"]))]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true)
    .args(["nodes", "min", "max", "no_terminations", "no_launches"]))]
pub(crate) struct OverrideArgs {
    /// The pool's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// Why, for whoever finds it.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Whose doing it is. Without it the user of this shell.
    #[arg(long, value_name = "NAME", env = "USER")]
    owner: Option<String>,
    /// How long it holds, at most 7d.
    #[arg(long = "for", id = "for_time", value_name = "DURATION", value_parser = parse_duration)]
    lasts: Option<Duration>,
    /// Until when it holds: RFC 3339, or +2h from now; at most 7 days ahead.
    #[arg(long, value_name = "TIME", value_parser = parse_until)]
    until: Option<Timestamp>,
    /// The size.
    #[arg(long, value_name = "COUNT", value_parser = nodes())]
    nodes: Option<i32>,
    /// The least size; within it the policy decides.
    #[arg(long, value_name = "COUNT", value_parser = nodes())]
    min: Option<i32>,
    /// The greatest size; within it the policy decides.
    #[arg(long, value_name = "COUNT", value_parser = nodes())]
    max: Option<i32>,
    /// No node is ended meanwhile.
    #[arg(long)]
    no_terminations: bool,
    /// No node is launched meanwhile.
    #[arg(long)]
    no_launches: bool,
    #[command(flatten)]
    client: ClientArgs,
}

fn parse_until(text: &str) -> Result<Timestamp, String> {
    parse_moment(text, SystemTime::now())
}

/// Flags of `pool clear-override`.
#[derive(Debug, clap::Args)]
pub(crate) struct ClearArgs {
    /// The pool's name.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    client: ClientArgs,
}

impl OverrideArgs {
    /// The override, or what is missing or contradicts itself.
    fn by_hand(&self, now: SystemTime) -> Result<PoolOverride, Failure> {
        let usage = |text: &str| Failure::Usage(text.to_owned());
        let owner = self.owner.as_deref().map(str::trim).filter(|owner| !owner.is_empty());
        let owner = owner.ok_or_else(|| usage("whose doing is it? say it with --owner"))?;
        if self.reason.trim().is_empty() {
            return Err(usage("--reason: a reason has words"));
        }
        let until = match (self.until, self.lasts) {
            (Some(until), _) => until,
            (None, Some(lasts)) => now.checked_add(lasts).ok_or_else(|| usage("--for: that is too long"))?.into(),
            (None, None) => return Err(usage("how long does it hold? --for or --until")),
        };
        let above = |low: Option<i32>, high: Option<i32>| low.zip(high).is_some_and(|(low, high)| low > high);
        if above(self.min, self.max) || above(self.min, self.nodes) || above(self.nodes, self.max) {
            return Err(usage("--min, --nodes and --max contradict each other"));
        }
        Ok(PoolOverride {
            owner: owner.to_owned(),
            reason: self.reason.clone(),
            expire_time: Some(until),
            min_nodes: self.min,
            max_nodes: self.max,
            desired_nodes: self.nodes,
            no_terminations: self.no_terminations,
            no_launches: self.no_launches,
            create_time: None,
        })
    }
}

/// Sets an override.
pub(crate) async fn set(args: OverrideArgs) -> Result<(), Failure> {
    let by_hand = args.by_hand(SystemTime::now())?;
    let client = Client::connect(&args.client, Service::Scaler).await?;
    let request =
        OverridePoolRequest { request_id: request_id(), name: args.name.clone(), r#override: Some(by_hand.clone()) };
    let answer = client.change(|| {
        let (mut calls, request) = (client.scaler(), request.clone());
        async move { calls.override_pool(request).await }
    });
    let pool = answer.await?.pool;
    let stored = pool.as_ref().and_then(|pool| pool.r#override.clone()).unwrap_or(by_hand);
    print(args.client.output, pool, &format!("is set by hand: {}", override_text(&stored)))
}

/// Ends an override.
pub(crate) async fn clear(args: ClearArgs) -> Result<(), Failure> {
    let client = Client::connect(&args.client, Service::Scaler).await?;
    let request = ClearPoolOverrideRequest { request_id: request_id(), name: args.name };
    let answer = client.change(|| {
        let (mut calls, request) = (client.scaler(), request.clone());
        async move { calls.clear_pool_override(request).await }
    });
    print(args.client.output, answer.await?.pool, "is left to the policy")
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: OverrideArgs,
    }

    fn read(args: &[&str]) -> Result<OverrideArgs, clap::Error> {
        Ok(Line::try_parse_from([&["x", "p"], args].concat())?.args)
    }

    #[test]
    fn an_override_says_what_until_when_and_why() {
        let now = UNIX_EPOCH + Duration::from_secs(100);
        let by_hand = |args: &[&str]| read(args).unwrap().by_hand(now);
        let given = by_hand(&["--nodes", "5", "--no-launches", "--for", "1m", "--reason", "why", "--owner", "me"]);
        let given = given.unwrap();
        assert_eq!((given.desired_nodes, given.no_launches, given.expire_time.unwrap().seconds), (Some(5), true, 160));
        assert_eq!((given.owner.as_str(), given.reason.as_str(), given.min_nodes), ("me", "why", None));
        for wrong in [
            &["--nodes", "5", "--for", "1m", "--reason", " ", "--owner", "me"][..],
            &["--nodes", "5", "--max", "4", "--for", "1m", "--reason", "why", "--owner", "me"],
            &["--nodes", "5", "--for", "1m", "--reason", "why", "--owner", ""],
        ] {
            assert_eq!(by_hand(wrong).unwrap_err().code(), 64, "{wrong:?}");
        }
        for missing in [
            &["--nodes", "5", "--reason", "why"][..],
            &["--for", "1m", "--reason", "why"],
            &["--nodes", "5", "--for", "1m"],
            &["--nodes", "5", "--for", "1m", "--until", "+1h", "--reason", "why"],
        ] {
            assert!(read(missing).is_err(), "{missing:?}");
        }
    }
}
