//! What a CPU quota held back: throttled time of the cgroups that a process is in, read from their `cpu.stat` by the recorder.
//!
//! A thread's own books say how long it waited for a CPU, and count being held back as waiting. A group's books say for how
//! long it was held back, in steps: each is told when the holding back ends, and sums over CPUs. So a step is charged to what
//! a thread waited around that time, at most once to each thread and no more than it waited.
//!
//! A limit that is set, or a group that is changed, after the process was first seen is not noticed.
//!
//! Source: Documentation/scheduler/sched-bwc.rst and admin-guide/cgroup-v2.rst, Linux 6.18.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use warptrace_model::{BootNanos, Window};

/// Steps that are remembered: seconds of them.
const MAX_STEPS: usize = 1024;
/// Sets of groups, of which there is one for each container.
const MAX_SETS: usize = 256;

/// The groups with a quota around some processes, innermost first.
#[derive(Debug)]
struct Set {
    groups: Vec<Group>,
    looked: BootNanos,
    steps: VecDeque<Step>,
    /// Steps that were forgotten.
    before: u64,
}

#[derive(Debug)]
struct Group {
    stat: File,
    throttled: u64,
}

/// Between two looks, a holding back ended that had lasted for `nanos`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    within: Window,
    nanos: u64,
}

/// Which set a thread belongs to, and what of its steps was charged to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charged {
    set: usize,
    step: u64,
    nanos: u64,
}

#[derive(Debug, Default)]
pub(super) struct Quotas {
    by_folder: HashMap<PathBuf, Option<usize>>,
    sets: Vec<Set>,
}

impl Quotas {
    /// For a thread of process `pid`; `None` when it is in no group with a quota.
    pub(super) fn of_process(&mut self, pid: u32, now: BootNanos) -> Option<Charged> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let folder = cpu_folder(&text, Path::new("/sys/fs/cgroup"))?;
        self.of_folder(folder, now)
    }

    fn of_folder(&mut self, folder: PathBuf, now: BootNanos) -> Option<Charged> {
        let set = match self.by_folder.get(&folder) {
            Some(set) => *set,
            None => {
                let groups: Vec<Group> = folder.ancestors().filter_map(Group::open).collect();
                let set = (!groups.is_empty() && self.sets.len() < MAX_SETS).then(|| {
                    self.sets.push(Set {
                        groups,
                        looked: now,
                        steps: VecDeque::new(),
                        before: 0,
                    });
                    self.sets.len() - 1
                });
                if self.by_folder.len() < 4 * MAX_SETS {
                    self.by_folder.insert(folder, set);
                }
                set
            }
        }?;
        let steps = &self.sets[set];
        Some(Charged {
            set,
            step: steps.before + steps.steps.len() as u64,
            nanos: 0,
        })
    }

    /// Looks at the books; to be called after records were read and before they are charged. Cost: a read for each group with
    /// a quota, none where there is no quota.
    pub(super) fn look(&mut self, now: BootNanos) {
        for set in &mut self.sets {
            let mut held = 0;
            for group in &mut set.groups {
                if let Some(throttled) = group.read() {
                    held += throttled.saturating_sub(group.throttled);
                    group.throttled = throttled;
                }
            }
            set.take(now, held);
        }
    }

    /// What of `runnable` ns in `window` was being held back.
    pub(super) fn charge(&self, charged: &mut Charged, window: Window, runnable: u64) -> u64 {
        self.sets
            .get(charged.set)
            .map_or(0, |set| set.charge(charged, window, runnable))
    }
}

impl Set {
    fn take(&mut self, now: BootNanos, held: u64) {
        if held > 0 {
            if self.steps.len() == MAX_STEPS {
                self.steps.pop_front();
                self.before += 1;
            }
            self.steps.push_back(Step {
                within: Window {
                    start: self.looked.minus(held),
                    end: now,
                },
                nanos: held,
            });
        }
        self.looked = now;
    }

    fn charge(&self, charged: &mut Charged, window: Window, runnable: u64) -> u64 {
        if charged.step < self.before {
            (charged.step, charged.nanos) = (self.before, 0);
        }
        let mut sum = 0;
        while let Some(step) = self.steps.get((charged.step - self.before) as usize) {
            if step.within.start >= window.end {
                break;
            }
            if step.within.end > window.start {
                let take = (runnable - sum).min(step.nanos - charged.nanos);
                sum += take;
                charged.nanos += take;
                // The rest of a step may be of the thread's next stretch.
                if charged.nanos < step.nanos && step.within.end > window.end {
                    break;
                }
            }
            (charged.step, charged.nanos) = (charged.step + 1, 0);
        }
        sum
    }
}

impl Group {
    /// The group of a folder, when it has a quota.
    fn open(folder: &Path) -> Option<Group> {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        if !has_quota(&read("cpu.max"), &read("cpu.cfs_quota_us")) {
            return None;
        }
        let mut group = Group {
            stat: File::open(folder.join("cpu.stat")).ok()?,
            throttled: 0,
        };
        group.throttled = group.read()?;
        Some(group)
    }

