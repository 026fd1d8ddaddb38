//! Answers about memory for people: sizes with units, times since the start.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use warptrace_api::{
    Memory, MemoryFinding, MemoryLevel, MemorySeries, duration_text, size_text, untold,
};

use super::View;
use crate::show::Paint;

/// Findings shown without being asked for by a view; the rest is counted.
const SHOWN: usize = 6;
/// Rows of a table; the rest is counted.
const ROWS: usize = 40;
/// Columns of a drawn line.
const COLUMNS: usize = 60;

pub(super) fn answer(answer: &Memory, view: View, paint: Paint) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", paint.bold(&headline(answer)));
    match view {
        View::Summary => {
            findings(&mut out, answer, paint, SHOWN);
            out.push('\n');
            levels(&mut out, answer, paint);
            for ranks in &answer.ranks {
                let _ = writeln!(
                    out,
                    "\nranks of {}: {}",
                    clean(&ranks.job),
                    clean(&ranks.summary)
                );
            }
            unknown(&mut out, answer, paint);
            let _ = writeln!(
                out,
                "\nmore   warptrace memory timeline|peaks|leaks|fragmentation|gaps|ranks|issues …   warptrace memory … \
                 --html report.html"
            );
        }
        View::Sessions => sessions(&mut out, answer, paint),
        View::Timeline => timeline(&mut out, answer, paint),
        View::Peaks => peaks(&mut out, answer, paint),
        View::Leaks | View::Fragmentation | View::Gaps => {
            findings(&mut out, answer, paint, usize::MAX);
            if answer.findings.is_empty() {
                nothing(&mut out, answer, view);
            }
            unknown(&mut out, answer, paint);
        }
        View::Ranks => ranks(&mut out, answer, paint),
        View::Issues => issues(&mut out, answer, paint),
    }
    for skip in &answer.skipped {
        let _ = writeln!(
            out,
            "{}",
            paint.bold(&format!(
                "left out  {} × {}",
                skip.count,
                clean(&skip.reason)
            ))
        );
    }
    out
}

/// A text of a file without what could move a terminal's cursor or its colours.
pub(super) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            c if c.is_control() => '\u{fffd}',
            // Marks that turn the direction of what follows.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            c => c,
        })
        .collect()
}

fn count(n: usize, word: &str) -> String {
    match n {
        1 => format!("1 {word}"),
        n => format!("{n} {word}s"),
    }
}

fn headline(answer: &Memory) -> String {
    let mut parts = vec![match &answer.sources[..] {
        [source] => clean(source),
        sources => count(sources.len(), "source"),
    }];
    if answer.sessions.len() != 1 {
        parts.push(count(answer.sessions.len(), "session"));
    }
    parts.push(count(answer.series.len(), "series").replace("seriess", "series"));
    if let Some(window) = &answer.window {
        parts.push(duration_text(window.end_unix_ns - window.start_unix_ns));
        parts.push(moment(window.start_unix_ns));
    }
    parts.push(format!("{} measurements", thousands(answer.measurements)));
    parts.join(" · ")
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// UTC, to the millisecond.
pub(super) fn moment(unix_ns: u64) -> String {
    // Years beyond 9999 have no such form.
    if unix_ns / 1_000_000_000 > 253_402_300_799 {
        return format!("{unix_ns} ns");
    }
    let at = UNIX_EPOCH + Duration::from_nanos(unix_ns);
    humantime::format_rfc3339_millis(at).to_string()
}

/// Since the beginning of all, and as a time.
fn since(answer: &Memory, unix_ns: u64) -> String {
    let start = answer.window.as_ref().map_or(0, |w| w.start_unix_ns);
    format!("+{}", duration_text(unix_ns.saturating_sub(start)))
}

fn findings(out: &mut String, answer: &Memory, paint: Paint, most: usize) {
    for finding in answer.findings.iter().take(most) {
        out.push('\n');
        *out += &finding_text(answer, finding, paint);
    }
    if answer.findings.len() > most {
        let _ = writeln!(
            out,
            "\nand {} more: --json, --html",
            answer.findings.len() - most
        );
    }
}

fn finding_text(answer: &Memory, finding: &MemoryFinding, paint: Paint) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}  {}",
        paint.severity(finding.severity),
        paint.bold(&clean(&finding.title))
    );
    let _ = writeln!(out, "        {}", clean(&finding.summary));
    let mut place = vec![
        since(answer, finding.start_unix_ns),
        moment(finding.start_unix_ns),
    ];
    if answer.sessions.len() > 1 {
        place.push(format!("session {}", clean(&finding.session)));
    }
    place.push(format!("host {}", clean(&finding.host)));
    place.push(format!("confidence {:.0} %", finding.confidence * 100.0));
    let _ = writeln!(
        out,
        "{}",
        paint.dim(&format!("  at    {}", place.join(" · ")))
    );
    if !finding.recommendation.is_empty() {
        let _ = writeln!(out, "  do    {}", clean(&finding.recommendation));
    }
    out
}

