//! The machine and its devices, as they were sampled last.

use std::collections::BTreeMap;

use warptrace_model::cost::PricedDevice;
use warptrace_model::metric::{Families, Number, attribute, metric};
use warptrace_model::{BootNanos, GpuSample, Object, Pid, SystemSample};

use super::{count, texts};

/// A device that was not sampled for so long is not told any more.
const STALE_NANOS: u64 = 60_000_000_000;

/// Why a clock is held down, in few words.
const REASONS: [&str; 4] = ["power", "thermal", "sw", "hw"];

#[derive(Default)]
pub(super) struct Machine {
    system: Option<SystemSample>,
    devices: BTreeMap<u16, Device>,
    world_size: u32,
}

struct Device {
    sample: GpuSample,
    /// Times that a reason began, by [`REASONS`]; what is so at the first sight of it did not begin.
    began: [u64; REASONS.len()],
}

impl Machine {
    pub(super) fn system(&mut self, sample: &SystemSample) {
        let cpu = self.system.and_then(|before| before.cpu);
        self.system = Some(SystemSample {
            cpu: sample.cpu.or(cpu),
            ..*sample
        });
    }

    pub(super) fn gpu(&mut self, sample: &GpuSample) {
        match self.devices.get_mut(&sample.device) {
            Some(device) => {
                let before = device.sample.throttle_reasons;
                if let (Some(before), Some(now)) = (before, sample.throttle_reasons) {
                    let (before, now) = (held_down(before), held_down(now));
                    for (i, began) in device.began.iter_mut().enumerate() {
                        *began += u64::from(now[i] && !before[i]);
                    }
                }
                let known = device.sample.throttle_reasons;
                device.sample = sample.clone();
                device.sample.throttle_reasons = sample.throttle_reasons.or(known);
            }
            None => {
                let device = Device {
                    sample: sample.clone(),
                    began: [0; REASONS.len()],
                };
                self.devices.insert(sample.device, device);
            }
        }
    }

    /// The devices as they are priced for a process.
    pub(super) fn priced(&self, pid: Pid) -> Vec<PricedDevice<'_>> {
        let devices = self.devices.values().map(|device| PricedDevice {
            name: &device.sample.name,
            is_used: device.sample.processes.iter().any(|(of, ..)| *of == pid),
        });
        devices.collect()
    }

    /// What a process says of the size of its job.
    pub(super) fn world(&mut self, size: Option<u32>) {
        self.world_size = self.world_size.max(size.unwrap_or(0));
    }

    pub(super) fn tell(&self, to: &mut Families, now: BootNanos) {
        if let Some(system) = &self.system {
            self.tell_system(system, to);
        }
        let mut models: BTreeMap<&str, u64> = BTreeMap::new();
        for device in self.devices.values() {
            if now.since(device.sample.at) < STALE_NANOS {
                device.tell(to);
                *models.entry(&device.sample.name).or_default() += 1;
            }
        }
        for (model, devices) in models {
            let mut attributes = texts(&[(&attribute::GPU_MODEL, model)]);
            attributes.insert(
                attribute::GPU_COUNT.name,
                i64::try_from(devices).unwrap_or(0),
            );
            to.push(&metric::NODE_INFO, attributes, count(1));
        }
        if self.world_size > 0 {
            let size = count(self.world_size.into());
            to.push(&metric::NODE_WORLD_SIZE, Object::new(), size);
        }
    }

    fn tell_system(&self, system: &SystemSample, to: &mut Families) {
        if let Some(cpu) = system.cpu {
            to.push(&metric::CPU_UTILIZATION, Object::new(), Number::Double(cpu));
        }
        if system.memory_total > 0 {
            let used = system.memory_total.saturating_sub(system.memory_available);
            let used = Number::Double(used as f64 / system.memory_total as f64);
            let attributes = texts(&[(&attribute::MEMORY_STATE, "used")]);
            to.push(&metric::MEMORY_UTILIZATION, attributes, used);
            let available = count(system.memory_available);
            to.push(&metric::MEMORY_AVAILABLE, Object::new(), available);
        }
        let load = Number::Double(system.load1);
        to.push(&metric::LOAD_AVERAGE_1M, Object::new(), load);
    }
}

