//! The drill's own connection to the database.

use anyhow::{Context, Result};
use diesel::{PgConnection, QueryableByName, RunQueryDsl, connection::SimpleConnection, sql_query, sql_types};
use millrace_tests::postgres::Database;

/// By this name a hiccup knows the drill's connections, and spares them.
pub(crate) const NAME: &str = "millrace-drill";

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = sql_types::BigInt)]
    number: i64,
}

/// A connection.
pub(crate) struct Sql(pub(crate) PgConnection);

impl Sql {
    pub(crate) fn connect(database: &Database) -> Result<Self> {
        let mut sql = Self(database.connect());
        sql.execute(&format!("SET application_name = '{NAME}'"))?;
        Ok(sql)
    }

    /// Runs statements.
    pub(crate) fn execute(&mut self, statements: &str) -> Result<()> {
        self.0.batch_execute(statements).with_context(|| statements.to_owned())
    }

    /// The first column of the only row, which is called `number`.
    pub(crate) fn number(&mut self, query: &str) -> Result<i64> {
        let row: Number = sql_query(query).get_result(&mut self.0).with_context(|| query.to_owned())?;
        Ok(row.number)
    }
}
