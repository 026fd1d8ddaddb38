//! `warptrace runlog`: what the run logs of inference servers say, and what is wrong with them.
//!
//! The rules are in [`warptrace_formats::run_log`]; here are files, terminals and words.

mod check;
mod repair;
mod summary;
mod tail;

use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::path::Path;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{Global, RunlogCommand};

pub(crate) fn run(global: &Global, command: &RunlogCommand) -> anyhow::Result<u8> {
    match command {
        RunlogCommand::Summary(args) => summary::run(global, args),
        RunlogCommand::Tail(args) => tail::run(global, args),
        RunlogCommand::Check(args) => check::run(args),
        RunlogCommand::Repair(args) => repair::run(args),
    }
}

/// A file smaller than this is read before anybody wonders.
const PROGRESS_FROM_BYTES: u64 = 64 << 20;

/// Calls `each` with the bytes of `path` (`-` is stdin) in chunks, with a bar on a terminal when it is long.
fn read(path: &Path, mut each: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let (mut input, length): (Box<dyn Read>, u64) = if path == Path::new("-") {
        (Box::new(std::io::stdin().lock()), 0)
    } else {
        let file = File::open(path).with_context(|| format!("cannot open {path:?}"))?;
        let metadata = file
            .metadata()
            .with_context(|| format!("cannot look at {path:?}"))?;
        anyhow::ensure!(!metadata.is_dir(), "not a file but a folder: {path:?}");
        let length = metadata.len();
        (Box::new(file), length)
    };
    let bar = progress(length);
    let mut chunk = vec![0; 256 << 10];
    loop {
        match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => {
                each(&chunk[..n])?;
                if let Some(bar) = &bar {
                    bar.inc(n as u64);
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).with_context(|| format!("cannot read {path:?}")),
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(())
}

fn progress(length: u64) -> Option<ProgressBar> {
    if length < PROGRESS_FROM_BYTES || !std::io::stderr().is_terminal() {
        return None;
    }
    let template = "  reading {bar:40} {bytes} of {total_bytes}, {eta} left";
    let style = ProgressStyle::with_template(template).ok()?;
    let bar = ProgressBar::new(length);
    bar.set_style(style.progress_chars("━╸─"));
    Some(bar)
}

/// `1 line`, `2 lines`.
fn counted(n: u64, word: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {word}{plural}", crate::show::thousands(n))
}

/// A text from a log for a terminal: one line, without control characters, at most `max` characters.
fn plain(text: &str, max: usize) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut plain: String = text.chars().take(max).map(shown).collect();
    if text.chars().nth(max).is_some() {
        plain.pop();
        plain.push('…');
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_s_text_cannot_steer_a_terminal() {
        assert_eq!(plain("a\u{1b}[31mb\nc", 20), "a\u{fffd}[31mb\u{fffd}c");
        assert_eq!(plain("abcdef", 4), "abc…");
        assert_eq!(counted(1, "line"), "1 line");
        assert_eq!(counted(20_411, "line"), "20,411 lines");
    }
}
