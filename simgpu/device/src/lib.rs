//! simgpu's device model: a GPU that several processes share, without a GPU and without a thread.
//!
//! What is queued is given its end when it is queued: `end = max(now, what its stream waits for, busy until of its engine) +
//! duration`. The engines (compute, host-to-device, device-to-host) keep their `busy until` in a file of shared memory, so that
//! processes contend for one device, and a busy host does not slow the "GPU". Nothing runs: a wait is a wait for a point in time.
//!
//! What this crate deliberately does not know: the CUDA or NVML ABI (the cdylibs `cuda`, `cudart`, `nvml` know those), what a
//! kernel computes (nothing), real hardware. Nothing measured on it is the speed of a GPU.
//!
//! Simplifications, on purpose:
//! - An engine takes work in the order in which it is queued, of all streams and processes alike. A kernel that waits for a copy
//!   holds back what was queued behind it.
//! - An end that was given stays. When a process dies, its work no longer delays what is queued later.
//! - All processes of a device share one pid namespace (life and death are read from `/proc`).
//!
//! | module | what |
//! |---|---|
//! | [`config`] | the `SIMGPU_*` variables |
//! | [`machine`] | the shared file: devices, engines, pages of memory, processes |
//! | [`driver`] | what one process has on it: contexts, streams, events, allocations, graphs |
//! | [`wait`] | spinning, yielding or blocking up to a point in time |

pub mod config;
pub mod driver;
pub mod machine;
pub mod status;
pub mod wait;

pub use config::{Config, ConfigError};
pub use driver::Driver;
pub use machine::{Engine, Machine, OpenError};
pub use status::Status;
pub use wait::{SyncMode, boot_ns};

/// The name under which every surface (CUDA, NVML) shows a device.
pub const DEVICE_NAME: &str = "simgpu (no real GPU)";
/// The CUDA version that the driver and the runtime report: 12.9.
pub const CUDA_VERSION: i32 = 12090;
/// The driver version that NVML reports. The real one that came with CUDA 12.9 was 575.x; the suffix says what this is.
pub const DRIVER_VERSION: &str = "575.0.simgpu";

/// The UUID of a device: the same in CUDA and in NVML.
#[must_use]
pub fn device_uuid(device: usize) -> [u8; 16] {
    let mut uuid = *b"simgpu-no-real-0";
    uuid[15] = b'0' + (device % 10) as u8;
    uuid
}