impl Device {
    fn tell(&self, to: &mut Families) {
        let sample = &self.sample;
        let of = || texts(&[(&attribute::GPU, sample.uuid.as_str())]);
        let mut level = |metric, bytes: Option<u64>| {
            if let Some(bytes) = bytes {
                to.push(metric, of(), count(bytes));
            }
        };
        level(&metric::GPU_MEMORY_USAGE, sample.memory_used);
        level(&metric::GPU_MEMORY_LIMIT, sample.memory_total);
        level(&metric::GPU_MEMORY_FREE, sample.memory_free);
        let reserved = match (sample.memory_total, sample.memory_used, sample.memory_free) {
            (Some(total), Some(used), Some(free)) if total > 0 => {
                Some(total.saturating_sub(used).saturating_sub(free) as f64 / total as f64)
            }
            _ => None,
        };
        let hertz = |mhz: Option<u32>| mhz.map(|mhz| f64::from(mhz) * 1e6);
        for (metric, value) in [
            (&metric::GPU_UTILIZATION, sample.utilization),
            (&metric::GPU_MEMORY_RESERVED, reserved),
            (&metric::GPU_CLOCK, hertz(sample.sm_clock_mhz)),
            (&metric::GPU_CLOCK_LIMIT, hertz(sample.max_sm_clock_mhz)),
            (
                &metric::GPU_TEMPERATURE,
                sample.temperature_celsius.map(f64::from),
            ),
            (
                &metric::GPU_POWER,
                sample.power_milliwatts.map(|mw| f64::from(mw) / 1e3),
            ),
        ] {
            if let Some(value) = value {
                to.push(metric, of(), Number::Double(value));
            }
        }
        for (pid, _, bytes) in &sample.processes {
            if let Some(bytes) = bytes {
                let mut attributes = of();
                attributes.insert(attribute::PID.name, i64::from(pid.0));
                to.push(&metric::PROCESS_GPU_MEMORY_USAGE, attributes, count(*bytes));
            }
        }
        if let Some(reasons) = sample.throttle_reasons {
            let now = held_down(reasons);
            for (i, reason) in REASONS.iter().enumerate() {
                let mut attributes = of();
                attributes.insert(attribute::THROTTLE_REASON.name, *reason);
                let active = count(now[i].into());
                to.push(&metric::GPU_THROTTLE_ACTIVE, attributes.clone(), active);
                to.push(
                    &metric::GPU_THROTTLE_COUNT,
                    attributes,
                    count(self.began[i]),
                );
            }
        }
    }
}

/// NVML's clock event reasons (`nvml.h` of driver 570), by [`REASONS`]: idle is none, one that is not known is hardware's.
fn held_down(reasons: u64) -> [bool; REASONS.len()] {
    const IDLE: u64 = 0x1;
    const APPLICATION_CLOCKS: u64 = 0x2;
    const SW_POWER_CAP: u64 = 0x4;
    const HW_SLOWDOWN: u64 = 0x8;
    const SYNC_BOOST: u64 = 0x10;
    const SW_THERMAL: u64 = 0x20;
    const HW_THERMAL: u64 = 0x40;
    const HW_POWER_BRAKE: u64 = 0x80;
    const DISPLAY_CLOCKS: u64 = 0x100;
    const SW: u64 = APPLICATION_CLOCKS | SW_POWER_CAP | SYNC_BOOST | SW_THERMAL | DISPLAY_CLOCKS;
    const HW: u64 = HW_SLOWDOWN | HW_THERMAL | HW_POWER_BRAKE;
    let unknown = reasons & !(IDLE | SW | HW) != 0;
    [
        reasons & (SW_POWER_CAP | HW_POWER_BRAKE) != 0,
        reasons & (SW_THERMAL | HW_THERMAL) != 0,
        reasons & SW != 0,
        reasons & HW != 0 || unknown,
    ]
}
