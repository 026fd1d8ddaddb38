//! `runlog check`: what is wrong in a log, by line; exit code 1 when something is.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use warptrace_formats::run_log::{
    Checker, DEFAULT_LINE_LIMIT, Line, Lines, Problem, ProblemKind, is_blank,
};

use super::{counted, plain, read};
use crate::args::RunlogCheckArgs;
use crate::output;

const SCHEMA: &str = "warptrace.runlog.check/v1";

pub(super) fn run(args: &RunlogCheckArgs) -> anyhow::Result<u8> {
    let mut wrong = false;
    for path in &args.files {
        let checked = check(path, args.max_lines)?;
        wrong |= !checked.counts.is_empty();
        if args.output.json {
            output::print_json(&checked.answer(path))?;
        } else {
            output::print(&checked.text(path))?;
        }
    }
    Ok(u8::from(wrong))
}

struct Checked {
    lines: u64,
    problems: Vec<Problem>,
    counts: BTreeMap<ProblemKind, u64>,
}

fn check(path: &Path, max: usize) -> anyhow::Result<Checked> {
    let mut checker = Checker::new();
    let mut checked = Checked {
        lines: 0,
        problems: Vec::new(),
        counts: BTreeMap::new(),
    };
    let mut each = |line: Line<'_>| {
        checked.lines += u64::from(!line.bytes.is_some_and(is_blank));
        checker.line(&line, |problem| {
            *checked.counts.entry(problem.kind).or_default() += 1;
            if checked.problems.len() < max {
                checked.problems.push(problem);
            }
        });
    };
    let mut lines = Lines::new(DEFAULT_LINE_LIMIT);
    read(path, |chunk| {
        lines.feed(chunk, &mut each);
        Ok(())
    })?;
    lines.finish(&mut each);
    Ok(checked)
}

#[derive(Serialize)]
struct Answer<'a> {
    schema: &'static str,
    file: String,
    lines: u64,
    ok: bool,
    counts: BTreeMap<&'static str, u64>,
    /// The first ones, up to `--max-lines`.
    problems: Vec<Wrong<'a>>,
}

#[derive(Serialize)]
struct Wrong<'a> {
    line: u64,
    kind: &'static str,
    detail: &'a str,
}

impl Checked {
    fn answer(&self, path: &Path) -> Answer<'_> {
        Answer {
            schema: SCHEMA,
            file: path.to_string_lossy().into_owned(),
            lines: self.lines,
            ok: self.counts.is_empty(),
            counts: self
                .counts
                .iter()
                .map(|(kind, &n)| (kind.name(), n))
                .collect(),
            problems: self
                .problems
                .iter()
                .map(|p| Wrong {
                    line: p.line,
                    kind: p.kind.name(),
                    detail: &p.detail,
                })
                .collect(),
        }
    }

    fn text(&self, path: &Path) -> String {
        let path = path.display();
        let mut out = String::new();
        for problem in &self.problems {
            out += &format!("{path}:{}: {}", problem.line, problem.kind.words());
            if !problem.detail.is_empty() {
                out += &format!(" ({})", plain(&problem.detail, 100));
            }
            out.push('\n');
        }
        let all: u64 = self.counts.values().sum();
        let hidden = all - self.problems.len() as u64;
        if hidden > 0 {
            out += &format!("{path}: and {hidden} more (--max-lines)\n");
        }
        if all == 0 {
            return out + &format!("{path}: {}, nothing wrong\n", counted(self.lines, "line"));
        }
        out += &format!(
            "{path}: {}, {}:\n",
            counted(self.lines, "line"),
            counted(all, "problem")
        );
        for (kind, &n) in &self.counts {
            out += &format!("  {:>9}  {}\n", crate::show::thousands(n), kind.words());
        }
        let repairable = [
            ProblemKind::NoRecord,
            ProblemKind::GluedRecords,
            ProblemKind::TornTail,
        ];
        if repairable.iter().any(|kind| self.counts.contains_key(kind)) {
            out +=
                &format!("warptrace runlog repair --output NEW {path}  keeps what can be read\n");
        }
        out
    }
}
