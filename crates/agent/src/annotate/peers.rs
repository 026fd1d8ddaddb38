//! Which process a sender means: its numbers, in ours.
//!
//! A pid in a line is a number of its sender's pid namespace: a container's 7 is not our 7. `/proc/PID/status` gives a
//! process' numbers in every namespace from ours down to its own (`NSpid`, Linux 4.1), and `/proc/PID/ns/pid` names the
//! innermost. A sender with one number shares our namespace, and there the claim is the pid. For any other sender we look
//! for the process whose own namespace is the sender's and whose number there is the claimed one. Processes in namespaces
//! below the sender's are not found: the kernel has no file that says so.
//!
//! Everything of one process is read through one open folder of `/proc`, which goes on naming that process and never one
//! that came after it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use warptrace_capture::clock;
use warptrace_formats::annotation::Target;
use warptrace_model::BootNanos;

/// A pid namespace, by the inode of its file.
type Namespace = u64;

/// A process as a line may name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// In our namespace.
    pub(super) pid: u32,
    pub(super) target: Target,
}

/// Whose numbers a sender uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// Ours.
    Ours,
    /// Another namespace's, in which the sender itself has this number.
    Theirs(Namespace, u32),
    /// It is not known.
    Unknown,
}

/// Looks processes up.
#[derive(Debug)]
pub(super) struct Peers {
    /// Whether `/proc` counts as we do.
    usable: bool,
    /// Processes of other namespaces as of the last look at all of them.
    others: HashMap<(Namespace, u32), u32>,
    next_scan: BootNanos,
}

/// Between two looks at all processes, at least; more where one takes long.
const SCAN_EVERY_NANOS: u64 = 1_000_000_000;
/// A look may take one part in so many of the time.
const SCAN_SHARE: u64 = 20;

impl Peers {
    pub(super) fn new() -> Peers {
        let us = std::fs::read_link("/proc/self").ok();
        let us = us.and_then(|link| link.to_str()?.parse().ok());
        Peers {
            usable: us == Some(std::process::id()),
            others: HashMap::new(),
            next_scan: BootNanos(0),
        }
    }

    /// The process with our number `pid`, and whose numbers it uses.
    pub(super) fn sender(&self, pid: u32) -> Option<(Found, View)> {
        let facts = self.facts(pid)?;
        let view = match facts.numbers[..] {
            [_] => View::Ours,
            [.., own] => match facts.namespace() {
                Some(namespace) => View::Theirs(namespace, own),
                None => View::Unknown,
            },
            [] => View::Unknown,
        };
        Some((facts.found, view))
    }

    /// The process that `claimed` is to a sender with this view. Cost: 60 µs, a look at all processes at times.
    pub(super) fn find(&mut self, view: View, claimed: u32) -> Option<Found> {
        let namespace = match view {
            View::Ours => return Some(self.facts(claimed)?.found),
            View::Unknown => return None,
            View::Theirs(namespace, _) => namespace,
        };
        let is_it = |facts: &Facts| {
            facts.numbers.last() == Some(&claimed) && facts.namespace() == Some(namespace)
        };
        let known = self.others.get(&(namespace, claimed)).copied();
        if let Some(facts) = known.and_then(|pid| self.facts(pid))
            && is_it(&facts)
        {
            return Some(facts.found);
        }
        self.scan();
        let pid = self.others.get(&(namespace, claimed)).copied()?;
        self.facts(pid).filter(is_it).map(|facts| facts.found)
    }

    /// Notes which numbers the processes of other namespaces have there, if the last time is long enough ago.
    fn scan(&mut self) {
        let began = clock::boot_now();
        if began < self.next_scan || !self.usable {
            return;
        }
        self.others.clear();
        for pid in warptrace_capture::proc::unsorted_pids() {
            if let Some(facts) = self.facts(pid)
                && let [_, .., own] = facts.numbers[..]
                && let Some(namespace) = facts.namespace()
            {
                self.others.insert((namespace, own), pid);
            }
        }
        let now = clock::boot_now();
        let pause = SCAN_EVERY_NANOS.max(now.since(began).saturating_mul(SCAN_SHARE));
        self.next_scan = now.plus(pause);
    }

