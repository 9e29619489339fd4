//! The drills in their short form: whether it is correct, never how fast.

use std::process::Command;

/// A few hundred rows of every kind stand in front of good ones, and the database fails for a moment: all good rows run, all bad rows
/// are kept, and all of them run once they can be read.
#[test]
fn d1a_bad_rows_stop_nobody_and_none_is_lost() {
    passes("D1a");
}

/// Nodes become slow in the middle of a surge and the provider takes few calls: none is ended that would have joined.
#[test]
fn d1b_no_slow_node_is_ended() {
    passes("D1b");
}

/// Zones without room, throttled calls and lost answers: no node is made twice, none is left starting, no orphan is left.
#[test]
fn d2_demand_moves_on_and_nothing_is_made_twice() {
    passes("D2");
}

/// Launches that fail, some or all: what is dead is replaced, and when all are, launching stops until a probe joins.
#[test]
fn d4_launches_that_all_fail_stop_and_resume_by_themselves() {
    passes("D4");
}

fn passes(name: &str) {
    let out = tempfile::tempdir().expect("a temporary folder");
    let mut drill = Command::new(env!("CARGO_BIN_EXE_millrace-drill"));
    // The drills on a virtual clock repeat with their seed; D1a does as far as processes do.
    let output =
        drill.args([name, "--short", "--seed", "7", "--out"]).arg(out.path()).output().expect("running the drill");
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{told}", output.status);
    let summary: serde_json::Value = serde_json::from_str(told.lines().last().expect("a last line")).expect("JSON");
    assert_eq!((&summary["drill"], &summary["passed"]), (&name.into(), &true.into()), "{summary}");
    assert!(out.path().join("summary.json").is_file() && out.path().join("samples.csv").is_file());
}
