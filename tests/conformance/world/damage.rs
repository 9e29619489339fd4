//! Rows that no release of this age would write, and the builds that meet them.

use millrace_core::foreign::{Defect, SpecReading, Value};
use millrace_store::{Examined, QuarantineFilter, QuarantinedRow, Reader};

use super::*;

/// The longest spec that the tests' builds take.
const LONGEST: usize = 64 << 10;

/// A spec that [`strict`] takes for one that was cut short, whatever follows.
pub(crate) const CUT: &[u8] = b"cut\0\xff\x01";

/// A build that refuses specs which were cut short and such as are too long.
pub(crate) fn strict(build: &str) -> Reader {
    Reader { build: build.into(), spec: strictly }
}

/// A build that takes any spec, as one does in which the defect of its reader is mended.
pub(crate) fn lenient(build: &str) -> Reader {
    Reader { build: build.into(), ..Reader::default() }
}

fn strictly(spec: &[u8]) -> SpecReading {
    let defect = match spec {
        _ if spec.len() > LONGEST => Some(Defect::new("spec", "is too long")),
        _ if spec.starts_with(CUT) => Some(Defect::new("spec.payload", "is cut short")),
        _ => None,
    };
    let odd = spec.starts_with(b"odd").then(|| Defect::new("spec.labels", "is of another type"));
    SpecReading { defect, ignored: odd.into_iter().collect() }
}

impl World {
    /// Opens the store anew, as another build does.
    pub(crate) fn reopen(&mut self, reader: Reader) {
        self.reopen_with(OpenOptions { reader, ..OpenOptions::default() });
    }

    pub(crate) fn reopen_with(&mut self, options: OpenOptions) {
        match &mut self.backend {
            Backend::Memory(store, _) => {
                *store = store.read_by(options.reader);
                self.store = Arc::new(store.clone());
            }
            Backend::Sqlite(database) => {
                // A file serves one store at a time, so the old one is closed first.
                self.store = Arc::new(MemoryStore::settable(Timestamp(0)).0);
                self.store = open(&database.url(), &options);
            }
            Backend::Postgres(database) => self.store = open(&database.url(), &options),
        }
    }

    /// Puts a value into a column of a live task, whatever its type takes. `Value::Other` stands for a type that no column ever
    /// had; it holds JSON.
    pub(crate) fn damage(&self, task: TaskId, column: &str, value: Value) {
        match &self.backend {
            Backend::Memory(store, _) => store.damage(task, column, value),
            Backend::Sqlite(_) => {
                if value == Value::Null {
                    self.sql(SQLITE_LOOSEN);
                }
                let id = task.0.simple();
                self.sql(&format!("UPDATE tasks SET {column} = {} WHERE id = x'{id}'", sqlite_literal(&value)));
            }
            Backend::Postgres(_) => {
                if let Some(change) = postgres_change(column, &value) {
                    self.sql(&change);
                }
                self.sql(&format!("UPDATE tasks SET {column} = {} WHERE id = '{task}'", postgres_literal(&value)));
            }
        }
    }

    /// Puts a node into a state that no release of this age knows.
    pub(crate) fn damage_node(&self, node: NodeId) {
        let id = match &self.backend {
            Backend::Memory(store, _) => return store.damage_node(node, "state"),
            Backend::Sqlite(_) => format!("x'{}'", node.0.simple()),
            Backend::Postgres(_) => format!("'{node}'"),
        };
        self.sql(&format!("UPDATE nodes SET state = 77 WHERE id = {id}"));
    }

    /// Puts something into a pool's moment of creation that is none. A store that was open before has not seen the column otherwise, so it
    /// is opened anew.
    pub(crate) fn damage_pool(&mut self, pool: &str) {
        match &self.backend {
            Backend::Memory(store, _) => return store.damage_pool(pool, "created_at_us"),
            Backend::Sqlite(_) => {}
            Backend::Postgres(_) => {
                self.sql("ALTER TABLE pools ALTER COLUMN created_at_us TYPE text");
            }
        }
        self.sql(&format!("UPDATE pools SET created_at_us = 'long ago' WHERE name = '{pool}'"));
        self.reopen(Reader::default());
    }

    /// Gives the table of tasks a column of a later release.
    pub(crate) fn add_column(&self, column: &str) {
        self.sql(&format!("ALTER TABLE tasks ADD COLUMN {column} TEXT"));
    }

    /// What the audit trail says of an action, oldest first.
    pub(crate) fn audited(&self, action: &str) -> Vec<Audit> {
        let query = format!(
            "SELECT action || chr(1) || subject || chr(1) || detail AS line FROM audit WHERE action = '{action}' ORDER BY id"
        );
        let lines: Vec<Line> = match &self.backend {
            Backend::Memory(store, _) => {
                return store.audited().into_iter().filter(|entry| entry.action == action).collect();
            }
            Backend::Sqlite(database) => sql_query(query.replace("chr(", "char(")).load(&mut database.connect()),
            Backend::Postgres(database) => sql_query(query).load(&mut database.connect()),
        }
        .expect("reading the audit trail");
        let entry = |line: Line| {
            let mut parts = line.line.splitn(3, '\u{1}').map(str::to_owned);
            let mut next = || parts.next().unwrap_or_default();
            Audit { action: next(), subject: next(), detail: next() }
        };
        lines.into_iter().map(entry).collect()
    }

