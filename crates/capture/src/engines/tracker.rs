//! Who is an engine, over scans of the process table: who came, changed, went.
//!
//! Pure: a scan comes in as values. A process is its pid and its start time, so that a recycled pid is another one; and a
//! process that has an engine of the same kind among its ancestors is part of that one (workers that were forked without an
//! exec have their parent's command line).

use std::collections::{BTreeMap, HashMap};

use warptrace_model::serving::Engine;
use warptrace_model::{Incarnation, Pid};

use super::command::ServingCommand;

/// Steps up from a process to its ancestors.
const MAX_ANCESTORS: usize = 64;

/// A process in a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub incarnation: Incarnation,
    pub parent: Pid,
    /// What its command line says, if it is an engine's.
    pub command: Option<ServingCommand>,
}

/// A process that is an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineProcess {
    pub incarnation: Incarnation,
    pub command: ServingCommand,
}

/// What is different since the scan before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Found(EngineProcess),
    /// The same process has another command line: it called exec.
    Changed(EngineProcess),
    Gone(Incarnation),
}

/// The engines that are known.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    engines: BTreeMap<Incarnation, ServingCommand>,
    limit: usize,
    left_out: u64,
}

impl Tracker {
    /// At most `limit` engines are known at a time; what comes beyond is counted.
    pub fn new(limit: usize) -> Tracker {
        Tracker {
            limit,
            ..Tracker::default()
        }
    }

    /// Takes in a whole scan.
    pub fn scanned(&mut self, scan: &[Seen]) -> Vec<Change> {
        let by_pid: HashMap<Pid, &Seen> = scan.iter().map(|s| (s.incarnation.pid, s)).collect();
        let is_part = |seen: &Seen, engine: Engine| {
            let mut at = seen;
            for _ in 0..MAX_ANCESTORS {
                let Some(parent) = by_pid.get(&at.parent) else {
                    return false;
                };
                if parent.incarnation == seen.incarnation || parent.incarnation == at.incarnation {
                    return false;
                }
                if parent.command.as_ref().is_some_and(|c| c.engine == engine) {
                    return true;
                }
                at = parent;
            }
            false
        };
        let mut now: BTreeMap<Incarnation, &ServingCommand> = BTreeMap::new();
        for seen in scan {
            if let Some(command) = &seen.command
                && !is_part(seen, command.engine)
            {
                now.insert(seen.incarnation, command);
            }
        }
        let mut changes = Vec::new();
        self.engines.retain(|incarnation, _| {
            let stays = now.contains_key(incarnation);
            if !stays {
                changes.push(Change::Gone(*incarnation));
            }
            stays
        });
        for (incarnation, command) in now {
            let engine = || EngineProcess {
                incarnation,
                command: command.clone(),
            };
            let is_full = self.engines.len() >= self.limit;
            match self.engines.get_mut(&incarnation) {
                Some(known) if known == command => {}
                Some(known) => {
                    changes.push(Change::Changed(engine()));
                    known.clone_from(command);
                }
                None if is_full => self.left_out += 1,
                None => {
                    changes.push(Change::Found(engine()));
                    self.engines.insert(incarnation, command.clone());
                }
            }
        }
        changes
    }

    /// All that are known, by pid.
    pub fn engines(&self) -> impl Iterator<Item = EngineProcess> {
        self.engines
            .iter()
            .map(|(incarnation, command)| EngineProcess {
                incarnation: *incarnation,
                command: command.clone(),
            })
    }

