//! What happens at a simulated provider, and when.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use millrace_core::time::Timestamp;
use serde::{Deserialize, de::Error as _};
use toml::{Table, Value};

use super::conditions::{Conditions, Reclaim, SHARE, Span, is_share};

/// Moments that a script may have, of each kind.
const MAX_MOMENTS: usize = 1000;

/// The script with every key, its meaning and its default.
pub const EXAMPLE: &str = include_str!("example.toml");

/// A whole script. [`EXAMPLE`] explains it; the default one is that.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    pub(super) seed: u64,
    pub(super) keeps_tokens: bool,
    pub(super) max_nodes_per_call: usize,
    /// What holds from each moment after the start on; the first from the start.
    pub(super) phases: Vec<(Duration, Conditions)>,
    pub(super) reclaims: Vec<Reclaim>,
}

/// What is wrong with a script.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// It is not TOML, or a key is not known, or a value is not of its kind.
    #[error("{at}{source}")]
    Syntax {
        /// Where.
        at: String,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
    /// A value is out of its bounds.
    #[error("{at}{key}: {problem}")]
    Value {
        /// Where.
        at: String,
        /// The key.
        key: &'static str,
        /// What it has to be.
        problem: &'static str,
    },
}

impl Script {
    /// Reads it from a file.
    ///
    /// # Errors
    /// A file that cannot be read, and whatever [`Script::parse`] refuses.
    pub fn read(path: &Path) -> Result<Self, ScriptError> {
        let text = std::fs::read_to_string(path);
        Self::parse(&text.map_err(|source| ScriptError::Read { path: path.to_owned(), source })?)
    }

    /// Reads it from TOML.
    ///
    /// # Errors
    /// A text that is not TOML, a key that is not known, and a value out of its bounds.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let mut base: Table = text.parse().map_err(syntax(""))?;
        let changes: Vec<Table> = take(&mut base, "change", Vec::new())?;
        let reclaims: Vec<Reclaim> = take(&mut base, "reclaim", Vec::new())?;
        let script = Self {
            seed: take(&mut base, "seed", 1)?,
            keeps_tokens: take(&mut base, "keeps_tokens", true)?,
            max_nodes_per_call: take(&mut base, "max_nodes_per_call", 20)?,
            phases: phases(base, changes)?,
            reclaims,
        };
        script.check()?;
        Ok(script)
    }

    fn check(&self) -> Result<(), ScriptError> {
        let value = |key, problem| ScriptError::Value { at: String::new(), key, problem };
        if !(1..=crate::provider::MAX_NODES).contains(&self.max_nodes_per_call) {
            return Err(value("max_nodes_per_call", "must be 1 to 1000"));
        }
        if self.phases.len() > MAX_MOMENTS || self.reclaims.len() > MAX_MOMENTS {
            return Err(value("change, reclaim", "at most 1000 moments each"));
        }
        if self.phases.windows(2).any(|two| two[0].0 > two[1].0) {
            return Err(value("change.at", "must be in the order of time"));
        }
        if self.reclaims.iter().any(|reclaim| !is_share(reclaim.share)) {
            return Err(value("reclaim.share", SHARE));
        }
        for (at, conditions) in &self.phases {
            let failed = |(key, problem)| ScriptError::Value { at: format!("from {at:?} on: "), key, problem };
            conditions.check().map_err(failed)?;
        }
        Ok(())
    }

    /// Which phase a time is in; before the start it is the first. There is always one, from the start on.
    pub(super) fn phase(&self, start: Timestamp, now: Timestamp) -> usize {
        self.phases.partition_point(|(at, _)| start.after(*at) <= now).saturating_sub(1)
    }

    /// What holds at that time.
    pub(super) fn at(&self, start: Timestamp, now: Timestamp) -> &Conditions {
        &self.phases[self.phase(start, now)].1
    }

    /// The moments between two at which what holds changes.
    pub(super) fn changes(&self, start: Timestamp, from: Timestamp, to: Timestamp) -> impl Iterator<Item = Timestamp> {
        let moments = self.phases.iter().map(move |(at, _)| start.after(*at));
        moments.skip_while(move |at| *at <= from).take_while(move |at| *at < to)
    }
}