/// What could not be told, once a check.
fn unknown(out: &mut String, answer: &Memory, paint: Paint) {
    for (series, why) in untold(answer).values() {
        let of = match series {
            1 if answer.series.len() == 1 => String::new(),
            n => format!(" ({})", count(*n, "series").replace("seriess", "series")),
        };
        let _ = writeln!(
            out,
            "{}",
            paint.dim(&format!("cannot tell  {}{of}", clean(why)))
        );
    }
}

fn nothing(out: &mut String, answer: &Memory, view: View) {
    let looked = answer
        .checks
        .iter()
        .filter(|c| c.result == "nothing")
        .count();
    if looked > 0 {
        let what = match view {
            View::Leaks => "no leak",
            View::Fragmentation => "no fragmentation",
            _ => "nothing unusual outside the allocator",
        };
        let of = count(looked, "series").replace("seriess", "series");
        let _ = writeln!(out, "\n{what} in {of}");
    }
}

fn whom(one: &MemorySeries) -> String {
    let device = match one.device {
        -1 => "cpu".to_owned(),
        device => device.to_string(),
    };
    format!("{:>4} {device:>6}", one.rank)
}

fn level<'a>(one: &'a MemorySeries, name: &str) -> Option<&'a MemoryLevel> {
    one.levels.iter().find(|l| l.level == name)
}

fn or_dash(bytes: Option<i64>) -> String {
    bytes.map_or("-".into(), size_text)
}

fn rest(out: &mut String, all: usize) {
    if all > ROWS {
        let _ = writeln!(out, "… and {} more (--json, --csv)", all - ROWS);
    }
}

fn levels(out: &mut String, answer: &Memory, paint: Paint) {
    let head = format!(
        "{:>4} {:>6} {:>11} {:>11} {:>11} {:>11} {:>11} {:>6}  {}",
        "rank",
        "device",
        "allocated",
        "at peak",
        "reserved",
        "in use",
        "of",
        "full",
        "host, process"
    );
    let _ = writeln!(out, "{}", paint.dim(&head));
    for one in answer.series.iter().take(ROWS) {
        let _ = writeln!(
            out,
            "{} {:>11} {:>11} {:>11} {:>11} {:>11} {:>6}  {}, {}",
            whom(one),
            or_dash(level(one, "allocated").map(|l| l.last_bytes)),
            or_dash(level(one, "allocated").map(|l| l.peak_bytes)),
            or_dash(level(one, "reserved").map(|l| l.peak_bytes)),
            or_dash(level(one, "device_used").map(|l| l.peak_bytes)),
            or_dash(one.total_bytes),
            one.peak_utilization
                .map_or("-".into(), |u| format!("{:.0} %", u * 100.0)),
            clean(&one.host),
            one.pid
        );
    }
    rest(out, answer.series.len());
}

