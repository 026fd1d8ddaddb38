//! The report as one HTML page that needs nothing else: no network, no other file.
//!
//! Every text of a file is escaped; the page's policy allows the one script and the one style sheet that are ours, by their
//! hashes, and nothing else, so that what slips through could not run.

mod chart;

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use warptrace_api::{Memory, MemoryFinding, MemorySeries, duration_text, size_text, untold};

use super::text::moment;

const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/hover.js");
/// Charts drawn; those with findings come first, the others are counted.
const CHARTS: usize = 64;
/// Rows of a table.
const ROWS: usize = 200;

pub(super) fn page(answer: &Memory) -> String {
    let mut out = String::with_capacity(256 << 10);
    let title = match &answer.sources[..] {
        [source] => source.clone(),
        sources => format!("{} sources", sources.len()),
    };
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src '{}'; script-src '{}'; \
         base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>GPU memory: {}</title>\n<style>{STYLE}</style></head><body>\n",
        source_hash(STYLE),
        source_hash(SCRIPT),
        escape(&title)
    );
    head(&mut out, answer, &title);
    findings(&mut out, answer);
    charts(&mut out, answer);
    ranks(&mut out, answer);
    levels(&mut out, answer);
    phases(&mut out, answer);
    sessions(&mut out, answer);
    issues(&mut out, answer);
    unknown(&mut out, answer);
    let _ = write!(
        out,
        "<p class=\"dim small\">warptrace {} · <code>warptrace memory --json</code> gives the same as data</p>\n\
         <script>{SCRIPT}</script></body></html>\n",
        env!("CARGO_PKG_VERSION")
    );
    out
}

/// A text for HTML, within an element or a quoted attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(' '),
            // Control characters, and marks that turn the direction of what follows.
            c if c.is_control() => out.push('\u{fffd}'),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// `sha256-…` of an inline script or style, as a policy names it.
fn source_hash(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let hash = Sha256::digest(text.as_bytes());
    let mut out = String::from("sha256-");
    for three in hash.chunks(3) {
        let bits = three
            .iter()
            .chain(std::iter::repeat(&0))
            .take(3)
            .fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
        for place in 0..4 {
            let digit = DIGITS[bits >> (18 - 6 * place) & 63];
            out.push(if place > three.len() {
                '='
            } else {
                char::from(digit)
            });
        }
    }
    out
}

fn count(n: usize, word: &str) -> String {
    let s = if n == 1 || word == "series" { "" } else { "s" };
    format!("{n} {word}{s}")
}

fn start(answer: &Memory) -> u64 {
    answer.window.as_ref().map_or(0, |w| w.start_unix_ns)
}

fn since(answer: &Memory, unix_ns: u64) -> String {
    format!("+{}", duration_text(unix_ns.saturating_sub(start(answer))))
}

fn whom(one: &MemorySeries) -> String {
    match one.device {
        -1 => format!("rank {} · CPU", one.rank),
        device => format!("rank {} · device {device}", one.rank),
    }
}

fn head(out: &mut String, answer: &Memory, title: &str) {
    let mut facts = vec![
        count(answer.sessions.len(), "session"),
        count(answer.series.len(), "series"),
        format!("{} measurements", answer.measurements),
    ];
    if let Some(window) = &answer.window {
        facts.push(duration_text(window.end_unix_ns - window.start_unix_ns));
        facts.push(format!(
            "{} to {}",
            moment(window.start_unix_ns),
            moment(window.end_unix_ns)
        ));
    }
    let _ = write!(
        out,
        "<h1>GPU memory: {}</h1>\n<p class=\"dim\">{}</p>\n",
        escape(title),
        facts.join(" · ")
    );
    if answer.sources.len() > 1 {
        let list: Vec<String> = answer.sources.iter().take(20).map(|s| escape(s)).collect();
        let _ = writeln!(out, "<p class=\"dim small\">{}</p>", list.join("<br>"));
    }
}

fn findings(out: &mut String, answer: &Memory) {
    let _ = writeln!(out, "<h2>Findings</h2>\n<div class=\"cards\">");
    if answer.findings.is_empty() {
        out.push_str("<div class=\"card\">Nothing is wrong, as far as could be told.</div>\n");
    }
    for (i, finding) in answer.findings.iter().enumerate().take(ROWS) {
        card(out, answer, i + 1, finding);
    }
    if answer.findings.len() > ROWS {
        let _ = writeln!(out, "<p>and {} more</p>", answer.findings.len() - ROWS);
    }
    out.push_str("</div>\n");
}

