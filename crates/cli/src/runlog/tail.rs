//! `runlog tail`: the last records for people, and with `-f` those to come, through rotation and truncation.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use warptrace_api::duration_text;
use warptrace_formats::json::{Invalid, Str};
use warptrace_formats::run_log::{DEFAULT_LINE_LIMIT, Kind, Line, Lines, Record, is_blank};

use super::plain;
use crate::args::{Global, RunlogTailArgs};
use crate::output;
use crate::show::Paint;

/// How often a followed file is looked at.
const LOOK: Duration = Duration::from_millis(200);

pub(super) fn run(global: &Global, args: &RunlogTailArgs) -> anyhow::Result<u8> {
    let show = Show {
        json: args.output.json,
        paint: output::paint(global),
    };
    let file = File::open(&args.file).with_context(|| format!("cannot open {:?}", args.file))?;
    let mut at =
        last_lines(&file, args.lines).with_context(|| format!("cannot read {:?}", args.file))?;
    let mut follower = Follower::new(file);
    if !follower.drain(&mut at, &show)? {
        return Ok(0);
    }
    if !args.follow {
        follower.rest(&show)?;
        return Ok(0);
    }
    loop {
        std::thread::sleep(LOOK);
        if follower.replaced(&args.file, at) {
            // What came to the old file before it was replaced is there to be read.
            if !follower.drain(&mut at, &show)? || !follower.rest(&show)? {
                return Ok(0);
            }
            let Ok(file) = File::open(&args.file) else {
                continue;
            };
            follower = Follower::new(file);
            at = 0;
        }
        if !follower.drain(&mut at, &show)? {
            return Ok(0);
        }
    }
}

/// Where the last `count` lines begin.
fn last_lines(file: &File, count: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut block = vec![0; 64 << 10];
    let (mut end, mut seen) = (length, 0);
    while end > 0 {
        let from = end.saturating_sub(block.len() as u64);
        let bytes = &mut block[..(end - from) as usize];
        file.read_exact_at(bytes, from)?;
        for (i, &byte) in bytes.iter().enumerate().rev() {
            let at = from + i as u64;
            // The line feed at the very end ends the last line, and begins none.
            if byte == b'\n' && at + 1 < length {
                seen += 1;
                if seen == count {
                    return Ok(at + 1);
                }
            }
        }
        end = from;
    }
    Ok(if count == 0 { length } else { 0 })
}

struct Follower {
    file: File,
    lines: Option<Lines>,
}

impl Follower {
    fn new(file: File) -> Follower {
        Follower {
            file,
            lines: Some(Lines::new(DEFAULT_LINE_LIMIT)),
        }
    }

    /// Shows every whole line from `at` on. Whether somebody still reads.
    fn drain(&mut self, at: &mut u64, show: &Show) -> anyhow::Result<bool> {
        let mut chunk = vec![0; 64 << 10];
        loop {
            let n = match self.file.read_at(&mut chunk, *at) {
                Ok(0) => return Ok(true),
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e).context("cannot read the log"),
            };
            *at += n as u64;
            let mut text = Vec::new();
            if let Some(lines) = &mut self.lines {
                lines.feed(&chunk[..n], |line| show.line(&line, &mut text));
            }
            if !write(&text)? {
                return Ok(false);
            }
        }
    }

    /// Shows the last line, though it has not ended.
    fn rest(&mut self, show: &Show) -> anyhow::Result<bool> {
        let mut text = Vec::new();
        if let Some(lines) = self.lines.take() {
            lines.finish(|line| show.line(&line, &mut text));
        }
        self.lines = Some(Lines::new(DEFAULT_LINE_LIMIT));
        write(&text)
    }

    /// Whether `path` is another file by now, or this one was cut to less than what has been read.
    fn replaced(&self, path: &Path, at: u64) -> bool {
        let Ok(ours) = self.file.metadata() else {
            return true;
        };
        if ours.len() < at {
            return true;
        }
        // While nothing has taken its place, the old one may still be written to.
        let same =
            |theirs: &std::fs::Metadata| (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino());
        path.metadata().is_ok_and(|theirs| !same(&theirs))
    }
}

