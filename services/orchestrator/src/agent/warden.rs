//! Kills the commands of an agent that was killed itself.
//!
//! A killed agent (SIGKILL, the OOM killer, a crash) runs no code any more, so somebody else has to end what it started: a
//! helper process, which knows the process groups that run and holds one end of a socket whose other end only the agent
//! has. When the agent is gone, however it went, the helper reads the end of its input, kills the groups and ends. It kills
//! whole groups, with everything that commands started in them.
//!
//! The helper is a shell of nine lines and not a mode of some binary, because this is a library: whose binary it is in it
//! cannot know. Where there is no /bin/sh, or where the helper is killed together with the agent, what
//! [`super::spawner`] does remains: then the commands' own processes die and what they started goes on.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

/// Reads `+ GROUP` and `- GROUP` lines, and at the end kills the groups that are left. Signals that reach every process of
/// a terminal or a unit must not end it before the agent ends.
const SCRIPT: &str = "\
trap '' HUP INT TERM
groups=' '
while read -r sign group; do
  case $sign in
    +) groups=\"$groups$group \" ;;
    -) groups=\"${groups%% $group *} ${groups#* $group }\" ;;
  esac
done
for group in $groups; do kill -s KILL -- \"-$group\"; done";

/// What the helper is called in the list of processes.
const NAME: &str = "millrace-warden";

/// One for the process, as the groups are.
static WARDEN: Mutex<Warden> = Mutex::new(Warden { groups: BTreeSet::new(), helper: None, warned: false });

/// From now on this group dies with the agent.
pub(super) fn watch(group: libc::pid_t) {
    let mut warden = WARDEN.lock().unwrap_or_else(PoisonError::into_inner);
    warden.groups.insert(group);
    warden.tell('+', group);
}

/// The group has ended; its number may soon be another's.
pub(super) fn forget(group: libc::pid_t) {
    let mut warden = WARDEN.lock().unwrap_or_else(PoisonError::into_inner);
    warden.groups.remove(&group);
    warden.tell('-', group);
}

/// The agent's side.
#[derive(Debug)]
struct Warden {
    /// The groups that run; as many as the agent has slots, and a health command.
    groups: BTreeSet<libc::pid_t>,
    helper: Option<Helper>,
    /// Whether it was said that there is no helper.
    warned: bool,
}

impl Warden {
    /// Tells the helper. One that does not listen is replaced by one that is told everything anew.
    fn tell(&mut self, sign: char, group: libc::pid_t) {
        if self.helper.as_mut().is_some_and(|helper| helper.tell(sign, group).is_ok()) {
            return;
        }
        if let Some(helper) = self.helper.take() {
            helper.discard();
        }
        if self.groups.is_empty() {
            return;
        }
        match Helper::start(&self.groups) {
            Ok(helper) => (self.helper, self.warned) = (Some(helper), false),
            Err(error) if !self.warned => {
                self.warned = true;
                tracing::warn!(%error, "no helper watches over the commands: were this agent killed, what they started would go on");
            }
            Err(_) => {}
        }
    }
}

/// The helper process.
#[derive(Debug)]
struct Helper {
    process: Child,
    /// Closed when this process ends.
    line: UnixStream,
}

impl Helper {
    fn start(groups: &BTreeSet<libc::pid_t>) -> io::Result<Self> {
        let (line, input) = UnixStream::pair()?;
        // A helper that reads nothing for long must not hold a command up: its buffer has room for some thousand lines,
        // and one that lets it run full is replaced.
        line.set_nonblocking(true)?;
        let process = Command::new("/bin/sh")
            .args(["-c", SCRIPT, NAME])
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(OwnedFd::from(input))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut helper = Self { process, line };
        for group in groups {
            if let Err(error) = helper.tell('+', *group) {
                helper.discard();
                return Err(error);
            }
        }
        Ok(helper)
    }

    fn tell(&mut self, sign: char, group: libc::pid_t) -> io::Result<()> {
        self.line.write_all(format!("{sign} {group}\n").as_bytes())
    }

    /// Ends the helper before its line is closed: it would take that for the agent's end.
    fn discard(mut self) {
        // It may have ended already, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    /// A shell with a child, both of which hold the writing end of its output, in a group of their own.
    fn family() -> (Child, libc::pid_t) {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "sleep 1000 & echo started; wait"])
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "started\n");
        let group = libc::pid_t::try_from(child.id()).unwrap();
        (child, group)
    }

    #[test]
    fn the_end_of_the_line_kills_every_group_that_runs_with_all_in_it() {
        let ((mut first, one), (mut second, two), (mut third, three)) = (family(), family(), family());
        let mut helper = Helper::start(&BTreeSet::from([one, two])).unwrap();
        helper.tell('-', one).unwrap();
        helper.tell('+', three).unwrap();
        let Helper { mut process, line } = helper;
        drop(line);
        for child in [&mut second, &mut third] {
            // The output ends when nobody holds it: the shell is dead, and so is what it started.
            io::copy(child.stdout.as_mut().unwrap(), &mut io::sink()).unwrap();
            child.wait().unwrap();
        }
        assert!(process.wait().is_ok());
        assert!(first.try_wait().unwrap().is_none(), "a group that was taken back lives");
        assert!(Command::new("kill").args(["-9", "--", &format!("-{one}")]).status().unwrap().success());
        first.wait().unwrap();
    }

    #[test]
    fn a_helper_that_is_gone_is_replaced_and_told_what_runs() {
        let mut warden = Warden { groups: BTreeSet::new(), helper: None, warned: false };
        let ((mut first, one), (mut second, two)) = (family(), family());
        warden.groups.insert(one);
        warden.tell('+', one);
        let helper = warden.helper.as_mut().unwrap();
        helper.process.kill().unwrap();
        helper.process.wait().unwrap();
        warden.groups.insert(two);
        warden.tell('+', two);
        assert!(first.try_wait().unwrap().is_none(), "the replaced helper has killed nothing");
        drop(warden.helper.take().unwrap().line);
        for child in [&mut first, &mut second] {
            io::copy(child.stdout.as_mut().unwrap(), &mut io::sink()).unwrap();
            child.wait().unwrap();
        }
    }
}