fn card(out: &mut String, answer: &Memory, number: usize, finding: &MemoryFinding) {
    let mut place = vec![
        since(answer, finding.start_unix_ns),
        moment(finding.start_unix_ns),
        format!("rank {}", finding.rank),
        format!("device {}", finding.device),
        format!("host {}", finding.host),
    ];
    if answer.sessions.len() > 1 {
        place.push(format!("session {}", finding.session));
    }
    place.push(format!("confidence {:.0} %", finding.confidence * 100.0));
    // The severity is one of four words of ours.
    let _ = write!(
        out,
        "<div class=\"card {severity}\" id=\"f{number}\"><h3><span class=\"tag\">{severity}</span>{number}. {title}</h3>\n\
         <p>{summary}</p>\n",
        severity = finding.severity,
        title = escape(&finding.title),
        summary = escape(&finding.summary),
    );
    if !finding.recommendation.is_empty() {
        let _ = writeln!(out, "<p><b>Do:</b> {}</p>", escape(&finding.recommendation));
    }
    let _ = writeln!(
        out,
        "<p class=\"dim small\">{}</p></div>",
        escape(&place.join(" · "))
    );
}

fn charts(out: &mut String, answer: &Memory) {
    let _ = writeln!(
        out,
        "<h2>Over time</h2>\n<p class=\"legend small\"><span class=\"la\"><i></i>allocated</span>\
         <span class=\"lr\"><i></i>reserved by the allocator</span><span class=\"lu\"><i></i>in use on the device</span>\
         <span class=\"lm\"><i></i>marks</span><span class=\"dim\">shaded: findings, by number; below: phases</span></p>"
    );
    let mut order: Vec<usize> = (0..answer.series.len()).collect();
    let found = |at: &usize| {
        let first = answer.findings.iter().position(|f| f.series == *at);
        (first.unwrap_or(usize::MAX), *at)
    };
    if order.len() > CHARTS {
        order.sort_by_key(found);
        order.truncate(CHARTS);
        order.sort_unstable();
    }
    for at in &order {
        chart::draw(out, answer, *at);
    }
    if answer.series.len() > order.len() {
        let _ = writeln!(
            out,
            "<p class=\"dim\">and {} more without a chart; the table below has them</p>",
            answer.series.len() - order.len()
        );
    }
}

