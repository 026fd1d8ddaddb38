//! One series as an inline SVG: levels over time, with findings, marks and phases.

use std::fmt::Write as _;

use warptrace_api::{LevelRange, Memory, MemoryPoint, MemorySeries, duration_text, size_text};

use super::{escape, since, whom};

const WIDTH: f64 = 1080.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 22.0;
/// Height of the plot, and of one row of phases below it.
const PLOT: f64 = 190.0;
const PHASE: f64 = 16.0;
const PHASE_ROWS: usize = 3;
/// Of one chart.
const MAX_MARKS: usize = 200;
const MAX_PHASES: usize = 300;

/// Places values on the picture.
struct Scale {
    start: u64,
    length: f64,
    low: f64,
    high: f64,
}

impl Scale {
    fn x(&self, unix_ns: u64) -> f64 {
        let share = unix_ns.saturating_sub(self.start) as f64 / self.length;
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, bytes: f64) -> f64 {
        let share = (bytes - self.low) / (self.high - self.low);
        TOP + PLOT - share.clamp(0.0, 1.0) * PLOT
    }
}

type Get = fn(&MemoryPoint) -> Option<LevelRange>;

pub(super) fn draw(out: &mut String, answer: &Memory, at: usize) {
    let one = &answer.series[at];
    let Some(window) = &answer.window else {
        return;
    };
    let scale = Scale {
        start: window.start_unix_ns,
        length: (window.end_unix_ns - window.start_unix_ns).max(1) as f64,
        low: 0.0,
        high: top(one),
    };
    let rows = phase_rows(answer, one);
    let height = TOP + PLOT + 22.0 + PHASE * rows as f64 + if rows > 0 { 6.0 } else { 0.0 };
    let mut about = vec![
        format!("{}, pid {}", one.host, one.pid),
        one.collector.clone(),
    ];
    if let Some(total) = one.total_bytes {
        about.push(format!("{} device", size_text(total)));
    }
    if one.device_used_is_allocator {
        about.push("device-used is the allocator's own number".into());
    }
    if answer.sessions.len() > 1 {
        about.push(format!("session {}", one.session));
    }
    let _ = write!(
        out,
        "<figure data-chart=\"{at}\"><figcaption><b>{}</b> <span class=\"dim small\">{}</span></figcaption>\n\
         <svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{} over time\">\n",
        escape(&whom(one)),
        escape(&about.join(" · ")),
        escape(&whom(one)),
    );
    axes(out, &scale, one);
    findings(out, answer, at, &scale);
    let used: Get = |p| p.device_used;
    let reserved: Get = |p| p.reserved;
    let allocated: Get = |p| p.allocated;
    if one.point_ns > 0 {
        band(out, one, &scale, allocated);
    }
    if !one.device_used_is_allocator {
        line(out, one, &scale, "used", used);
    }
    line(out, one, &scale, "reserved", reserved);
    line(out, one, &scale, "allocated", allocated);
    marks(out, answer, one, &scale);
    peak(out, one, &scale);
    phases(out, answer, one, &scale);
    let bottom = TOP + PLOT;
    let _ = writeln!(
        out,
        "<line class=\"cross\" x1=\"0\" x2=\"0\" y1=\"{TOP}\" y2=\"{bottom}\" visibility=\"hidden\"/></svg>"
    );
    data(out, one, &scale);
    out.push_str("</figure>\n");
}

/// The top of the scale: the device's size where the levels come near it, else a little above the highest.
fn top(one: &MemorySeries) -> f64 {
    let highest = one
        .levels
        .iter()
        .filter(|l| l.level != "hidden" && l.level != "inactive")
        .map(|l| l.peak_bytes)
        .max()
        .unwrap_or(0)
        .max(1) as f64;
    match one.total_bytes {
        Some(total) if highest > 0.55 * total as f64 => total as f64 * 1.03,
        _ => highest * 1.1,
    }
}

/// A round step of the scale in binary units: 1, 2 or 5 times a power of ten of the unit.
fn step(high: f64) -> f64 {
    let mut unit = 1.0;
    while high / unit >= 1024.0 {
        unit *= 1024.0;
    }
    let rough = high / unit / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|m| m * power >= rough)
        .unwrap_or(10.0);
    step * power * unit
}

