//! Columns whose type was changed under a store that is open: the column degrades, and nothing else does. On PostgreSQL alone: SQLite
//! has a type for every value.
//!
//! Every column by which rows are searched gets every type that it may have become, on live data. Whole lives of tasks go on; a value
//! that cannot be read costs its own row; and once the type is back everything is as it was, without opening the store anew.

mod columns;
mod life;

use millrace_core::{
    foreign::{OPTIONAL, Verdict},
    task::State,
};
use millrace_store::{Examined, Reader};

use self::life::Scene;
use crate::world::{World, completion};

/// A change of a column's type, in some tables.
struct Change<'c> {
    tables: &'c [&'c str],
    column: &'c str,
    to: &'c str,
    /// The type that it has by right.
    expected: &'c str,
}

impl Change<'_> {
    /// Changes the type; what the column holds keeps its meaning.
    fn make(&self, world: &World) {
        let using = match self.to {
            "jsonb" => format!("to_jsonb({})", self.column),
            to => format!("(to_jsonb({}) #>> '{{}}')::{to}", self.column),
        };
        self.alter(world, self.to, &using);
    }

    fn undo(&self, world: &World) {
        // The blanks of a fixed length mean nothing.
        self.alter(world, self.expected, &format!("rtrim(to_jsonb({}) #>> '{{}}')::{}", self.column, self.expected));
    }

    fn alter(&self, world: &World, to: &str, using: &str) {
        for table in self.tables {
            world.sql(&format!("ALTER TABLE {table} ALTER COLUMN {} TYPE {to} USING {using}", self.column));
        }
    }
}

/// The types that a column of this type may have become, each with a value that this build cannot read out of it, if it has one.
fn types(expected: &str) -> &'static [(&'static str, Option<&'static str>)] {
    match expected {
        "smallint" | "integer" | "bigint" => {
            &[("text", Some("bad")), ("numeric", Some("0.5")), ("jsonb", Some("{\"bad\": 1}"))]
        }
        "uuid" | "boolean" => &[("text", Some("bad")), ("jsonb", Some("{\"bad\": 1}"))],
        _ => &[("varchar(200)", None), ("jsonb", Some("{\"bad\": 1}"))],
    }
}