    fn read(&self) -> Option<u64> {
        let mut text = [0; 4096];
        let count = self.stat.read_at(&mut text, 0).ok()?;
        throttled(&String::from_utf8_lossy(&text[..count]))
    }
}

/// Text of `cpu.max` (v2), or of `cpu.cfs_quota_us` (v1); of the other, nothing.
fn has_quota(v2: &str, v1: &str) -> bool {
    let limited = |text: &str| {
        let first = text.split_whitespace().next();
        first.is_some_and(|n| n.parse::<u64>().is_ok())
    };
    limited(v2) || limited(v1)
}

/// Nanoseconds, in the text of `cpu.stat`.
fn throttled(text: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    field("throttled_usec ")
        .map(|us| us.saturating_mul(1000))
        .or_else(|| field("throttled_time "))
}

/// The folder of the group that the cpu controller has a process in, by the text of `/proc/PID/cgroup`.
fn cpu_folder(text: &str, mounted: &Path) -> Option<PathBuf> {
    let lines = || {
        text.lines().filter_map(|l| {
            let mut parts = l.splitn(3, ':').skip(1);
            Some((parts.next()?, parts.next()?))
        })
    };
    let v1 = lines().find(|(c, _)| c.split(',').any(|c| c == "cpu"));
    let (base, path) = match v1 {
        Some((controllers, path)) => {
            let joined = mounted.join(controllers);
            let base = if joined.is_dir() {
                joined
            } else {
                mounted.join("cpu")
            };
            (base, path)
        }
        None => {
            let (_, path) = lines().find(|(c, _)| c.is_empty())?;
            (mounted.to_owned(), path)
        }
    };
    Some(base.join(path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(start: u64, end: u64) -> Window {
        Window {
            start: BootNanos(start),
            end: BootNanos(end),
        }
    }

    fn set(looks: &[(u64, u64)]) -> Set {
        let mut set = Set {
            groups: Vec::new(),
            looked: BootNanos(0),
            steps: VecDeque::new(),
            before: 0,
        };
        for (now, held) in looks {
            set.take(BootNanos(*now), *held);
        }
        set
    }

    fn start() -> Charged {
        Charged {
            set: 0,
            step: 0,
            nanos: 0,
        }
    }

    #[test]
    fn a_step_is_charged_once_and_no_more_than_was_waited() {
        // Held back from about 10 to about 100, told between 100 and 110.
        let set = set(&[(100, 0), (110, 90)]);
        let mut c = start();
        assert_eq!(set.charge(&mut c, window(0, 5), 5), 0, "before it");
        assert_eq!(set.charge(&mut c, window(5, 105), 92), 90);
        assert_eq!(set.charge(&mut c, window(105, 109), 4), 0, "it was charged");
        // Another thread waited for a part of it alone.
        let mut c = start();
        assert_eq!(set.charge(&mut c, window(5, 60), 20), 20);
        assert_eq!(set.charge(&mut c, window(60, 105), 40), 40);
        assert_eq!(set.charge(&mut c, window(105, 300), 100), 30);
        assert_eq!(set.charge(&mut c, window(300, 400), 100), 0);
    }

    #[test]
    fn what_a_thread_waited_long_after_a_step_is_not_its() {
        let set = set(&[(100, 0), (110, 90), (500, 0)]);
        let mut c = start();
        assert_eq!(set.charge(&mut c, window(200, 300), 50), 0);
    }

    #[test]
    fn steps_that_were_forgotten_are_passed_over() {
        let looks: Vec<(u64, u64)> = (1..=3 * MAX_STEPS as u64).map(|n| (n * 10, 5)).collect();
        let set = set(&looks);
        assert_eq!(set.steps.len(), MAX_STEPS);
        let end = 3 * MAX_STEPS as u64 * 10;
        let mut c = start();
        assert_eq!(set.charge(&mut c, window(end - 20, end), 20), 10);
    }

    #[test]
    fn quotas_and_books_of_both_versions_are_understood() {
        assert!(has_quota("30000 100000\n", "") && has_quota("", "30000\n"));
        assert!(!has_quota("max 100000\n", "") && !has_quota("", "-1\n") && !has_quota("", ""));
        let v2 = "usage_usec 5\nnr_periods 1\nnr_throttled 1\nthrottled_usec 1175\n";
        assert_eq!(throttled(v2), Some(1_175_000));
        let v1 = "nr_periods 13\nnr_throttled 12\nthrottled_time 1175000321\n";
        assert_eq!(throttled(v1), Some(1_175_000_321));
        assert_eq!(throttled("usage_usec 5\n"), None);
    }

    #[test]
    fn the_folder_is_that_of_the_cpu_controller() {
        let none = Path::new("/nowhere");
        let folder = |text| cpu_folder(text, none);
        assert_eq!(
            folder("0::/user.slice/a\n3:cpuset:/z\n2:cpu,cpuacct:/x\n"),
            Some("/nowhere/cpu/x".into())
        );
        assert_eq!(
            folder("0::/user.slice/a\n"),
            Some("/nowhere/user.slice/a".into())
        );
        assert_eq!(folder("0::/\n"), Some("/nowhere".into()));
        assert_eq!(folder("3:cpuset:/z\n"), None);
    }
}
