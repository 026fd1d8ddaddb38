//! `warptrace annotate`: says something to a running recorder from the shell.
//!
//! Everything is checked before anything is sent. The recorder answers nothing, so the command closes its sending side and
//! waits until the other side has read it all and closes, too: a process that is gone cannot be looked up any more.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use warptrace_formats::annotation::{
    Line, MAX_LINE_BYTES, SOCKET_VARIABLE, Surroundings, USUAL_LINES_PER_SEC,
};
use warptrace_model::Labels;

use crate::args::AnnotateArgs;
use crate::output;

/// A recorder that takes nothing for so long is said to be stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a file may hold, bytes: it is kept whole until all of it has been checked.
const MAX_INPUT: usize = 64 << 20;
/// Bad lines that are told.
const MAX_TOLD: usize = 10;

pub(crate) fn run(args: &AnnotateArgs) -> anyhow::Result<u8> {
    let lines = match (&args.from_file, &args.labels[..]) {
        (Some(path), _) => read(path)?,
        (None, []) => bail!(
            "nothing to say: give labels (warptrace annotate step=12 --pid 4711), or --from-file"
        ),
        (None, labels) => vec![from_labels(labels, args)?],
    };
    let places = match &args.socket {
        Some(path) => vec![path.clone()],
        None => usual_places(),
    };
    let (stream, place) = connect(&places)?;
    let mut stream = Some(stream);
    for (i, part) in lines.chunks(USUAL_LINES_PER_SEC as usize).enumerate() {
        let sent = match stream.take() {
            Some(stream) => send(stream, part),
            None => UnixStream::connect(place)
                .map_err(anyhow::Error::new)
                .and_then(|s| send(s, part)),
        };
        let before = i * USUAL_LINES_PER_SEC as usize;
        sent.with_context(|| {
            format!(
                "cannot send to {place:?} ({before} of {} sent)",
                lines.len()
            )
        })?;
    }
    if args.output.json {
        let answer = serde_json::json!({
            "schema": "warptrace.annotate/v1", "sent": lines.len(), "socket": place.to_string_lossy(),
        });
        output::print_json(&answer)?;
    } else {
        let (count, what) = (
            lines.len(),
            if lines.len() == 1 {
                "annotation"
            } else {
                "annotations"
            },
        );
        output::print(&format!("{count} {what} sent to {}\n", place.display()))?;
    }
    Ok(0)
}

/// The one line that the arguments say, with its line feed.
fn from_labels(labels: &[(String, String)], args: &AnnotateArgs) -> anyhow::Result<Vec<u8>> {
    let now = unix_nanos(SystemTime::now())?;
    let span = match (args.span_start, args.span_end, args.since) {
        (None, None, None) => None,
        (Some(start), end, _) => {
            let end = end.map_or(Ok(now), unix_nanos)?;
            Some((unix_nanos(start)?, end))
        }
        (None, _, since) => {
            let nanos = i64::try_from(since.unwrap_or_default().as_nanos());
            Some((now.saturating_sub(nanos.unwrap_or(i64::MAX)), now))
        }
    };
    let line = Line {
        labels: Labels::from_pairs(labels).map_err(|e| describe(&e, labels))?,
        ts: Some(now),
        pid: args.pid,
        start_time: None,
        span,
    };
    let mut bytes = Vec::new();
    line.encode(&mut bytes)?;
    Ok(bytes)
}

/// Which label it was.
fn describe(e: &warptrace_model::LabelError, labels: &[(String, String)]) -> anyhow::Error {
    let one = |(k, v): &&(String, String)| Labels::from_pairs(&[(k, v)]).is_err();
    match labels.iter().find(one) {
        Some((key, value)) => anyhow::anyhow!("{key:?}={value:?}: {e}"),
        None => anyhow::anyhow!("{e}"),
    }
}

fn unix_nanos(at: SystemTime) -> anyhow::Result<i64> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    let nanos = since.context("a time before 1970")?.as_nanos();
    i64::try_from(nanos).context("a time after 2262")
}

/// The lines of a file, or of standard input for `-`, as they stand there, each checked.
fn read(path: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    if path == Path::new("-") {
        return check("standard input", std::io::stdin().lock());
    }
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {path:?}"))?;
    check(&path.display().to_string(), BufReader::new(file))
}

