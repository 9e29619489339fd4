//! Bad rows: tasks that were submitted like any other, and then changed behind the services' back into what another release, or an
//! accident, might have written. Each is kept in a table of the drill's as it was then, to be compared with.

use anyhow::{Result, ensure};
use diesel::{QueryableByName, RunQueryDsl, sql_query, sql_types};
use rand::{Rng, rngs::StdRng, seq::SliceRandom};
use uuid::Uuid;

use crate::sql::Sql;

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Bad {
    /// A column whose type was changed in the database holds what the former type could not.
    Column,
    /// A field of the spec is of another type.
    Field,
    /// A required column holds nothing.
    Null,
    /// The spec is cut short.
    Truncated,
    /// The state is one that no release has had.
    UnknownEnum,
    /// The spec is larger than what can be sent.
    Oversize,
    /// The queue does not exist.
    Orphan,
}

/// Every kind.
pub(super) const KINDS: [Bad; 7] =
    [Bad::Column, Bad::Field, Bad::Null, Bad::Truncated, Bad::UnknownEnum, Bad::Oversize, Bad::Orphan];

/// The queue of orphans, which is made when they are mended.
pub(super) const AWAY: &str = "away";

/// The state that nobody knows.
const UNKNOWN: i16 = 42;

/// What the services may change in a row that they cannot read: where it is in its life.
const LIFE: &str = "'{state,ready_at_us,wake_at_us,attempt,token,session_id,dispatched_at_us,started_at_us}'::text[]";

impl Bad {
    /// Its name in the drill's table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Column => "column",
            Self::Field => "field",
            Self::Null => "null",
            Self::Truncated => "truncated",
            Self::UnknownEnum => "enum",
            Self::Oversize => "oversize",
            Self::Orphan => "orphan",
        }
    }

    /// What it does to a row `t`, whose original is `b`.
    fn change(self) -> String {
        match self {
            Self::Column => r#"concurrency_key = '{"was": "text"}'::json"#.into(),
            // The number 1 in the field `concurrency_key`.
            Self::Field => r"spec = t.spec || '\x3001'::bytea".into(),
            Self::Null => "concurrency_key = CASE WHEN b.number % 3 = 0 THEN NULL ELSE t.concurrency_key END,
                attempt = CASE WHEN b.number % 3 = 1 THEN NULL ELSE t.attempt END,
                spec = CASE WHEN b.number % 3 = 2 THEN NULL ELSE t.spec END"
                .into(),
            Self::Truncated => "spec = substr(t.spec, 1, length(t.spec) - 7)".into(),
            Self::UnknownEnum => format!("state = {UNKNOWN}"),
            // A field that no release knows, of 9,000 bytes: its key, its length, and itself.
            Self::Oversize => r"spec = t.spec || '\xfaf004a846'::bytea || decode(repeat('2e', 9000), 'hex')".into(),
            Self::Orphan => format!("queue = '{AWAY}'"),
        }
    }
}

/// Makes the drill's table, and the schema one that a next release has changed: `concurrency_key` is JSON, with a cast for whoever
/// writes text, and columns may hold nothing. (To `json` and not to `jsonb`, because a cast is the whole database's, and the services
/// turn text into `jsonb` themselves.)
pub(super) fn prepare(sql: &mut Sql) -> Result<()> {
    sql.execute(
        "CREATE SCHEMA drill;
        CREATE TABLE drill.bad (
            id uuid PRIMARY KEY, number int NOT NULL, cell text NOT NULL, kind text NOT NULL, original bytea NOT NULL,
            key text NOT NULL, raw jsonb, spec bytea);
        CREATE FUNCTION drill.as_json(text) RETURNS json LANGUAGE sql IMMUTABLE AS 'SELECT to_json($1)';
        CREATE CAST (text AS json) WITH FUNCTION drill.as_json(text) AS ASSIGNMENT;
        ALTER TABLE tasks ALTER concurrency_key TYPE json USING to_json(concurrency_key),
            ALTER concurrency_key DROP NOT NULL, ALTER attempt DROP NOT NULL, ALTER spec DROP NOT NULL",
    )
}

