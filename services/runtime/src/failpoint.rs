//! Places in the code where a drill may inject a failure: a crash, a lost message, a delay.
//!
//! An example arms three points:
//!
//! ```text
//! MILLRACE_FAILPOINTS="claim.after_commit=exit:0.01;send.before=drop:0.1;feeder.scan=delay(50):0.5"
//! ```
//!
//! The process aborts in 1% of the passes of the first, one in ten messages is dropped at the second, and half of the
//! passes of the third are delayed by 50 ms. Without a probability a point always fires. Points exist in debug builds
//! only: in a release build [`hit`] and [`hit_async`] compile to nothing, and [`init`] refuses the variable, so that
//! nobody believes in a drill that did not happen.

#[cfg(debug_assertions)]
use std::sync::{
    OnceLock, RwLock,
    atomic::{AtomicBool, Ordering},
};
use std::{collections::HashMap, time::Duration};

/// What the names of points begin with that make this process a build of another release.
const RELEASE: &str = "release.";

/// The variable that arms failpoints.
pub const VARIABLE: &str = "MILLRACE_FAILPOINTS";

/// What the caller has to pretend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Lose the message, or skip the step, at hand.
    Drop,
}

/// Why failpoints were not armed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FailpointError {
    /// A part is not `name=action` or `name=action:probability`.
    #[error("failpoint `{0}` is not NAME=ACTION or NAME=ACTION:PROBABILITY")]
    Shape(String),
    /// The action is not `exit`, `drop` or `delay(MILLISECONDS)`.
    #[error("failpoint action `{0}` is not exit, drop or delay(MILLISECONDS)")]
    Action(String),
    /// The probability is not a number from 0 to 1.
    #[error("failpoint probability `{0}` is not a number from 0 to 1")]
    Probability(String),
    /// A release build has no failpoints.
    #[error("{VARIABLE} is set, but this build has no failpoints")]
    CompiledOut,
}

/// Arms the failpoints that [`VARIABLE`] names; call it once, before a port is bound.
///
/// # Errors
/// When the variable cannot be read as failpoints, or is set in a build that has none.
pub fn init() -> Result<(), FailpointError> {
    match std::env::var(VARIABLE) {
        Ok(text) if !text.trim().is_empty() => configure(&text),
        _ => Ok(()),
    }
}

/// Replaces all failpoints of this process with those of `text`; an empty text disarms them.
///
/// # Errors
/// When `text` cannot be read (nothing is changed then), or the build has no failpoints.
pub fn configure(text: &str) -> Result<(), FailpointError> {
    let points = parse(text)?;
    install(points)
}

/// Passes a failpoint. An armed `exit` aborts the process here, without destructors, as `kill -9` would; an armed delay
/// blocks the thread, so prefer [`hit_async`] in async code.
#[inline]
pub fn hit(name: &str) -> Option<Failure> {
    match fires(name)? {
        Action::Exit => std::process::abort(),
        Action::Drop => Some(Failure::Drop),
        Action::Delay(delay) => {
            std::thread::sleep(delay);
            None
        }
    }
}

/// Passes a failpoint like [`hit`]; an armed delay suspends the task alone.
#[inline]
pub async fn hit_async(name: &str) -> Option<Failure> {
    match fires(name)? {
        Action::Exit => std::process::abort(),
        Action::Drop => Some(Failure::Drop),
        Action::Delay(delay) => {
            tokio::time::sleep(delay).await;
            None
        }
    }
}

/// What a build's name ends with when a drill makes it one of another release: "+next" while the point `release.next` is
/// armed, and nothing otherwise. Verdicts belong to builds (R9), so one that reads differently must have another name.
pub fn release_mark() -> String {
    let mut marks: Vec<String> = armed(|name| Some(format!("+{}", name.strip_prefix(RELEASE)?)));
    marks.sort();
    marks.concat()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Exit,
    Drop,
    Delay(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    action: Action,
    probability: f64,
}

fn parse(text: &str) -> Result<HashMap<String, Point>, FailpointError> {
    text.split(';').map(str::trim).filter(|part| !part.is_empty()).map(parse_point).collect()
}

fn parse_point(part: &str) -> Result<(String, Point), FailpointError> {
    let shape = || FailpointError::Shape(part.to_owned());
    let (name, rest) = part.split_once('=').ok_or_else(shape)?;
    if name.trim().is_empty() {
        return Err(shape());
    }
    let (action, probability) = match rest.split_once(':') {
        Some((action, text)) => (action.trim(), parse_probability(text.trim())?),
        None => (rest.trim(), 1.0),
    };
    Ok((name.trim().to_owned(), Point { action: parse_action(action)?, probability }))
}

fn parse_action(text: &str) -> Result<Action, FailpointError> {
    let unknown = || FailpointError::Action(text.to_owned());
    match text {
        "exit" => Ok(Action::Exit),
        "drop" => Ok(Action::Drop),
        _ => {
            let inner = text.strip_prefix("delay(").and_then(|rest| rest.strip_suffix(')')).ok_or_else(unknown)?;
            inner.trim().parse().map(|ms| Action::Delay(Duration::from_millis(ms))).map_err(|_| unknown())
        }
    }
}

fn parse_probability(text: &str) -> Result<f64, FailpointError> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err(FailpointError::Probability(text.to_owned())),
    }
}

