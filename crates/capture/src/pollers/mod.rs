//! What is sampled rather than traced: the machine by `/proc`, the devices by NVML.
//!
//! Absent hardware is a fact to report, never an error: without NVML there are no samples and one gap.

mod gpu;
mod system;

pub use gpu::GpuPoller;
pub use system::SystemPoller;
