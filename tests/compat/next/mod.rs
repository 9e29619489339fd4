//! The next release, as a profile: what it would write, before there is one. This build does what can be done with it and leaves
//! the rest alone, and neither ever stops a neighbour.

mod drift;
mod peers;
mod rows;

use diesel::{QueryableByName, RunQueryDsl, sql_query, sql_types};
use millrace_proto::queue::v1::{self as queues, queue_service_client::QueueServiceClient};
use millrace_tests::{
    postgres,
    suite::{Process, Suite},
};
use tonic::transport::Channel;

use crate::load::Load;

/// The suite of this build on PostgreSQL, with an agent, under a light load.
struct Site {
    load: Load,
    queues: QueueServiceClient<Channel>,
    distributor: Process,
    _processes: [Process; 2],
    _suite: Suite,
    database: postgres::Database,
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = sql_types::Text)]
    line: String,
}

impl Site {
    async fn start() -> Self {
        let database = postgres::fresh_database();
        let suite = Suite::new(&database.url());
        let (queue, distributor) = (suite.queue(&[]), suite.distributor(&[]));
        let agent = suite.agent(&[&distributor.endpoint], &["--slots", "4"]);
        let channel = Channel::from_shared(queue.endpoint.clone()).expect("an endpoint").connect_lazy();
        let load = Load::start(&[&distributor.endpoint], suite.folder().join("history"), 2);
        load.progress(4).await;
        let queues = QueueServiceClient::new(channel);
        Self { load, queues, distributor, _processes: [queue, agent], _suite: suite, database }
    }

    /// Tasks that wait in a paused queue, where a release can write to them before anybody claims them.
    async fn waiting(&self, count: usize) -> Vec<String> {
        let request = queues::PauseQueueRequest {
            name: "default".into(),
            reason: "rows are written".into(),
            ..Default::default()
        };
        self.queues.clone().pause_queue(request).await.expect("pausing");
        let mut ids = Vec::new();
        for number in 0..count {
            ids.push(self.load.submit(&format!("waiting-{number}"), "process").await);
        }
        ids
    }

    async fn resume(&self) {
        let request = queues::ResumeQueueRequest { name: "default".into(), ..Default::default() };
        self.queues.clone().resume_queue(request).await.expect("resuming");
    }

    /// The rows of these tasks, whole and as text, wherever they are.
    fn rows_of(&self, ids: &[String]) -> Vec<String> {
        let query = format!(
            "SELECT to_jsonb(t)::text AS line FROM tasks t WHERE id IN ({0})
             UNION ALL SELECT to_jsonb(t)::text FROM finished_tasks t WHERE id IN ({0}) ORDER BY 1",
            listed(ids)
        );
        self.lines(&query)
    }

    fn lines(&self, query: &str) -> Vec<String> {
        let lines: Vec<Line> =
            sql_query(query).load(&mut self.database.connect()).unwrap_or_else(|error| panic!("{query}: {error}"));
        lines.into_iter().map(|line| line.line).collect()
    }
}

/// Ids as SQL's IN takes them.
fn listed(ids: &[String]) -> String {
    ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ")
}