    fn facts(&self, pid: u32) -> Option<Facts> {
        if !self.usable || pid == 0 {
            return None;
        }
        Facts::read(pid)
    }
}

/// What `/proc` says of a process.
#[derive(Debug)]
struct Facts {
    folder: File,
    found: Found,
    /// Its pids, from our namespace inwards.
    numbers: Vec<u32>,
}

impl Facts {
    fn read(pid: u32) -> Option<Facts> {
        let folder = File::open(format!("/proc/{pid}")).ok()?;
        let status = read_at(&folder, "status")?;
        let uid = numbers(&status, "Uid:").first().copied();
        let stat = read_at(&folder, "stat").unwrap_or_default();
        let numbers = numbers(&status, "NSpid:");
        // A number of a thread opens the folder of its process' thread: a line names processes.
        let is_process = numbers_of(&status, "Tgid:") == Some(pid);
        is_process.then_some(Facts {
            folder,
            found: Found {
                pid,
                target: Target {
                    uid,
                    start_ticks: start_ticks(&stat).unwrap_or(0),
                },
            },
            numbers,
        })
    }

    /// The innermost pid namespace. `None` where we may not look: the process is another user's, and we are not root.
    fn namespace(&self) -> Option<Namespace> {
        let link = open_at(&self.folder, "ns/pid")?;
        link.metadata().ok().map(|namespace| namespace.ino())
    }
}

fn open_at(folder: &File, name: &str) -> Option<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    openat(folder, Path::new(name), flags, Mode::empty())
        .ok()
        .map(File::from)
}

fn read_at(folder: &File, name: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let file = open_at(folder, name)?;
    file.take(1 << 16).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The numbers of a line of `/proc/PID/status`. The name comes first in that file, with its line feeds escaped.
fn numbers(status: &str, field: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let words = line.unwrap_or_default().split_ascii_whitespace();
    words.map_while(|word| word.parse().ok()).collect()
}

fn numbers_of(status: &str, field: &str) -> Option<u32> {
    numbers(status, field).first().copied()
}

/// Field 22 of `/proc/PID/stat`. The name, field 2, stands in parentheses and may hold some itself.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_know_ourselves_and_find_our_parent_by_its_number() {
        let mut peers = Peers::new();
        let (us, view) = peers.sender(std::process::id()).unwrap();
        assert!(us.target.start_ticks > 0);
        assert_eq!(us.target.uid, Some(nix::unistd::getuid().as_raw()));
        assert_eq!(view, View::Ours);
        let parent = nix::unistd::getppid().as_raw() as u32;
        assert_eq!(peers.find(view, parent).map(|f| f.pid), Some(parent));
        assert_eq!(peers.find(view, u32::MAX), None);
        assert_eq!(peers.find(View::Unknown, parent), None);
    }

    #[test]
    fn a_thread_is_no_process() {
        let peers = Peers::new();
        let tid = std::thread::scope(|s| {
            let inner = s.spawn(|| {
                let tid = nix::unistd::gettid().as_raw() as u32;
                (tid, peers.facts(tid).is_some())
            });
            inner.join().unwrap()
        });
        assert!(tid.0 != std::process::id() && !tid.1);
    }

    #[test]
    fn fields_are_found_whatever_the_name_is() {
        let status = "Name:\tUid: 7\nUmask:\t0022\nTgid:\t12\nUid:\t1000\t0\t0\t0\nNSpid:\t12\t3\n";
        assert_eq!(numbers(status, "Uid:"), [1000, 0, 0, 0]);
        assert_eq!(numbers(status, "NSpid:"), [12, 3]);
        assert_eq!(numbers(status, "Gone:"), [0u32; 0]);
        let stat = "12 (a) S 1) S 7 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9876 1 1";
        assert_eq!(start_ticks(stat), Some(9876));
        assert_eq!(start_ticks("12 (a) S"), None);
    }
}
