//! The words of a finding, made from its data: title, summary, and what to do.
//!
//! Advice is given only where its evidence is there: without a known occupant nobody is told to move one.

use warptrace_model::{Blame, Cause, Finding, FindingKind, UnitKind};

/// A duration for people, three figures: `840 ns`, `12.3 µs`, `38.2 ms`, `2.70 s`, `4 min 10 s`.
pub fn duration_text(nanos: u64) -> String {
    let figures = |value: f64, unit: &str| {
        if value < 9.995 {
            format!("{value:.2} {unit}")
        } else if value < 99.95 {
            format!("{value:.1} {unit}")
        } else {
            format!("{value:.0} {unit}")
        }
    };
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..999_500 => figures(nanos as f64 / 1e3, "µs"),
        999_500..999_500_000 => figures(nanos as f64 / 1e6, "ms"),
        999_500_000..120_000_000_000 => figures(nanos as f64 / 1e9, "s"),
        _ => {
            let secs = nanos / 1_000_000_000;
            if secs < 7_200 {
                format!("{} min {} s", secs / 60, secs % 60)
            } else {
                format!("{} h {} min", secs / 3600, secs / 60 % 60)
            }
        }
    }
}

/// A cause in running text ("waiting for a CPU").
pub const fn cause_words(cause: Cause) -> &'static str {
    match cause {
        Cause::RunQueueWait => "waiting for a CPU",
        Cause::CpuQuota => "held back by a CPU quota",
        Cause::DiskWait => "waiting for disk",
        Cause::PageFault => "page faults",
        Cause::Reclaim => "memory reclaim",
        Cause::LockWait => "waiting for a lock",
        Cause::NetworkWait => "waiting for the network",
        Cause::Sleep => "sleeping",
        Cause::Allocator => "allocator calls",
        Cause::Copy => "copies",
        Cause::GpuWork => "more work for the GPU",
        Cause::GpuContention => "another process on the GPU",
        Cause::GpuThrottle => "GPU clocks throttled",
        Cause::PeerWait => "waiting for another rank",
        Cause::Collective => "slower collectives",
        Cause::LaunchGap => "host not feeding the GPU",
        Cause::ColdStart => "cold start",
        Cause::Oom => "out of memory",
        Cause::Hang => "a call that does not return",
        Cause::DeviceLost => "the device was lost",
        Cause::Unexplained => "unexplained",
    }
}

/// A category in the line of the usual unit ("waiting for the GPU").
pub fn category_words(name: &str) -> &str {
    match name {
        "run_queue_wait" => "CPU wait",
        "cpu_quota" => "CPU quota",
        "disk_wait" => "disk",
        "page_fault" => "page faults",
        "reclaim" => "memory reclaim",
        "lock_wait" => "locks",
        "network_wait" => "network",
        "sleep" => "sleep",
        "allocator" => "allocator",
        "copy" => "copies",
        "launch" => "launches",
        "launch_gap" => "host work",
        "device_wait" => "waiting for the GPU",
        other => other,
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|c| c.to_uppercase().chain(chars).collect())
        .unwrap_or_default()
}

/// What units are called, singular and plural.
fn unit_words(kind: UnitKind) -> (&'static str, &'static str) {
    match kind {
        UnitKind::WaitInterval => ("wait interval", "wait intervals"),
        UnitKind::Named => ("step", "steps"),
        UnitKind::Call => ("call", "calls"),
        UnitKind::ColdStart => ("start", "starts"),
    }
}

/// One line that says it all.
pub(crate) fn title(f: &Finding) -> String {
    let mut cause = capital(cause_words(f.cause));
    if let Some(second) = f.second {
        cause = format!("{cause} and {}", cause_words(second));
    }
    let (one, many) = unit_words(f.key.kind);
    match f.kind {
        FindingKind::Rule => match f.evidence.first() {
            Some(fact) => format!("{cause}: {}", fact.what),
            None => cause,
        },
        FindingKind::Steady => {
            let part = f.excess_ns.checked_div(f.units.slow.max(1)).unwrap_or(0);
            let usual = f.baseline_ns.saturating_add(part);
            format!(
                "{cause}: always {} of a usual {one} of {} ({}), {} in all",
                duration_text(part),
                duration_text(usual),
                percent(part, usual),
                duration_text(f.excess_ns)
            )
        }
        FindingKind::Incident if f.cause == Cause::ColdStart => {
            format!(
                "{cause}: {} until the work became ordinary",
                duration_text(f.excess_ns)
            )
        }
        FindingKind::Incident => {
            let each = f.excess_ns / f.units.slow.max(1);
            let which = if f.units.first == f.units.last {
                format!("{one} {}", f.units.first)
            } else {
                format!(
                    "{} of {many} {}-{}",
                    f.units.slow, f.units.first, f.units.last
                )
            };
            format!(
                "{cause}: {which} took {} longer than usual ({} → {}), {} in all",
                duration_text(each),
                duration_text(f.baseline_ns),
                duration_text(f.baseline_ns.saturating_add(each)),
                duration_text(f.excess_ns)
            )
        }
    }
}

