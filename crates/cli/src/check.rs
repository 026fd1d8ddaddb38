//! `check`: what can be recorded on this machine, and what to do where it cannot.

use std::path::Path;
use std::process::Command;

use serde::Serialize;
use warptrace_capture::ebpf::kernel::{Kernel, NEEDED, Version};
use warptrace_capture::pollers::GpuPoller;
use warptrace_capture::preload;

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

pub(crate) fn run(global: &Global, args: &CheckArgs) -> anyhow::Result<u8> {
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
        checks.push(Check {
            name,
            pass,
            optional,
            value,
            recommendation,
        });
    };

    let writable = sessions::data_dir(global).and_then(|dirs| {
        let folder = guest::folder(&dirs.path)?;
        Ok((dirs.path.display().to_string(), folder))
    });
    let store = writable
        .as_ref()
        .map(|(shown, _)| shown.clone())
        .map_err(|e| format!("{e:#}"));
    add(
        "sessions' folder",
        store
            .clone()
            .map_err(|e| (e, "name a writable one with --data".into())),
        false,
    );

    let inside: Result<String, String> = match &writable {
        Ok((_, folder)) => enters_a_shell(&guest::library(folder, "libwarptrace_preload.so")),
        Err(_) => Err("its library could not be written".into()),
    };
    add(
        "preload library",
        inside
            .clone()
            .map_err(|e| (e, "is this glibc on x86-64 or aarch64?".into())),
        false,
    );

    let shm =
        nix::sys::statvfs::statvfs("/dev/shm").map(|s| s.blocks_available() * s.fragment_size());
    add(
        "/dev/shm",
        match shm {
            Ok(bytes) if bytes >= 16 << 20 => Ok(format!("{} MiB free", bytes >> 20)),
            Ok(bytes) => Err((
                format!("{} MiB free", bytes >> 20),
                "recording needs about 1 MiB a thread: enlarge it (docker run --shm-size=1g)"
                    .into(),
            )),
            Err(e) => Err((e.to_string(), "mount a tmpfs there".into())),
        },
        true,
    );

    let kernel = Kernel::probe();
    let outside = kernel.refusal().map_or(Ok(()), |why| Err(why.to_string()));
    let new_enough = Version::parse(&kernel.release) >= NEEDED;
    add(
        "kernel",
        if new_enough {
            let probes = kernel.probe_kind().name();
            Ok(format!("{}, probes by {probes}", kernel.release))
        } else {
            Err((
                kernel.release.clone(),
                format!("tracing needs Linux {NEEDED} or newer; `record` works on any"),
            ))
        },
        false,
    );
    add(
        "BTF",
        match &kernel.tracepoints {
            Some(_) => Ok("/sys/kernel/btf/vmlinux".into()),
            None => Err((
                "missing".into(),
                "a kernel with CONFIG_DEBUG_INFO_BTF is needed to trace".into(),
            )),
        },
        false,
    );
    add(
        "privileges",
        match kernel.missing_capabilities().as_slice() {
            [] => Ok("BPF programs may be loaded".into()),
            missing => Err((
                format!("without {}", missing.join(" and ")),
                "to trace: run as root (sudo warptrace trace)".into(),
            )),
        },
        false,
    );

    let driver = std::fs::read_to_string("/proc/driver/nvidia/version");
    add(
        "NVIDIA driver",
        match driver {
            Ok(text) => Ok(text
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("NVRM version: ")
                .to_owned()),
            Err(_) => Err((
                "none".into(),
                "without a GPU there is the demo: warptrace demo".into(),
            )),
        },
        true,
    );
    add(
        "NVML",
        match GpuPoller::open(None) {
            Ok(_) => {
                Ok("clocks, throttling and other processes' use of the GPU are sampled".into())
            }
            Err(gap) => Err((
                gap.detail,
                "it comes with the NVIDIA driver (libnvidia-ml.so.1)".into(),
            )),
        },
        true,
    );
    let processes = cuda_processes();
    add(
        "CUDA processes",
        Ok(if processes == 0 {
            "none".into()
        } else {
            format!("{processes} found")
        }),
        true,
    );

    let record = match (&store, &inside) {
        (Ok(_), Ok(_)) => Ok(()),
        (Err(e), _) | (_, Err(e)) => Err(e.clone()),
    };
    let trace = match (&store, &outside) {
        (Ok(_), Ok(())) => Ok(()),
        (Err(e), _) | (_, Err(e)) => Err(e.clone()),
    };
    let verdict = |result: Result<(), String>| match result {
        Ok(()) => Verdict {
            ok: true,
            because: String::new(),
        },
        Err(because) => Verdict { ok: false, because },
    };
    Report {
        schema: "warptrace.check/v1",
        record: verdict(record),
        trace: verdict(trace),
        checks,
    }
}

/// Loads the library into a shell that does nothing: it must come out as without.
fn enters_a_shell(library: &Path) -> Result<String, String> {
    let shell = Path::new("/bin/sh");
    let variable = preload::mechanism(shell)
        .map_err(|e| e.to_string())?
        .variable();
    let out = Command::new(shell)
        .args(["-c", "exit 7"])
        .env(variable, library)
        .output()
        .map_err(|e| e.to_string())?;
    if out.status.code() == Some(7) && out.stderr.is_empty() {
        Ok(format!("loads by {variable}"))
    } else {
        Err(format!(
            "a shell with {variable} set: {} {}",
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        ))
    }
}

/// Processes that we may look into and that map a CUDA library.
fn cuda_processes() -> usize {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return 0;
    };
    entries
        .flatten()
        .filter(|e| {
            e.file_name()
                .to_string_lossy()
                .bytes()
                .all(|b| b.is_ascii_digit())
        })
        .filter(|e| maps_cuda(&e.path()))
        .count()
}

fn maps_cuda(process: &Path) -> bool {
    std::fs::read_to_string(process.join("maps")).is_ok_and(|maps| {
        maps.contains("/libcuda.so")
            || maps.contains("/libcudart.so")
            || maps.contains("/libcudart-")
    })
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
        let word = if verdict.ok {
            "yes".to_owned()
        } else {
            format!("no, because {}", verdict.because)
        };
        paint.bold(&format!("{name}: {word}")) + "\n"
    };
    out.push('\n');
    out += &line("record", &report.record);
    out += &line("trace", &report.trace);
    out
}
