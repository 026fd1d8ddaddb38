//! What a traced call costs by eBPF, against an empty uprobe and uretprobe on the same function in the same run.
//!
//! `cargo run --release -p warptrace-bench --bin ebpf_pair -- LIBCUDART [ROUNDS]`, as root. The library is NVIDIA's own
//! (PyPI: nvidia-cuda-runtime-cu12); without a driver its calls return an error, and the probes cost what they always do.
//! Each round measures the bare call, the call with the empty pair, and the traced call, in CPU time of the calling
//! thread; the medians are compared. Attaching, detaching and the time from start to first event come along.
#![expect(
    unsafe_code,
    reason = "calls a function of a library by its address, and reads a clock that std does not have"
)]

use std::ffi::{CString, c_void};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use libbpf_rs::{Link, ObjectBuilder, UprobeMultiOpts};
use warptrace_capture::ebpf::{Ebpf, Options};
use warptrace_capture::{Batch, Source as _};

#[cfg(target_arch = "x86_64")]
static EMPTY: &[u8] = include_bytes!("../../../bpf/empty.x86_64.bpf.o");
#[cfg(target_arch = "aarch64")]
static EMPTY: &[u8] = include_bytes!("../../../bpf/empty.aarch64.bpf.o");

/// Calls a round; their records fit the ring.
const CALLS: u32 = 50_000;

/// Functions to measure: one with three slots to fill, and one with none.
const FUNCTIONS: [&str; 3] = [
    "cudaMemcpyAsync",
    "cudaLaunchKernel",
    "cudaStreamSynchronize",
];

type Function = extern "C" fn(usize, usize, usize, usize, usize, usize, usize, usize) -> i32;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let library = args.next().context("usage: ebpf_pair LIBCUDART [ROUNDS]")?;
    let rounds: usize = args.next().map_or(Ok(9), |n| n.parse())?;
    let name = CString::new(library.as_str())?;
    // SAFETY: a valid string; the library's constructors are NVIDIA's.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    if handle.is_null() {
        bail!("cannot load {library:?}");
    }
    let options = Options {
        ring_bytes: 16 << 20,
        pids: Some(vec![std::process::id()]),
        libraries: vec![library.clone().into()],
        ..Options::default()
    };
    println!(
        "function                   bare    empty   traced    ratio  (ns a call, CPU time; medians of {rounds})"
    );
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    for symbol in FUNCTIONS {
        let call = function(handle, symbol)?;
        let (mut bare, mut empty, mut traced) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            bare.push(per_call(call));
            let links = attach_empty(&library, file_offset(call as usize)?)?;
            empty.push(per_call(call));
            drop(links);
            let start = Instant::now();
            let mut ebpf = Ebpf::start(&options)?;
            starts.push(first_event(&mut ebpf, call, start)?);
            traced.push(per_call(call));
            let mut batch = Batch::default();
            ebpf.poll(&mut batch)?;
            let records = batch.records.iter().filter(|r| r.kind == 1).count();
            if records < CALLS as usize {
                bail!(
                    "only {records} of {CALLS} records came: this round would have measured something cheaper"
                );
            }
            let stop = Instant::now();
            ebpf.stop();
            drop(ebpf);
            stops.push(stop.elapsed());
        }
        // The ratio of each round, since a busy machine slows all three of a round alike.
        let ratios = (0..rounds)
            .map(|i| (traced[i] - bare[i]) / (empty[i] - bare[i]))
            .collect();
        let (bare, empty, traced) = (median(bare), median(empty), median(traced));
        println!(
            "{symbol:<24} {bare:>6.0} {:>8.0} {:>8.0} {:>8.2}",
            empty - bare,
            traced - bare,
            median(ratios)
        );
    }
    println!(
        "start to first event: {:?}, stop: {:?} (longest of {})",
        starts.iter().max(),
        stops.iter().max(),
        starts.len()
    );
    Ok(())
}

/// Time from `start` until the record of a call was read.
fn first_event(ebpf: &mut Ebpf, call: Function, start: Instant) -> anyhow::Result<Duration> {
    let mut batch = Batch::default();
    loop {
        call(0, 0, 0, 0, 0, 0, 0, 0);
        ebpf.poll(&mut batch)?;
        if batch.records.iter().any(|r| r.kind == 1) {
            return Ok(start.elapsed());
        }
    }
}

fn function(handle: *mut c_void, symbol: &str) -> anyhow::Result<Function> {
    let name = CString::new(symbol)?;
    // SAFETY: an open handle and a valid string.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    if address.is_null() {
        bail!("no symbol {symbol}");
    }
    // SAFETY: a C function of at most eight integer arguments that returns an int; more arguments than it reads are
    // harmless by the C ABI of both architectures.
    Ok(unsafe { std::mem::transmute::<*mut c_void, Function>(address) })
}

fn per_call(call: Function) -> f64 {
    let before = thread_cpu_nanos();
    for _ in 0..CALLS {
        std::hint::black_box(call(0, 0, 0, 0, 0, 0, 0, 0));
    }
    (thread_cpu_nanos() - before) as f64 / f64::from(CALLS)
}

fn thread_cpu_nanos() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid timespec; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Where in its file the code at `address` is.
fn file_offset(address: usize) -> anyhow::Result<usize> {
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(offset)) = (words.next(), words.nth(1)) else {
            continue;
        };
        let (from, to) = range.split_once('-').context("a range")?;
        let (from, to) = (
            usize::from_str_radix(from, 16)?,
            usize::from_str_radix(to, 16)?,
        );
        if (from..to).contains(&address) {
            return Ok(address - from + usize::from_str_radix(offset, 16)?);
        }
    }
    bail!("{address:#x} is not mapped")
}

fn attach_empty(library: &str, offset: usize) -> anyhow::Result<Vec<Link>> {
    let object = ObjectBuilder::default().open_memory(EMPTY)?.load()?;
    let mut links = Vec::new();
    for program in object.progs_mut() {
        let options = UprobeMultiOpts {
            offsets: vec![offset],
            cookies: vec![0],
            retprobe: program.name() == "empty_return",
            ..UprobeMultiOpts::default()
        };
        let every_process = -1;
        links.push(program.attach_uprobe_multi_with_opts(
            every_process,
            Path::new(library),
            "",
            options,
        )?);
    }
    Ok(links)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
