//! One screen from one moment: which lines there are, which of them fit, and where.
//!
//! From top to bottom: header, machine, operations, host context, losses, gaps, findings, keys. On a small screen the
//! lines that nobody may miss come first (who is watched, what was lost, the worst finding), then the table; see
//! [`heights`]. Everything is said in words as well as in colour.

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use warptrace_api::{Live, LiveOp, cause_words};
use warptrace_model::Cause;

use crate::text::{bar, bytes, clean, count, duration, elapsed, fit, grouped, percent, wrap};
use crate::{Sort, View};

/// Draws `live` as `view` wants it over the whole frame. Any size will do, 0 × 0 too.
pub fn render(live: &Live, view: &View, frame: &mut Frame) {
    let area = frame.area();
    draw(live, view, area, frame.buffer_mut());
}

/// Rows of the operations table that fit a screen of this size: a page of scrolling.
pub(crate) fn page(live: &Live, view: &View, area: Rect) -> usize {
    let heights = heights(area.height, &sections(live, view, area.width));
    usize::from(heights[OPS].saturating_sub(1))
}

fn draw(live: &Live, view: &View, area: Rect, buf: &mut Buffer) {
    if area.is_empty() {
        return;
    }
    if view.help {
        return place(&help(view), area, buf);
    }
    let mut sections = sections(live, view, area.width);
    let heights = heights(area.height, &sections);
    let page = usize::from(heights[OPS].saturating_sub(1));
    sections[OPS] = operations(live, view, area.width, page);
    sections[KEYS] = keys(live, view, page);
    sections[FINDINGS] = findings_in(live, view, area.width, heights[FINDINGS]);
    cut_short(&mut sections[FINDINGS], heights[FINDINGS], view, "findings");
    cut_short(&mut sections[GAPS], heights[GAPS], view, "gaps");

    let mut spare = area.height - heights.iter().sum::<u16>();
    let mut y = area.y;
    for (i, section) in sections.iter().enumerate() {
        if matches!(i, OPS | HOST | DROPS | FINDINGS) && spare > 0 {
            // A blank row before it.
            y += 1;
            spare -= 1;
        }
        // The keys stay at the bottom.
        let top = if i == KEYS { y + spare } else { y };
        place(
            section,
            Rect {
                y: top,
                height: heights[i],
                ..area
            },
            buf,
        );
        y += heights[i];
    }
}

fn place(lines: &[Line<'_>], area: Rect, buf: &mut Buffer) {
    for (line, y) in lines.iter().zip(area.top()..area.bottom()) {
        buf.set_line(area.x, y, line, area.width);
    }
}

// Sections, from top to bottom.
const HEADER: usize = 0;
const SYSTEM: usize = 1;
const OPS: usize = 2;
const HOST: usize = 3;
const DROPS: usize = 4;
const GAPS: usize = 5;
const FINDINGS: usize = 6;
const KEYS: usize = 7;
const SECTIONS: usize = 8;

type Lines = Vec<Line<'static>>;

fn sections(live: &Live, view: &View, width: u16) -> [Lines; SECTIONS] {
    [
        header(live, view, width),
        system(live, view, width),
        operations(live, view, width, live.ops.len()),
        host(live, view, width),
        drops(live, view, width),
        gaps(live, view),
        findings(live, view, width, Detail::Advice),
        keys(live, view, 0),
    ]
}

/// Rows of each section on a screen of `total` rows; they add up to at most `total`, and none is more than its lines.
///
/// Each step raises one section to a number of rows, as far as rows are left. So the order of the steps is the order
/// in which things matter.
fn heights(total: u16, sections: &[Lines; SECTIONS]) -> [u16; SECTIONS] {
    let all = u16::MAX;
    let steps = [
        (HEADER, 1),
        (DROPS, 1),
        (OPS, 3),
        (FINDINGS, 2),
        (SYSTEM, 1),
        (KEYS, 1),
        (HOST, 1),
        (HEADER, 2),
        (OPS, total / 3),
        (FINDINGS, total / 4),
        (GAPS, 1),
        (SYSTEM, all),
        (HOST, all),
        (DROPS, all),
        (GAPS, 4),
        (FINDINGS, total / 2),
        (OPS, all),
        (GAPS, all),
        (FINDINGS, all),
    ];
    let mut heights = [0; SECTIONS];
    let mut left = total;
    for (section, rows) in steps {
        let lines = u16::try_from(sections[section].len()).unwrap_or(all);
        let more = rows.min(lines).saturating_sub(heights[section]).min(left);
        heights[section] += more;
        left -= more;
    }
    heights
}

/// Says in the last row that fits how many lines are not shown.
fn cut_short(lines: &mut Lines, height: u16, view: &View, what: &str) {
    let height = usize::from(height);
    if height > 2 && lines.len() > height {
        let hidden = lines.len() - (height - 1);
        lines.truncate(height - 1);
        let text = format!("  … {hidden} more {what}");
        lines.push(Line::styled(text, Tone::Dim.style(view)));
    }
}

/// How something is meant; [`Tone::style`] says how that looks with and without colour.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tone {
    Plain,
    Dim,
    Title,
    Good,
    /// Worth a look.
    Warn,
    /// Must not be missed.
    Loud,
}