/// A table with columns of text (`true`) and of numbers.
fn table(out: &mut String, head: &[(&str, bool)], rows: impl Iterator<Item = Vec<String>>) {
    let class = |left: bool| if left { " class=\"l\"" } else { "" };
    out.push_str("<div class=\"wide\"><table><tr>");
    for (name, left) in head {
        let _ = write!(out, "<th{}>{name}</th>", class(*left));
    }
    out.push_str("</tr>\n");
    for row in rows.take(ROWS) {
        out.push_str("<tr>");
        for (field, (_, left)) in row.iter().zip(head) {
            let _ = write!(out, "<td{}>{}</td>", class(*left), escape(field));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

fn ranks(out: &mut String, answer: &Memory) {
    if answer.ranks.is_empty() {
        return;
    }
    out.push_str("<h2>Ranks</h2>\n");
    for job in &answer.ranks {
        let _ = writeln!(
            out,
            "<p><b>{}</b>: {} of {} ranks. {}</p>",
            escape(&job.job),
            job.ranks.len(),
            job.world_size,
            escape(&job.summary)
        );
        if job.rises.is_empty() {
            continue;
        }
        let rows = job.rises.iter().map(|rise| {
            vec![
                rise.rank.to_string(),
                rise.device.to_string(),
                size_text(rise.rise_bytes),
                size_text(rise.level_bytes),
                since(answer, rise.at_unix_ns),
                rise.step.map_or("–".into(), |s| s.to_string()),
            ]
        });
        let head = [
            ("rank", false),
            ("device", false),
            ("rose by", false),
            ("from", false),
            ("at", false),
            ("step", false),
        ];
        table(out, &head, rows);
    }
}

fn levels(out: &mut String, answer: &Memory) {
    out.push_str("<h2>Levels</h2>\n");
    let rows = answer.series.iter().flat_map(|one| {
        one.levels.iter().map(move |level| {
            vec![
                whom(one),
                format!("{}, {}", one.host, one.pid),
                level.level.replace('_', " "),
                size_text(level.mean_bytes),
                size_text(level.peak_bytes),
                one.total_bytes
                    .filter(|total| *total > 0)
                    .map_or("–".into(), |total| {
                        format!("{:.0} %", level.peak_bytes as f64 / total as f64 * 100.0)
                    }),
                since(answer, level.peak_unix_ns),
                level.peak_phase.clone().unwrap_or_default(),
            ]
        })
    });
    let head = [
        ("whose", true),
        ("host, process", true),
        ("level", true),
        ("mean", false),
        ("peak", false),
        ("of the device", false),
        ("peak at", false),
        ("phase at the peak", true),
    ];
    table(out, &head, rows);
}

fn phases(out: &mut String, answer: &Memory) {
    if answer.phases.is_empty() {
        return;
    }
    out.push_str("<h2>Phases</h2>\n");
    let rows = answer.phases.iter().map(|phase| {
        vec![
            phase.path.clone(),
            phase.count.to_string(),
            duration_text(u64::try_from(phase.total_ns).unwrap_or(0)),
            phase.peak_bytes.map_or("–".into(), size_text),
            size_text(phase.net_bytes),
        ]
    });
    let head = [
        ("phase", true),
        ("times", false),
        ("in all", false),
        ("peak", false),
        ("left behind", false),
    ];
    table(out, &head, rows);
}

fn sessions(out: &mut String, answer: &Memory) {
    out.push_str("<h2>Sessions</h2>\n");
    let rows = answer.sessions.iter().map(|one| {
        vec![
            one.session.clone(),
            one.job.clone().unwrap_or_default(),
            one.host.clone(),
            moment(one.start_unix_ns),
            duration_text(one.end_unix_ns - one.start_unix_ns),
            one.samples.to_string(),
            one.alerts.to_string(),
            one.ooms.to_string(),
            if one.interrupted {
                "did not stop"
            } else {
                "stopped"
            }
            .into(),
        ]
    });
    let head = [
        ("session", true),
        ("job", true),
        ("host", true),
        ("start", true),
        ("length", false),
        ("samples", false),
        ("alerts", false),
        ("OOMs", false),
        ("end", true),
    ];
    table(out, &head, rows);
}

fn issues(out: &mut String, answer: &Memory) {
    if answer.issues.is_empty() {
        return;
    }
    out.push_str("<h2>Alerts</h2>\n");
    let rows = answer.issues.iter().map(|issue| {
        vec![
            issue.count.to_string(),
            issue.severity.clone(),
            issue.kind.replace('_', " "),
            since(answer, issue.first_unix_ns),
            since(answer, issue.last_unix_ns),
            issue.title.clone(),
        ]
    });
    let head = [
        ("times", false),
        ("severity", true),
        ("kind", true),
        ("first", false),
        ("last", false),
        ("text of the first", true),
    ];
    table(out, &head, rows);
}

fn unknown(out: &mut String, answer: &Memory) {
    let untold = untold(answer);
    if untold.is_empty() && answer.skipped.is_empty() {
        return;
    }
    out.push_str("<h2>What could not be told</h2>\n<ul>\n");
    for (series, why) in untold.values() {
        let _ = writeln!(
            out,
            "<li>{} ({})</li>",
            escape(why),
            count(*series, "series")
        );
    }
    for skip in &answer.skipped {
        let _ = writeln!(
            out,
            "<li>left out: {} × {}</li>",
            skip.count,
            escape(&skip.reason)
        );
    }
    out.push_str("</ul>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_can_be_markup() {
        assert_eq!(
            escape("<b a=\"x\" b='y'>&\u{0}\u{202e}"),
            "&lt;b a=&quot;x&quot; b=&#39;y&#39;&gt;&amp;\u{fffd}\u{fffd}"
        );
    }

    #[test]
    fn the_policy_names_sources_by_their_hash() {
        // echo -n 'alert(1)' | openssl dgst -sha256 -binary | base64
        assert_eq!(
            source_hash("alert(1)"),
            "sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI="
        );
    }

    #[test]
    fn the_script_and_the_style_end_where_they_should() {
        assert!(!SCRIPT.contains("</") && !STYLE.contains("</"));
        assert!(!SCRIPT.contains("http") && !STYLE.contains("url("));
    }
}
