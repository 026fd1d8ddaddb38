//! Hidden commands: the workloads on simgpu, and the faults that hit them.

use std::path::PathBuf;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use simgpu_workload::{HogOptions, TrainOptions};
use warptrace_lab::{Fault, Workload, run_hog};

/// What a hidden command is told to do, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    pub workload: Workload,
    /// The runtime library to load.
    pub cudart: PathBuf,
    /// Where the training data is made and read.
    pub data: PathBuf,
}

/// Trains on simgpu.
pub fn run(options: &str) -> anyhow::Result<u8> {
    let task: Task = serde_json::from_str(options).context("the workload's options are not ours")?;
    let w = &task.workload;
    let mut train = TrainOptions::default();
    train.runtime = task.cudart;
    train.data_dir = task.data;
    train.duration = Some(std::time::Duration::from_millis(w.millis));
    train.cpu = w.cpu;
    if w.heavy_copies {
        train.pageable = true;
        train.batch_bytes = 64 << 20;
    }
    train.allocator_storm_every = w.allocator_storm_every;
    let summary = simgpu_workload::train(&train)?;
    tracing::info!(steps = summary.steps.len(), "the workload ended");
    Ok(0)
}

/// Is a fault.
pub fn fault(options: &str) -> anyhow::Result<u8> {
    let (fault, cudart): (Fault, PathBuf) = serde_json::from_str(options).context("the fault's options are not ours")?;
    match fault {
        Fault::Hog(hog) => run_hog(&hog).with_context(|| format!("cannot hog cpu {}", hog.cpu))?,
        Fault::GpuHog { total_millis, busy_millis, pause_millis } => {
            let millis = std::time::Duration::from_millis;
            let mut options = HogOptions::default();
            options.runtime = cudart;
            options.duration = millis(total_millis);
            options.busy = millis(busy_millis);
            options.pause = millis(pause_millis);
            simgpu_workload::hog_gpu(&options)?;
        }
    }
    Ok(0)
}
