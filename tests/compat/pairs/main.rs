//! The release before and this build, as real processes on one PostgreSQL database: `make compat`.

#[path = "../load.rs"]
mod load;
mod mixes;
mod release;
mod rolling;

use std::path::Path;

use millrace_tests::{binary, postgres, suite::Suite};

use self::release::Release;

/// The two releases on a database that the older one has made and used, and that this build has migrated since.
struct Pair {
    release: Release,
    /// Processes of the release before.
    before: Suite,
    /// Processes of this build.
    now: Suite,
    database: postgres::Database,
}

impl Pair {
    /// A database with the schema of the release before, made by its own binary.
    fn start() -> Self {
        let release = Release::before_this();
        let database = postgres::fresh_database();
        database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
        let now = Suite::on(&database.url());
        let before = now.release(release.binary());
        before.migrate();
        Self { release, before, now, database }
    }

    /// The suite of one of the two.
    fn of(&self, version: Version) -> &Suite {
        match version {
            Version::Before => &self.before,
            Version::Now => &self.now,
        }
    }

    /// The binary of one of the two.
    fn binary(&self, version: Version) -> std::path::PathBuf {
        match version {
            Version::Before => self.release.binary().to_owned(),
            Version::Now => binary::millrace(),
        }
    }

    /// Takes back what this build has migrated, down to the schema of the release before.
    fn migrate_down(&self) {
        let status = millrace_store::migrate::status(&self.database.url()).expect("the migrations' status");
        let later =
            status.iter().filter(|one| one.applied && one.name.split('_').next() > Some(&self.release.schema)).count();
        let taken_back = millrace_store::migrate::down(&self.database.url(), later).expect("migrating down");
        assert_eq!(taken_back.len(), later);
    }
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Before,
    Now,
}

const VERSIONS: [Version; 2] = [Version::Before, Version::Now];

/// A route and a paused queue, for tasks that wait from one phase into another.
fn make_waiting_room(suite: &Suite, distributor: &str, queue: &str) {
    let run = |arguments: &[&str]| {
        let mut command = suite.client(distributor, arguments.iter().copied());
        let output = command.env("MILLRACE_QUEUE_ENDPOINT", queue).output().expect("running millrace");
        assert!(output.status.success(), "{arguments:?}: {}", millrace_tests::suite::said(&output));
    };
    run(&["queue", "create", "later"]);
    run(&["route", "set", "later", "--executor", "later", "--queue", "later"]);
    run(&["queue", "pause", "later", "--reason", "until everything has rolled"]);
}

/// Lets what waits go.
fn open_waiting_room(suite: &Suite, queue: &str) {
    let mut command = suite.cli(["queue", "resume", "later"]);
    let output = command.env("MILLRACE_QUEUE_ENDPOINT", queue).output().expect("running millrace");
    assert!(output.status.success(), "{}", millrace_tests::suite::said(&output));
}

/// Agents of the tests: for both queues and both executors.
const AGENT: [&str; 6] = ["--slots", "4", "--queues", "default,later", "--executors", "process,later"];

/// The commands' own file.
fn history(suite: &Suite) -> std::path::PathBuf {
    Path::join(suite.folder(), "history")
}
