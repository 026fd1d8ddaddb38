//! Where lines end, and how many of them may come.

use super::MAX_LINE_BYTES;

/// A line longer than [`MAX_LINE_BYTES`]: where the next one begins is not worth knowing, so the connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line of more than {MAX_LINE_BYTES} bytes")]
pub struct Oversized;

/// Splits a stream that comes in chunks of any size at its line feeds.
///
/// One carriage return before a line feed, or before the end, does not belong to the line. Empty lines are skipped. Memory:
/// the unfinished line, 16 KiB at most; between lines nothing. Cost: lines that lie in one chunk are not copied.
#[derive(Debug, Default)]
pub struct Lines {
    unfinished: Vec<u8>,
}

impl Lines {
    /// Hands every line that `chunk` ends to `each`, without its line feed.
    ///
    /// # Errors
    /// [`Oversized`], after the lines before it. The stream is then of no more use.
    pub fn push(&mut self, mut chunk: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), Oversized> {
        if !self.unfinished.is_empty() {
            let Some(end) = memchr::memchr(b'\n', chunk) else {
                return self.keep(chunk);
            };
            self.keep(&chunk[..end])?;
            chunk = &chunk[end + 1..];
            self.end(&mut each);
        }
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', chunk) {
            let line = &chunk[start..end];
            if line.len() >= MAX_LINE_BYTES {
                return Err(Oversized);
            }
            hand_on(line, &mut each);
            start = end + 1;
        }
        self.keep(&chunk[start..])
    }

    /// The stream has ended: what stands there without a line feed is a line, too.
    pub fn finish(&mut self, mut each: impl FnMut(&[u8])) {
        self.end(&mut each);
    }

    fn end(&mut self, each: &mut impl FnMut(&[u8])) {
        hand_on(&self.unfinished, each);
        // Most lines lie within one chunk: what a long one took is not kept for every connection.
        self.unfinished = Vec::new();
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), Oversized> {
        if self.unfinished.len() + bytes.len() >= MAX_LINE_BYTES {
            return Err(Oversized);
        }
        self.unfinished.extend_from_slice(bytes);
        Ok(())
    }
}

fn hand_on(line: &[u8], each: &mut impl FnMut(&[u8])) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if !line.is_empty() {
        each(line);
    }
}

/// A limit of lines in a fixed window of one second, which begins at the first line that it counts.
#[derive(Debug, Clone, Copy)]
pub struct RateWindow {
    limit: u32,
    start_nanos: Option<u64>,
    used: u32,
}

const WINDOW_NANOS: u64 = 1_000_000_000;

impl RateWindow {
    pub const fn new(limit: u32) -> RateWindow {
        RateWindow {
            limit,
            start_nanos: None,
            used: 0,
        }
    }

    /// Counts one, and says whether it is within the limit. `now_nanos` is of any one clock that does not go back.
    pub fn take(&mut self, now_nanos: u64) -> bool {
        match self.start_nanos {
            Some(start) if now_nanos.saturating_sub(start) < WINDOW_NANOS => {}
            _ => {
                self.start_nanos = Some(now_nanos);
                self.used = 0;
            }
        }
        let within = self.used < self.limit;
        self.used = self.used.saturating_add(1);
        within
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[&[u8]]) -> (Vec<Vec<u8>>, Result<(), Oversized>) {
        let (mut out, mut lines) = (Vec::new(), Lines::default());
        for chunk in chunks {
            if let Err(e) = lines.push(chunk, |l| out.push(l.to_vec())) {
                return (out, Err(e));
            }
        }
        lines.finish(|l| out.push(l.to_vec()));
        (out, Ok(()))
    }

    #[test]
    fn a_line_is_as_long_as_the_limit_with_its_line_feed() {
        let line = vec![b'x'; MAX_LINE_BYTES - 1];
        let fits = [&line[..], b"\n"].concat();
        assert_eq!(split(&[&fits]), (vec![line.clone()], Ok(())));
        assert_eq!(split(&[&line]), (vec![line.clone()], Ok(())));
        let long = [&line[..], b"x\n"].concat();
        assert_eq!(
            split(&[b"a\n", &long, b"b\n"]),
            (vec![b"a".to_vec()], Err(Oversized))
        );
        // The carriage return counts.
        let long = [&line[..], b"\r\n"].concat();
        assert_eq!(split(&[&long]).1, Err(Oversized));
        let endless = [b'x'; 1000];
        assert_eq!(split(&[endless.as_slice(); 17]).1, Err(Oversized));
    }

    #[test]
    fn one_carriage_return_goes_and_empty_lines_are_none() {
        let (lines, _) = split(&[b"\n\r\na\r\r\n \n\r\nb\r"]);
        assert_eq!(lines, [b"a\r".to_vec(), b" ".to_vec(), b"b".to_vec()]);
    }

    #[test]
    fn a_window_begins_with_its_first_line_and_ends_a_second_later() {
        let mut window = RateWindow::new(2);
        let at = [
            5,
            6,
            7,
            WINDOW_NANOS + 4,
            WINDOW_NANOS + 5,
            WINDOW_NANOS + 6,
        ];
        assert_eq!(
            at.map(|t| window.take(t)),
            [true, true, false, false, true, true]
        );
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_stream_was_cut(
            stream in prop::collection::vec(prop_oneof![4 => Just(b'a'), 1 => Just(b'\n'), 1 => Just(b'\r')], 0..200),
            long in prop::option::of(16_370usize..16_400),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut stream = stream;
            if let Some(long) = long {
                stream.extend(vec![b'l'; long]);
                stream.extend_from_slice(b"\nend");
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.push(stream.len());
            let mut from = 0;
            let mut chunks = Vec::new();
            for cut in cuts {
                chunks.push(&stream[from..cut]);
                from = cut;
            }
            prop_assert_eq!(split(&chunks), split(&[&stream]));
        }
    }
}