/// Writes to stdout; `false` when nobody reads it any longer.
fn write(text: &[u8]) -> anyhow::Result<bool> {
    use std::io::Write as _;
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// How a line is shown.
struct Show {
    /// Records as they are, and nothing else.
    json: bool,
    paint: Paint,
}

impl Show {
    fn line(&self, line: &Line<'_>, out: &mut Vec<u8>) {
        let Some(bytes) = line.bytes.filter(|bytes| !is_blank(bytes)) else {
            return;
        };
        match (Record::parse(bytes), self.json) {
            (Ok(record), true) => out.extend_from_slice(record.text),
            (Ok(record), false) => out.extend_from_slice(self.record(&record).as_bytes()),
            (Err(_), true) => return,
            (Err(_), false) => {
                let text = plain(
                    &String::from_utf8_lossy(&bytes[..bytes.len().min(400)]),
                    100,
                );
                out.extend_from_slice(
                    self.paint
                        .dim(&format!("   not a record  {text}"))
                        .as_bytes(),
                );
            }
        }
        out.push(b'\n');
    }

    fn record(&self, record: &Record<'_>) -> String {
        let t = match record.t_secs {
            Some(t) => format!("{t:>10.3} s"),
            None => format!("{:>12}", "-"),
        };
        let text = |s: Option<Str<'_>>, max| {
            let text = s
                .and_then(|s| s.decode(Invalid::Replace))
                .unwrap_or_default();
            plain(&text, max)
        };
        let count = |n: Option<u64>| n.map_or("?".to_owned(), |n| n.to_string());
        let latency = match record.latency_micros {
            Some(micros) => duration_text(micros.saturating_mul(1_000)),
            None => "-".to_owned(),
        };
        let who = format!(
            "{}  {}",
            text(record.principal, 30),
            text(record.request_id, 40)
        );
        let what = match record.kind {
            Kind::Request | Kind::RetiredRequest => format!(
                "{latency:>9}  {:>5} → {:<5}  {}  {who}",
                count(record.prompt_tokens),
                count(record.completion_tokens),
                text(record.model, 30),
            ),
            Kind::RequestError => {
                let error = format!(
                    "{latency:>9}  error {} {}",
                    count(record.status),
                    text(record.code, 30)
                );
                format!(
                    "{}  {}  {}  {who}",
                    self.paint.bold(&error),
                    text(record.message, 80),
                    text(record.model, 30)
                )
            }
            Kind::RunStart => self.paint.bold(&format!(
                "run started at {} on {} ({}), {}",
                text(record.started_at, 30),
                text(record.host, 40),
                text(record.backend, 20),
                text(record.model, 40),
            )),
            Kind::RunEnd => self.paint.bold(&format!(
                "run ended: {}, {} requests, {} errors, {} tokens",
                text(record.reason, 40),
                count(record.stats[0]),
                count(record.stats[1]),
                count(record.stats[2]),
            )),
            _ => plain(
                &String::from_utf8_lossy(&record.text[..record.text.len().min(800)]),
                200,
            ),
        };
        format!("{t}  {}", what.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_begin_where_they_are_counted_from_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let start_of = |text: &[u8], count| {
            std::fs::write(&path, text).unwrap();
            last_lines(&File::open(&path).unwrap(), count).unwrap()
        };
        for (text, count, want) in [
            (&b""[..], 3, 0),
            (b"a\nb\nc\n", 0, 6),
            (b"a\nb\nc\n", 1, 4),
            (b"a\nb\nc", 1, 4),
            (b"a\nb\nc\n", 2, 2),
            (b"a\nb\nc\n", 3, 0),
            (b"a\nb\nc\n", 9, 0),
            (b"\n\n", 1, 1),
        ] {
            assert_eq!(start_of(text, count), want, "{text:?} {count}");
        }
        let long = [
            vec![b'x'; 100_000],
            b"\n".to_vec(),
            vec![b'y'; 200_000],
            b"\n".to_vec(),
        ]
        .concat();
        assert_eq!(start_of(&long, 1), 100_001);
    }
}
