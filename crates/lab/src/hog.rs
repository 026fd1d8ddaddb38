//! A CPU hog: threads that spin on one CPU, in a process of their own that is called `wt-hog`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The hog's name, as `/proc/PID/comm` and an explanation show it.
pub const HOG_NAME: &str = "wt-hog";

/// How to hog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hog {
    /// The CPU to be pinned to.
    pub cpu: usize,
    pub threads: usize,
    /// How long one burst spins.
    pub busy_millis: u64,
    /// How long it sleeps between two bursts; 0 for one burst only.
    pub pause_millis: u64,
    /// When it ends altogether.
    pub total_millis: u64,
}

/// Becomes the hog: takes its name, is pinned, spins as told, returns. Ends with its parent, whatever becomes of that.
///
/// # Errors
/// When the CPU does not exist or may not be used, or a thread cannot be started.
pub fn run_hog(hog: &Hog) -> std::io::Result<()> {
    let name = std::ffi::CString::new(HOG_NAME).map_err(std::io::Error::other)?;
    nix::sys::prctl::set_name(&name)?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    let mut cpus = CpuSet::new();
    cpus.set(hog.cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    let end = Instant::now() + Duration::from_millis(hog.total_millis);
    let threads = (1..hog.threads.max(1))
        .map(|_| {
            let hog = hog.clone();
            std::thread::Builder::new()
                .name(HOG_NAME.into())
                .spawn(move || spin(&hog, end))
        })
        .collect::<std::io::Result<Vec<_>>>()?;
    spin(hog, end);
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn spin(hog: &Hog, end: Instant) {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    while Instant::now() < end {
        let burst = (Instant::now() + Duration::from_millis(hog.busy_millis)).min(end);
        while Instant::now() < burst {
            for _ in 0..10_000 {
                x = black_box(x ^ (x << 13) ^ (x >> 7));
            }
        }
        if hog.pause_millis == 0 {
            return;
        }
        std::thread::sleep(
            Duration::from_millis(hog.pause_millis)
                .min(end.saturating_duration_since(Instant::now())),
        );
    }
}