impl Tone {
    fn style(self, view: &View) -> Style {
        let style = Style::new();
        let color = |style: Style, color| if view.color { style.fg(color) } else { style };
        match self {
            Tone::Plain => style,
            Tone::Dim => style.add_modifier(Modifier::DIM),
            Tone::Title => style.add_modifier(Modifier::BOLD),
            Tone::Good => color(style, Color::Green),
            Tone::Warn => color(style.add_modifier(Modifier::BOLD), Color::Yellow),
            Tone::Loud => color(
                style.add_modifier(Modifier::BOLD | Modifier::REVERSED),
                Color::Red,
            ),
        }
    }

    fn of_severity(severity: &str) -> Tone {
        match severity {
            "CRITICAL" | "HIGH" => Tone::Loud,
            "MEDIUM" => Tone::Warn,
            _ => Tone::Plain,
        }
    }

    /// A level that is nearly at its end.
    fn of_level(share: f64) -> Tone {
        if share > 0.9 { Tone::Warn } else { Tone::Plain }
    }

    fn span(self, view: &View, text: impl Into<String>) -> Span<'static> {
        Span::styled(text.into(), self.style(view))
    }
}

/// Items side by side, two spaces apart, in as many lines as they need; an item that is too long alone is clipped.
fn flow(items: Vec<Vec<Span<'static>>>, width: u16) -> Lines {
    let mut lines: Lines = Vec::new();
    for item in items {
        let item_width: usize = item.iter().map(Span::width).sum();
        match lines.last_mut() {
            Some(line) if line.width() + 2 + item_width <= usize::from(width) => {
                line.push_span("  ");
                line.extend(item);
            }
            _ => lines.push(Line::from(item)),
        }
    }
    lines
}

fn header(live: &Live, view: &View, width: u16) -> Lines {
    let width = usize::from(width);
    let state = if view.paused {
        "paused, still recording"
    } else {
        "recording"
    };
    let right = format!("{state} {}", elapsed(live.elapsed_ns));
    let left = format!("warptrace  {}", clean(&live.target));
    let room = width.saturating_sub(right.chars().count() + 2);
    let left = fit(&left, room);
    let padding = width.saturating_sub(left.chars().count() + right.chars().count());
    let tone = if view.paused { Tone::Warn } else { Tone::Title };
    let mut lines = vec![Line::from(vec![
        Tone::Title.span(view, left),
        Span::raw(" ".repeat(padding)),
        tone.span(view, right),
    ])];
    let sources = if live.sources.is_empty() {
        "no source".to_owned()
    } else {
        live.sources.join("+")
    };
    lines.extend(flow(
        vec![
            vec![Span::raw(format!("by {sources}"))],
            vec![Span::raw(format!("{} calls", grouped(live.calls)))],
            vec![Span::raw(format!("{} records", grouped(live.records)))],
            vec![Tone::Dim.span(view, format!("session {}", clean(&live.session)))],
        ],
        width as u16,
    ));
    lines
}

