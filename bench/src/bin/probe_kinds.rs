//! How long it takes to place the probes of a library and to be rid of them: by uprobe-multi links, and by perf events, as on
//! kernels before 6.6, in the same run.
//!
//! `cargo run --release -p warptrace-bench --bin probe_kinds -- LIBCUDART [ROUNDS]`, as root, on Linux 6.6 or newer. The
//! library is NVIDIA's own (PyPI: nvidia-cuda-runtime-cu12).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use warptrace_capture::Source as _;
use warptrace_capture::ebpf::kernel::{Kernel, ProbeKind};
use warptrace_capture::ebpf::{Ebpf, Options};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let library = PathBuf::from(
        args.next()
            .context("usage: probe_kinds LIBCUDART [ROUNDS]")?,
    );
    let rounds: usize = args.next().map_or(Ok(5), |n| n.parse())?;
    for kind in [ProbeKind::UprobeMulti, ProbeKind::PerfEvents] {
        let (mut placed, mut gone, mut probes) = (Vec::new(), Vec::new(), 0);
        for _ in 0..rounds {
            let kernel = Kernel {
                uprobe_multi: kind == ProbeKind::UprobeMulti,
                ..Kernel::probe()
            };
            let nobody = Options {
                pids: Some(Vec::new()),
                ..Options::default()
            };
            let mut ebpf = Ebpf::start_on(kernel, &nobody)?;
            let began = Instant::now();
            probes = ebpf.attach_library(&library)?;
            placed.push(began.elapsed());
            let began = Instant::now();
            ebpf.stop();
            gone.push(began.elapsed());
        }
        println!(
            "{}: {probes} functions, both directions; placed in {:.1} ms, stopped in {:.1} ms (medians of {rounds})",
            kind.name(),
            median(placed),
            median(gone)
        );
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}
