//! Queues tasks whose moment has come, and ends waiting tasks whose deadline has passed.

use std::{collections::HashMap, sync::Arc, time::Duration};

use millrace_runtime::{background, status::Fault};
use millrace_store::Waiting;

use crate::{convert, shared::Shared};

const PERIOD: Duration = Duration::from_millis(250);

/// Rows of one statement.
const PAGE: i64 = 1_000;

/// Statements of one step: past them the loop lets others have the database first.
const PAGES: usize = 20;

pub(super) fn start(shared: &Arc<Shared>) {
    let stop = shared.context.shutdown.clone();
    let worker = shared.clone();
    background::every("waker", PERIOD, Arc::default(), &stop, move || step(worker.clone()));
}

async fn step(shared: Arc<Shared>) -> Result<(), Fault> {
    for _ in 0..PAGES {
        let woken = shared.blocking(|store| store.wake(PAGE)).await?;
        let full = woken.len() as i64 == PAGE;
        offer(&shared, woken);
        if !full {
            break;
        }
    }
    for _ in 0..PAGES {
        let expired = shared.blocking(|store| store.expire(PAGE)).await?;
        for task in &expired {
            shared.watches.nudge(*task);
        }
        if (expired.len() as i64) < PAGE {
            break;
        }
    }
    Ok(())
}

fn offer(shared: &Shared, woken: Vec<(String, Waiting)>) {
    let mut by_queue: HashMap<String, Vec<Waiting>> = HashMap::new();
    for (queue, waiting) in woken {
        shared.watches.nudge(waiting.id);
        by_queue.entry(queue).or_default().push(waiting);
    }
    for (queue, waiting) in by_queue {
        shared.links.offer(&queue, waiting.iter().map(convert::offer));
    }
}
