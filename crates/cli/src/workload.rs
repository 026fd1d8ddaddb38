//! Hidden commands: the workloads on simgpu, and the faults that hit them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use simgpu_workload::{AllocatorStorm, Every, HogOptions, LoadOptions, ServeOptions, TrainOptions};
use warptrace_lab::{Fault, Workload, run_hog};

/// What a hidden command is told to do, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Task {
    Train {
        workload: Workload,
        /// The runtime library to load.
        cudart: PathBuf,
        /// Where the training data is made and read.
        data: PathBuf,
    },
    /// Serves requests that arrive for so long, by a seeded process: from a thread of its own, or from whoever connects to
    /// `socket`.
    Serve {
        millis: u64,
        cudart: PathBuf,
        socket: Option<PathBuf>,
        /// Each so many-th decode step takes ten times as long.
        #[serde(default)]
        slow_decode_every: Option<usize>,
        /// From then on each decode step takes four times as long.
        #[serde(default)]
        slow_decode_after_millis: Option<u64>,
    },
    /// Sends those requests.
    Load { millis: u64, socket: PathBuf },
}

/// Trains or serves on simgpu.
pub(crate) fn run(options: &str) -> anyhow::Result<u8> {
    match serde_json::from_str(options).context("the workload's options are not ours")? {
        Task::Train {
            workload,
            cudart,
            data,
        } => train(&workload, cudart, data),
        Task::Serve {
            millis,
            cudart,
            socket,
            slow_decode_every,
            slow_decode_after_millis,
        } => {
            let mut options = ServeOptions {
                runtime: cudart,
                socket,
                slow_decode_every,
                slow_decode_after: slow_decode_after_millis.map(Duration::from_millis),
                ..ServeOptions::default()
            };
            options.load.duration = Duration::from_millis(millis);
            let summary = simgpu_workload::serve(&options)?;
            tracing::info!(requests = summary.requests.len(), "the workload ended");
            Ok(0)
        }
        Task::Load { millis, socket } => {
            let load = LoadOptions {
                duration: Duration::from_millis(millis),
                ..LoadOptions::default()
            };
            let sent = simgpu_workload::request_load(&socket, &load)?;
            tracing::info!(sent, "the load ended");
            Ok(0)
        }
    }
}

fn train(w: &Workload, cudart: PathBuf, data: PathBuf) -> anyhow::Result<u8> {
    let mut train = TrainOptions {
        runtime: cudart,
        data_dir: Some(data),
        duration: Some(Duration::from_millis(w.millis)),
        cpu: w.cpu,
        ..TrainOptions::default()
    };
    if w.heavy_copies {
        train.faults.pageable_copies = true;
        train.faults.extra_copies = 12;
    }
    if w.allocator_storm_every > 0 {
        train.faults.allocator_storm = Some(AllocatorStorm {
            when: Every {
                every: w.allocator_storm_every,
                from: 2 * w.allocator_storm_every,
            },
            blocks: 8,
            block_bytes: 64 << 20,
        });
    }
    let summary = simgpu_workload::train(&train)?;
    tracing::info!(steps = summary.steps.len(), "the workload ended");
    Ok(0)
}

/// Is a fault.
pub(crate) fn fault(options: &str) -> anyhow::Result<u8> {
    let (fault, cudart): (Fault, PathBuf) =
        serde_json::from_str(options).context("the fault's options are not ours")?;
    match fault {
        Fault::Hog(hog) => run_hog(&hog).with_context(|| format!("cannot hog cpu {}", hog.cpu))?,
        Fault::GpuHog {
            total_millis,
            busy_millis,
            pause_millis,
        } => {
            let options = HogOptions {
                runtime: cudart,
                duration: Duration::from_millis(total_millis),
                delay: Duration::ZERO,
                busy: Duration::from_millis(busy_millis),
                pause: Duration::from_millis(pause_millis),
                blocks: 16_000,
                ..HogOptions::default()
            };
            simgpu_workload::hog_gpu(&options)?;
        }
    }
    Ok(0)
}