fn sessions(out: &mut String, answer: &Memory, paint: Paint) {
    let head = format!(
        "\n{:<36} {:<24} {:>12} {:>9} {:>9} {:>7} {:>5}  {}",
        "session", "start", "length", "events", "samples", "alerts", "ooms", "host, job"
    );
    let _ = writeln!(out, "{}", paint.dim(&head));
    for one in answer.sessions.iter().take(ROWS) {
        let job = one
            .job
            .as_deref()
            .map_or(String::new(), |j| format!(", {}", clean(j)));
        let end = if one.interrupted {
            " (did not stop)"
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "{:<36} {:<24} {:>12} {:>9} {:>9} {:>7} {:>5}  {}{job}{end}",
            clean(&one.session),
            moment(one.start_unix_ns),
            duration_text(one.end_unix_ns - one.start_unix_ns),
            one.events,
            one.samples,
            one.alerts,
            one.ooms,
            clean(&one.host)
        );
    }
    rest(out, answer.sessions.len());
}

fn peaks(out: &mut String, answer: &Memory, paint: Paint) {
    let head = format!(
        "\n{:>4} {:>6} {:<12} {:>11} {:>7} {:>12}  {:<24}  {}",
        "rank", "device", "level", "peak", "of all", "at", "", "phase"
    );
    let _ = writeln!(out, "{}", paint.dim(&head));
    for one in answer.series.iter().take(ROWS) {
        for level in &one.levels {
            let share = one
                .total_bytes
                .filter(|total| *total > 0)
                .map_or("-".into(), |t| {
                    format!("{:.0} %", level.peak_bytes as f64 / t as f64 * 100.0)
                });
            let _ = writeln!(
                out,
                "{} {:<12} {:>11} {share:>7} {:>12}  {:<24}  {}",
                whom(one),
                level.level,
                size_text(level.peak_bytes),
                since(answer, level.peak_unix_ns),
                moment(level.peak_unix_ns),
                level.peak_phase.as_deref().map_or(String::new(), clean)
            );
        }
    }
    rest(out, answer.series.len());
    if answer.phases.is_empty() {
        return;
    }
    let head = format!(
        "\n{:>8} {:>12} {:>11} {:>11}  {}",
        "times", "in all", "peak", "left behind", "phase"
    );
    let _ = writeln!(out, "{}", paint.dim(&head));
    for phase in answer.phases.iter().take(ROWS) {
        let _ = writeln!(
            out,
            "{:>8} {:>12} {:>11} {:>11}  {}",
            phase.count,
            duration_text(u64::try_from(phase.total_ns).unwrap_or(0)),
            or_dash(phase.peak_bytes),
            size_text(phase.net_bytes),
            clean(&phase.path)
        );
    }
    rest(out, answer.phases.len());
}

/// A line of blocks for each level: the highest value of each column, of the highest of all.
fn timeline(out: &mut String, answer: &Memory, paint: Paint) {
    let Some(window) = &answer.window else {
        return;
    };
    let length = (window.end_unix_ns - window.start_unix_ns).max(1);
    for one in answer.series.iter().take(ROWS) {
        let device = match one.device {
            -1 => "cpu".to_owned(),
            device => format!("device {device}"),
        };
        let _ = writeln!(
            out,
            "\nrank {} · {device} · {} · pid {}",
            one.rank,
            clean(&one.host),
            one.pid
        );
        let top = one
            .total_bytes
            .into_iter()
            .chain(one.levels.iter().map(|l| l.peak_bytes))
            .max()
            .unwrap_or(1)
            .max(1);
        for name in ["allocated", "reserved", "device_used", "hidden"] {
            let Some(level) = level(one, name) else {
                continue;
            };
            let mut columns: [Option<i64>; COLUMNS] = [None; COLUMNS];
            for point in &one.points {
                let range = match name {
                    "allocated" => point.allocated,
                    "reserved" => point.reserved,
                    "device_used" => point.device_used,
                    _ => point.hidden,
                };
                let Some(range) = range else {
                    continue;
                };
                let at = (point.start_unix_ns - window.start_unix_ns) as u128 * COLUMNS as u128;
                let column = &mut columns[((at / u128::from(length)) as usize).min(COLUMNS - 1)];
                *column = Some(column.map_or(range.max_bytes, |c| c.max(range.max_bytes)));
            }
            let _ = writeln!(
                out,
                "  {name:<12} {} {:>11} at most",
                blocks(&columns, top),
                size_text(level.peak_bytes)
            );
        }
        let axis = format!(
            "  {:<12} {:<width$}{}",
            "",
            "0",
            duration_text(length),
            width = COLUMNS - 4
        );
        let _ = writeln!(out, "{}", paint.dim(&axis));
    }
    rest(out, answer.series.len());
    for marker in answer
        .markers
        .iter()
        .filter(|m| m.severity != "info")
        .take(ROWS)
    {
        let _ = writeln!(
            out,
            "{:>12}  {:<9} rank {}  {}",
            since(answer, marker.at_unix_ns),
            marker.kind,
            clean(&marker.rank),
            clean(&marker.label)
        );
    }
}

