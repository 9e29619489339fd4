//! The agent's life: boot, work, and the last word to the scaler.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    AgentError, ProcessExecutor, Settings,
    attach::{Attachment, End, Facts, Node, Order},
    boot::{self, Progress},
    spot,
};
use crate::{Connect, Intake, Options, Orchestrator, Status};

/// The label of a node's session, by which the database alone tells which nodes work.
const NODE_LABEL: &str = "millrace.node";
/// How long a node that does not know its id waits to be told before it takes work without the label.
const ID_WAIT: Duration = Duration::from_secs(10);

/// Runs the agent to its end.
pub(super) async fn run(
    settings: &Settings,
    options: Options,
    shutdown: CancellationToken,
    connector: Arc<dyn Connect>,
) -> Result<(), AgentError> {
    let node = settings.node.identity().map(|identity| Node {
        endpoints: settings.node.scaler_endpoints.clone(),
        identity,
        slots: options.slots,
        build: options.build.clone(),
    });
    let attached = node.is_some();
    let attachment = Attachment::start(node, connector);
    // Cancelled by a shutdown, and when the scaler does not want the node.
    let stop = shutdown.child_token();
    let ended = boot_and_work(settings, options, &attachment, attached, stop).await;
    let end = match &ended {
        // Whatever kept it from its first work is what its launch failed of.
        Err(error) if !attachment.facts.borrow().ready => End::BootFailed(error.to_string()),
        _ => End::Left,
    };
    attachment.farewell(end).await;
    ended
}

async fn boot_and_work(
    settings: &Settings,
    mut options: Options,
    attachment: &Attachment,
    attached: bool,
    stop: CancellationToken,
) -> Result<(), AgentError> {
    if let Some(command) = &settings.node.boot_command {
        attachment.boots(Progress { stage: "the boot command runs".into(), percent: None });
        tokio::select! {
            booted = boot::run(command, |progress| attachment.boots(progress)) => booted?,
            () = stop.cancelled() => return Ok(()),
            () = not_wanted(attachment.orders.clone()) => return Ok(()),
        }
    }
    if attached {
        attachment.boots(Progress { stage: "connecting to a distributor".into(), percent: Some(100) });
        match attachment.id(ID_WAIT).await {
            Some(id) => drop(options.labels.insert(NODE_LABEL.into(), id)),
            None => tracing::warn!("no scaler told this node its id; it takes work without the label {NODE_LABEL}"),
        }
    }
    let orchestrator = Orchestrator::new(options, ProcessExecutor::new(settings.process_options()));
    let (intake, status) = (orchestrator.intake(), orchestrator.status());
    let follow = follow(attachment, intake, status, stop.clone());
    let spot = async {
        if let Some(command) = &settings.node.spot_command {
            let at = spot::noticed(command).await;
            let when = at.map(|at| at.to_string());
            tracing::warn!(when, "the provider takes this machine away; no more work is asked for");
            attachment.facts.send_modify(|facts| facts.spot = Some(at));
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = orchestrator.run(stop) => Ok(ended?),
        () = follow => Ok(()),
        () = spot => Ok(()),
    }
}

/// Resolves when the scaler says that the node is not on its books.
async fn not_wanted(mut orders: watch::Receiver<Order>) {
    if orders.wait_for(|order| matches!(order, Order::Leave(_))).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Tells the scaler what the orchestrator does, and the orchestrator what the scaler wants. Does not end.
async fn follow(attachment: &Attachment, intake: Intake, mut status: watch::Receiver<Status>, stop: CancellationToken) {
    let mut orders = attachment.orders.clone();
    let mut facts = attachment.facts.subscribe();
    loop {
        attachment.works(&status.borrow_and_update(), stop.is_cancelled());
        let order = orders.borrow_and_update().clone();
        let seen = facts.borrow_and_update().clone();
        match closed(&order, &seen) {
            Some(reason) => intake.close(&reason),
            None => intake.open(),
        }
        if matches!(order, Order::Leave(_)) && !seen.busy {
            stop.cancel();
        }
        tokio::select! {
            () = changed(&mut status) => {}
            () = changed(&mut orders) => {}
            () = changed(&mut facts) => {}
        }
    }
}

/// Resolves when there is something new. When nobody can say anything new any more, as after the order to leave, never.
async fn changed<T>(news: &mut watch::Receiver<T>) {
    if news.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Why no work is to be asked for, if it is not.
fn closed(order: &Order, facts: &Facts) -> Option<String> {
    match order {
        Order::Leave(reason) => Some(format!("the scaler does not want this node: {reason}")),
        Order::Drain(reason) => Some(format!("the scaler drains this node: {reason}")),
        Order::Work => facts.spot.is_some().then(|| "the provider takes this machine away".to_owned()),
    }
}
