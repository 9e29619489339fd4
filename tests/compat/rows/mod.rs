//! Golden rows: what the services of every schema version wrote, in every state and with every outcome, on both databases. This
//! build must read each, written before its newest migrations or after them, as what the release that wrote it read.

mod dump;
mod fleet;
mod meaning;
mod scene;

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Mutex};

use millrace_store::migrate;
use millrace_tests::{
    postgres, sqlite,
    suite::{Process, Suite},
};
use serde_json::Value as Json;

use self::dump::Database;
use crate::{goldens, manifest, newest_schema, versions, writing};

/// What a release wrote into one database, and what it read there.
struct Golden {
    version: String,
    dump: BTreeMap<String, String>,
    means: Json,
}

fn committed(kind: &str) -> Vec<Golden> {
    let golden = |version: &String| {
        let folder = goldens().join(version).join(kind);
        let mut dump = BTreeMap::new();
        for entry in fs::read_dir(&folder).ok()? {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "sql") {
                let table = path.file_stem().and_then(|stem| stem.to_str()).expect("a table's name").to_owned();
                dump.insert(table, fs::read_to_string(&path).expect("reading a golden"));
            }
        }
        let means = fs::read_to_string(folder.join("means.json")).expect("reading what a golden means");
        Some(Golden { version: version.clone(), dump, means: serde_json::from_str(&means).expect("JSON") })
    };
    versions().iter().filter_map(golden).collect()
}

// ── Reading them ────────────────────────────────────────────────────────────────────────────────────────────────────

/// Where goldens go: into the schema that their release knew, migrated after; or into this build's, as that release writes while a
/// deploy is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    BeforeTheMigrations,
    AfterThem,
}

fn read_back(golden: &Golden, database: &Database, written: Written) {
    let later = migrate::status(&database.url()).expect("the migrations' status");
    let later = later.iter().filter(|one| one.name.split('_').next() > Some(golden.version.as_str())).count();
    if written == Written::BeforeTheMigrations {
        assert_eq!(migrate::down(&database.url(), later).expect("migrating down").len(), later);
    }
    database.load(&golden.dump);
    assert_eq!(
        migrate::up(&database.url()).expect("migrating up").len(),
        if written == Written::AfterThem { 0 } else { later }
    );
    let mut lost = Vec::new();
    lost_meaning("", &golden.means, &meaning::of(database), &mut lost);
    let (version, kind) = (&golden.version, database.kind());
    assert!(lost.is_empty(), "goldens of {version} on {kind}, {written:?}, mean something else:\n{}", lost.join("\n"));
}

/// Where the meaning read now lacks what was meant. What a later release reads beside it is not looked at.
fn lost_meaning(place: &str, meant: &Json, read: &Json, lost: &mut Vec<String>) {
    match (meant, read) {
        (Json::Object(meant), Json::Object(read)) => {
            for (key, meant) in meant {
                lost_meaning(&format!("{place}/{key}"), meant, read.get(key).unwrap_or(&Json::Null), lost);
            }
        }
        (Json::Array(meant), Json::Array(read)) if meant.len() == read.len() => {
            for (at, (meant, read)) in meant.iter().zip(read).enumerate() {
                lost_meaning(&format!("{place}/{at}"), meant, read, lost);
            }
        }
        _ if meant == read => {}
        _ => lost.push(format!("{place}: was {meant}, is {read}")),
    }
}

fn read_all(kind: &str, fresh: impl Fn() -> Database) {
    let goldens = committed(kind);
    let newest = goldens.iter().map(|golden| golden.version.as_str()).max();
    assert_eq!(newest, Some(newest_schema()), "the newest schema has no golden rows yet: run `make goldens`");
    for golden in &goldens {
        read_back(golden, &fresh(), Written::BeforeTheMigrations);
        read_back(golden, &fresh(), Written::AfterThem);
    }
}

#[test]
fn golden_rows_are_read_as_what_they_meant_on_postgres() {
    write_missing_on_postgres();
    read_all("postgres", || Database::Postgres(postgres::fresh_database()));
}

#[test]
fn golden_rows_are_read_as_what_they_meant_on_sqlite() {
    write_missing_on_sqlite();
    read_all("sqlite", || Database::Sqlite(sqlite::fresh()));
}

