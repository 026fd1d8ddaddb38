//! What a traced call costs with preload, against two clock reads and a call through a pointer in the same run.
//!
//! `cargo run --release -p warptrace-bench --bin preload_call`. It compiles a runtime whose functions do nothing, starts itself as a
//! job under each door of the dynamic linker, and records that. Times are ns a call: the lower quartile over batches, which other load
//! of the machine touches least. Cost is the traced call less the same call untraced.
#![expect(
    unsafe_code,
    reason = "calls C functions by address and reads the time stamp counter"
)]

use std::ffi::{CStr, CString, c_void};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use warptrace_capture::preload::{Mechanism, Preload, PreloadOptions};
use warptrace_capture::{Batch, Source as _};
use warptrace_record::ring::control::Clock;

const BATCHES: usize = 300;
const CALLS: u32 = 5_000;

type Launch = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64) -> i32;

fn main() -> anyhow::Result<()> {
    if let Some(runtime) = std::env::args_os().nth(1) {
        return job(Path::new(&runtime));
    }
    let library = build_library()?;
    let folder = tempfile::tempdir()?;
    let runtime = folder.path().join("libcudart.so.12");
    let source = "int cudaLaunchKernel(void *f, long a, long b, long c, long d, void *e, long g, void *s) { return 0; }\n\
        int cudaEventQuery(void *e) { return 0; }\nint cudaStreamSynchronize(void *s) { return 0; }\nint plain(void) { return 0; }\n";
    std::fs::write(folder.path().join("runtime.c"), source)?;
    let compiled = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-fno-omit-frame-pointer", "-o"])
        .arg(&runtime)
        .arg(folder.path().join("runtime.c"))
        .status()?;
    ensure!(compiled.success(), "the C compiler failed");

    println!(
        "| clock | door | untraced | floor | launch | event query | synchronise | switched off | cost of a launch ÷ floor |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for clock in [Clock::Counter, Clock::BootNanos] {
        for mechanism in [Mechanism::Audit, Mechanism::Preload] {
            let options = PreloadOptions {
                clock: Some(clock),
                ..PreloadOptions::new(&library)
            };
            let (on, lost) = measure(&options, mechanism, &runtime, clock, true)?;
            let (off, _) = measure(&options, mechanism, &runtime, clock, false)?;
            let [untraced, floor, launch, query, wait] = on;
            println!(
                "| {clock:?} | {} | {untraced:.1} | {floor:.1} | {launch:.1} | {query:.1} | {wait:.1} | {:.1} | {:.2} |",
                mechanism.variable(),
                off[2],
                (launch - untraced) / floor,
            );
            eprintln!("{lost} records overwritten before they were read");
        }
    }
    Ok(())
}

fn build_library() -> anyhow::Result<std::path::PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/preload");
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package",
            "warptrace-preload",
            "--profile",
            "preload",
        ])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    ensure!(built.success(), "the preload library was not built");
    Ok(target
        .join("preload/libwarptrace_preload.so")
        .canonicalize()?)
}

/// Starts the job and records it; what it printed, and how many records were lost.
fn measure(
    options: &PreloadOptions,
    mechanism: Mechanism,
    runtime: &Path,
    clock: Clock,
    on: bool,
) -> anyhow::Result<([f64; 5], u64)> {
    let mut source = Preload::start(options)?;
    if !on {
        source.stop();
    }
    let child = Command::new(std::env::current_exe()?)
        .arg(runtime)
        .env("WARPTRACE_BENCH_CLOCK", format!("{clock:?}"))
        .envs(source.environment_by(mechanism, |_| None))
        .stdout(Stdio::piped())
        .spawn()?;
    let (sender, ended) = sync_channel(1);
    let waiter = std::thread::Builder::new()
        .name("waiter".into())
        .spawn(move || {
            let out = child.wait_with_output();
            let _ = sender.send(());
            out
        })?;
    let mut lost = 0;
    let mut batch = Batch::default();
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_millis(10)) {
        batch.clear();
        source.poll(&mut batch)?;
        lost += batch.losses.iter().map(|l| l.count).sum::<u64>();
    }
    let out = waiter.join().ok().context("the waiter is gone")??;
    ensure!(out.status.success(), "the job failed: {}", out.status);
    let numbers: Vec<f64> = String::from_utf8(out.stdout)?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let numbers = numbers
        .try_into()
        .ok()
        .context("the job printed something else")?;
    Ok((numbers, lost))
}

fn symbol(library: *mut c_void, name: &CStr) -> anyhow::Result<Launch> {
    // SAFETY: an open library and a string.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    ensure!(!address.is_null(), "no symbol {name:?}");
    // SAFETY: the functions of the runtime above; those with fewer parameters ignore the rest.
    Ok(unsafe { std::mem::transmute::<*mut c_void, Launch>(address) })
}

/// The job: its own times a call, on one line.
fn job(runtime: &Path) -> anyhow::Result<()> {
    let path = CString::new(runtime.as_os_str().as_encoded_bytes())?;
    // SAFETY: a string.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    ensure!(!library.is_null(), "the runtime does not open");
    let plain = symbol(library, c"plain")?;
    let traced = [
        c"cudaLaunchKernel",
        c"cudaEventQuery",
        c"cudaStreamSynchronize",
    ]
    .map(|name| symbol(library, name));
    let counter = std::env::var("WARPTRACE_BENCH_CLOCK").is_ok_and(|c| c == "Counter");
    let call = |f: Launch| {
        // SAFETY: see `symbol`.
        std::hint::black_box(unsafe { f(1, 2, 3, 4, 5, 6, 7, 8) });
    };
    let [launch, query, wait] = traced;
    let (launch, query, wait) = (launch?, query?, wait?);
    let cases: [&dyn Fn(); 5] = [
        &|| call(std::hint::black_box(plain)),
        &|| {
            let begin = now(counter);
            call(std::hint::black_box(plain));
            std::hint::black_box(now(counter) - begin);
        },
        &|| call(std::hint::black_box(launch)),
        &|| call(std::hint::black_box(query)),
        &|| call(std::hint::black_box(wait)),
    ];
    let mut times: [Vec<f64>; 5] = Default::default();
    for _ in 0..BATCHES {
        for (case, times) in cases.iter().zip(&mut times) {
            let begin = Instant::now();
            for _ in 0..CALLS {
                case();
            }
            times.push(begin.elapsed().as_nanos() as f64 / f64::from(CALLS));
        }
    }
    for times in &mut times {
        times.sort_by(f64::total_cmp);
        print!("{} ", times[BATCHES / 4]);
    }
    println!();
    Ok(())
}

#[inline(always)]
fn now(counter: bool) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if counter {
        // SAFETY: every x86-64 CPU has it.
        return unsafe { core::arch::x86_64::_rdtsc() };
    }
    let _ = counter;
    warptrace_capture::clock::boot_now().0
}
