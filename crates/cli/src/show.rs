//! Answers for people: the text of `explain`.

use std::fmt::Write as _;

use warptrace_api::{
    ByUnit, Explain, Finding, MemoryAt, NamedUnit, Profile, category_words, duration_text,
};
use warptrace_model::GapCode;

use crate::sessions::size_text;

/// Colours of a terminal, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    pub(crate) on: bool,
}

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(crate) fn severity(self, severity: &str) -> String {
        let code = match severity {
            "CRITICAL" => "1;97;41",
            "HIGH" => "1;31",
            "MEDIUM" => "1;33",
            _ => "1;36",
        };
        self.with(code, severity)
    }
}

/// The count of this gap is ms.
const PAUSED: &str = GapCode::CapturePaused.name();

/// Findings shown without being asked for by id; the rest is counted.
const SHOWN: usize = 5;
/// Causes below this share are one line together.
const SMALL_SHARE: f64 = 0.01;

/// The whole answer. `one` shows every evidence of its findings.
pub(crate) fn explain(answer: &Explain, paint: Paint, one: bool) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", paint.bold(&headline(answer)));
    for finding in answer
        .findings
        .iter()
        .take(if one { usize::MAX } else { SHOWN })
    {
        out.push('\n');
        out += &finding_text(finding, paint, one);
    }
    if !one && answer.findings.len() > SHOWN {
        let _ = writeln!(
            out,
            "\nand {} more: warptrace explain --json",
            answer.findings.len() - SHOWN
        );
    }
    if !one {
        out += &profile_text(answer);
        let paused = answer.gaps.iter().any(|gap| gap.code == PAUSED);
        if answer.profile.is_empty() && answer.ops.is_empty() && paused {
            out += "\nNo CUDA call was recorded: capture is off under --paused until the job asks for it (`with warptrace.record():`) or \
                    `warptrace resume` does.\n";
        } else if answer.profile.is_empty() && answer.ops.is_empty() {
            out += "\nNo CUDA call was recorded: did the program use the GPU? `warptrace check` says what can be recorded.\n";
        } else if answer.profile.is_empty() {
            out += "\nNo step was seen: nothing waited for the device often enough to say what is usual.\n";
        }
    }
    for drop in &answer.drops {
        let _ = writeln!(
            out,
            "{}",
            paint.bold(&format!(
                "lost     {}: {} × {}",
                drop.source, drop.count, drop.reason
            ))
        );
    }
    for gap in &answer.gaps {
        let times = match gap.count {
            millis if gap.code == PAUSED => format!(" ({:.1} s)", millis as f64 / 1e3),
            2.. => format!(" (× {})", gap.count),
            _ => String::new(),
        };
        let _ = writeln!(
            out,
            "{}",
            paint.dim(&format!("unknown  {}{times}", gap.detail))
        );
    }
    out
}

/// Units shown one by one; the rest is counted.
const UNITS_SHOWN: usize = 20;

/// Steps or requests: the usual one, then the slow ones, or the longest when none was slow.
pub(crate) fn by_unit(answer: &ByUnit, paint: Paint) -> String {
    let mut out = String::new();
    let word = unit_word(answer);
    let nanos = answer.window.end_unix_ns - answer.window.start_unix_ns;
    let head = format!(
        "{} · {} · {} {word}s · {} slow",
        answer.session,
        duration_text(nanos),
        thousands(answer.units.len() as u64),
        thousands(answer.slow as u64)
    );
    let _ = writeln!(out, "{}", paint.bold(&head));
    if let Some(caveat) = answer.caveat {
        let _ = writeln!(out, "{}", paint.dim(caveat));
    }
    if answer.units.is_empty() {
        let _ = writeln!(
            out,
            "\nThe job named no {word} here. It does so by annotations: record with --annotate, and send {}=… \
             (warptrace annotate --help).",
            answer.by
        );
        return out;
    }
    for profile in answer.profile.iter().take(3) {
        let _ = writeln!(
            out,
            "\nA usual {word} ({} of them), {}: {}",
            thousands(profile.units),
            duration_text(profile.mean_ns),
            parts(profile)
        );
    }
    let mut shown: Vec<&NamedUnit> = answer
        .units
        .iter()
        .filter(|u| u.slow || answer.slow == 0)
        .collect();
    shown.sort_by_key(|u| std::cmp::Reverse((u.excess_ns, u.dur_ns)));
    let more = shown.len().saturating_sub(UNITS_SHOWN);
    shown.truncate(UNITS_SHOWN);
    out += match answer.slow {
        0 => "\nNone was slow. The longest:\n",
        _ => "\nSlow, by what was lost:\n",
    };
    for u in shown {
        out += &unit_text(u, word, paint);
    }
    if more > 0 {
        let _ = writeln!(
            out,
            "and {} more: --json has them all",
            thousands(more as u64)
        );
    }
    out
}