/// A sentence or two: how much of it is explained, by what, and what was hidden.
pub(crate) fn summary(f: &Finding) -> String {
    if f.kind == FindingKind::Rule {
        return f
            .evidence
            .iter()
            .map(|e| e.what.as_str())
            .collect::<Vec<_>>()
            .join("; ");
    }
    let Some(blame) = f.blame.iter().find(|b| b.cause == f.cause) else {
        return String::new();
    };
    let mut text = format!(
        "{}: {} of {} ({})",
        cause_words(f.cause),
        duration_text(blame.ns),
        duration_text(f.excess_ns),
        percent(blame.ns, f.excess_ns)
    );
    if blame.lost_ns > blame.ns {
        text += &format!(
            "; {} lost, {} of it hidden behind GPU work",
            duration_text(blame.lost_ns),
            duration_text(blame.lost_ns - blame.ns)
        );
    }
    if !blame.detail.is_empty() {
        text += &format!("; {}", blame.detail);
    }
    if f.shifted {
        text += "; it lasted so long that it is the usual now";
    }
    text
}

/// What to do, if the evidence says so.
pub(crate) fn recommendation(f: &Finding, command: &str) -> String {
    let detail = f
        .blame
        .iter()
        .find(|b| b.cause == f.cause)
        .map_or("", |b: &Blame| b.detail.as_str());
    // Whom the evidence shows for the longest time in all.
    let others = f
        .evidence
        .iter()
        .filter(|e| e.pid.is_some() && e.pid != Some(f.key.process.pid.0));
    let time_of = |pid: Option<u32>| -> u64 {
        f.evidence
            .iter()
            .filter(|e| e.pid == pid)
            .map(|e| e.dur)
            .sum()
    };
    let who = others.max_by_key(|e| time_of(e.pid));
    let command = if command.is_empty() { "CMD" } else { command };
    match f.cause {
        Cause::RunQueueWait => match who.and_then(|e| e.pid) {
            Some(pid) => format!(
                "give the job its own cores (taskset -c LIST {command}), or move the other away: \
                 taskset -apc LIST {pid}, renice -n 19 -p {pid}"
            ),
            None => format!(
                "give the job its own cores: taskset -c LIST {command}; to learn who held them, record as root: \
                 sudo warptrace trace -- {command}"
            ),
        },
        Cause::CpuQuota => "raise the CPU quota of the job's cgroup (cpu.max; in Kubernetes: resources.limits.cpu)".into(),
        Cause::DiskWait if detail.contains("quota") => {
            "raise the I/O limit of the job's cgroup (io.max): the device itself was not slow".into()
        }
        Cause::DiskWait => "load ahead with more workers, keep the data in memory, or move it to a faster disk".into(),
        Cause::PageFault => "touch or lock the memory before the loop; check that the data is not on a slow mapped file".into(),
        Cause::Reclaim => "give the job more memory (memory.max), or drop what it caches".into(),
        Cause::LockWait => "shorten what is done under the lock, or give each thread its own".into(),
        Cause::NetworkWait => "look at the peer that it waits for, and at the network path to it".into(),
        Cause::Sleep => "remove the sleep from the step".into(),
        Cause::Allocator => {
            "keep device memory between steps: allocate once, or use a caching allocator (cudaMallocAsync with a pool that keeps its memory)".into()
        }
        Cause::Copy => "copy from pinned memory, asynchronously and overlapped with compute, and copy less".into(),
        Cause::GpuContention => match who {
            Some(e) => format!(
                "keep the GPU to one job: {} (pid {}) worked on it at the same time",
                e.comm.as_deref().unwrap_or("another process"),
                e.pid.unwrap_or(0)
            ),
            None => "keep the GPU to one job".into(),
        },
        Cause::GpuThrottle => "check power limit, cooling and clocks: nvidia-smi -q -d PERFORMANCE,CLOCK".into(),
        Cause::LaunchGap => "look at what the host runs between launches (logging, GC, Python); capture the step in a CUDA graph".into(),
        Cause::ColdStart => "warm up before serving, keep the process, and load modules eagerly once (CUDA_MODULE_LOADING)".into(),
        Cause::Oom => "give the job or the machine more memory, or make it use less".into(),
        Cause::Hang => "look at what the thread waits for: the evidence names the call".into(),
        Cause::DeviceLost => "look at the kernel log for Xid errors, and reset the device".into(),
        Cause::GpuWork | Cause::PeerWait | Cause::Collective | Cause::Unexplained => String::new(),
    }
}

/// A command line as a person would type it again: the program without its folder, arguments cut when they are long.
pub fn command_text(command: &[String]) -> String {
    const LONGEST: usize = 60;
    let mut words = command.iter();
    let mut text = words
        .next()
        .map_or("", |path| path.rsplit('/').next().unwrap_or(path))
        .to_owned();
    for word in words {
        if text.len() + word.len() >= LONGEST {
            text += " …";
            break;
        }
        text.push(' ');
        text += word;
    }
    text
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "0 %".into();
    }
    format!("{:.0} %", part as f64 * 100.0 / whole as f64)
}

#[cfg(test)]
mod tests {
    use warptrace_model::Category;

    use super::*;

    #[test]
    fn durations_have_three_figures_and_a_fitting_unit() {
        for (nanos, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (12_340, "12.3 µs"),
            (999_499, "999 µs"),
            (999_600, "1.00 ms"),
            (21_400_000, "21.4 ms"),
            (2_700_000_000, "2.70 s"),
            (99_960_000_000, "100 s"),
            (250_000_000_000, "4 min 10 s"),
            (9_000_000_000_000, "2 h 30 min"),
        ] {
            assert_eq!(duration_text(nanos), text);
        }
    }

    #[test]
    fn every_category_and_cause_has_words() {
        for category in Category::ALL {
            assert!(
                !category_words(category.name()).contains('_'),
                "{}",
                category.name()
            );
        }
        for cause in Cause::ALL {
            assert!(!cause_words(cause).contains('_'), "{}", cause.name());
        }
    }
}
