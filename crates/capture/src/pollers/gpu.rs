//! The devices, by NVML: clocks, throttle reasons, memory and utilisation of all processes.

use std::ffi::OsStr;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use warptrace_model::{BootNanos, Gap, GapCode, GpuSample, Pid};

/// Asks NVML about every device.
pub struct GpuPoller {
    nvml: Nvml,
    /// NVML's time stamp (µs) up to which per-process utilisation was read, by device.
    seen: Vec<u64>,
}

impl std::fmt::Debug for GpuPoller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GpuPoller")
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl GpuPoller {
    /// Loads `library`, or `libnvidia-ml.so.1` as the linker finds it.
    ///
    /// # Errors
    /// The gap to report when there is no NVML, or it does not start.
    pub fn open(library: Option<&OsStr>) -> Result<GpuPoller, Gap> {
        let nvml = match library {
            Some(path) => Nvml::builder().lib_path(path).init(),
            None => Nvml::builder()
                .lib_path(OsStr::new("libnvidia-ml.so.1"))
                .init(),
        };
        match nvml {
            Ok(nvml) => Ok(GpuPoller {
                nvml,
                seen: Vec::new(),
            }),
            Err(e) => {
                let why = match e {
                    NvmlError::LibloadingError(_) => {
                        "no NVIDIA driver: libnvidia-ml.so.1 cannot be loaded".to_owned()
                    }
                    other => other.to_string(),
                };
                Err(Gap {
                    code: GapCode::NoNvml,
                    detail: format!(
                        "clocks, throttling and other processes' GPU use are not known ({why})"
                    ),
                    count: 1,
                })
            }
        }
    }

    /// One sample of each device that answers. Cost: some ms on real drivers; call it from a thread of its own.
    pub fn sample(&mut self, now: BootNanos) -> Vec<GpuSample> {
        let count = self.nvml.device_count().unwrap_or(0);
        self.seen.resize(count as usize, 0);
        (0..count)
            .filter_map(|index| self.device(index, now))
            .collect()
    }

    fn device(&mut self, index: u32, now: BootNanos) -> Option<GpuSample> {
        let device = self.nvml.device_by_index(index).ok()?;
        let memory = device.memory_info().ok();
        let mut processes: Vec<(Pid, Option<f64>, Option<u64>)> = Vec::new();
        for process in device.running_compute_processes().unwrap_or_default() {
            let bytes = match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            };
            processes.push((Pid(process.pid), None, bytes));
        }
        let seen = &mut self.seen[index as usize];
        for sample in device.process_utilization_stats(*seen).unwrap_or_default() {
            *seen = (*seen).max(sample.timestamp);
            let busy = Some(f64::from(sample.sm_util) / 100.0);
            match processes.iter_mut().find(|(pid, ..)| pid.0 == sample.pid) {
                Some(process) => process.1 = busy,
                None => processes.push((Pid(sample.pid), busy, None)),
            }
        }
        Some(GpuSample {
            at: now,
            device: index as u16,
            uuid: device.uuid().unwrap_or_default(),
            name: device.name().unwrap_or_default(),
            sm_clock_mhz: device.clock_info(Clock::SM).ok(),
            max_sm_clock_mhz: device.max_clock_info(Clock::SM).ok(),
            throttle_reasons: device
                .current_throttle_reasons()
                .ok()
                .map(|reasons| reasons.bits()),
            memory_used: memory.as_ref().map(|m| m.used),
            memory_total: memory.as_ref().map(|m| m.total),
            memory_free: memory.as_ref().map(|m| m.free),
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
            power_milliwatts: device.power_usage().ok(),
            utilization: device
                .utilization_rates()
                .ok()
                .map(|u| f64::from(u.gpu) / 100.0),
            processes,
        })
    }
}
