//! Signals to a process group.

use super::warden;

/// The process group of one command; killed when dropped, or by the warden when the agent is killed before that, so that
/// no path leaves processes behind.
///
/// A group's number stays taken while any process is in it, also after its leader is gone. Once the group is empty the
/// system may give the number away again, in practice only after it has gone through all others.
#[derive(Debug)]
pub(crate) struct Group {
    id: libc::pid_t,
}

/// What to tell a group.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signal {
    /// Please end.
    Term,
    /// End.
    Kill,
}

impl Group {
    /// The group that the process of this id leads. None for an id that no such process can have: 0 and 1 would mean
    /// our own group and everything.
    pub(crate) fn led_by(pid: u32) -> Option<Self> {
        let id = libc::pid_t::try_from(pid).ok().filter(|id| *id > 1)?;
        warden::watch(id);
        Some(Self { id })
    }

    /// Signals every process in the group. A group that is empty by now is no error: there is nothing left to signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let number = match signal {
            Signal::Term => libc::SIGTERM,
            Signal::Kill => libc::SIGKILL,
        };
        killpg(self.id, number);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::Kill);
        warden::forget(self.id);
    }
}

/// The standard library can start a process group but not signal one.
#[allow(unsafe_code)]
fn killpg(group: libc::pid_t, signal: libc::c_int) {
    // SAFETY: killpg takes two integers and touches no memory of this process; `group` is above 1 by construction.
    unsafe { libc::killpg(group, signal) };
}