impl Default for Script {
    fn default() -> Self {
        let phases = vec![(Duration::ZERO, Conditions::default())];
        Self { seed: 1, keeps_tokens: true, max_nodes_per_call: 20, phases, reclaims: Vec::new() }
    }
}

/// Each change is laid over what held before.
fn phases(base: Table, changes: Vec<Table>) -> Result<Vec<(Duration, Conditions)>, ScriptError> {
    let read = |table: &Table, at: &str| Conditions::deserialize(table.clone()).map_err(syntax(at));
    let mut phases = vec![(Duration::ZERO, read(&base, "")?)];
    let mut holds = base;
    for (index, mut change) in changes.into_iter().enumerate() {
        let place = format!("change {}: ", index + 1);
        let at = change.remove("at").ok_or_else(|| toml::de::Error::custom("has no `at`")).map_err(syntax(&place))?;
        let at = Span::deserialize(at).map_err(syntax(&place))?;
        lay_over(&mut holds, change);
        phases.push((at.0, read(&holds, &place)?));
    }
    Ok(phases)
}

fn lay_over(base: &mut Table, change: Table) {
    for (key, value) in change {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(change)) => lay_over(base, change),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

fn take<T: for<'de> Deserialize<'de>>(table: &mut Table, key: &str, default: T) -> Result<T, ScriptError> {
    match table.remove(key) {
        Some(value) => T::deserialize(value).map_err(syntax(&format!("{key}: "))),
        None => Ok(default),
    }
}

fn syntax(at: &str) -> impl FnOnce(toml::de::Error) -> ScriptError + use<> {
    let at = at.to_owned();
    move |source| ScriptError::Syntax { at, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_the_default() {
        assert_eq!(Script::parse(EXAMPLE).unwrap(), Script::default());
        assert_eq!(Script::parse("").unwrap(), Script::default());
        // What stands there as a comment is a key too.
        let all = EXAMPLE.lines().map(|line| match line.strip_prefix("# ") {
            Some(key) if key.starts_with('[') || key.split(" = ").next().is_some_and(is_key) => key,
            _ => line,
        });
        Script::parse(&all.collect::<Vec<_>>().join("\n")).unwrap();
    }

    fn is_key(text: &str) -> bool {
        text.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'.'))
    }

    #[test]
    fn a_change_is_laid_over_what_held_before() {
        let script = Script::parse(
            r#"
            join.median = "2m"
            zones.a.capacity = 5
            [[change]]
            at = "10m"
            join.median = "12m"
            [[change]]
            at = "20m"
            zones.a.out_of_capacity = true
            "#,
        )
        .unwrap();
        let start = Timestamp(1_000_000);
        let at = |minutes: u64| script.at(start, start.after(Duration::from_secs(60 * minutes)));
        let median = |minutes| at(minutes).join.median.0.as_secs() / 60;
        assert_eq!((median(0), median(9), median(10), median(30)), (2, 2, 12, 12));
        assert_eq!(at(30).join.spread, 0.3);
        assert_eq!(at(30).zones["a"].capacity, Some(5));
        assert!(at(20).zones["a"].out_of_capacity && !at(19).zones["a"].out_of_capacity);
        let minute = |minutes: u64| start.after(Duration::from_secs(60 * minutes));
        assert_eq!(script.changes(start, minute(0), minute(15)).collect::<Vec<_>>(), [minute(10)]);
        // Before the start is as at the start.
        assert_eq!(script.at(start, Timestamp(0)).join.median.0.as_secs(), 120);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("seed = ", "line 1"),
            ("sede = 1", "sede"),
            ("join.median = \"2\"", "`2` is not a duration"),
            ("join.spread = 7.0", "join.spread"),
            ("dead.share = 1.5", "dead.share"),
            ("dead.how = \"loud\"", "loud"),
            ("max_nodes_per_call = 0", "max_nodes_per_call"),
            ("[[change]]\njoin.median = \"1m\"", "change 1: has no `at`"),
            ("[[change]]\nat = \"1m\"\njoin.medain = \"1m\"", "change 1: unknown field `medain`"),
            ("[[change]]\nat = \"2m\"\n[[change]]\nat = \"1m\"", "order of time"),
            ("[[reclaim]]\nat = \"2m\"\nshare = 2.0", "reclaim.share"),
            ("flapping.up = \"0s\"", "flapping.up"),
        ] {
            let error = Script::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