/// A line that is longer than a reader would take is not read to its end.
fn check(name: &str, mut input: impl BufRead) -> anyhow::Result<Vec<Vec<u8>>> {
    let (mut lines, mut wrong, mut told) = (Vec::new(), 0, String::new());
    let (mut number, mut bytes) = (0u64, 0);
    loop {
        let mut line = Vec::new();
        // With its line feed, and one byte more that shows it to be too long.
        let limit = MAX_LINE_BYTES as u64 + 1;
        let n = (&mut input).take(limit).read_until(b'\n', &mut line);
        if n.with_context(|| format!("cannot read {name}"))? == 0 {
            break;
        }
        number += 1;
        let text = line.trim_ascii();
        let judged = match text {
            [] => continue,
            _ if !line.ends_with(b"\n") && line.len() > MAX_LINE_BYTES => {
                bail!("{name}:{number}: more than {MAX_LINE_BYTES} bytes (nothing was sent)")
            }
            text => Line::decode(text),
        };
        match judged {
            Ok(_) => {
                bytes += text.len();
                ensure!(
                    bytes <= MAX_INPUT,
                    "{name} holds more than {} MiB: send it in parts",
                    MAX_INPUT >> 20
                );
                lines.push([text, b"\n"].concat());
            }
            Err(why) => {
                wrong += 1;
                if wrong <= MAX_TOLD {
                    let _ = write!(told, "\n  {name}:{number}: {why}");
                }
            }
        }
    }
    if wrong > MAX_TOLD {
        let _ = write!(told, "\n  and {} more", wrong - MAX_TOLD);
    }
    let all = lines.len() + wrong;
    ensure!(
        wrong == 0,
        "{wrong} of {all} lines are wrong, nothing was sent:{told}"
    );
    ensure!(all > 0, "{name} has no lines");
    Ok(lines)
}

fn usual_places() -> Vec<PathBuf> {
    let variable = std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
    if let Some(path) = variable {
        return vec![path.into()];
    }
    let is_root = nix::unistd::geteuid().is_root();
    Surroundings::new(is_root, |name| std::env::var_os(name)).candidates()
}

fn connect(places: &[PathBuf]) -> anyhow::Result<(UnixStream, &Path)> {
    let mut tried = String::new();
    for place in places {
        match UnixStream::connect(place) {
            Ok(stream) => return Ok((stream, place)),
            Err(e) => {
                let why = match e.kind() {
                    std::io::ErrorKind::NotFound => "not there".to_owned(),
                    std::io::ErrorKind::ConnectionRefused => "nobody listens any more".to_owned(),
                    _ => e.to_string(),
                };
                let _ = write!(tried, "\n  {}: {why}", place.display());
            }
        }
    }
    bail!(
        "no recorder listens for annotations: start `warptrace trace --annotate`, or run the job by \
         `warptrace record --annotate -- CMD`; tried:{tried}"
    )
}

/// Sends what one connection may send in a second, and waits until it has been read.
fn send(mut stream: UnixStream, lines: &[Vec<u8>]) -> anyhow::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&lines.concat())?;
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0; 1]) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
            bail!("it was handed over, but the recorder has not read it in {PATIENCE:?}")
        }
        Err(e) => Err(e).context("the recorder hung up before it had read everything"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Vec<String>, String> {
        let lines = check("f", text.as_bytes()).map_err(|e| e.to_string())?;
        let text = |line: Vec<u8>| String::from_utf8(line).unwrap();
        Ok(lines.into_iter().map(text).collect())
    }

    #[test]
    fn lines_are_trimmed_and_sent_as_they_are() {
        let got = checked(
            "\n  {\"labels\": {\"k\":\"é\"}, \"other\":1} \r\n\t\n{\"labels\":{\"k\":\"v\"}}",
        );
        let want = [
            "{\"labels\": {\"k\":\"é\"}, \"other\":1}\n",
            "{\"labels\":{\"k\":\"v\"}}\n",
        ];
        assert_eq!(got.unwrap(), want);
    }

    #[test]
    fn bad_lines_are_named_and_nothing_goes() {
        let text = format!(
            "{{\"labels\":{{\"k\":\"v\"}}}}\n\nnot json\n{}",
            "{}\n".repeat(12)
        );
        let error = checked(&text).unwrap_err();
        assert!(error.starts_with("13 of 14 lines are wrong, nothing was sent:\n  f:3: not one JSON object\n  f:4: no labels"));
        assert!(error.ends_with("\n  and 3 more"), "{error}");
        assert_eq!(checked(" \n").unwrap_err(), "f has no lines");
        let long = format!("{{}}\n{}", "x".repeat(100_000));
        assert_eq!(
            checked(&long).unwrap_err(),
            "f:2: more than 16384 bytes (nothing was sent)"
        );
    }
}
