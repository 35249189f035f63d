//! Who holds a lock: told by the host where it can be, for a message to a person. Nothing depends on the answer.
//!
//! A lock that belongs to an open file has no process in the kernel's list of locks. But each process's descriptors
//! list the locks of the files behind them (Linux: `/proc/PID/fdinfo`), as far as this process may look at the other.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::LockHolder;

/// What the host says of a lock's owner when it is asked about the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum LockOwner {
    /// An open file, which processes may share.
    #[default]
    OpenFile,
    /// This process.
    Process(u32),
}

impl LockOwner {
    /// The host says -1 for an open file.
    pub(super) fn of_pid(pid: i32) -> LockOwner {
        match u32::try_from(pid) {
            Ok(pid @ 1..) => LockOwner::Process(pid),
            _ => LockOwner::OpenFile,
        }
    }
}

/// The process that holds a lock on `byte` of `file`, where it can be known; `file` itself is left out.
pub(super) fn find(file: &File, byte: u8, owner: LockOwner) -> Option<LockHolder> {
    match owner {
        LockOwner::Process(pid) => Some(describe(pid)),
        LockOwner::OpenFile => {
            let metadata = file.metadata().ok()?;
            let wanted =
                Wanted { identity: (metadata.dev(), metadata.ino()), byte, except: file.as_raw_fd() };
            let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| number_of(&entry.ok()?.path()));
            let found = pids.into_iter().find(|pid| wanted.is_held_by(*pid))?;
            Some(describe(wanted.eldest(found)))
        }
    }
}

struct Wanted {
    identity: (u64, u64),
    byte: u8,
    /// The descriptor of this process that asks.
    except: i32,
}

impl Wanted {
    /// The one of a holder and its ancestors from whom the others have the open file: a child has those of its parent
    /// until it starts its program.
    fn eldest(&self, holder: u32) -> u32 {
        let ancestors = std::iter::successors(parent_of(holder), |pid| parent_of(*pid));
        ancestors.take_while(|pid| self.is_held_by(*pid)).last().unwrap_or(holder)
    }

    fn is_held_by(&self, pid: u32) -> bool {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        let asks = |descriptor: u32| {
            i32::try_from(descriptor).is_ok_and(|number| number == self.except)
                && (pid == std::process::id() || is_fork_of_this_one(pid))
        };
        descriptors.filter_map(|entry| number_of(&entry.ok()?.path())).any(|descriptor| {
            // The link leads to the open file, whatever has become of its name; this opens nothing.
            let metadata = fs::metadata(format!("/proc/{pid}/fd/{descriptor}"));
            let is_the_file = metadata.is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
            is_the_file
                && !asks(descriptor)
                && fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}"))
                    .is_ok_and(|text| text.lines().any(|line| locks_byte(line, self.byte)))
        })
    }
}

/// Whether a line of `fdinfo` tells of a lock on `byte`: `lock: 1: OFDLCK ADVISORY READ -1 fe:00:1234 100 101`.
fn locks_byte(line: &str, byte: u8) -> bool {
    let mut words = line.split_whitespace();
    if words.next() != Some("lock:") {
        return false;
    }
    let mut last = words.rev();
    let (end, start) = (last.next(), last.next());
    let start = start.and_then(|start| start.parse::<u64>().ok());
    let end = end.and_then(|end| if end == "EOF" { Some(u64::MAX) } else { end.parse().ok() });
    matches!((start, end), (Some(start), Some(end)) if (start..=end).contains(&byte.into()))
}

/// The process that made it, the fourth word of its `stat`; the second is a name in brackets that may hold any.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Whether a child has started no program of its own yet: it has what this process has open, under the same numbers.
fn is_fork_of_this_one(pid: u32) -> bool {
    let program = |of: &str| fs::read_link(format!("/proc/{of}/exe")).ok();
    parent_of(pid) == Some(std::process::id()) && program(&pid.to_string()) == program("self")
}

fn number_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}

fn describe(pid: u32) -> LockHolder {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    LockHolder {
        pid,
        command: command.map(|name| name.trim_end().to_owned()).filter(|name| !name.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{FileOptions, FileStorage, FileUse, Permissions};
    use std::process::Command;

    #[test]
    fn lines_of_fdinfo_are_understood() {
        let line = "lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:1234 100 101";
        assert!(locks_byte(line, 100));
        assert!(locks_byte(line, 101));
        assert!(!locks_byte(line, 102));
        assert!(!locks_byte(line, 99));
        assert!(locks_byte("lock: 2: POSIX ADVISORY WRITE 77 fe:00:1234 0 EOF", 203));
        for other in ["", "pos:\t0", "lock:", "lock: 1", "flags: 100 200", "lock: 1: OFDLCK x y"] {
            assert!(!locks_byte(other, 100), "{other}");
        }
    }

    #[test]
    fn an_owner_is_a_process_where_the_host_names_one() {
        assert_eq!(LockOwner::of_pid(-1), LockOwner::OpenFile);
        assert_eq!(LockOwner::of_pid(0), LockOwner::OpenFile);
        assert_eq!(LockOwner::of_pid(42), LockOwner::Process(42));
    }

    #[test]
    fn a_child_that_has_the_file_open_is_not_taken_for_the_holder() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let options = FileOptions::read_write();
        let holder = FileStorage::open(file.path(), &options).expect("it opens");
        holder.lock(FileUse { takes: Permissions::WRITE, bears: Permissions::NONE }).expect("nobody has it");
        let inherited = holder.file().try_clone().expect("it can be opened twice");
        let mut child = Command::new("sleep").arg("60").stdin(inherited).spawn().expect("it starts");
        let other = FileStorage::open(file.path(), &options).expect("it opens");
        let metadata = other.file().metadata().expect("it has some");
        let wanted = Wanted {
            identity: (metadata.dev(), metadata.ino()),
            byte: 101,
            except: other.file().as_raw_fd(),
        };
        let found = (wanted.is_held_by(child.id()), wanted.eldest(child.id()));
        child.kill().and_then(|()| child.wait()).expect("it ends");
        assert_eq!(found, (true, std::process::id()));
    }

    #[test]
    fn this_process_knows_its_own_name() {
        let holder = describe(std::process::id());
        assert_eq!(holder.pid, std::process::id());
        assert_eq!(holder.command.is_some(), Path::new("/proc/self/comm").exists());
    }
}