/// Changes these tasks' rows, as many of one kind as of another, in an order that is left to chance.
pub(super) fn spoil(sql: &mut Sql, cell: &str, tasks: &[Uuid], random: &mut StdRng) -> Result<()> {
    if tasks.is_empty() {
        return Ok(());
    }
    let first = random.random_range(0..KINDS.len());
    let mut kinds: Vec<&str> = (0..tasks.len()).map(|number| KINDS[(first + number) % KINDS.len()].name()).collect();
    kinds.shuffle(random);
    let noted = sql_query(
        "INSERT INTO drill.bad (id, number, cell, kind, original, key)
        SELECT t.id, item.number / 7, $1, item.kind, t.spec, t.concurrency_key #>> '{}'
        FROM unnest($2, $3) WITH ORDINALITY AS item(id, kind, number) JOIN tasks t ON t.id = item.id",
    )
    .bind::<sql_types::Text, _>(cell)
    .bind::<sql_types::Array<sql_types::Uuid>, _>(tasks)
    .bind::<sql_types::Array<sql_types::Text>, _>(kinds)
    .execute(&mut sql.0)?;
    ensure!(
        noted == tasks.len(),
        "{noted} of {} tasks are there to be spoilt: the stage was set too slowly",
        tasks.len()
    );
    let change = |kind: &Bad| {
        format!(
            "UPDATE tasks t SET {} FROM drill.bad b WHERE b.id = t.id AND b.cell = '{cell}' AND b.kind = '{}';",
            kind.change(),
            kind.name()
        )
    };
    let changes: String = KINDS.iter().map(change).collect();
    sql.execute(&format!(
        "BEGIN; {changes}
        UPDATE drill.bad b SET raw = to_jsonb(t) - 'spec', spec = t.spec FROM tasks t WHERE t.id = b.id AND b.cell = '{cell}';
        COMMIT"
    ))
}

/// How many bad rows there are.
pub(super) fn count(sql: &mut Sql) -> Result<usize> {
    Ok(sql.number("SELECT count(*) AS number FROM drill.bad")? as usize)
}

/// Where each row is now, and whether it is there with every column and byte, but for where it is in its life: in quarantine, or, of
/// unknown state, left where it was. One that has ended all the same, because nobody needed what is wrong with it, has the bytes of its
/// spec.
const NOW: &str = "SELECT b.kind,
        CASE WHEN q.task_id IS NOT NULL THEN 'set aside' WHEN t.id IS NOT NULL THEN 'live' WHEN f.id IS NOT NULL THEN 'finished'
            ELSE 'gone' END AS place,
        coalesce(CASE WHEN f.id IS NOT NULL THEN f.spec = b.spec
            WHEN b.kind = 'enum' THEN to_jsonb(t) - 'spec' = b.raw AND t.spec = b.spec
            ELSE q.raw::jsonb - LIFE = b.raw - LIFE AND q.spec IS NOT DISTINCT FROM b.spec END, FALSE) AS same
    FROM drill.bad b LEFT JOIN quarantine q ON q.task_id = b.id LEFT JOIN tasks t ON t.id = b.id
    LEFT JOIN finished_tasks f ON f.id = b.id";

#[derive(QueryableByName)]
struct Text {
    #[diesel(sql_type = sql_types::Text)]
    text: String,
}

/// How many of them are kept as they were, and where all of them are, for people.
pub(super) fn kept(sql: &mut Sql) -> Result<(usize, String)> {
    let now = NOW.replace("LIFE", LIFE);
    let kept = sql.number(&format!("SELECT count(*) AS number FROM ({now}) AS now WHERE same"))?;
    let places = sql_query(format!(
        "SELECT coalesce(string_agg(format('%s %s %s%s', number, kind, place, CASE WHEN same THEN '' ELSE ' and not as it was' END),
            ', '), '') AS text
        FROM (SELECT kind, place, same, count(*) AS number FROM ({now}) AS now GROUP BY 1, 2, 3 ORDER BY 1, 2, 3) AS places"
    ));
    let places: Text = places.get_result(&mut sql.0)?;
    Ok((kept as usize, places.text))
}

/// How many rows are in quarantine that nothing is wrong with.
pub(super) fn innocent(sql: &mut Sql) -> Result<usize> {
    let innocent = "SELECT count(*) AS number FROM quarantine WHERE task_id NOT IN (SELECT id FROM drill.bad)";
    Ok(sql.number(innocent)? as usize)
}

/// How many have still to be set aside.
pub(super) fn left(sql: &mut Sql) -> Result<i64> {
    sql.number("SELECT count(*) AS number FROM drill.bad b JOIN tasks t ON t.id = b.id WHERE b.kind <> 'enum'")
}