    /// Makes a call that the database fails in a way that says nothing about the data.
    pub(crate) fn failing<T>(&self, call: impl FnOnce() -> T) -> T {
        match &self.backend {
            Backend::Memory(store, _) => {
                store.fail_next(millrace_store::memory::Fault::CommitLost);
                call()
            }
            Backend::Sqlite(database) => {
                let mut other = database.connect();
                other.batch_execute("BEGIN IMMEDIATE").expect("locking");
                let answer = call();
                other.batch_execute("ROLLBACK").expect("giving up");
                answer
            }
            Backend::Postgres(database) => {
                let mut other = database.connect();
                other.batch_execute("BEGIN; LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE").expect("locking");
                let answer = call();
                other.batch_execute("ROLLBACK").expect("giving up");
                answer
            }
        }
    }

    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.backend, Backend::Memory(..))
    }

    /// Stores a task with this spec.
    pub(crate) fn queued_with(&self, spec: &[u8]) -> TaskId {
        let mut task = self.new_task();
        task.spec = spec.to_vec();
        self.put(task)
    }

    pub(crate) fn examined(&self, task: TaskId) -> Examined {
        let mut examined = self.examine(&[task]).expect("examining");
        assert_eq!(examined.len(), 1);
        examined.remove(0)
    }

    /// Examines a row that is to be set aside, and checks the column for which it was.
    pub(crate) fn set_aside(&self, task: TaskId, column: &str) {
        match self.examined(task) {
            Examined::Quarantined(defect) => assert_eq!(defect.column, column),
            other => panic!("{task} was not set aside for {column}: {other:?}"),
        }
    }

    /// A task with a spec that [`strict`] builds do not read, set aside by this one.
    pub(crate) fn aside(&self) -> TaskId {
        let task = self.queued_with(&[CUT, Uuid::new_v4().as_bytes()].concat());
        self.set_aside(task, "spec.payload");
        task
    }

    /// The quarantine as it is.
    pub(crate) fn quarantine_rows(&self) -> Vec<QuarantinedRow> {
        let page = self.quarantine(&QuarantineFilter::default(), None, 1000).expect("reading the quarantine");
        assert_eq!(page.next, None);
        page.rows
    }

    pub(crate) fn quarantine_row(&self, task: TaskId) -> QuarantinedRow {
        let row = self.quarantine_rows().into_iter().find(|row| row.task == task);
        row.unwrap_or_else(|| panic!("{task} is not in quarantine"))
    }
}

/// Lets every column of tasks hold nothing, for every connection that is opened and every one that is open.
const SQLITE_LOOSEN: &str = "PRAGMA writable_schema = ON;
    UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '') WHERE type = 'table' AND name = 'tasks';
    PRAGMA schema_version = 4711; PRAGMA writable_schema = OFF";

fn sqlite_literal(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::Bool(value) => i64::from(*value).to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        Value::Text(text) => format!("'{}'", text.replace('\'', "''")),
        Value::Bytes(bytes) => format!("x'{}'", hex(bytes)),
        // What SQLite has no type for is a blob where none belongs.
        Value::Other(text) => format!("x'{}'", hex(text.as_bytes())),
    }
}

fn postgres_literal(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Bytes(bytes) if bytes.len() == 16 => format!("encode('\\x{}', 'hex')::uuid", hex(bytes)),
        Value::Bytes(bytes) => format!("'\\x{}'::bytea", hex(bytes)),
        Value::Other(text) => format!("'{}'::jsonb", text.replace('\'', "''")),
        other => sqlite_literal(other),
    }
}

/// Columns of tasks that take the texts which these tests put there.
const TEXTS: [&str; 8] =
    ["tenant", "queue", "executor", "resource_class", "concurrency_key", "trace_context", "session_id", "colour"];

/// What a later release's migration does to a column before it can hold such a value.
fn postgres_change(column: &str, value: &Value) -> Option<String> {
    let retyped = |to: &str, using: &str| {
        let change = |table: &str| format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE {to} USING {using};");
        Some(change("tasks") + &change("finished_tasks"))
    };
    match value {
        Value::Null => Some(format!("ALTER TABLE tasks ALTER COLUMN {column} DROP NOT NULL")),
        Value::Text(_) if !TEXTS.contains(&column) => retyped("text", &format!("{column}::text")),
        Value::Other(_) => retyped("jsonb", &format!("to_jsonb({column})")),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