fn system(live: &Live, view: &View, width: u16) -> Lines {
    let Some(s) = &live.system else {
        return vec![Line::styled(
            "machine: no sample yet",
            Tone::Dim.style(view),
        )];
    };
    let bar_width = match width {
        0..60 => 4,
        60..110 => 10,
        _ => 20,
    };
    let gauge = |name: &str, share: f64, more: &str| {
        let full = if share > 0.9 { " !" } else { "" };
        vec![
            Span::raw(format!("{name} ")),
            Tone::of_level(share).span(view, bar(share, bar_width)),
            Tone::of_level(share).span(view, format!(" {}{full}", percent(share))),
            Span::raw(more.to_owned()),
        ]
    };
    let mut items = Vec::new();
    items.push(match s.cpu {
        Some(busy) => gauge("CPU", busy, ""),
        None => vec![Span::raw("CPU -")],
    });
    if s.memory_total > 0 {
        let used = 1.0 - s.memory_available as f64 / s.memory_total as f64;
        items.push(gauge(
            "Mem",
            used,
            &format!(", {} free", bytes(s.memory_available)),
        ));
    }
    items.push(vec![Span::raw(format!("Load {:.2}", s.load1))]);
    items.push(vec![Span::raw(format!("Swap {}", bytes(s.swap_used)))]);
    if let Some(steal) = s.steal {
        let tone = if steal > 0.05 {
            Tone::Warn
        } else {
            Tone::Plain
        };
        items.push(vec![tone.span(view, format!("Steal {}", percent(steal)))]);
    }
    for (name, pressure) in [
        ("cpu", s.pressure_cpu),
        ("io", s.pressure_io),
        ("memory", s.pressure_memory),
    ] {
        if let Some(share) = pressure {
            let tone = if share > 0.1 { Tone::Warn } else { Tone::Plain };
            let text = format!("Pressure {name} {}", percent(share));
            items.push(vec![tone.span(view, text)]);
        }
    }
    if let Some(rate) = s.major_faults {
        items.push(vec![Span::raw(format!("Major faults {rate:.0}/s"))]);
    }
    flow(items, width)
}

/// A column of the table.
struct Column {
    title: &'static str,
    /// Characters. The first column takes what the others leave.
    width: usize,
    sort: Option<Sort>,
    cell: fn(&LiveOp) -> String,
    /// The column that goes first when the screen is narrow has the largest number; 0 never goes.
    expendable: u8,
}

const COLUMNS: [Column; 10] = {
    const fn column(
        title: &'static str,
        width: usize,
        sort: Option<Sort>,
        expendable: u8,
        cell: fn(&LiveOp) -> String,
    ) -> Column {
        Column {
            title,
            width,
            sort,
            cell,
            expendable,
        }
    }
    [
        column("OPERATION", 15, Some(Sort::Op), 0, |o| o.op.to_owned()),
        column("LAYER", 10, None, 6, |o| o.layer.to_owned()),
        column("PID", 7, None, 3, |o| o.pid.to_string()),
        column("DEV", 3, None, 5, |o| {
            o.device.map_or("-".to_owned(), |d| d.to_string())
        }),
        column("COUNT", 8, Some(Sort::Count), 0, |o| count(o.count)),
        column("P50", 7, Some(Sort::P50), 0, |o| duration(o.p50_ns)),
        column("P95", 7, Some(Sort::P95), 4, |o| duration(o.p95_ns)),
        column("P99", 7, Some(Sort::P99), 0, |o| duration(o.p99_ns)),
        column("WALL%", 6, Some(Sort::Wall), 1, |o| percent(o.wall_share)),
        column("FLAG", 4, None, 2, |o| {
            if o.tail { "tail" } else { "" }.to_owned()
        }),
    ]
};

/// The first column is not made wider than the longest name of an op.
const OP_WIDTH_MAX: usize = 38;

/// The columns that fit, and the width of the first.
fn columns(width: u16) -> (Vec<&'static Column>, usize) {
    const { assert!(COLUMNS[0].expendable == 0) };
    let width = usize::from(width);
    let mut columns: Vec<&Column> = COLUMNS.iter().collect();
    loop {
        let others: usize = columns[1..].iter().map(|c| c.width + 1).sum();
        let first = width.saturating_sub(others);
        let expendable = columns.iter().map(|c| c.expendable).max().unwrap_or(0);
        if first >= columns[0].width || expendable == 0 {
            return (columns, first.min(OP_WIDTH_MAX));
        }
        columns.retain(|c| c.expendable != expendable);
    }
}

