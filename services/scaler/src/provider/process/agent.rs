//! An agent's process: how it is started so that it is never unrecorded, and how it is told from every other.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
};

/// The longest record: a line of /proc/PID/stat has about 50 numbers.
const RECORD: usize = 1024;

/// Which process it is: its id alone is given to another one some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pid: libc::pid_t,
    /// When it was started, in the system's own count since it was; none where the system does not tell.
    start: Option<u64>,
}

/// Whether the process of an identity is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It runs.
    Alive,
    /// It has ended and its parent has not asked how.
    Zombie,
    /// It is no more.
    Gone,
}

/// What a process is started with.
pub(super) struct Launch<'a> {
    pub(super) program: &'a Path,
    pub(super) args: &'a [String],
    pub(super) env: &'a BTreeMap<String, String>,
    pub(super) dir: &'a Path,
    pub(super) log: File,
    /// Where the process records its identity before it becomes the agent.
    pub(super) record: File,
    /// Locked; the process inherits it, so that it stays locked while the process lives.
    pub(super) alive: File,
}

impl Launch<'_> {
    /// Starts it in a group of its own, so that no signal to this process's group reaches it.
    pub(super) fn start(self) -> io::Result<Child> {
        let mut command = Command::new(self.program);
        command
            .args(self.args)
            .env_clear()
            .envs(self.env)
            .current_dir(self.dir)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(self.log.try_clone()?)
            .stderr(self.log);
        record_itself(&mut command, self.record.as_raw_fd(), self.alive.as_raw_fd());
        // Both files are open until here, and the process has them.
        command.spawn()
    }
}

/// Has the process write its identity and keep the lock, after the fork and before the program.
#[allow(unsafe_code)]
fn record_itself(command: &mut Command, record: RawFd, alive: RawFd) {
    let before = move || {
        let mut line = [0_u8; RECORD];
        let length = own_line(&mut line)?;
        // SAFETY: write reads `length` bytes of the array on this stack; fcntl takes integers.
        let written = unsafe { libc::write(record, line.as_ptr().cast(), length) };
        // SAFETY: as above.
        if usize::try_from(written) != Ok(length) || unsafe { libc::fcntl(alive, libc::F_SETFD, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are made (open, read, close, write, fcntl, getpid), nothing is
    // allocated, and errors are numbers.
    unsafe { command.pre_exec(before) };
}

/// The line that the system has of this process, which ends with a line feed; where there is none, the process id. How long it is.
#[allow(unsafe_code)]
fn own_line(line: &mut [u8; RECORD]) -> io::Result<usize> {
    // SAFETY: open takes a string that ends with zero; read writes at most the array's length into it; close takes an integer.
    let length = unsafe {
        let file = libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        match file {
            -1 => 0,
            file => {
                let length = libc::read(file, line.as_mut_ptr().cast(), line.len());
                libc::close(file);
                length
            }
        }
    };
    match usize::try_from(length) {
        Ok(length) if length > 0 && line.get(length - 1) == Some(&b'\n') => Ok(length),
        // SAFETY: getpid takes nothing and always succeeds.
        _ => Ok(own_number(line, unsafe { libc::getpid() })),
    }
}

/// Writes a number and a line feed, without allocating.
fn own_number(line: &mut [u8; RECORD], number: libc::pid_t) -> usize {
    let mut number = number.unsigned_abs();
    let mut digits = 1;
    while number >= 10_u32.pow(digits) && digits < 9 {
        digits += 1;
    }
    let digits = digits as usize;
    for place in line[..digits].iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
    }
    line[digits] = b'\n';
    digits + 1
}

impl Identity {
    /// Reads what the process has recorded. None while it has not, or has not finished.
    pub(super) fn read(record: &str) -> Option<Self> {
        let line = record.strip_suffix('\n')?;
        let pid = line.split(' ').next()?.parse().ok().filter(|pid| *pid > 1)?;
        Some(Self { pid, start: Stat::read(line).map(|stat| stat.start) })
    }

    /// Whether it is there.
    pub(super) fn life(self) -> Life {
        let Some(start) = self.start else {
            return if signal(self.pid, 0) { Life::Alive } else { Life::Gone };
        };
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok();
        match stat.as_deref().and_then(Stat::read) {
            Some(stat) if stat.start != start => Life::Gone,
            Some(stat) if matches!(stat.state, 'Z' | 'X') => Life::Zombie,
            Some(_) => Life::Alive,
            None => Life::Gone,
        }
    }

    /// Whether the system tells only that a process of its number is there.
    pub(super) fn is_coarse(self) -> bool {
        self.start.is_none()
    }

    /// Asks it to end. Not its group: an agent sees to what it has started.
    pub(super) fn terminate(self) {
        signal(self.pid, libc::SIGTERM);
    }

    /// Ends it and its group. To be called while it is there, as a zombie at least: its number may be another's later.
    pub(super) fn kill(self) {
        // It leads its group, which a negative number stands for.
        signal(-self.pid, libc::SIGKILL);
    }
}

/// Whether there was somebody to signal.
#[allow(unsafe_code)]
fn signal(pid: libc::pid_t, number: libc::c_int) -> bool {
    // SAFETY: kill takes two integers and touches no memory of this process; the pid is above 1, or below -1, by construction.
    unsafe { libc::kill(pid, number) == 0 }
}

/// What is used of a line of /proc/PID/stat.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    start: u64,
}

impl Stat {
    /// The name of the program, in parentheses, may hold anything; what follows it does not.
    fn read(line: &str) -> Option<Self> {
        let mut fields = line.get(line.rfind(')')? + 1..)?.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        // The state is the third field of the line, the start the twenty-second.
        Some(Self { state, start: fields.nth(18)?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "4242 (a (b) c) S 1 4242 4242 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 0 0\n";

    #[test]
    fn a_record_is_read_only_when_it_is_whole() {
        assert_eq!(Identity::read(LINE), Some(Identity { pid: 4242, start: Some(987_654) }));
        assert_eq!(Identity::read("4242\n"), Some(Identity { pid: 4242, start: None }));
        for bad in ["", "42", "\n", "0\n", "1\n", "-7\n", "x\n", &LINE[..40]] {
            assert_eq!(Identity::read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_number_is_written_without_help() {
        let mut line = [0; RECORD];
        for number in [2, 10, 99, 100, 4_194_304, 999_999_999] {
            let length = own_number(&mut line, number);
            assert_eq!(std::str::from_utf8(&line[..length]).unwrap(), format!("{number}\n"));
        }
    }

    #[test]
    fn a_reused_number_is_not_taken_for_the_process() {
        let line = std::fs::read_to_string("/proc/self/stat").unwrap();
        let me = Identity::read(&line).unwrap();
        assert_eq!(me.life(), Life::Alive);
        assert_eq!(Identity { start: me.start.map(|start| start + 1), ..me }.life(), Life::Gone);
    }
}