fn blocks(columns: &[Option<i64>], top: i64) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    columns
        .iter()
        .map(|column| match column {
            None => ' ',
            Some(bytes) => {
                let height = (*bytes).max(0) as f64 / top as f64 * 8.0;
                BLOCKS[(height.ceil() as usize).clamp(1, 8) - 1]
            }
        })
        .collect()
}

fn ranks(out: &mut String, answer: &Memory, paint: Paint) {
    if answer.ranks.is_empty() {
        let _ = writeln!(out, "\none rank: nothing to compare");
    }
    for job in &answer.ranks {
        let _ = writeln!(
            out,
            "\n{}",
            paint.bold(&format!(
                "{} · {} of {} ranks · {} · compared by {}",
                clean(&job.job),
                job.ranks.len(),
                job.world_size,
                count(job.hosts, "host"),
                match job.compared_by {
                    "steps" => "the ranks' own steps",
                    _ => "the common clock",
                }
            ))
        );
        let _ = writeln!(out, "{}", clean(&job.summary));
        if !job.rises.is_empty() {
            let head = format!(
                "{:>4} {:>6} {:>11} {:>11} {:>12}  {:<24} {}",
                "rank", "device", "rose by", "from", "at", "", "step"
            );
            let _ = writeln!(out, "{}", paint.dim(&head));
        }
        for rise in job.rises.iter().take(ROWS) {
            let _ = writeln!(
                out,
                "{:>4} {:>6} {:>11} {:>11} {:>12}  {:<24} {}",
                rise.rank,
                rise.device,
                size_text(rise.rise_bytes),
                size_text(rise.level_bytes),
                since(answer, rise.at_unix_ns),
                moment(rise.at_unix_ns),
                rise.step.map_or("-".into(), |s| s.to_string())
            );
        }
        rest(out, job.rises.len());
    }
    findings(out, answer, paint, usize::MAX);
    unknown(out, answer, paint);
}

fn issues(out: &mut String, answer: &Memory, paint: Paint) {
    if answer.issues.is_empty() {
        let _ = writeln!(
            out,
            "\nno alert, no collector in trouble, memory never ran out"
        );
        return;
    }
    let head = format!(
        "\n{:>7}  {:<9} {:<22} {:>12} {:>12}  {}",
        "times", "severity", "kind", "first", "last", "text of the first"
    );
    let _ = writeln!(out, "{}", paint.dim(&head));
    for issue in answer.issues.iter().take(ROWS) {
        let _ = writeln!(
            out,
            "{:>7}  {:<9} {:<22} {:>12} {:>12}  {}",
            issue.count,
            clean(&issue.severity),
            issue.kind,
            since(answer, issue.first_unix_ns),
            since(answer, issue.last_unix_ns),
            clean(&issue.title)
        );
    }
    rest(out, answer.issues.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_a_file_cannot_move_the_cursor() {
        assert_eq!(
            clean("a\u{1b}[2J\u{202e}b\n"),
            "a\u{fffd}[2J\u{fffd}b\u{fffd}"
        );
    }

    #[test]
    fn blocks_are_as_high_as_their_share() {
        assert_eq!(blocks(&[Some(0), Some(50), Some(100), None], 100), "▁▄█ ");
    }
}
