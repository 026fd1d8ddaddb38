//! Answers as tables (RFC 4180, rows end at LF): times as nanoseconds of Unix time, sizes in bytes, empty where nothing is known.

use std::fmt::Write as _;

use warptrace_api::{LevelRange, Memory};

use super::View;

/// The table of a view; of the summary and the timeline, all points.
pub(super) fn table(answer: &Memory, view: View) -> String {
    match view {
        View::Summary | View::Timeline => timeline(answer),
        View::Sessions => sessions(answer),
        View::Peaks => peaks(answer),
        View::Leaks | View::Fragmentation | View::Gaps => findings(answer),
        View::Ranks => ranks(answer),
        View::Issues => issues(answer),
    }
}

/// A field; quoted where it needs to be. A text that a spreadsheet would take for a formula gets a quote in front.
fn text(value: &str) -> String {
    let risky = value.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let value = if risky {
        format!("'{value}")
    } else {
        value.to_owned()
    };
    if value.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value
    }
}

fn number<T: ToString>(value: Option<T>) -> String {
    value.map_or(String::new(), |v| v.to_string())
}

fn row(out: &mut String, fields: &[String]) {
    let _ = writeln!(out, "{}", fields.join(","));
}

fn timeline(answer: &Memory) -> String {
    let mut out = String::from(
        "session,host,pid,rank,device,start_unix_ns,end_unix_ns,measurements,\
         allocated_bytes,allocated_max_bytes,reserved_bytes,reserved_max_bytes,device_used_bytes,device_used_max_bytes,\
         hidden_bytes,hidden_max_bytes,inactive_bytes,inactive_max_bytes,device_total_bytes\n",
    );
    for one in &answer.series {
        for point in &one.points {
            let mut fields = vec![
                text(&one.session),
                text(&one.host),
                one.pid.to_string(),
                one.rank.to_string(),
                one.device.to_string(),
                point.start_unix_ns.to_string(),
                point.end_unix_ns.to_string(),
                point.count.to_string(),
            ];
            for range in [
                point.allocated,
                point.reserved,
                point.device_used,
                point.hidden,
                point.inactive,
            ] {
                fields.push(number(range.map(|r: LevelRange| r.last_bytes)));
                fields.push(number(range.map(|r| r.max_bytes)));
            }
            fields.push(number(one.total_bytes));
            row(&mut out, &fields);
        }
    }
    out
}

fn sessions(answer: &Memory) -> String {
    let mut out = String::from(
        "session,job,host,world_size,start_unix_ns,end_unix_ns,events,samples,alerts,ooms,interrupted\n",
    );
    for one in &answer.sessions {
        let fields = [
            text(&one.session),
            text(one.job.as_deref().unwrap_or_default()),
            text(&one.host),
            one.world_size.to_string(),
            one.start_unix_ns.to_string(),
            one.end_unix_ns.to_string(),
            one.events.to_string(),
            one.samples.to_string(),
            one.alerts.to_string(),
            one.ooms.to_string(),
            one.interrupted.to_string(),
        ];
        row(&mut out, &fields);
    }
    out
}

fn peaks(answer: &Memory) -> String {
    let mut out = String::from(
        "session,host,pid,rank,device,level,peak_bytes,peak_unix_ns,mean_bytes,last_bytes,device_total_bytes,phase\n",
    );
    for one in &answer.series {
        for level in &one.levels {
            let fields = [
                text(&one.session),
                text(&one.host),
                one.pid.to_string(),
                one.rank.to_string(),
                one.device.to_string(),
                level.level.to_owned(),
                level.peak_bytes.to_string(),
                level.peak_unix_ns.to_string(),
                level.mean_bytes.to_string(),
                level.last_bytes.to_string(),
                number(one.total_bytes),
                text(level.peak_phase.as_deref().unwrap_or_default()),
            ];
            row(&mut out, &fields);
        }
    }
    out
}

fn findings(answer: &Memory) -> String {
    let mut out = String::from(
        "id,kind,severity,session,host,rank,device,start_unix_ns,end_unix_ns,confidence,phase,title,summary\n",
    );
    for one in &answer.findings {
        let fields = [
            one.id.clone(),
            one.kind.to_owned(),
            one.severity.to_owned(),
            text(&one.session),
            text(&one.host),
            one.rank.to_string(),
            one.device.to_string(),
            one.start_unix_ns.to_string(),
            one.end_unix_ns.to_string(),
            format!("{:.3}", one.confidence),
            text(one.phase.as_deref().unwrap_or_default()),
            text(&one.title),
            text(&one.summary),
        ];
        row(&mut out, &fields);
    }
    out
}

fn ranks(answer: &Memory) -> String {
    let mut out =
        String::from("job,rank,device,at_unix_ns,step,level_bytes,rise_bytes,first,confidence\n");
    for job in &answer.ranks {
        for rise in &job.rises {
            let fields = [
                text(&job.job),
                rise.rank.to_string(),
                rise.device.to_string(),
                rise.at_unix_ns.to_string(),
                number(rise.step),
                rise.level_bytes.to_string(),
                rise.rise_bytes.to_string(),
                job.first_ranks.contains(&rise.rank).to_string(),
                job.confidence.unwrap_or_default().to_owned(),
            ];
            row(&mut out, &fields);
        }
    }
    out
}

fn issues(answer: &Memory) -> String {
    let mut out =
        String::from("fingerprint,kind,severity,count,first_unix_ns,last_unix_ns,sessions,title\n");
    for one in &answer.issues {
        let fields = [
            one.fingerprint.clone(),
            one.kind.to_owned(),
            text(&one.severity),
            one.count.to_string(),
            one.first_unix_ns.to_string(),
            one.last_unix_ns.to_string(),
            text(&one.sessions.join(" ")),
            text(&one.title),
        ];
        row(&mut out, &fields);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_quoted_where_it_needs_to_be_and_is_never_a_formula() {
        assert_eq!(text("plain"), "plain");
        assert_eq!(text("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
        assert_eq!(text("=1+1"), "'=1+1");
    }
}