fn axes(out: &mut String, scale: &Scale, one: &MemorySeries) {
    let right = WIDTH - RIGHT;
    let step = step(scale.high);
    let mut value = 0.0;
    while value <= scale.high {
        let y = scale.y(value);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            size_text(value as i64)
        );
        value += step;
    }
    if let Some(total) = one.total_bytes.map(|t| t as f64)
        && total <= scale.high
    {
        let y = scale.y(total);
        let _ = writeln!(
            out,
            "<line class=\"total\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
        );
    }
    let step = time_step(scale.length);
    let mut at = 0.0;
    while at <= scale.length {
        let x = LEFT + at / scale.length * (right - LEFT);
        let anchor = if x > right - 20.0 { "end" } else { "middle" };
        let time = match at {
            0.0 => "0".into(),
            _ => axis_time(at, step),
        };
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{time}</text>",
            TOP + PLOT + 15.0
        );
        at += step;
    }
}

/// A round step for a time axis of `nanos`, with 5 to 12 steps in it.
fn time_step(nanos: f64) -> f64 {
    const SECS: [f64; 14] = [
        1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0,
    ];
    let rough = nanos / 10.0 / 1e9;
    if rough <= 1.0 {
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .find(|m| m * power >= rough);
        return step.unwrap_or(10.0) * power * 1e9;
    }
    let step = SECS.into_iter().find(|s| *s >= rough);
    step.unwrap_or_else(|| (rough / 7200.0).ceil() * 7200.0) * 1e9
}

/// `20 s`, `5 min`, `2 h`, `0.5 s`, `200 ms`: in the unit of the axis' step.
fn axis_time(nanos: f64, step: f64) -> String {
    let (unit, name) = match step {
        s if s >= 3.6e12 => (3.6e12, "h"),
        s if s >= 6e10 => (6e10, "min"),
        s if s >= 1e9 => (1e9, "s"),
        s if s >= 1e6 => (1e6, "ms"),
        s if s >= 1e3 => (1e3, "µs"),
        _ => (1.0, "ns"),
    };
    format!("{} {name}", (nanos / unit * 100.0).round() / 100.0)
}

/// The highest values, as a line that stops where nothing was measured.
fn line(out: &mut String, one: &MemorySeries, scale: &Scale, class: &str, get: Get) {
    let mut path = String::new();
    let mut pen_down = false;
    let mut before = None;
    // A silence of many intervals is a hole, not a slope.
    let hole = u64::try_from(one.interval_ns.max(one.point_ns))
        .unwrap_or(0)
        .saturating_mul(10);
    for point in &one.points {
        let Some(range) = get(point) else {
            pen_down = false;
            continue;
        };
        if before.is_some_and(|b| point.start_unix_ns.saturating_sub(b) > hole && hole > 0) {
            pen_down = false;
        }
        before = Some(point.end_unix_ns);
        let (x, y) = (
            scale.x(point.start_unix_ns),
            scale.y(range.max_bytes as f64),
        );
        let _ = write!(path, "{}{x:.1} {y:.1}", if pen_down { "L" } else { "M" });
        if !pen_down {
            // A single point is seen, too.
            path.push_str("h.01");
        }
        pen_down = true;
    }
    if !path.is_empty() {
        let _ = writeln!(
            out,
            "<path class=\"{class}\" stroke-linecap=\"round\" d=\"{path}\"/>"
        );
    }
}

/// Between the lowest and the highest of each point.
fn band(out: &mut String, one: &MemorySeries, scale: &Scale, get: Get) {
    let (mut upper, mut lower) = (String::new(), Vec::new());
    for point in &one.points {
        if let Some(range) = get(point) {
            let x = scale.x(point.start_unix_ns);
            let _ = write!(upper, "{x:.1},{:.1} ", scale.y(range.max_bytes as f64));
            lower.push(format!("{x:.1},{:.1}", scale.y(range.min_bytes as f64)));
        }
    }
    lower.reverse();
    if !lower.is_empty() {
        let _ = writeln!(
            out,
            "<polygon class=\"band\" points=\"{upper}{}\"/>",
            lower.join(" ")
        );
    }
}

fn findings(out: &mut String, answer: &Memory, at: usize, scale: &Scale) {
    let mut taken: Vec<(f64, f64)> = Vec::new();
    for (i, finding) in answer
        .findings
        .iter()
        .enumerate()
        .filter(|(_, f)| f.series == at)
    {
        let (from, to) = (scale.x(finding.start_unix_ns), scale.x(finding.end_unix_ns));
        let width = (to - from).max(3.0);
        // Numbers of findings that begin together stand side by side.
        let mut x = from + 3.0;
        while taken.iter().any(|(a, b)| x < *b && x + 14.0 > *a) {
            x += 16.0;
        }
        taken.push((x, x + 14.0));
        let x = x.min(WIDTH - RIGHT - 14.0);
        let _ = writeln!(
            out,
            "<rect class=\"found\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{PLOT}\"><title>{}. {}</title></rect>\
             <text class=\"foundlabel\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
            i + 1,
            escape(&finding.title),
            TOP - 6.0,
            i + 1
        );
    }
}

