//! Searches of what waits while a column of its index has another type (see [`drift`](super::drift)).
//!
//! The index is over the columns as they are, so an expression over one of them finds nothing through it, and a step from lane to lane
//! would read the whole queue. These statements step through the index by what the columns hold, whatever that is, and only then read what
//! it means: one lane costs one step as before, though a search sees the lanes of every queue. Names in quotes are columns as they are,
//! and a list that is named `tasks` has columns of tasks, as they are.

/// Every lane as it stands in the index. Several may mean the same: the texts 5 and 05 are one rank.
macro_rules! lanes_as_they_are {
    () => {
        r#"lane AS (
            (SELECT t."queue", t."tenant", t."rank" FROM tasks t WHERE t.ready_at_us IS NOT NULL
             ORDER BY t."queue", t."tenant", t."rank" LIMIT 1)
            UNION ALL
            SELECT next.* FROM lane CROSS JOIN LATERAL (
                SELECT t."queue", t."tenant", t."rank" FROM tasks t
                WHERE t.ready_at_us IS NOT NULL
                    AND (t."queue", t."tenant", t."rank") > (lane."queue", lane."tenant", lane."rank")
                ORDER BY t."queue", t."tenant", t."rank" LIMIT 1) AS next
        )"#
    };
}

/// The columns of the index by which a lane is found.
pub(super) const LANE: &[&str] = &["queue", "tenant", "rank"];

/// That by which a lane is read.
pub(super) const TIME: &[&str] = &["ready_at_us"];

pub(super) const LANES: &str = concat!(
    "WITH RECURSIVE ",
    lanes_as_they_are!(),
    "SELECT lanes.tenant, lanes.rank FROM (
        SELECT DISTINCT tasks.tenant, tasks.rank FROM lane AS tasks
        WHERE tasks.queue = $1 AND (tasks.tenant, tasks.rank) > ($2, $3)
            AND tasks.rank BETWEEN -2147483648::bigint AND 2147483647::bigint) AS lanes
    ORDER BY lanes.tenant, lanes.rank LIMIT $4"
);

pub(super) const LANE_PAGE: &str = concat!(
    "WITH RECURSIVE ",
    lanes_as_they_are!(),
    r#", meant AS MATERIALIZED (
        SELECT tasks."queue", tasks."tenant", tasks."rank" FROM lane AS tasks
        WHERE tasks.queue = $1 AND tasks.tenant = $2 AND tasks.rank = $3
    )
    SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint,
        page.id, page.ready_at_us, page.expires_at_us, page.min_reader, page.state
    FROM (SELECT 1) AS always LEFT JOIN LATERAL (
        SELECT part.id, part.ready_at_us, part.expires_at_us, part.min_reader, part.state
        FROM meant CROSS JOIN LATERAL (
            SELECT t.id, t.ready_at_us, t.expires_at_us, t.min_reader, t.state FROM tasks t
            WHERE t."queue" = meant."queue" AND t."tenant" = meant."tenant" AND t."rank" = meant."rank"
                AND t.ready_at_us IS NOT NULL AND (t.ready_at_us, t.id) > ($4, $5) AND (t.ready_at_us, t.id) <= ($6, $7)
            ORDER BY t.ready_at_us, t.id LIMIT $8) AS part
        ORDER BY part.ready_at_us, part.id LIMIT $8) AS page ON TRUE"#
);

/// A lane has no order by time then: all of it is read, and each row's time once.
pub(super) const LANE_PAGE_BY_TIME: &str = "SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint,
        page.id, page.ready_at_us, page.expires_at_us, page.min_reader, page.state
    FROM (SELECT 1) AS always LEFT JOIN LATERAL (
        SELECT whole.id, whole.ready_at_us, whole.expires_at_us, whole.min_reader, whole.state FROM (
            SELECT t.id, t.ready_at_us, t.expires_at_us, t.min_reader, t.state FROM tasks t
            WHERE t.queue = $1 AND t.tenant = $2 AND t.rank = $3 AND t.ready_at_us IS NOT NULL OFFSET 0) AS whole
        WHERE (whole.ready_at_us, whole.id) > ($4, $5) AND (whole.ready_at_us, whole.id) <= ($6, $7)
        ORDER BY whole.ready_at_us, whole.id LIMIT $8) AS page ON TRUE";

/// What a lane means is the same for all of its rows.
pub(super) const STRAYS: &str = concat!(
    "WITH RECURSIVE ",
    lanes_as_they_are!(),
    r#", lost AS MATERIALIZED (
        SELECT tasks."queue", tasks."tenant", tasks."rank" FROM lane AS tasks
        WHERE tasks.tenant IS NULL OR (tasks.rank BETWEEN -2147483648::bigint AND 2147483647::bigint) IS NOT TRUE
            OR NOT EXISTS (SELECT 1 FROM queues q WHERE q.name = tasks.queue)
    )
    SELECT strays.id FROM (
        SELECT stray.id FROM lost CROSS JOIN LATERAL (
            SELECT t.id FROM tasks t
            WHERE t."queue" = lost."queue" AND t."tenant" = lost."tenant" AND t."rank" = lost."rank"
                AND t.ready_at_us IS NOT NULL LIMIT $1) AS stray
        UNION ALL
        (SELECT t.id FROM tasks t WHERE t."queue" IS NULL AND t.ready_at_us IS NOT NULL LIMIT $1)
        UNION ALL
        (SELECT t.id FROM tasks t WHERE (t."tenant" IS NULL OR t."rank" IS NULL) AND t.ready_at_us IS NOT NULL LIMIT $1)
    ) AS strays LIMIT $1"#
);

pub(super) const POSITION: &str = concat!(
    "WITH RECURSIVE ",
    lanes_as_they_are!(),
    r#", this AS MATERIALIZED (
        SELECT t.queue, t.rank, t.ready_at_us, t.id FROM tasks t WHERE t.id = $1 AND t.ready_at_us IS NOT NULL
    ), earlier AS MATERIALIZED (
        SELECT tasks."queue", tasks."tenant", tasks."rank", tasks.rank AS priority FROM this, lane AS tasks
        WHERE tasks.queue = this.queue AND tasks.rank <= this.rank
    ), before AS (
        SELECT 1 FROM this, earlier CROSS JOIN LATERAL (
            SELECT 1 FROM tasks t
            WHERE t."queue" = earlier."queue" AND t."tenant" = earlier."tenant" AND t."rank" = earlier."rank"
                AND t.ready_at_us IS NOT NULL
                AND (earlier.priority < this.rank OR (t.ready_at_us, t.id) < (this.ready_at_us, this.id))) AS one
        LIMIT $2
    )
    SELECT (SELECT count(*) FROM before) FROM this"#
);

/// What waits, by queue as it stands in the index, and then by what that means.
macro_rules! waiting_as_it_is {
    () => {
        r#"each AS MATERIALIZED (
            SELECT t."queue", count(*) AS number, min(t.ready_at_us) AS oldest
            FROM tasks t WHERE t.ready_at_us IS NOT NULL GROUP BY t."queue"
        ), waiting AS MATERIALIZED (
            SELECT named.name, sum(named.number)::bigint AS number, min(named.oldest) AS oldest
            FROM (SELECT tasks.queue AS name, tasks.number, tasks.oldest FROM each AS tasks) AS named GROUP BY named.name
        )"#
    };
}
pub(super) use waiting_as_it_is;