/// Whether any point is armed: the only thing that an unarmed debug build looks at.
#[cfg(debug_assertions)]
static ARMED: AtomicBool = AtomicBool::new(false);

#[cfg(debug_assertions)]
fn points() -> &'static RwLock<HashMap<String, Point>> {
    static POINTS: OnceLock<RwLock<HashMap<String, Point>>> = OnceLock::new();
    POINTS.get_or_init(RwLock::default)
}

#[cfg(debug_assertions)]
fn install(new: HashMap<String, Point>) -> Result<(), FailpointError> {
    let mut points = points().write().unwrap_or_else(std::sync::PoisonError::into_inner);
    ARMED.store(!new.is_empty(), Ordering::Release);
    *points = new;
    Ok(())
}

#[cfg(not(debug_assertions))]
fn install(new: HashMap<String, Point>) -> Result<(), FailpointError> {
    if new.is_empty() { Ok(()) } else { Err(FailpointError::CompiledOut) }
}

#[cfg(debug_assertions)]
fn armed<T>(of: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let points = points().read().unwrap_or_else(std::sync::PoisonError::into_inner);
    points.keys().filter_map(|name| of(name)).collect()
}

#[cfg(not(debug_assertions))]
fn armed<T>(_of: impl Fn(&str) -> Option<T>) -> Vec<T> {
    Vec::new()
}

#[cfg(debug_assertions)]
fn fires(name: &str) -> Option<Action> {
    if !ARMED.load(Ordering::Acquire) {
        return None;
    }
    let points = points().read().unwrap_or_else(std::sync::PoisonError::into_inner);
    let point = points.get(name)?;
    (rand::random::<f64>() < point.probability).then_some(point.action)
}

#[cfg(not(debug_assertions))]
#[inline(always)]
fn fires(_name: &str) -> Option<Action> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_is_read() {
        let points = parse("claim.after_commit=exit:0.01; send.before=drop:0.1 ;x=delay(50):0.5;y=drop;").unwrap();
        assert_eq!(points.len(), 4);
        assert_eq!(points["claim.after_commit"], Point { action: Action::Exit, probability: 0.01 });
        assert_eq!(points["send.before"], Point { action: Action::Drop, probability: 0.1 });
        assert_eq!(points["x"], Point { action: Action::Delay(Duration::from_millis(50)), probability: 0.5 });
        assert_eq!(points["y"], Point { action: Action::Drop, probability: 1.0 });
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        assert_eq!(parse("claim"), Err(FailpointError::Shape("claim".into())));
        assert_eq!(parse("=drop"), Err(FailpointError::Shape("=drop".into())));
        assert_eq!(parse("a=explode"), Err(FailpointError::Action("explode".into())));
        assert_eq!(parse("a=delay(soon)"), Err(FailpointError::Action("delay(soon)".into())));
        assert_eq!(parse("a=drop:2"), Err(FailpointError::Probability("2".into())));
        assert_eq!(parse("a=drop:NaN"), Err(FailpointError::Probability("NaN".into())));
    }

    // One test holds everything that arms points, because they belong to the process and tests share it.
    #[cfg(debug_assertions)]
    #[tokio::test(start_paused = true)]
    async fn armed_points_fire_and_others_do_not() {
        configure("test.lose=drop;test.never=drop:0;test.slow=delay(5000)").unwrap();
        assert_eq!(hit("test.lose"), Some(Failure::Drop));
        assert_eq!(hit("test.never"), None);
        assert_eq!(hit("test.unknown"), None);
        let before = tokio::time::Instant::now();
        assert_eq!(hit_async("test.slow").await, None);
        assert_eq!(before.elapsed(), Duration::from_secs(5));
        configure("test.lose=").unwrap_err();
        assert_eq!(hit_async("test.lose").await, Some(Failure::Drop), "a refused text changes nothing");
        configure("release.next=drop;test.lose=drop").unwrap();
        assert_eq!(release_mark(), "+next");
        configure("").unwrap();
        assert_eq!(hit("test.lose"), None);
        assert_eq!(release_mark(), "");
    }
}