fn unit_word(answer: &ByUnit) -> &'static str {
    match answer.by {
        "step" => "step",
        _ => "request",
    }
}

fn unit_text(u: &NamedUnit, word: &str, paint: Paint) -> String {
    let mut out = String::new();
    let excess = u.excess_ns.unwrap_or(0);
    let sign = if excess < 0 { "−" } else { "+" };
    let _ = writeln!(
        out,
        "  {}  {} ({sign}{})",
        paint.bold(&format!("{word} {}", u.value)),
        duration_text(u.dur_ns),
        duration_text(excess.unsigned_abs())
    );
    let longer: Vec<String> = u
        .parts
        .iter()
        .filter(|p| p.ns > p.usual_ns && (p.ns - p.usual_ns) * 50 >= excess.unsigned_abs())
        .map(|p| {
            format!(
                "{} +{}",
                category_words(p.category),
                duration_text(p.ns - p.usual_ns)
            )
        })
        .collect();
    if excess > 0 && !longer.is_empty() {
        let _ = writeln!(out, "      longer  {}", longer.join(" · "));
    }
    if let Some(memory) = &u.memory
        && let Some(text) = memory_text(memory)
    {
        let _ = writeln!(out, "      memory  {text}");
    }
    let labels: Vec<String> = u
        .labels
        .iter()
        .filter(|(k, _)| *k != "step" && *k != "request_id")
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    if !labels.is_empty() {
        let _ = writeln!(out, "      labels  {}", labels.join(" "));
    }
    if let Some(id) = u.findings.first() {
        let id = id.get(..6).unwrap_or(id);
        let _ = writeln!(out, "      why     warptrace explain --finding {id}");
    }
    out
}

fn memory_text(memory: &MemoryAt) -> Option<String> {
    let mut parts = Vec::new();
    if let Some(bytes) = memory.allocated_bytes {
        parts.push(format!("{} held by the process", size_text(bytes)));
    }
    if let Some(bytes) = memory.reserved_bytes {
        parts.push(format!("{} reserved by its allocator", size_text(bytes)));
    }
    match (memory.device_used_bytes, memory.device_total_bytes) {
        (Some(used), Some(total)) => parts.push(format!(
            "{} of {} in use on the device",
            size_text(used),
            size_text(total)
        )),
        (Some(used), None) => parts.push(format!("{} in use on the device", size_text(used))),
        _ => {}
    }
    (!parts.is_empty()).then(|| parts.join(" · "))
}

fn headline(answer: &Explain) -> String {
    let subject = &answer.subject;
    let program = subject
        .command
        .iter()
        .find(|arg| !arg.starts_with('-'))
        .map_or(crate::sessions::subject(&subject.sources), |path| {
            path.rsplit('/').next().unwrap_or(path)
        });
    // `python train.py` is better known by its script.
    let program = match subject
        .command
        .iter()
        .skip(1)
        .find(|arg| arg.ends_with(".py"))
    {
        Some(script) => script.rsplit('/').next().unwrap_or(script),
        None => program,
    };
    let mut parts = vec![program.to_owned()];
    match (subject.processes, subject.pid) {
        (0 | 1, Some(pid)) => parts.push(format!("pid {pid}")),
        (n, _) if n > 1 => parts.push(format!("{n} processes")),
        _ => {}
    }
    parts.push(duration_text(
        answer
            .window
            .end_unix_ns
            .saturating_sub(answer.window.start_unix_ns),
    ));
    let of_kind = |named: bool| -> u64 {
        let units = answer.profile.iter();
        units
            .filter(|p| (p.key.kind == "named") == named)
            .map(|p| p.units)
            .sum()
    };
    parts.push(match of_kind(true) {
        0 => format!("{} wait intervals", thousands(of_kind(false))),
        n => format!("{} steps and requests", thousands(n)),
    });
    parts.push(match answer.findings.len() {
        0 => "no findings".to_owned(),
        1 => "1 finding".to_owned(),
        n => format!("{n} findings"),
    });
    parts.push(if answer.drops.is_empty() {
        "nothing dropped".to_owned()
    } else {
        "records dropped".to_owned()
    });
    if !subject.sources.is_empty() {
        parts.push(format!("by {}", subject.sources.join(" and ")));
    }
    parts.join(" · ")
}

