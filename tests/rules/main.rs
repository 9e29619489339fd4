//! Rules of the house that no compiler checks. Each reads the sources as text.

use std::{
    fs,
    path::{Path, PathBuf},
};

use millrace_tests::tools::repository;

/// Every file below these folders with this extension, as (path from the top, text).
fn files(folders: &[&str], extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> = folders.iter().map(|folder| repository().join(folder)).collect();
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let name = path.strip_prefix(repository()).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "nothing below {folders:?}");
    found
}

/// Lines of the code itself: no comments, and nothing from the first test module on.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[cfg(test)]").next().unwrap_or(text).lines().filter(|line| !line.trim_start().starts_with("//"))
}

fn offences(files: &[(String, String)], needles: &[&str]) -> Vec<String> {
    let mut offences = Vec::new();
    for (name, text) in files {
        for line in code(text) {
            if needles.iter().any(|needle| line.contains(needle)) {
                offences.push(format!("{name}: {}", line.trim()));
            }
        }
    }
    offences
}

fn is_test(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("tests.rs")
}

#[test]
fn core_has_no_io_no_clock_and_no_random_source() {
    let manifest = fs::read_to_string(repository().join("services/core/Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let names: Vec<&str> = dependencies.lines().filter_map(|line| line.split(['.', ' ', '=']).next()).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| !name.is_empty()).collect();
    assert_eq!(names, ["thiserror", "uuid"]);
    let forbidden = ["SystemTime", "Instant::", "rand::", "std::fs", "std::net", "std::thread", "now_v7", "new_v4"];
    assert_eq!(offences(&files(&["services/core/src"], "rs"), &forbidden), Vec::<String>::new());
}

#[test]
fn sql_is_written_in_the_store_only() {
    let sources: Vec<_> = files(&["services"], "rs")
        .into_iter()
        .filter(|(name, _)| !name.starts_with("services/store/") && !is_test(name))
        .collect();
    let sql = ["SELECT ", "INSERT INTO", "DELETE FROM", "diesel::", "sql_query"];
    assert_eq!(offences(&sources, &sql), Vec::<String>::new());
}

#[test]
fn an_error_becomes_a_status_in_one_place() {
    let constructors = [
        "Status::unavailable(",
        "Status::internal(",
        "Status::invalid_argument(",
        "Status::not_found(",
        "Status::aborted(",
        "Status::failed_precondition(",
        "Status::already_exists(",
        "Status::resource_exhausted(",
        "Status::new(",
        "Status::with_error_details(",
    ];
    let servers = ["services/distributor/src", "services/queue/src", "services/runtime/src"];
    let sources: Vec<_> = files(&servers, "rs")
        .into_iter()
        .filter(|(name, _)| name != "services/runtime/src/status.rs" && !is_test(name))
        .collect();
    assert_eq!(offences(&sources, &constructors), Vec::<String>::new());
}

#[test]
fn buffers_are_bounded_and_nothing_is_left_for_later() {
    let sources: Vec<_> = files(&["services"], "rs").into_iter().filter(|(name, _)| !is_test(name)).collect();
    let forbidden = ["unbounded_channel", "unbounded()", "todo!(", "unimplemented!(", "TODO", "FIXME", ".unwrap()"];
    assert_eq!(offences(&sources, &forbidden), Vec::<String>::new());
}

#[test]
fn migrations_come_in_pairs_with_ups_and_downs() {
    let names = |folder: &str| {
        let mut names: Vec<String> = fs::read_dir(repository().join("migrations").join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("postgres"), names("sqlite"));
    for database in ["postgres", "sqlite"] {
        for name in names(database) {
            for file in ["up.sql", "down.sql"] {
                let path = Path::new("migrations").join(database).join(&name).join(file);
                assert!(repository().join(&path).is_file(), "{} is missing", path.display());
            }
        }
    }
}

/// Each protocol rule that this release implements has tests named after it.
#[test]
fn protocol_rules_have_tests_of_their_name() {
    let sources = files(&["services", "tests"], "rs");
    for rule in [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 15, 16] {
        let name = format!("fn r{rule}_");
        assert!(sources.iter().any(|(_, text)| text.contains(&name)), "no test is named r{rule}_…");
    }
}