fn operations(live: &Live, view: &View, width: u16, page: usize) -> Lines {
    let (columns, first_width) = columns(width);
    let row = |cell: &dyn Fn(&Column) -> String| {
        let mut text = format!("{:first_width$}", fit(&cell(columns[0]), first_width));
        for column in &columns[1..] {
            let width = column.width;
            let cell = fit(&cell(column), width);
            // Names to the left, numbers to the right.
            text += &match column.title {
                "LAYER" | "FLAG" => format!(" {cell:width$}"),
                _ => format!(" {cell:>width$}"),
            };
        }
        text
    };
    let title = row(&|column| {
        let mark = match column.sort {
            Some(Sort::Op) if view.sort == Sort::Op => "▴",
            Some(sort) if sort == view.sort => "▾",
            _ => "",
        };
        let window = format!("{mark}{}, last {}", column.title, duration(live.window_ns));
        if column.title == "OPERATION" && window.chars().count() <= first_width {
            window
        } else {
            format!("{mark}{}", column.title)
        }
    });
    let mut lines = vec![Line::styled(
        title,
        Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
    )];
    if live.ops.is_empty() {
        lines.push(Line::styled("no calls yet", Tone::Dim.style(view)));
        return lines;
    }
    let scroll = view.scroll.min(live.ops.len().saturating_sub(page));
    for op in view
        .sort
        .sorted(&live.ops)
        .into_iter()
        .skip(scroll)
        .take(page)
    {
        let tone = match op {
            op if op.tail => Tone::Warn,
            op if op.recent == 0 => Tone::Dim,
            _ => Tone::Plain,
        };
        lines.push(Line::styled(
            row(&|column| (column.cell)(op)),
            tone.style(view),
        ));
    }
    lines
}

fn host(live: &Live, view: &View, width: u16) -> Lines {
    let h = &live.host;
    let time = |name: &str, nanos: u64, bad: bool| {
        let tone = if bad && nanos > 0 {
            Tone::Warn
        } else {
            Tone::Plain
        };
        vec![tone.span(view, format!("{name} {}", duration(nanos)))]
    };
    // A tenth of one thread's time.
    let much = live.window_ns / 10;
    let mut items = vec![
        vec![Tone::Title.span(view, format!("HOST, last {}", duration(live.window_ns)))],
        time("CPU wait", h.run_queue_ns, h.run_queue_ns > much),
        time("quota", h.quota_ns, true),
        time("disk", h.disk_ns, h.disk_ns > much),
        time("reclaim", h.reclaim_ns, true),
        time("blocked", h.blocked_ns, false),
    ];
    for (name, n) in [
        ("switches", h.switches),
        ("block I/O", h.block_io),
        ("TCP retransmits", h.retransmits),
    ] {
        items.push(vec![Span::raw(format!("{name} {}", grouped(n)))]);
    }
    let mut lines = flow(items, width);
    let occupants = h
        .occupants
        .iter()
        .enumerate()
        .map(|(i, (name, pid, nanos))| {
            let before = if i == 0 { "CPU held by " } else { "" };
            let text = format!("{before}{} (pid {pid}) {}", clean(name), duration(*nanos));
            vec![Span::raw(text)]
        });
    lines.extend(flow(occupants.collect(), width));
    lines
}

fn drops(live: &Live, view: &View, width: u16) -> Lines {
    let total = live
        .drops
        .iter()
        .fold(0u64, |sum, d| sum.saturating_add(d.count));
    if total == 0 {
        return vec![Line::styled("nothing dropped", Tone::Good.style(view))];
    }
    let mut items = vec![vec![
        Tone::Loud.span(view, format!("DROPPED {}", grouped(total))),
    ]];
    for d in live.drops.iter().filter(|d| d.count > 0) {
        let text = format!(
            "{} {} {}",
            clean(&d.source),
            clean(&d.reason),
            grouped(d.count)
        );
        items.push(vec![Tone::Warn.span(view, text)]);
    }
    flow(items, width)
}

fn gaps(live: &Live, view: &View) -> Lines {
    let gap = |g: &warptrace_api::Gap| {
        let times = if g.count > 1 {
            format!(" ({} times)", grouped(g.count))
        } else {
            String::new()
        };
        let what = if g.detail.is_empty() {
            g.code.replace('_', " ")
        } else {
            clean(&g.detail)
        };
        Line::from(vec![
            Tone::Warn.span(view, "gap "),
            Span::raw(what),
            Span::raw(times),
        ])
    };
    live.gaps.iter().map(gap).collect()
}