fn marks(out: &mut String, answer: &Memory, one: &MemorySeries, scale: &Scale) {
    let rank = one.rank.to_string();
    let bottom = TOP + PLOT;
    let mine = answer
        .markers
        .iter()
        .filter(|m| m.session == one.session && m.rank == rank);
    for mark in mine.take(MAX_MARKS) {
        let x = scale.x(mark.at_unix_ns);
        // Severity and kind are words of ours.
        let _ = writeln!(
            out,
            "<line class=\"mark {}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom}\"><title>{} {}: {}</title></line>",
            mark.severity,
            if mark.severity == "info" {
                bottom - 12.0
            } else {
                TOP
            },
            since(answer, mark.at_unix_ns),
            mark.kind,
            escape(&mark.label)
        );
    }
}

fn peak(out: &mut String, one: &MemorySeries, scale: &Scale) {
    let Some(level) = one.levels.iter().find(|l| l.level == "allocated") else {
        return;
    };
    let (x, y) = (
        scale.x(level.peak_unix_ns),
        scale.y(level.peak_bytes as f64),
    );
    let anchor = if x > WIDTH * 0.8 { "end" } else { "start" };
    let shift = if x > WIDTH * 0.8 { -6.0 } else { 6.0 };
    let _ = writeln!(
        out,
        "<circle class=\"dot allocated\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>\
         <text class=\"peak\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
        x + shift,
        (y + 16.0).min(TOP + PLOT - 4.0),
        size_text(level.peak_bytes)
    );
}

fn phase_rows(answer: &Memory, one: &MemorySeries) -> usize {
    let mine = answer
        .spans
        .iter()
        .filter(|s| s.session == one.session && s.rank == one.rank);
    mine.map(|s| s.depth).max().unwrap_or(0).min(PHASE_ROWS)
}

fn phases(out: &mut String, answer: &Memory, one: &MemorySeries, scale: &Scale) {
    let mine = answer
        .spans
        .iter()
        .filter(|s| s.session == one.session && s.rank == one.rank && s.depth <= PHASE_ROWS);
    for (i, span) in mine.take(MAX_PHASES).enumerate() {
        let (from, to) = (scale.x(span.start_unix_ns), scale.x(span.end_unix_ns));
        let width = (to - from).max(1.0);
        let y = TOP + PLOT + 22.0 + PHASE * (span.depth - 1) as f64;
        let class = if i % 2 == 0 { "pa" } else { "pb" };
        let time = duration_text(span.end_unix_ns.saturating_sub(span.start_unix_ns));
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\"><title>{}: {time}</title></rect>",
            PHASE - 2.0,
            escape(&span.path)
        );
        let name = span.path.rsplit(" / ").next().unwrap_or(&span.path);
        let room = (width / 6.2) as usize;
        if room >= 3 {
            let shown: String = if name.chars().count() > room {
                name.chars().take(room - 1).chain(['…']).collect()
            } else {
                name.to_owned()
            };
            let _ = writeln!(
                out,
                "<text class=\"phase\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                from + 3.0,
                y + 10.5,
                escape(&shown)
            );
        }
    }
}

/// The numbers for the pointer.
fn data(out: &mut String, one: &MemorySeries, scale: &Scale) {
    let _ = write!(
        out,
        "<script type=\"application/json\">{{\"width\":{WIDTH},\"left\":{LEFT},\"plot\":{},\"length\":{:.6},\"points\":[",
        WIDTH - LEFT - RIGHT,
        scale.length / 1e6
    );
    let number = |range: Option<LevelRange>| match range {
        Some(range) => range.max_bytes.to_string(),
        None => "null".into(),
    };
    for (i, point) in one.points.iter().enumerate() {
        let _ = write!(
            out,
            "{}[{:.3},{},{},{}]",
            if i == 0 { "" } else { "," },
            point.start_unix_ns.saturating_sub(scale.start) as f64 / 1e6,
            number(point.allocated),
            number(point.reserved),
            number(point.device_used)
        );
    }
    out.push_str("]}</script>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_in_their_own_unit() {
        let gib = 1024.0 * 1024.0 * 1024.0;
        assert_eq!(step(80.0 * gib), 20.0 * gib);
        assert_eq!(step(17.0 * gib), 5.0 * gib);
        assert_eq!(step(1.0), 0.2);
        assert!(step(1e300) > 0.0);
        assert_eq!((time_step(98.9e9), time_step(1.0)), (10e9, 0.1));
        assert_eq!(axis_time(time_step(3e9) * 3.0, time_step(3e9)), "1500 ms");
        assert_eq!(axis_time(7.2e12, time_step(3.6e13)), "2 h");
    }
}
