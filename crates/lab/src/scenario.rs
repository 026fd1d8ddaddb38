//! The scenarios: a workload on simgpu, what hits it and when, and what must be found.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Hog;

/// A workload on simgpu; everything about it that a scenario decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    pub millis: u64,
    /// The CPU that the training loop is pinned to; the machine's choice when absent.
    pub cpu: Option<usize>,
    /// Copies are large and from pageable memory.
    pub heavy_copies: bool,
    /// Every so many steps one gives its memory back and takes it anew from a slow allocator; 0: never.
    pub allocator_storm_every: u64,
}

/// Something that hits the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// A process that takes the CPU.
    Hog(Hog),
    /// A process that keeps the device busy: bursts of long kernels.
    GpuHog {
        total_millis: u64,
        busy_millis: u64,
        pause_millis: u64,
    },
}

/// What can be demonstrated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    /// What happens, in a line.
    pub summary: &'static str,
    /// The cause that the first finding must have, as in the JSON; `None`: no finding above LOW.
    pub expect: Option<&'static str>,
    /// How long it runs unless told otherwise.
    pub usual: Duration,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Incident,
    ColdStart,
    CpuContention,
    GpuSteal,
    MemcpyBottleneck,
    PeriodicSpike,
    Healthy,
}

/// A scenario with its times: the workload, simgpu's settings, and the faults with their beginnings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub workload: Workload,
    /// `SIMGPU_*` variables of the workload.
    pub env: Vec<(&'static str, String)>,
    /// When each fault begins, after the workload.
    pub faults: Vec<(Duration, Fault)>,
}

/// All scenarios, the first being the default.
pub fn scenarios() -> &'static [Scenario] {
    const SCENARIOS: &[Scenario] = &[
        Scenario {
            name: "incident",
            aliases: &[],
            summary: "a CPU hog lands on the core of a training loop",
            expect: Some("run_queue_wait"),
            usual: Duration::from_secs(20),
            kind: Kind::Incident,
        },
        Scenario {
            name: "cold-start",
            aliases: &[],
            summary: "the first calls initialise the device and load modules",
            expect: Some("cold_start"),
            usual: Duration::from_secs(12),
            kind: Kind::ColdStart,
        },
        Scenario {
            name: "cpu-contention",
            aliases: &[],
            summary: "short bursts of other work on the training loop's core",
            expect: Some("run_queue_wait"),
            usual: Duration::from_secs(20),
            kind: Kind::CpuContention,
        },
        Scenario {
            name: "gpu-steal",
            aliases: &["gpu-contention", "contention"],
            summary: "another process submits long kernels to the same device",
            expect: Some("gpu_contention"),
            usual: Duration::from_secs(20),
            kind: Kind::GpuSteal,
        },
        Scenario {
            name: "memcpy-bottleneck",
            aliases: &[],
            summary: "large copies from pageable memory in every step",
            expect: Some("copy"),
            usual: Duration::from_secs(15),
            kind: Kind::MemcpyBottleneck,
        },
        Scenario {
            name: "periodic-spike",
            aliases: &[],
            summary: "every so many steps the job gives its memory back and takes it anew",
            expect: Some("allocator"),
            usual: Duration::from_secs(20),
            kind: Kind::PeriodicSpike,
        },
        Scenario {
            name: "healthy",
            aliases: &[],
            summary: "nothing is wrong",
            expect: None,
            usual: Duration::from_secs(30),
            kind: Kind::Healthy,
        },
    ];
    SCENARIOS
}

/// The scenario of this name or alias.
pub fn find(name: &str) -> Option<&'static Scenario> {
    scenarios()
        .iter()
        .find(|s| s.name == name || s.aliases.contains(&name))
}

impl Scenario {
    /// What happens when, in a run of `length` on a machine that lends us `cpu`.
    pub fn plan(&self, length: Duration, cpu: usize) -> Plan {
        let millis = length.as_millis() as u64;
        let part = |percent: u64| millis * percent / 100;
        let after = |percent: u64| Duration::from_millis(part(percent));
        let mut plan = Plan {
            workload: Workload {
                millis,
                cpu: Some(cpu),
                heavy_copies: false,
                allocator_storm_every: 0,
            },
            env: Vec::new(),
            faults: Vec::new(),
        };
        match self.kind {
            Kind::Incident => plan.faults.push((
                after(40),
                Fault::Hog(Hog {
                    cpu,
                    threads: 3,
                    busy_millis: part(45),
                    pause_millis: 0,
                    total_millis: part(45),
                }),
            )),
            Kind::CpuContention => plan.faults.push((
                after(35),
                Fault::Hog(Hog {
                    cpu,
                    threads: 2,
                    busy_millis: 250,
                    pause_millis: 700,
                    total_millis: part(60),
                }),
            )),
            Kind::GpuSteal => plan.faults.push((
                after(40),
                Fault::GpuHog {
                    total_millis: part(40),
                    busy_millis: part(40),
                    pause_millis: 0,
                },
            )),
            Kind::ColdStart => plan.env.push(("SIMGPU_COLD_START_MS", "900".into())),
            Kind::MemcpyBottleneck => plan.workload.heavy_copies = true,
            Kind::PeriodicSpike => {
                plan.workload.allocator_storm_every = 40;
                plan.env.push(("SIMGPU_MALLOC_NS", "4000000".into()));
            }
            Kind::Healthy => plan.workload.cpu = None,
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_begin_after_a_baseline_and_end_before_the_workload() {
        for scenario in scenarios() {
            let plan = scenario.plan(scenario.usual, 1);
            for (begin, fault) in &plan.faults {
                let total = match fault {
                    Fault::Hog(hog) => hog.total_millis,
                    Fault::GpuHog { total_millis, .. } => *total_millis,
                };
                assert!(
                    begin.as_millis() as u64 >= 3_000,
                    "{}: too short a baseline",
                    scenario.name
                );
                let end = begin.as_millis() as u64 + total;
                assert!(
                    end < plan.workload.millis,
                    "{}: the fault outlives the workload",
                    scenario.name
                );
            }
        }
    }

    #[test]
    fn names_and_aliases_name_one_scenario_each() {
        let names: Vec<_> = scenarios()
            .iter()
            .flat_map(|s| s.aliases.iter().chain([&s.name]))
            .collect();
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(names.len(), distinct.len());
        assert_eq!(find("contention").map(|s| s.name), Some("gpu-steal"));
        assert_eq!(find("nothing"), None);
    }
}
