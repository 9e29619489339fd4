//! What holds at a simulated provider for a while. What each value means stands in `example.toml`.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, de::Error as _};

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Conditions {
    pub(super) capacity: Option<u32>,
    pub(super) stop: Span,
    pub(super) latency: Span,
    pub(super) join: Join,
    pub(super) surge: Surge,
    pub(super) throttle: Throttle,
    pub(super) lost: Lost,
    pub(super) dead: Dead,
    pub(super) refused: Refused,
    pub(super) flapping: Flapping,
    pub(super) spot: Spot,
    pub(super) listing: Listing,
    pub(super) zones: BTreeMap<String, Zone>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Join {
    pub(super) median: Span,
    pub(super) spread: f64,
    pub(super) least: Span,
    pub(super) most: Span,
    pub(super) machine: f64,
    pub(super) reports: u8,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Surge {
    pub(super) free: u32,
    pub(super) per_node: f64,
    pub(super) most: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Throttle {
    pub(super) per_second: Option<f64>,
    pub(super) burst: u32,
    pub(super) share: f64,
    pub(super) retry_info: bool,
    pub(super) retry_after: Span,
    pub(super) penalty: f64,
    pub(super) per_node: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Lost {
    pub(super) requests: f64,
    pub(super) answers: f64,
    pub(super) after: Span,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Dead {
    pub(super) share: f64,
    pub(super) how: HowDead,
    pub(super) error: String,
    pub(super) after: Span,
}

/// How a launch that never joins shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HowDead {
    /// Its machine runs, and nobody is heard of.
    Silent,
    /// Its agent says that the boot failed.
    BootFailed,
    /// The provider lists it as FAILED.
    ProviderFailed,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Refused {
    pub(super) share: f64,
    pub(super) error: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Flapping {
    pub(super) share: f64,
    pub(super) how: HowFlapping,
    pub(super) up: Span,
    pub(super) down: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum HowFlapping {
    Health,
    Stream,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Spot {
    pub(super) per_hour: f64,
    pub(super) notice: Span,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Listing {
    pub(super) delay: Span,
    pub(super) keep_failed: Span,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Zone {
    pub(super) capacity: Option<u32>,
    pub(super) out_of_capacity: bool,
    pub(super) retry_after: Option<Span>,
    pub(super) median: Option<Span>,
    pub(super) spread: Option<f64>,
    pub(super) dead_share: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reclaim {
    pub(super) at: Span,
    pub(super) share: f64,
    #[serde(default)]
    pub(super) zone: Option<String>,
    #[serde(default = "two_minutes")]
    pub(super) notice: Span,
}

/// A duration as people write it: `1m30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span(pub(super) Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        millrace_runtime::config::duration(&text)
            .map(Span)
            .map_err(|error| D::Error::custom(format!("`{text}` is {error}")))
    }
}

const fn seconds(seconds: u64) -> Span {
    Span(Duration::from_secs(seconds))
}

fn two_minutes() -> Span {
    seconds(120)
}

pub(super) const SHARE: &str = "must be 0.0 to 1.0";

pub(super) fn is_share(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

impl Conditions {
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let require = |holds: bool, key, problem| if holds { Ok(()) } else { Err((key, problem)) };
        for (share, key) in [
            (self.join.machine, "join.machine"),
            (self.throttle.share, "throttle.share"),
            (self.lost.requests, "lost.requests"),
            (self.lost.answers, "lost.answers"),
            (self.dead.share, "dead.share"),
            (self.refused.share, "refused.share"),
            (self.flapping.share, "flapping.share"),
        ] {
            require(is_share(share), key, SHARE)?;
        }
        let zones = || self.zones.values();
        require(zones().filter_map(|zone| zone.dead_share).all(is_share), "zones.*.dead_share", SHARE)?;
        let spreads = zones().filter_map(|zone| zone.spread).chain([self.join.spread]);
        require(spreads.into_iter().all(|spread| (0.0..=3.0).contains(&spread)), "join.spread", "must be 0.0 to 3.0")?;
        let medians = zones().filter_map(|zone| zone.median).chain([self.join.median]);
        require(medians.into_iter().all(|median| !median.0.is_zero()), "join.median", "must be above zero")?;
        require(self.join.least <= self.join.most, "join.least", "must not be above join.most")?;
        require(self.join.reports <= 100, "join.reports", "must be 0 to 100")?;
        let rates = [self.surge.per_node, self.throttle.penalty, self.spot.per_hour];
        let good = rates.into_iter().all(|rate| (0.0..=1e6).contains(&rate));
        require(good, "surge.per_node, throttle.penalty, spot.per_hour", "must be 0.0 to 1000000.0")?;
        require((1.0..=1e6).contains(&self.surge.most), "surge.most", "must be 1.0 to 1000000.0")?;
        let rate = self.throttle.per_second.unwrap_or(1.0);
        require(rate > 0.0 && rate <= 1e6, "throttle.per_second", "must be above 0.0, and at most 1000000.0")?;
        require(self.throttle.burst > 0, "throttle.burst", "must be at least 1")?;
        // Otherwise a flapping node would do nothing but flap, without end in no time.
        let slow = |span: Span| span.0 >= Duration::from_secs(1);
        require(slow(self.flapping.up) && slow(self.flapping.down), "flapping.up, flapping.down", "must be at least 1s")
    }
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            capacity: None,
            stop: seconds(5),
            latency: seconds(0),
            join: Join::default(),
            surge: Surge::default(),
            throttle: Throttle::default(),
            lost: Lost::default(),
            dead: Dead::default(),
            refused: Refused::default(),
            flapping: Flapping::default(),
            spot: Spot::default(),
            listing: Listing::default(),
            zones: BTreeMap::new(),
        }
    }
}

impl Default for Join {
    fn default() -> Self {
        Self { median: seconds(120), spread: 0.3, least: seconds(1), most: seconds(7200), machine: 0.3, reports: 4 }
    }
}

impl Default for Surge {
    fn default() -> Self {
        Self { free: 50, per_node: 0.0, most: 10.0 }
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            per_second: None,
            burst: 10,
            share: 0.0,
            retry_info: true,
            retry_after: seconds(1),
            penalty: 0.0,
            per_node: false,
        }
    }
}

impl Default for Lost {
    fn default() -> Self {
        Self { requests: 0.0, answers: 0.0, after: seconds(5) }
    }
}

impl Default for Dead {
    fn default() -> Self {
        Self { share: 0.0, how: HowDead::Silent, error: "the image cannot be found".into(), after: seconds(60) }
    }
}

impl Default for Refused {
    fn default() -> Self {
        Self { share: 0.0, error: "the quota does not allow it".into() }
    }
}

impl Default for Flapping {
    fn default() -> Self {
        Self { share: 0.0, how: HowFlapping::Health, up: seconds(60), down: seconds(30) }
    }
}

impl Default for Spot {
    fn default() -> Self {
        Self { per_hour: 0.0, notice: two_minutes() }
    }
}

impl Default for Listing {
    fn default() -> Self {
        Self { delay: seconds(0), keep_failed: seconds(600) }
    }
}
