//! A process that takes the device from others: long kernels, in bursts.

use std::{path::PathBuf, thread, time::Duration};

use crate::{
    cuda::{Kernel, Result, Runtime, WorkloadError},
    host::boot_ns,
};

/// How to hog. The default: kernels of 8 ms, two ahead, on for 3 s and off for 3 s, for 15 s.
#[derive(Clone, Debug)]
pub struct HogOptions {
    /// The runtime: a path, or a name that the dynamic loader searches for.
    pub runtime: PathBuf,
    pub device: i32,
    /// The whole run, quiet times included.
    pub duration: Duration,
    /// Quiet before the first burst.
    pub delay: Duration,
    /// How long a burst of kernels is.
    pub busy: Duration,
    /// How long it is quiet between bursts.
    pub pause: Duration,
    /// Blocks of one kernel. simgpu takes 1 µs for one, unless set otherwise.
    pub blocks: u32,
    /// Kernels that are queued at a time.
    pub ahead: u32,
}

impl Default for HogOptions {
    fn default() -> Self {
        Self {
            runtime: "libcudart.so.12".into(),
            device: 0,
            duration: Duration::from_secs(15),
            delay: Duration::from_secs(3),
            busy: Duration::from_secs(3),
            pause: Duration::from_secs(3),
            blocks: 8000,
            ahead: 2,
        }
    }
}

/// What a hog did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HogSummary {
    pub pid: u32,
    /// Start and end of each burst. CLOCK_BOOTTIME, ns.
    pub bursts: Vec<(u64, u64)>,
    pub kernels: u64,
}

/// Hogs the device until its time is over. It waits by blocking, so that it takes no CPU from anyone.
///
/// # Errors
/// [`WorkloadError`]: no runtime, or a call that failed.
pub fn hog_gpu(options: &HogOptions) -> std::result::Result<HogSummary, WorkloadError> {
    let runtime = Runtime::open(&options.runtime)?;
    runtime.use_device(options.device, true)?;
    let stream = runtime.stream()?;
    let event = runtime.event()?;
    let end = boot_ns() + options.duration.as_nanos() as u64;
    let mut summary = HogSummary {
        pid: std::process::id(),
        ..HogSummary::default()
    };
    let rest = |pause: Duration| {
        let left = Duration::from_nanos(end.saturating_sub(boot_ns()));
        thread::sleep(pause.min(left));
    };
    rest(options.delay);
    while boot_ns() < end {
        let start = boot_ns();
        let stop = end.min(start + options.busy.as_nanos() as u64);
        while boot_ns() < stop {
            for _ in 0..options.ahead.max(1) {
                runtime.launch(Kernel::Hog, options.blocks, stream)?;
                summary.kernels += 1;
            }
            wait(&runtime, event, stream)?;
        }
        summary.bursts.push((start, boot_ns()));
        rest(options.pause);
    }
    Ok(summary)
}

fn wait(runtime: &Runtime, event: crate::cuda::Handle, stream: crate::cuda::Handle) -> Result<()> {
    runtime.record(event, stream)?;
    runtime.synchronize_event(event)
}