/// How much is said of each finding. Ascending.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Detail {
    /// One line, cut.
    Line,
    /// The whole title.
    Title,
    /// The largest cause as well.
    Cause,
    /// What to do as well.
    Advice,
}

/// As much of all findings as fits `height` rows; never less than a line of each.
fn findings_in(live: &Live, view: &View, width: u16, height: u16) -> Lines {
    [Detail::Advice, Detail::Cause, Detail::Title]
        .into_iter()
        .map(|detail| findings(live, view, width, detail))
        .find(|lines| lines.len() <= usize::from(height))
        .unwrap_or_else(|| findings(live, view, width, Detail::Line))
}

fn findings(live: &Live, view: &View, width: u16, detail: Detail) -> Lines {
    if live.findings.is_empty() {
        return vec![Line::styled("no findings yet", Tone::Dim.style(view))];
    }
    let n = live.findings.len();
    let title = if n == 1 {
        "1 FINDING".to_owned()
    } else {
        format!("{n} FINDINGS")
    };
    let mut lines = vec![Line::styled(title, Tone::Title.style(view))];
    let width = usize::from(width);
    for finding in &live.findings {
        let severity = Tone::of_severity(finding.severity).span(view, finding.severity);
        let room = width.saturating_sub(severity.width() + 2);
        let mut title = wrap(&clean(&finding.title), room).into_iter();
        let first = title.next().unwrap_or_default();
        lines.push(Line::from(vec![
            severity,
            Span::raw("  "),
            Span::raw(first),
        ]));
        let room = width.saturating_sub(6);
        let indented = |text: String| Line::raw(format!("      {text}"));
        if detail >= Detail::Title {
            let rest = title.collect::<Vec<_>>().join(" ");
            lines.extend(wrap(&rest, room).into_iter().map(indented));
        }
        if let Some(most) = finding.blame.first().filter(|_| detail >= Detail::Cause) {
            let words = Cause::by_name(most.cause).map_or(most.cause, cause_words);
            let (share, who) = (percent(most.share), clean(&most.detail));
            let text = format!("{} {share} {words} {who}", duration(most.ns));
            lines.extend(wrap(&text, room).into_iter().map(indented));
        }
        if detail >= Detail::Advice {
            let advice = wrap(&clean(&finding.recommendation), room.saturating_sub(4));
            for (i, text) in advice.into_iter().enumerate() {
                let before = if i == 0 { "      do  " } else { "          " };
                lines.push(Line::styled(
                    format!("{before}{text}"),
                    Tone::Dim.style(view),
                ));
            }
        }
    }
    lines
}

fn keys(live: &Live, view: &View, page: usize) -> Lines {
    let rows = live.ops.len();
    let sort = match view.sort {
        Sort::Wall => "wall",
        Sort::Count => "count",
        Sort::P50 => "p50",
        Sort::P95 => "p95",
        Sort::P99 => "p99",
        Sort::Op => "name",
    };
    let scrolled = if rows > page && page > 0 {
        let first = view.scroll.min(rows - page);
        format!("↑↓ {}-{} of {rows}  ", first + 1, first + page)
    } else {
        String::new()
    };
    let pause = if view.paused { "go on" } else { "pause" };
    let text = format!("{scrolled}q stop  p {pause}  s sort: {sort}  ? help");
    vec![Line::styled(text, Tone::Dim.style(view))]
}

fn help(view: &View) -> Lines {
    let mut lines = vec![
        Line::styled("warptrace trace", Tone::Title.style(view)),
        Line::raw(""),
    ];
    lines.extend(
        [
            "q, Ctrl-C     stop, and explain what was recorded",
            "p, space      hold the picture still; recording goes on",
            "s             order the table by the next column",
            "↑ ↓ PgUp PgDn Home End   scroll the table",
            "?             this page, and back",
            "",
            "COUNT         calls since the start, exactly, lost records or not",
            "P50 P95 P99   of the window that the table's head names",
            "WALL%         of the window; above 100 % with several threads",
            "tail          p99 is more than 3 times the median",
            "CPU wait      ready to run while another thread had the CPU",
            "gap           something that could not be known, and why",
        ]
        .map(Line::raw),
    );
    lines
}

#[cfg(test)]
mod tests;