fn finding_text(finding: &Finding, paint: Paint, one: bool) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}  {}",
        paint.severity(finding.severity),
        paint.bold(&finding.title)
    );
    let mut small = 0;
    for blame in &finding.blame {
        if !one && blame.cause != "unexplained" && blame.share < SMALL_SHARE {
            small += blame.ns;
            continue;
        }
        let words = warptrace_model::Cause::by_name(blame.cause)
            .map_or(blame.cause, warptrace_api::cause_words);
        let mut line = format!(
            "{:>10} {:>4.0} %  {:<28}",
            duration_text(blame.ns),
            blame.share * 100.0,
            words
        );
        if blame.lost_ns > blame.ns && blame.cause != "unexplained" {
            let _ = write!(
                line,
                " ({} lost, the rest hidden behind GPU work)",
                duration_text(blame.lost_ns)
            );
        }
        if !blame.detail.is_empty() {
            let _ = write!(line, " {}", blame.detail);
        }
        let _ = writeln!(out, "  {}", line.trim_end());
    }
    if small > 0 {
        let _ = writeln!(
            out,
            "  {:>10}         less than 1 % each",
            duration_text(small)
        );
    }
    if let Some(place) = &finding.place {
        let code = match (&place.file, place.line) {
            (Some(file), Some(line)) => Some(format!("{file}:{line}")),
            (Some(file), None) => Some(file.clone()),
            _ => None,
        };
        let code = match (code, &place.function) {
            (Some(code), Some(function)) => format!("{code} in {function}() → "),
            (None, Some(function)) => format!("{function}() → "),
            (Some(code), None) => format!("{code} → "),
            (None, None) => format!("{} (thread {}) in ", finding.comm, finding.tid),
        };
        let _ = writeln!(
            out,
            "      where  {code}{}",
            place.op.or(finding.op).unwrap_or("a call")
        );
    } else if let Some(op) = finding.op {
        let _ = writeln!(
            out,
            "      where  {} (thread {}) in {op}",
            finding.comm, finding.tid
        );
    }
    if let Some(cost) = &finding.cost {
        let _ = writeln!(out, "      costs  {}", cost.words());
    }
    if !finding.recommendation.is_empty() {
        let _ = writeln!(out, "      do     {}", finding.recommendation);
    }
    if one {
        for evidence in &finding.evidence {
            let mut line = format!("{} for {}", evidence.what, duration_text(evidence.dur_ns));
            if let Some(comm) = &evidence.comm {
                let _ = write!(line, ", {comm}");
            }
            if let Some(pid) = evidence.pid {
                let _ = write!(line, " (pid {pid})");
            }
            if let Some(path) = &evidence.path {
                let _ = write!(line, ", {path}");
            }
            let _ = writeln!(out, "      seen   {line}");
        }
    } else {
        let id = finding.id.get(..6).unwrap_or(&finding.id);
        let _ = writeln!(out, "      more   warptrace explain --finding {id}");
    }
    out
}

/// The usual unit of the keys that took most of the time.
fn profile_text(answer: &Explain) -> String {
    let mut out = String::new();
    let whole: u64 = answer
        .profile
        .iter()
        .map(|p| p.mean_ns.saturating_mul(p.units))
        .sum();
    for profile in answer.profile.iter().take(3) {
        // Rare keys say nothing about what is usual, unless there is nothing else.
        let share = profile.mean_ns.saturating_mul(profile.units) as f64 / whole.max(1) as f64;
        if share < 0.05 {
            continue;
        }
        let _ = writeln!(
            out,
            "\nA usual {}, {}: {}",
            unit_words(profile),
            duration_text(profile.mean_ns),
            parts(profile)
        );
    }
    out
}

fn unit_words(profile: &Profile) -> String {
    match profile.key.kind {
        "named" => format!("step ({} of them)", thousands(profile.units)),
        _ => format!("wait interval ({} of them)", thousands(profile.units)),
    }
}

fn parts(profile: &Profile) -> String {
    profile
        .parts
        .iter()
        .filter(|p| p.ns * 1000 >= profile.mean_ns)
        .map(|p| format!("{} {}", category_words(p.category), duration_text(p.ns)))
        .collect::<Vec<_>>()
        .join(" · ")
}

pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}
