//! What becomes of statements.

use super::*;

fn column(table: &str, name: &str, kind: Kind, family: Family) -> (String, Column) {
    let column = Column {
        kind,
        family,
        name: (table.to_owned(), name.to_owned()),
        key: name == "id",
        presence: name == "ready_at_us",
        carried: false,
        decoded: true,
        together: Together::Expected,
    };
    (name.to_owned(), column)
}

/// Some columns of tasks are text, and the state of sessions is jsonb.
fn rewritten(text: &str) -> String {
    let mut tasks: Table = ["rank", "ready_at_us", "timeout_ms", "started_at_us"]
        .map(|name| column("tasks", name, Kind::BigInt, Family::Text))
        .into();
    for (name, carried, together) in [("timeout_ms", true, Together::Same), ("started_at_us", false, Together::Text)] {
        let column = tasks.get_mut(name).unwrap();
        (column.carried, column.together) = (carried, together);
    }
    let sessions: Table =
        [column("sessions", "state", Kind::SmallInt, Family::Json), column("sessions", "id", Kind::Uuid, Family::Text)]
            .into();
    let tables = [("tasks".to_owned(), tasks), ("sessions".to_owned(), sessions)].into();
    let mut text = rewrite(text, &tables);
    for (column, short) in [("t.rank", "RANK"), ("t.ready_at_us", "READY")] {
        text = text.replace(&cast::read(column, Kind::BigInt, Family::Text), short);
    }
    text = text.replace(&cast::read("s.state", Kind::SmallInt, Family::Json), "STATE");
    text.replace("(jsonb_populate_record(NULL::", "(").replace(", jsonb_build_object(", " <- ")
}

#[test]
fn what_is_compared_is_read_and_what_is_returned_is_left_to_the_reader() {
    assert_eq!(
        rewritten("SELECT t.id, t.rank FROM tasks t WHERE t.rank = $1 AND t.ready_at_us IS NOT NULL ORDER BY t.rank"),
        "SELECT t.id, t.rank FROM tasks t WHERE RANK = $1 AND t.ready_at_us IS NOT NULL ORDER BY RANK"
    );
    assert_eq!(rewritten("SELECT (t.rank), t.rank + 1 FROM tasks t"), "SELECT (RANK), RANK + 1 FROM tasks t");
}

#[test]
fn a_statement_within_another_gets_values_of_the_expected_type_under_their_names() {
    assert_eq!(
        rewritten("WITH a AS (SELECT t.rank, t.rank AS r, (t.rank, t.id) > (1, 2) FROM tasks t) SELECT a.rank FROM a"),
        "WITH a AS (SELECT RANK AS rank, RANK AS r, (RANK, t.id) > (1, 2) FROM tasks t) SELECT a.rank FROM a"
    );
    // What both tables have alike moves as it is.
    assert_eq!(
        rewritten("WITH gone AS (DELETE FROM tasks t RETURNING t.timeout_ms, t.rank) SELECT 1"),
        "WITH gone AS (DELETE FROM tasks t RETURNING t.timeout_ms, RANK AS rank) SELECT 1"
    );
}

#[test]
fn a_result_of_several_parts_has_one_type_for_each_column() {
    assert_eq!(
        rewritten("SELECT t.rank, t.timeout_ms, t.started_at_us FROM tasks t UNION ALL SELECT 1, NULL, NULL"),
        "SELECT RANK AS rank, t.timeout_ms, (to_jsonb(t.started_at_us) #>> '{}') AS started_at_us FROM tasks t UNION ALL SELECT 1, NULL, NULL"
    );
}

#[test]
fn columns_are_as_they_are_in_quotes_and_in_what_is_called_like_their_table() {
    assert_eq!(
        rewritten("WITH a AS (SELECT t.\"rank\" FROM tasks t) SELECT 1 FROM a AS tasks WHERE tasks.rank = $1"),
        format!(
            "WITH a AS (SELECT t.\"rank\" FROM tasks t) SELECT 1 FROM a AS tasks WHERE {} = $1",
            cast::read("tasks.rank", Kind::BigInt, Family::Text)
        )
    );
}

