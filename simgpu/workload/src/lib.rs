//! Jobs to watch: a training loop, an inference server with its client, a GPU hog. They do what such jobs do (read files in a
//! worker, copy, launch, wait, spend CPU time between) through a CUDA runtime that they open by dlopen, as Python does.
//!
//! Each fault is a switch, and is real: time is spent in the very thing that is wrong. What was injected, and when, is in the summary,
//! so that whoever explains the run can be checked. This crate knows nothing of tracing, and nothing of simgpu's model: it runs on any
//! library with the runtime's entry points. Slow initialisation, throttling and the like are set by `SIMGPU_*` variables.
//!
//! | function | what |
//! |---|---|
//! | [`train`] | steps of a training loop |
//! | [`serve`] | prefill and decode of requests; [`request_load`] sends them from another process |
//! | [`hog_gpu`] | long kernels in bursts, to take the device from others |

mod cuda;
mod hog;
mod host;
mod loader;
mod serve;
mod train;

pub use cuda::WorkloadError;
pub use hog::{HogOptions, HogSummary, hog_gpu};
pub use loader::DiskReads;
pub use serve::{LoadOptions, Request, ServeOptions, ServeSummary, request_load, serve};
pub use train::{
    AllocatorStorm, Every, Faults, HostPause, Injected, LockContention, PageFaults, Sleep,
    SlowLoader, Step, Summary, TrainOptions, train,
};
