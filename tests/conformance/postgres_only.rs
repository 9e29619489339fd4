//! What only PostgreSQL's types, locks and roles can do to rows of other releases.

use diesel::connection::SimpleConnection;
use millrace_core::foreign::Value;
use millrace_store::{Audit, Examined, Released, migrate};
use millrace_tests::postgres;

use crate::world::World;

fn audit() -> Audit {
    Audit { action: "a test".into(), subject: "rows".into(), detail: String::new() }
}

/// The payload is what nobody can make up again.
#[test]
fn r10_a_spec_that_is_no_bytes_any_more_is_kept_as_it_is_and_comes_back() {
    let world = World::postgres();
    let task = world.queued();
    world.sql("ALTER TABLE tasks ALTER COLUMN spec TYPE text USING 'as text: ' || encode(spec, 'hex')");
    let examined = world.examine(&[task]).expect("examining");
    assert!(matches!(&examined[..], [Examined::Quarantined(defect)] if defect.column == "spec"), "{examined:?}");
    let row = world.quarantine_row(task);
    assert_eq!(row.spec, None);
    assert!(matches!(&row.row["spec"], Value::Text(spec) if spec.starts_with("as text: ")), "{row:?}");
    assert!(matches!(&world.release(&[task], &audit()).expect("releasing")[..], [Released::Refused(_)]));
    // The type goes back, and an operator brings the bytes.
    world.sql("ALTER TABLE tasks ALTER COLUMN spec TYPE bytea USING spec::bytea");
    let repair = millrace_store::Repair { spec: Some(b"spec".to_vec()), ..Default::default() };
    let repaired = world.repair(task, &repair, false, &audit()).expect("repairing");
    assert_eq!(repaired, millrace_store::Repaired::Done);
    assert_eq!(world.row(task).spec, b"spec");
}

/// A widened column may hold what this build's own column cannot: it must not keep a task from ending.
#[test]
fn r10_a_number_out_of_range_is_set_aside_found_among_the_strays_and_can_be_discarded() {
    let world = World::postgres();
    let (bad, good) = (world.queued(), world.queued());
    world.sql("ALTER TABLE tasks ALTER COLUMN rank TYPE bigint");
    world.sql(&format!("UPDATE tasks SET rank = 1::bigint << 40 WHERE id = '{bad}'"));
    assert_eq!(world.strays(10).expect("looking"), [bad]);
    assert_eq!(world.lanes("default", None, 10).expect("reading lanes").len(), 1);
    assert!(matches!(world.examine(&[bad]).expect("examining")[..], [Examined::Quarantined(_)]));
    assert_eq!(world.discard(&[bad], "too far", &audit()).expect("discarding"), [bad]);
    assert!(world.task(bad).expect("reading").is_some_and(|row| row.finished_at_us.is_some()));
    assert_eq!(world.state(good), millrace_core::task::State::Queued);
}

/// An examination waits for nobody, and nobody for it.
#[test]
fn r10_a_row_that_another_has_locked_holds_up_no_examination() {
    let world = World::postgres();
    let (locked, free) = (world.queued(), world.queued());
    world.sql("UPDATE tasks SET queue = 'gone'");
    let mut other = world.postgres_database().connect();
    other.batch_execute(&format!("BEGIN; SELECT 1 FROM tasks WHERE id = '{locked}' FOR UPDATE")).expect("locking");
    let examined = world.examine(&[locked, free]).expect("examining");
    assert!(matches!(examined[..], [Examined::Gone, Examined::Quarantined(_)]), "{examined:?}");
    other.batch_execute("ROLLBACK").expect("unlocking");
    assert!(matches!(world.examine(&[locked]).expect("examining")[..], [Examined::Quarantined(_)]));
}

/// Owners of databases are seldom superusers.
#[test]
fn a_role_that_owns_its_database_and_nothing_else_migrates_it() {
    let database = postgres::empty_database_of_a_plain_role();
    assert!(!migrate::up(&database.url()).expect("migrating").is_empty());
    migrate::fits(&database.url()).expect("a schema that fits");
}
