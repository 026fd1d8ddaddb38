//! Bytes to lines: fed with chunks that may end anywhere.

/// The longest line that is kept by default, without its line feed.
pub const DEFAULT_LINE_LIMIT: usize = 8 << 20;

/// One physical line, without its line feed (a carriage return stays, as whitespace).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// From 1, blank lines counted as an editor does.
    pub number: u64,
    /// Of its first byte in the file.
    pub offset: u64,
    /// Whether a line feed ended it. The last line of a file may lack one.
    pub terminated: bool,
    /// `None` when it is above the limit: its bytes were not kept.
    pub bytes: Option<&'a [u8]>,
}

/// Splits a stream at line feeds, and at nothing else.
///
/// A byte-order mark at the beginning is skipped. Memory: a line that lies in one chunk is not copied; of others at most the
/// limit is kept.
#[derive(Debug, Clone)]
pub struct Lines {
    limit: usize,
    /// What has come of the line that has not ended.
    partial: Vec<u8>,
    /// That line is above the limit.
    too_long: bool,
    /// Bytes in all chunks so far, less the byte-order mark's.
    offset: u64,
    line_offset: u64,
    number: u64,
}

const BOM: &[u8] = b"\xef\xbb\xbf";

impl Lines {
    /// Lines of up to `limit` bytes; longer ones are reported without their bytes.
    pub fn new(limit: usize) -> Lines {
        Lines {
            limit,
            partial: Vec::new(),
            too_long: false,
            offset: 0,
            line_offset: 0,
            number: 0,
        }
    }

    /// Takes the next bytes, and calls `each` for every line that ends in them.
    pub fn feed(&mut self, chunk: &[u8], mut each: impl FnMut(Line<'_>)) {
        let mut rest = chunk;
        while let Some(end) = find_lf(rest) {
            let (head, tail) = (&rest[..end], &rest[end + 1..]);
            rest = tail;
            if self.partial.is_empty() && !self.too_long {
                let next = self.offset + end as u64 + 1;
                let line = (head.len() <= self.limit).then_some(head);
                self.emit(line, true, &mut each);
                self.offset = next;
            } else {
                self.keep(head);
                self.offset += 1;
                let line = std::mem::take(&mut self.partial);
                let kept = (!self.too_long).then_some(line.as_slice());
                self.emit(kept, true, &mut each);
                self.partial = line;
                self.partial.clear();
                // One long line should not hold its memory for all the short ones after it.
                if self.partial.capacity() > 1 << 20 {
                    self.partial = Vec::new();
                }
            }
            self.too_long = false;
            self.line_offset = self.offset;
        }
        self.keep(rest);
    }

    /// Ends the stream: a last line without a line feed is reported, and then `true` returned.
    pub fn finish(mut self, mut each: impl FnMut(Line<'_>)) -> bool {
        let torn = self.offset > self.line_offset;
        if torn {
            let line = std::mem::take(&mut self.partial);
            let kept = (!self.too_long).then_some(line.as_slice());
            self.emit(kept, false, &mut each);
        }
        torn
    }

    /// Bytes of the line that has not ended yet.
    pub fn pending_bytes(&self) -> u64 {
        self.offset - self.line_offset
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.offset += bytes.len() as u64;
        if self.too_long || bytes.len() > self.limit - self.partial.len().min(self.limit) {
            self.too_long = true;
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }

    fn emit(&mut self, bytes: Option<&[u8]>, terminated: bool, each: &mut impl FnMut(Line<'_>)) {
        self.number += 1;
        let mut line = Line {
            number: self.number,
            offset: self.line_offset,
            terminated,
            bytes,
        };
        if line.number == 1
            && let Some(text) = bytes.and_then(|b| b.strip_prefix(BOM))
        {
            line.bytes = Some(text);
            line.offset = BOM.len() as u64;
        }
        each(line);
    }
}

/// Where the first line feed is: eight bytes at a time, as in [`crate::json`].
#[inline]
fn find_lf(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let (words, tail) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word) ^ (ONES * b'\n' as u64);
        let found = word.wrapping_sub(ONES) & !word & HIGH;
        if found != 0 {
            return Some(i * 8 + (found.trailing_zeros() / 8) as usize);
        }
    }
    let at = tail.iter().position(|&b| b == b'\n')?;
    Some(words.len() * 8 + at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Seen = Vec<(u64, u64, bool, Option<Vec<u8>>)>;

    fn split(chunks: &[&[u8]], limit: usize) -> (Seen, bool) {
        let mut seen = Vec::new();
        let mut each = |l: Line<'_>| {
            seen.push((
                l.number,
                l.offset,
                l.terminated,
                l.bytes.map(<[u8]>::to_vec),
            ));
        };
        let mut lines = Lines::new(limit);
        for chunk in chunks {
            lines.feed(chunk, &mut each);
        }
        let torn = lines.finish(&mut each);
        (seen, torn)
    }

    #[test]
    fn lines_end_at_line_feeds_alone_and_a_mark_is_skipped_at_the_beginning_alone() {
        let text = "\u{feff}a\r\n\n\u{feff}b\u{2028}c";
        let (seen, torn) = split(&[text.as_bytes()], 100);
        assert_eq!(
            seen,
            [
                (1, 3, true, Some(b"a\r".to_vec())),
                (2, 6, true, Some(vec![])),
                (3, 7, false, Some("\u{feff}b\u{2028}c".as_bytes().to_vec())),
            ]
        );
        assert!(torn);
        assert_eq!(
            split(&[b"a\n"], 100),
            (vec![(1, 0, true, Some(b"a".to_vec()))], false)
        );
        assert_eq!(split(&[], 100), (vec![], false));
    }

    #[test]
    fn a_line_above_the_limit_costs_itself_alone() {
        let (seen, torn) = split(&[b"12", b"345\n1234\n123", b"45", b"6"], 4);
        assert_eq!(
            seen,
            [
                (1, 0, true, None),
                (2, 6, true, Some(b"1234".to_vec())),
                (3, 11, false, None)
            ]
        );
        assert!(torn);
    }

    proptest! {
        #[test]
        fn chunks_may_end_anywhere(
            text in prop::collection::vec(prop::sample::select(b"ab\n\n\r\xef\xbb\xbf".to_vec()), 0..80),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            limit in 0usize..12,
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|i| i.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let whole = split(&[&text], limit);
            prop_assert_eq!(split(&chunks, limit), whole.clone());
            // Against the standard library's own splitting.
            let mut expected: Vec<&[u8]> = text.split(|&b| b == b'\n').collect();
            if expected.last().is_some_and(|l| l.is_empty()) { expected.pop(); }
            prop_assert_eq!(whole.0.len(), expected.len());
            for ((_, _, _, got), want) in whole.0.iter().zip(expected) {
                if let Some(got) = got {
                    prop_assert!(want.ends_with(got) && want.len() - got.len() <= 3);
                } else {
                    prop_assert!(want.len() > limit);
                }
            }
        }
    }
}
