//! What held devices back, and at which clock they ran, while a step lasted.
//!
//! Samples come once in a while: the one before a step speaks for its begin. A process's devices are those that a sample names
//! it on; where none does, the one of its ordinal.

use std::collections::{BTreeMap, VecDeque};

use warptrace_model::{Device, GpuSample, Pid, Window};

/// NVML's reason *idle* (`nvmlClocksEventReasonGpuIdle`): nothing was held back.
const IDLE: u64 = 0x1;
/// Devices, and samples of each, that are remembered: a step of a minute at one sample a second.
const DEVICES: usize = 64;
const SAMPLES: usize = 64;
/// Processes of a sample that are remembered.
const PROCESSES: usize = 64;

struct Seen {
    at: u64,
    reasons: u64,
    clock_mhz: Option<u32>,
    pids: Vec<Pid>,
}

/// The devices' last samples.
#[derive(Default)]
pub(super) struct Devices(BTreeMap<u16, VecDeque<Seen>>);

/// What devices did during a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    pub(super) reasons: u64,
    pub(super) min_clock_mhz: Option<u32>,
}

impl Devices {
    pub(super) fn sample(&mut self, g: &GpuSample) {
        if self.0.len() >= DEVICES && !self.0.contains_key(&g.device) {
            return;
        }
        let seen = self.0.entry(g.device).or_default();
        if seen.len() == SAMPLES {
            seen.pop_front();
        }
        let pids = g.processes.iter().map(|(pid, ..)| *pid);
        seen.push_back(Seen {
            at: g.at.0,
            reasons: g.throttle_reasons.unwrap_or(0) & !IDLE,
            clock_mhz: g.sm_clock_mhz,
            pids: pids.take(PROCESSES).collect(),
        });
    }

    pub(super) fn during(&self, w: Window, pid: Pid, device: Option<Device>) -> Held {
        let mut held = Held::default();
        let names = |seen: &VecDeque<Seen>| seen.back().is_some_and(|s| s.pids.contains(&pid));
        let named = self.0.values().any(names);
        for (index, seen) in &self.0 {
            if named && !names(seen) || !named && device != Some(Device(*index)) {
                continue;
            }
            let before = seen.iter().rev().find(|s| s.at <= w.start.0);
            let within = seen.iter().filter(|s| s.at > w.start.0 && s.at <= w.end.0);
            for s in before.into_iter().chain(within) {
                held.reasons |= s.reasons;
                held.min_clock_mhz = match (held.min_clock_mhz, s.clock_mhz) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warptrace_model::BootNanos;

    fn sample(device: u16, at: u64, reasons: u64, clock: u32, pids: &[u32]) -> GpuSample {
        GpuSample {
            at: BootNanos(at),
            device,
            throttle_reasons: Some(reasons),
            sm_clock_mhz: Some(clock),
            processes: pids.iter().map(|p| (Pid(*p), None, None)).collect(),
            ..GpuSample::default()
        }
    }

    #[test]
    fn only_the_process_s_own_devices_speak_for_its_steps_and_idle_is_nothing() {
        let mut d = Devices::default();
        for s in [
            sample(0, 10, 0x8, 500, &[1]),
            sample(0, 20, 0x1, 900, &[1]),
            sample(0, 30, 0x4, 700, &[1]),
            sample(1, 20, 0x40, 300, &[2]),
        ] {
            d.sample(&s);
        }
        let of = |a, b, pid, device: Option<u16>| {
            let w = Window {
                start: BootNanos(a),
                end: BootNanos(b),
            };
            let h = d.during(w, Pid(pid), device.map(Device));
            (h.reasons, h.min_clock_mhz)
        };
        assert_eq!(of(25, 29, 1, None), (0, Some(900)));
        assert_eq!(of(15, 35, 1, Some(1)), (0x8 | 0x4, Some(500)));
        assert_eq!(of(25, 35, 2, None), (0x40, Some(300)));
        assert_eq!(of(25, 35, 3, Some(0)), (0x4, Some(700)), "by its ordinal");
        assert_eq!(of(25, 35, 3, None), (0, None));
    }
}