#[test]
fn names_mean_the_nearest_thing_that_has_them() {
    assert_eq!(
        rewritten("SELECT 1 FROM other t WHERE t.rank = 1 AND EXISTS (SELECT 1 FROM tasks t WHERE t.rank = 1)"),
        "SELECT 1 FROM other t WHERE t.rank = 1 AND EXISTS (SELECT 1 FROM tasks t WHERE RANK = 1)"
    );
    assert_eq!(
        rewritten("SELECT max(t.rank) FROM (SELECT t.rank FROM tasks AS t) AS t, sessions s WHERE s.state = 1"),
        "SELECT max(t.rank) FROM (SELECT RANK AS rank FROM tasks AS t) AS t, sessions s WHERE STATE = 1"
    );
    assert_eq!(
        rewritten("SELECT t.rank + 1 FROM tasks t UNION ALL SELECT t.rank + 1 FROM finished_tasks t"),
        "SELECT RANK + 1 FROM tasks t UNION ALL SELECT t.rank + 1 FROM finished_tasks t"
    );
}

#[test]
fn keys_are_compared_as_they_are_spelled() {
    assert_eq!(
        rewritten("SELECT s.id FROM sessions s WHERE s.id > $1 ORDER BY s.id"),
        "SELECT s.id FROM sessions s WHERE s.id > (sessions <- 'id', $1))).id ORDER BY s.id"
    );
    assert_eq!(
        rewritten("UPDATE sessions s SET name = '' FROM old WHERE s.id = old.id AND s.id = ANY($1::uuid[])"),
        "UPDATE sessions s SET name = '' FROM old WHERE s.id = (sessions <- 'id', old.id))).id \
         AND s.id IN (SELECT (sessions <- 'id', one.key))).id FROM unnest($1::uuid[]) AS one(key))"
    );
    // Two columns that are compared together are read, as the others are.
    let together = rewritten("SELECT 1 FROM sessions s WHERE (s.state, s.id) > ($1, $2)");
    assert!(together.contains(&cast::read("s.id", Kind::Uuid, Family::Text)), "{together}");
}

#[test]
fn what_is_assigned_is_turned_into_the_columns_type() {
    assert_eq!(
        rewritten("UPDATE tasks t SET rank = t.rank + 1, id = $1, ready_at_us = NULL FROM a WHERE t.id = a.id"),
        "UPDATE tasks t SET rank = (tasks <- 'rank', RANK + 1))).rank, id = $1, \
         ready_at_us = (tasks <- 'ready_at_us', NULL))).ready_at_us FROM a WHERE t.id = a.id"
    );
    assert_eq!(
        rewritten("UPDATE sessions s SET state = CASE WHEN s.state = $1 THEN 2 ELSE 1 END"),
        "UPDATE sessions s SET state = (sessions <- 'state', CASE WHEN STATE = $1 THEN 2 ELSE 1 END))).state"
    );
}

#[test]
fn what_is_inserted_is_turned_into_the_columns_type() {
    assert_eq!(
        rewritten(
            "INSERT INTO tasks (id, rank, timeout_ms) SELECT a.id, coalesce(a.rank, 0), a.t FROM a RETURNING id, rank"
        ),
        "INSERT INTO tasks (id, rank, timeout_ms) SELECT a.id, (tasks <- 'rank', coalesce(a.rank, 0)))).rank, \
         (tasks <- 'timeout_ms', a.t))).timeout_ms FROM a RETURNING id, rank"
    );
    assert_eq!(
        rewritten(
            "INSERT INTO sessions AS s (name, state) VALUES ($1, 1) ON CONFLICT (name) DO UPDATE SET state = s.state + $2"
        ),
        "INSERT INTO sessions AS s (name, state) VALUES ($1, (sessions <- 'state', 1))).state) \
         ON CONFLICT (name) DO UPDATE SET state = (sessions <- 'state', STATE + $2))).state"
    );
    // Whoever quotes the columns has values of their own types.
    let quoted = "INSERT INTO tasks (\"id\", \"rank\") SELECT r.\"id\", r.\"rank\" FROM a r";
    assert_eq!(rewritten(quoted), quoted);
}

#[test]
fn a_statement_over_other_tables_stays_as_it_is() {
    let text = "SELECT q.name, 't.rank' FROM queues q WHERE q.rank = $1 /* t.rank */ FOR UPDATE OF q";
    assert_eq!(rewritten(text), text);
}