/// The goldens hold what this build can write, so that none is forgotten.
#[test]
fn golden_rows_hold_every_state_and_outcome() {
    for golden in ["postgres", "sqlite"].into_iter().flat_map(committed) {
        let tasks = golden.means["tasks"].as_object().expect("tasks");
        let number = |value: &Json| value.as_i64().expect("a number");
        let mut states: Vec<i64> = tasks.values().map(|task| number(&task["row"]["state"])).collect();
        let ends = tasks.values().map(|task| &task["row"]["outcome"]);
        let attempts = tasks.values().flat_map(|task| task["attempts"].as_array().expect("attempts"));
        let outcomes = ends.chain(attempts.map(|attempt| &attempt["outcome"])).filter(|outcome| !outcome.is_null());
        let mut outcomes: Vec<i64> = outcomes.map(|outcome| number(&outcome["kind"])).collect();
        for numbers in [&mut states, &mut outcomes] {
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(*numbers, (1..=9).collect::<Vec<i64>>(), "goldens of {}", golden.version);
        }
    }
}

/// The same of nodes, which the second version brought.
#[test]
fn golden_rows_hold_nodes_in_every_state() {
    for golden in ["postgres", "sqlite"].into_iter().flat_map(committed) {
        let Some(nodes) = golden.means["fleet"]["nodes"].as_array() else {
            assert!(golden.version.as_str() < migrate::FLEETS, "goldens of {} have no nodes", golden.version);
            continue;
        };
        let mut states: Vec<i64> = nodes.iter().map(|node| node["state"].as_i64().expect("a number")).collect();
        states.sort_unstable();
        states.dedup();
        assert_eq!(states, (1..=8).collect::<Vec<i64>>(), "goldens of {}", golden.version);
    }
}

#[test]
fn a_lost_meaning_is_found() {
    let meant = serde_json::json!({ "a": [1, 2], "b": { "c": "d" } });
    let found = |read: Json| {
        let mut lost = Vec::new();
        lost_meaning("", &meant, &read, &mut lost);
        lost
    };
    assert_eq!(found(serde_json::json!({ "a": [1, 2], "b": { "c": "d", "later": 1 }, "later": 2 })), [""; 0]);
    assert_eq!(found(serde_json::json!({ "a": [1, 3], "b": {} })), ["/a/1: was 2, is 3", "/b/c: was \"d\", is null"]);
    assert_eq!(found(serde_json::json!({ "a": [1], "b": { "c": "d" } })).len(), 1);
}

// ── Writing them ────────────────────────────────────────────────────────────────────────────────────────────────────

/// Two suites at once would be slow, and nobody writes goldens often.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn is_missing(kind: &str) -> bool {
    writing() && !goldens().join(newest_schema()).join(kind).exists()
}

fn write_missing_on_postgres() {
    if !is_missing("postgres") {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let database = postgres::fresh_database();
    let suite = Suite::new(&database.url());
    let services = [suite.queue(&[]), suite.distributor(&[])];
    let (queue, distributor) = (services[0].endpoint.clone(), services[1].endpoint.clone());
    record(&distributor, &queue, services.into(), Database::Postgres(database));
}

fn write_missing_on_sqlite() {
    if !is_missing("sqlite") {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let suite = Suite::without_database();
    let dev = suite.dev(&["--without-agent"]);
    let endpoint = dev.endpoint.clone();
    let file = suite.folder().join("dev/millrace.db");
    assert!(file.is_file(), "the database of `millrace dev` is not where it was");
    record(&endpoint, &endpoint, vec![dev], Database::File(file));
}

/// Plays the scenes, kills the services where they stand, and keeps what they have written.
fn record(distributor: &str, queue: &str, services: Vec<Process>, database: Database) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let sessions = runtime.block_on(scene::perform(distributor, queue));
    for mut service in services {
        service.kill();
    }
    drop(sessions);
    let folder = PathBuf::from(newest_schema()).join(database.kind());
    // First what is there: opening a database of SQLite forgets the processes before.
    let mut dump = database.dump();
    fleet::write(&database);
    dump.extend(database.dump().into_iter().filter(|(table, _)| fleet::TABLES.contains(&table.as_str())));
    let means = serde_json::to_string_pretty(&meaning::of(&database)).expect("JSON") + "\n";
    manifest::write(&folder.join("means.json"), means.as_bytes());
    for (table, rows) in dump {
        manifest::write(&folder.join(format!("{table}.sql")), rows.as_bytes());
    }
}