/// Changes the types of columns for the first time, and returns those that they had. Every change is named.
fn first_change(world: &World, tables: &[&str], columns: &[&str]) -> Vec<String> {
    for (table, column) in tables.iter().flat_map(|table| columns.iter().map(move |column| (table, column))) {
        world.sql(&format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE jsonb USING to_jsonb({column})"));
    }
    let drift = world.drift().expect("comparing types");
    let expected = |table: &str, column: &str| {
        let one = drift.iter().find(|drift| drift.table == table && drift.column == column);
        one.unwrap_or_else(|| panic!("{table}.{column} is not named: {drift:?}")).expected.clone()
    };
    assert_eq!(drift.len(), tables.len() * columns.len());
    columns.iter().map(|column| expected(tables[tables.len() - 1], column)).collect()
}

/// A row whose value of the column means nothing here costs nobody but itself: it is set aside where the column is needed, and goes on
/// without it where not.
fn costs_its_own_row(world: &World, column: &str, bad: &str) {
    let (odd, good) = (world.queued(), world.queued());
    world.sql(&format!("UPDATE tasks SET {column} = '{bad}' WHERE id::text LIKE '%{odd}%'"));
    assert!(life::fed(world).contains(&good), "{column} = {bad:?} keeps another from being fed");
    let page = world.inspect(None, 1000).expect("inspecting");
    let reading = page.rows.iter().find(|(task, _)| *task == odd).map(|(_, reading)| reading.clone());
    let reading = reading.unwrap_or_else(|| panic!("{column} = {bad:?} hides its row"));
    let mut met = world.foreign().take_suspects(1000);
    met.extend(world.strays(1000).expect("looking for strays"));
    match reading.verdict {
        Verdict::Unreadable(defect) => {
            assert_eq!(defect.column, column);
            met.push(odd);
            met.dedup();
            let examined = world.examine(&met).expect("examining");
            assert!(matches!(examined.last(), Some(Examined::Quarantined(_))), "{column} = {bad:?}: {examined:?}");
            assert!(world.is_quarantined(odd).expect("reading"));
        }
        Verdict::Readable => {
            let examined = world.examine(&[odd]).expect("examining");
            assert_eq!(examined, [Examined::Readable], "{column} = {bad:?}");
            if OPTIONAL.contains(&column) {
                let ignored: Vec<String> = world.row(odd).ignored.into_iter().map(|defect| defect.column).collect();
                // This one alone is shown to nobody.
                let shown = if column == "unsupported" { vec![] } else { vec![column] };
                assert_eq!(ignored, shown, "{column} = {bad:?} is ignored in silence");
            }
            let worker = world.worker();
            world.completed(world.dispatched(worker, odd).lease, State::Succeeded);
        }
        Verdict::TooNew(defect) => panic!("{column} = {bad:?} is taken for a later release's: {defect}"),
    }
    world.completed(world.dispatched(world.worker(), good).lease, State::Succeeded);
    // What holds it has ended, and must not stand in the way of the type's return.
    world.sql(&format!("DELETE FROM finished_tasks WHERE id::text LIKE '%{odd}%'"));
}

/// A world that does not wait for its disk: what is tested survives no crash anyway.
fn world() -> World {
    let mut world = World::postgres();
    world.sql(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$",
    );
    world.reopen(Reader::default());
    world
}

/// Changes on live data, whole lives under them, and the way back.
fn flows_through(tables: &[&str], columns: &[&str], with_bad_values: bool) {
    flows_through_after("SELECT", tables, columns, with_bad_values);
}

/// The same after what has to be done before the types can be changed.
fn flows_through_after(first: &str, tables: &[&str], columns: &[&str], with_bad_values: bool) {
    let world = world();
    world.sql(first);
    let before = Scene::set(&world);
    let expected = first_change(&world, tables, columns);
    before.finish(&world);
    for round in 0..3 {
        let mut changes = Vec::new();
        for (column, expected) in columns.iter().zip(&expected) {
            let types = types(expected);
            let (to, bad) = types[round % types.len()];
            changes.push((Change { tables, column, to, expected }, bad));
        }
        let scene = Scene::set(&world);
        changes.iter().for_each(|(change, _)| change.make(&world));
        scene.finish(&world);
        life::whole(&world);
        for (change, bad) in changes.iter().filter(|_| with_bad_values) {
            if let Some(bad) = bad {
                costs_its_own_row(&world, change.column, bad);
            }
        }
        let scene = Scene::set(&world);
        changes.iter().for_each(|(change, _)| change.undo(&world));
        scene.finish(&world);
    }
    assert_eq!(world.drift().expect("comparing types"), []);
    // Types that come and go find statements prepared for those before.
    life::whole(&world);
    world.check_invariants();
}

/// A type out of which nothing can be read, and into which nothing can be written: rows wait, and are there once the type is back.
#[test]
fn r10_a_column_of_which_nothing_can_be_read_stops_nobody_for_good() {
    let world = world();
    let waiting = world.queued_many(20);
    world.sql("ALTER TABLE tasks ALTER COLUMN rank TYPE bytea USING rank::text::bytea");
    assert_eq!(world.lanes("default", None, 10).expect("listing lanes"), []);
    let examined = world.examine(&waiting[..2]).expect("examining");
    assert!(examined.iter().all(|one| matches!(one, Examined::Quarantined(defect) if defect.column == "rank")));
    // A value out of which a name could be made up is not a name.
    world.sql("ALTER TABLE tasks ALTER COLUMN rank TYPE integer USING encode(rank, 'escape')::integer");
    world.sql("ALTER TABLE tasks ALTER COLUMN tenant TYPE bytea USING tenant::bytea");
    assert_eq!(world.lanes("default", None, 10).expect("listing lanes"), []);
    let examined = world.examine(&waiting[2..4]).expect("examining");
    assert!(examined.iter().all(|one| matches!(one, Examined::Quarantined(defect) if defect.column == "tenant")));
    world.sql("ALTER TABLE tasks ALTER COLUMN tenant TYPE text COLLATE \"C\" USING convert_from(tenant, 'UTF8')");
    let worker = world.worker();
    for task in &waiting[4..] {
        let lease = world.dispatched(worker, *task).lease;
        world.try_complete(completion(lease, State::Succeeded));
        assert_eq!(world.state(*task), State::Succeeded);
    }
}

/// The blanks with which such a text is filled up are no part of a name.
#[test]
fn r10_a_text_of_fixed_length_is_read_without_its_blanks() {
    let world = world();
    for column in ["tenant", "executor"] {
        let change = Change { tables: &["tasks", "finished_tasks"], column, to: "char(60)", expected: "text" };
        let scene = Scene::set(&world);
        change.make(&world);
        let row = world.row(scene.queued);
        assert_eq!((row.envelope.tenant.as_str(), row.envelope.executor.as_str()), ("default", "process"));
        scene.finish(&world);
        life::whole(&world);
        change.undo(&world);
    }
    world.check_invariants();
}

/// A type that this build has no name for, but whose values have the text of the expected one.
#[test]
fn r10_a_type_without_a_name_here_is_read_by_its_text() {
    let world = world();
    world.sql("CREATE TYPE step AS ENUM ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')");
    world.sql("CREATE DOMAIN name_of_a_tenant AS varchar(50); CREATE DOMAIN step_of_text AS text");
    for (column, to, back) in [
        ("state", "step", "smallint"),
        ("attempt", "step", "integer"),
        ("rank", "step_of_text", "integer"),
        ("tenant", "name_of_a_tenant", "text"),
    ] {
        let change = Change { tables: &["tasks", "finished_tasks"], column, to, expected: back };
        let scene = Scene::set(&world);
        change.make(&world);
        scene.finish(&world);
        life::whole(&world);
        change.undo(&world);
        life::whole(&world);
    }
    world.check_invariants();
}
