//! The drills in their short form: whether it is correct, never how fast.

use std::process::Command;

/// A few hundred rows of every kind stand in front of good ones, and the database fails for a moment: all good rows run, all bad rows
/// are kept, and all of them run once they can be read.
#[test]
fn d1a_bad_rows_stop_nobody_and_none_is_lost() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let mut drill = Command::new(env!("CARGO_BIN_EXE_millrace-drill"));
    let output = drill.args(["D1a", "--short", "--out"]).arg(out.path()).output().expect("running the drill");
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{told}", output.status);
    let summary: serde_json::Value = serde_json::from_str(told.lines().last().expect("a last line")).expect("JSON");
    assert_eq!((&summary["drill"], &summary["passed"]), (&"D1a".into(), &true.into()), "{summary}");
    assert!(out.path().join("summary.json").is_file() && out.path().join("samples.csv").is_file());
}