    /// How often an engine was left out because there were too many.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    pub fn is_empty(&self) -> bool {
        self.engines.is_empty()
    }

    /// The engine that process `pid` is or is part of: itself, or its nearest ancestor that is one. What calls CUDA is mostly a
    /// child of the process with the command line.
    pub fn engine_of(
        &self,
        pid: Pid,
        parent: impl Fn(Pid) -> Option<Pid>,
    ) -> Option<EngineProcess> {
        let mut at = pid;
        for _ in 0..MAX_ANCESTORS {
            let first = Incarnation {
                pid: at,
                start_ticks: 0,
            };
            let found = self.engines.range(first..).next();
            if let Some((incarnation, command)) = found
                && incarnation.pid == at
            {
                return Some(EngineProcess {
                    incarnation: *incarnation,
                    command: command.clone(),
                });
            }
            at = parent(at).filter(|p| *p != at)?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::classify;
    use super::*;

    /// `pid/start/parent command line`, a process a line.
    fn scan(text: &str) -> Vec<Seen> {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
        lines
            .map(|line| {
                let mut words = line.split(' ');
                let ids: Vec<u32> = words
                    .next()
                    .unwrap()
                    .split('/')
                    .map(|n| n.parse().unwrap())
                    .collect();
                let argv: Vec<&str> = words.collect();
                Seen {
                    incarnation: Incarnation {
                        pid: Pid(ids[0]),
                        start_ticks: ids[1].into(),
                    },
                    parent: Pid(ids[2]),
                    command: classify(&argv, &|_| None),
                }
            })
            .collect()
    }

    fn shown(changes: &[Change]) -> String {
        let one = |change: &Change| match change {
            Change::Found(e) | Change::Changed(e) => {
                let word = if matches!(change, Change::Found(_)) {
                    "found"
                } else {
                    "changed"
                };
                let model = e.command.model.as_deref().unwrap_or("-");
                format!(
                    "{word} {} {} {model}",
                    e.incarnation.pid.0, e.command.engine
                )
            }
            Change::Gone(i) => format!("gone {}/{}", i.pid.0, i.start_ticks),
        };
        changes.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn engines_come_change_and_go() {
        let mut tracker = Tracker::new(8);
        let mut step = |text: &str| shown(&tracker.scanned(&scan(text)));
        assert_eq!(step("1/1/0 init\n7/50/1 bash"), "");
        assert_eq!(step("1/1/0 init\n7/50/1 vllm serve a"), "found 7 vllm a");
        assert_eq!(step("1/1/0 init\n7/50/1 vllm serve a"), "");
        assert_eq!(step("1/1/0 init\n7/50/1 vllm serve b"), "changed 7 vllm b");
        assert_eq!(
            step("1/1/0 init\n7/50/1 tritonserver"),
            "changed 7 triton -"
        );
        // The pid comes again: another process.
        assert_eq!(
            step("1/1/0 init\n7/90/1 tritonserver"),
            "gone 7/50, found 7 triton -"
        );
        assert_eq!(step("1/1/0 init"), "gone 7/90");
    }

    #[test]
    fn a_child_with_its_parents_command_line_is_part_of_it_and_one_of_another_kind_is_not() {
        let mut tracker = Tracker::new(8);
        let text = "1/1/0 init
            7/50/1 vllm serve a
            8/51/7 VLLM::EngineCore
            9/52/8 vllm serve a
            10/53/9 tritonserver
            11/54/11 vllm serve b";
        assert_eq!(
            shown(&tracker.scanned(&scan(text))),
            "found 7 vllm a, found 10 triton -, found 11 vllm b"
        );
        // Who calls CUDA is known by its ancestors.
        let parent = |pid: Pid| (pid.0 > 1 && pid.0 < 10).then(|| Pid(pid.0 - 1));
        let of = |pid| {
            tracker
                .engine_of(Pid(pid), parent)
                .map(|e| e.incarnation.pid.0)
        };
        assert_eq!(
            [of(9), of(8), of(7), of(6), of(10)],
            [Some(7), Some(7), Some(7), None, Some(10)]
        );
        assert_eq!(tracker.engine_of(Pid(3), |_| Some(Pid(3))), None);
    }

    #[test]
    fn parents_in_a_circle_end_somewhere() {
        let mut tracker = Tracker::new(8);
        let text =
            "7/50/8 vllm serve a\n8/51/7 bash\n5/40/6 bash\n6/41/5 bash\n9/52/5 vllm serve c";
        assert_eq!(
            shown(&tracker.scanned(&scan(text))),
            "found 7 vllm a, found 9 vllm c"
        );
    }

    #[test]
    fn only_so_many_are_known_and_the_others_are_counted() {
        let mut tracker = Tracker::new(2);
        let text = "7/1/1 vllm serve a\n8/2/1 vllm serve b\n9/3/1 vllm serve c";
        assert_eq!(
            shown(&tracker.scanned(&scan(text))),
            "found 7 vllm a, found 8 vllm b"
        );
        assert_eq!(tracker.left_out(), 1);
        let text = "8/2/1 vllm serve b\n9/3/1 vllm serve c";
        assert_eq!(
            shown(&tracker.scanned(&scan(text))),
            "gone 7/1, found 9 vllm c"
        );
    }
}
