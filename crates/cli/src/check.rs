//! `check`: what can be recorded on this machine, and what to do where it cannot.

use std::path::Path;

use serde::Serialize;
use warptrace_capture::pollers::GpuPoller;
use warptrace_capture::{ebpf, preload};

use crate::args::{CheckArgs, Global};
use crate::{guest, output, sessions};

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    record: Verdict,
    trace: Verdict,
    checks: Vec<Check>,
}

#[derive(Debug, Serialize)]
struct Verdict {
    ok: bool,
    /// Empty when it is.
    because: String,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    pass: bool,
    /// Nothing depends on it.
    optional: bool,
    value: String,
    /// What to do; empty when it passes.
    recommendation: String,
}

pub fn run(global: &Global, args: &CheckArgs) -> anyhow::Result<u8> {
    let report = examine(global);
    if args.output.json {
        output::print_json(&report)?;
    } else {
        output::print(&text(&report, output::paint(global)))?;
    }
    Ok(u8::from(!report.record.ok && !report.trace.ok))
}

fn examine(global: &Global) -> Report {
    let mut checks = Vec::new();
    let mut add = |name, result: Result<String, (String, String)>, optional| {
        let (pass, value, recommendation) = match result {
            Ok(value) => (true, value, String::new()),
            Err((value, recommendation)) => (false, value, recommendation),
        };
        checks.push(Check { name, pass, optional, value, recommendation });
    };

    let writable = sessions::data_dir(global).and_then(|dirs| {
        let folder = guest::folder(&dirs.path)?;
        Ok((dirs.path.display().to_string(), folder))
    });
    let store = writable.as_ref().map(|(shown, _)| shown.clone()).map_err(|e| format!("{e:#}"));
    add("sessions' folder", store.clone().map_err(|e| (e, "name a writable one with --data".into())), false);

    let inside: Result<String, String> = match &writable {
        Ok((_, folder)) => preload::self_test(&guest::library(folder, "libwarptrace_preload.so"))
            .map(|how| how.to_string())
            .map_err(|e| e.to_string()),
        Err(_) => Err("its library could not be written".into()),
    };
    add("preload library", inside.clone().map_err(|e| (e, "is this glibc on x86-64 or aarch64?".into())), false);

    let shm = nix::sys::statvfs::statvfs("/dev/shm").map(|s| s.blocks_available() as u64 * s.fragment_size() as u64);
    add(
        "/dev/shm",
        match shm {
            Ok(bytes) if bytes >= 16 << 20 => Ok(format!("{} MiB free", bytes >> 20)),
            Ok(bytes) => Err((
                format!("{} MiB free", bytes >> 20),
                "recording needs about 1 MiB a thread: enlarge it (docker run --shm-size=1g)".into(),
            )),
            Err(e) => Err((e.to_string(), "mount a tmpfs there".into())),
        },
        true,
    );

    let outside = ebpf::support().map_err(|e| format!("{e:#}"));
    for (name, result) in ebpf::requirements() {
        add(name, result, false);
    }

    let driver = std::fs::read_to_string("/proc/driver/nvidia/version");
    add(
        "NVIDIA driver",
        match driver {
            Ok(text) => Ok(text.lines().next().unwrap_or_default().trim_start_matches("NVRM version: ").to_owned()),
            Err(_) => Err(("none".into(), "without a GPU there is the demo: warptrace demo".into())),
        },
        true,
    );
    add(
        "NVML",
        match GpuPoller::open(None) {
            Ok(_) => Ok("clocks, throttling and other processes' use of the GPU are sampled".into()),
            Err(gap) => Err((gap.detail, "it comes with the NVIDIA driver (libnvidia-ml.so.1)".into())),
        },
        true,
    );
    let processes = cuda_processes();
    add("CUDA processes", Ok(if processes == 0 { "none".into() } else { format!("{processes} found") }), true);

    let record = match (&store, &inside) {
        (Ok(_), Ok(_)) => Ok(()),
        (Err(e), _) | (_, Err(e)) => Err(e.clone()),
    };
    let trace = match (&store, &outside) {
        (Ok(_), Ok(())) => Ok(()),
        (Err(e), _) | (_, Err(e)) => Err(e.clone()),
    };
    let verdict = |result: Result<(), String>| match result {
        Ok(()) => Verdict { ok: true, because: String::new() },
        Err(because) => Verdict { ok: false, because },
    };
    Report { schema: "warptrace.check/v1", record: verdict(record), trace: verdict(trace), checks }
}

/// Processes that we may look into and that map a CUDA library.
fn cuda_processes() -> usize {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter(|e| maps_cuda(&e.path()))
        .count()
}

fn maps_cuda(process: &Path) -> bool {
    std::fs::read_to_string(process.join("maps"))
        .is_ok_and(|maps| maps.contains("/libcuda.so") || maps.contains("/libcudart.so") || maps.contains("/libcudart-"))
}

fn text(report: &Report, paint: crate::show::Paint) -> String {
    let mut out = String::new();
    for check in &report.checks {
        let mark = match (check.pass, check.optional) {
            (true, _) => "✓",
            (false, true) => "~",
            (false, false) => "✗",
        };
        out += &format!("{mark} {:<18} {}\n", check.name, check.value);
        if !check.recommendation.is_empty() {
            out += &paint.dim(&format!("{:<21}{}", "", check.recommendation));
            out.push('\n');
        }
    }
    let line = |name: &str, verdict: &Verdict| {
        let word = if verdict.ok { "yes".to_owned() } else { format!("no, because {}", verdict.because) };
        paint.bold(&format!("{name}: {word}")) + "\n"
    };
    out.push('\n');
    out += &line("record", &report.record);
    out += &line("trace", &report.trace);
    out
}
