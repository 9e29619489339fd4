//! Starts commands so that none outlives the agent, even one that is killed.
//!
//! Every command's process is given a parent-death signal (Linux): SIGKILL, when the *thread* that started it ends. The
//! threads of a runtime come and go, so a thread of its own starts all commands and lives as long as the process. The
//! signal reaches that one process only, and not what it has started; the [`super::warden`] kills the rest of its group.
//! Neither is enough alone: the warden learns of a group a moment after its start, and could be killed with the agent.

use std::{
    io,
    sync::{Mutex, PoisonError},
    thread,
};

use tokio::{
    process::{Child, Command},
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use super::group::Group;

/// Commands that wait to be started. Callers wait while it is full; starting one takes about a millisecond.
const WAITING: usize = 64;

/// A command to start.
struct Order {
    command: Command,
    /// The runtime that is to watch the process.
    runtime: Handle,
    answer: oneshot::Sender<io::Result<(Child, Group)>>,
}

/// The way to the thread; none before the first command.
static SPAWNER: Mutex<Option<mpsc::Sender<Order>>> = Mutex::new(None);

/// Starts a command in a group of its own. Dropping the future may leave the command started: its group is killed then.
pub(super) async fn spawn(mut command: Command) -> io::Result<(Child, Group)> {
    command.process_group(0).kill_on_drop(true);
    #[cfg(target_os = "linux")]
    die_with_the_agent(&mut command);
    let ended = || io::Error::other("the thread that starts commands has ended");
    let (answer, started) = oneshot::channel();
    let order = Order { command, runtime: Handle::current(), answer };
    spawner()?.send(order).await.map_err(|_| ended())?;
    started.await.map_err(|_| ended())?
}

/// The thread that starts commands, which is started with the first.
fn spawner() -> io::Result<mpsc::Sender<Order>> {
    let mut spawner = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(orders) = spawner.as_ref().filter(|orders| !orders.is_closed()) {
        return Ok(orders.clone());
    }
    let (orders, waiting) = mpsc::channel(WAITING);
    thread::Builder::new().name("millrace-spawner".into()).spawn(move || serve(waiting))?;
    Ok(spawner.insert(orders).clone())
}

/// Does not end while the process lives: the way to it is kept for ever.
fn serve(mut orders: mpsc::Receiver<Order>) {
    while let Some(Order { command, runtime, answer }) = orders.blocking_recv() {
        let _entered = runtime.enter();
        // When nobody waits for it any more the process is dropped here, which kills it.
        let _ = answer.send(start(command));
    }
}

fn start(mut command: Command) -> io::Result<(Child, Group)> {
    let child = command.spawn()?;
    let group = child.id().and_then(Group::led_by).ok_or_else(|| io::Error::other("the process has no id"))?;
    Ok((child, group))
}

/// Has the kernel kill the process when the thread that starts it ends.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn die_with_the_agent(command: &mut Command) {
    let agent = std::process::id();
    let arm = move || {
        // SAFETY: prctl with these arguments takes integers and touches no memory.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // An agent that was killed before the signal was armed will not be killed again: whoever adopted this process
        // is its parent now. Nobody reads this error; it keeps the command from running.
        if std::os::unix::process::parent_id() != agent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are made, prctl and getppid, and nothing is allocated:
    // both errors are numbers.
    unsafe { command.pre_exec(arm) };
}
