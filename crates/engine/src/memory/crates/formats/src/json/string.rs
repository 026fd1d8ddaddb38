//! Strings as they stand in the input: where they end, what their escapes name, and what to do with what is no character.

use std::borrow::Cow;

use super::ErrorKind;

/// A string as it stands in the input, between its quotes; its escapes are known to be well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Str<'a> {
    raw: &'a [u8],
    escaped: bool,
    ascii: bool,
}

/// What [`Str::decode`] makes of escapes that name half of a surrogate pair, and of bytes that are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalid {
    /// Nothing: the string is refused.
    Refuse,
    /// U+FFFD for each lone surrogate and each maximal ill-formed sequence (as WHATWG and Python's `replace` do).
    Replace,
    /// U+FFFD for each lone surrogate and each byte that belongs to no character (as Go does).
    ReplaceBytes,
}

impl<'a> Str<'a> {
    /// A string whose `raw` bytes have been scanned.
    pub(super) fn of(raw: &'a [u8], scanned: Scanned) -> Str<'a> {
        Str {
            raw,
            escaped: scanned.escaped,
            ascii: scanned.ascii,
        }
    }

    /// A string from the bytes between its quotes. `None` when they hold a raw quote, a control character or a bad escape.
    pub fn from_raw(raw: &'a [u8]) -> Option<Str<'a>> {
        // Well formed is what goes on to its very end without meeting a quote.
        match scan(raw, 0) {
            Err((ErrorKind::UnterminatedString, at)) if at == raw.len() => Some(Str {
                raw,
                escaped: raw.contains(&b'\\'),
                ascii: raw.is_ascii(),
            }),
            _ => None,
        }
    }

    /// The bytes between the quotes, escapes and all.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Whether it has escapes.
    pub fn is_escaped(&self) -> bool {
        self.escaped
    }

    /// Whether all its bytes are ASCII; what its escapes name may not be.
    pub fn is_ascii(&self) -> bool {
        self.ascii
    }

    /// Whether it is `text`, after unescaping. No allocation.
    #[inline]
    pub fn is(&self, text: &str) -> bool {
        if !self.escaped {
            return self.raw == text.as_bytes();
        }
        let (mut rest, mut pieces) = (text.as_bytes(), Pieces { raw: self.raw });
        let mut utf8 = [0; 4];
        loop {
            let piece = match pieces.next() {
                None => return rest.is_empty(),
                Some(Piece::Bytes(bytes)) => bytes,
                Some(Piece::Char(c)) => c.encode_utf8(&mut utf8).as_bytes(),
                Some(Piece::Surrogate(_)) => return false,
            };
            match rest.strip_prefix(piece) {
                Some(r) => rest = r,
                None => return false,
            }
        }
    }

    /// The text, unescaped. `None` for what `invalid` refuses. Borrows when there is nothing to change.
    pub fn decode(&self, invalid: Invalid) -> Option<Cow<'a, str>> {
        if !self.escaped {
            return match std::str::from_utf8(self.raw) {
                Ok(text) => Some(Cow::Borrowed(text)),
                Err(_) if invalid == Invalid::Refuse => None,
                Err(_) => {
                    let mut text = String::with_capacity(self.raw.len() + 8);
                    push_lossy(&mut text, self.raw, invalid);
                    Some(Cow::Owned(text))
                }
            };
        }
        let mut text = String::with_capacity(self.raw.len());
        for piece in (Pieces { raw: self.raw }) {
            match piece {
                Piece::Char(c) => text.push(c),
                Piece::Bytes(bytes) => match std::str::from_utf8(bytes) {
                    Ok(bytes) => text.push_str(bytes),
                    Err(_) if invalid == Invalid::Refuse => return None,
                    Err(_) => push_lossy(&mut text, bytes, invalid),
                },
                Piece::Surrogate(_) if invalid == Invalid::Refuse => return None,
                Piece::Surrogate(_) => text.push(char::REPLACEMENT_CHARACTER),
            }
        }
        Some(Cow::Owned(text))
    }

    /// The text with every lone surrogate, named by an escape, as the three bytes of its generalised UTF-8 (WTF-8), and
    /// every other byte as it is. Never fails; equal strings give equal bytes.
    #[inline]
    pub fn decode_wtf8(&self) -> Cow<'a, [u8]> {
        if !self.escaped {
            return Cow::Borrowed(self.raw);
        }
        let mut bytes = Vec::with_capacity(self.raw.len());
        let mut utf8 = [0; 4];
        for piece in (Pieces { raw: self.raw }) {
            match piece {
                Piece::Char(c) => bytes.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes()),
                Piece::Bytes(piece) => bytes.extend_from_slice(piece),
                Piece::Surrogate(half) => bytes.extend_from_slice(&[
                    0xe0 | (half >> 12) as u8,
                    0x80 | (half >> 6 & 0x3f) as u8,
                    0x80 | (half & 0x3f) as u8,
                ]),
            }
        }
        Cow::Owned(bytes)
    }
}

/// Appends `bytes`, with U+FFFD for what is not UTF-8.
fn push_lossy(text: &mut String, bytes: &[u8], invalid: Invalid) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        let replacements = match (chunk.invalid().len(), invalid) {
            (0, _) => 0,
            (n, Invalid::ReplaceBytes) => n,
            (_, _) => 1,
        };
        text.extend(std::iter::repeat_n(
            char::REPLACEMENT_CHARACTER,
            replacements,
        ));
    }
}

/// A stretch of a string without escapes, or what one escape (or one pair of them) names.
enum Piece<'a> {
    Bytes(&'a [u8]),
    Char(char),
    Surrogate(u16),
}

/// The pieces of a string whose escapes are well formed.
struct Pieces<'a> {
    raw: &'a [u8],
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let raw = self.raw;
        let (&first, _) = raw.split_first()?;
        if first != b'\\' {
            let end = raw.iter().position(|&b| b == b'\\').unwrap_or(raw.len());
            self.raw = &raw[end..];
            return Some(Piece::Bytes(&raw[..end]));
        }
        let (piece, length) = match raw.get(1)? {
            b'n' => (Piece::Char('\n'), 2),
            b't' => (Piece::Char('\t'), 2),
            b'r' => (Piece::Char('\r'), 2),
            b'b' => (Piece::Char('\u{8}'), 2),
            b'f' => (Piece::Char('\u{c}'), 2),
            b'u' => {
                let unit = hex4(raw.get(2..6)?)?;
                let low = raw
                    .get(6..12)
                    .filter(|next| next.starts_with(b"\\u"))
                    .and_then(|next| hex4(&next[2..]))
                    .filter(|low| (0xdc00..0xe000).contains(low));
                match (unit, low) {
                    (0xd800..0xdc00, Some(low)) => {
                        let c =
                            0x1_0000 + (u32::from(unit - 0xd800) << 10) + u32::from(low - 0xdc00);
                        (Piece::Char(char::from_u32(c)?), 12)
                    }
                    (0xd800..0xe000, _) => (Piece::Surrogate(unit), 6),
                    _ => (Piece::Char(char::from_u32(u32::from(unit))?), 6),
                }
            }
            &other => (Piece::Char(char::from(other)), 2),
        };
        self.raw = &raw[length..];
        Some(piece)
    }
}

fn hex4(digits: &[u8]) -> Option<u16> {
    if digits.len() != 4 {
        return None;
    }
    digits.iter().try_fold(0, |value: u16, &digit| {
        Some(value << 4 | char::from(digit).to_digit(16)? as u16)
    })
}

/// What the bytes of a string were found to be.
pub(super) struct Scanned {
    /// Offset of the closing quote.
    pub(super) end: usize,
    pub(super) escaped: bool,
    pub(super) ascii: bool,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Looks for the quote that ends the string which begins at `at`, eight bytes at a time.
#[inline]
pub(super) fn scan(bytes: &[u8], mut at: usize) -> Result<Scanned, (ErrorKind, usize)> {
    let (mut escaped, mut high_bits) = (false, 0u64);
    loop {
        // In `stops` the high bit of a byte is set if that byte is a quote, a backslash or below 0x20. A borrow can set
        // others only above the first true one (Lamport, "Multiple byte processing with full-word instructions", 1975).
        while let Some(word) = bytes.get(at..at + 8) {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            let quote = word ^ (ONES * b'"' as u64);
            let backslash = word ^ (ONES * b'\\' as u64);
            let stops = ((word.wrapping_sub(ONES * 0x20) & !word)
                | (quote.wrapping_sub(ONES) & !quote)
                | (backslash.wrapping_sub(ONES) & !backslash))
                & HIGH;
            if stops != 0 {
                let first = stops.trailing_zeros() & !7;
                high_bits |= word & !(u64::MAX << first);
                at += (first / 8) as usize;
                break;
            }
            high_bits |= word;
            at += 8;
        }
        let byte = loop {
            match bytes.get(at) {
                None => return Err((ErrorKind::UnterminatedString, at)),
                Some(&byte @ (b'"' | b'\\' | 0..0x20)) => break byte,
                Some(&byte) => {
                    high_bits |= u64::from(byte);
                    at += 1;
                }
            }
        };
        match byte {
            b'"' => {
                return Ok(Scanned {
                    end: at,
                    escaped,
                    ascii: high_bits & HIGH == 0,
                });
            }
            b'\\' => {
                escaped = true;
                at += escape_length(bytes, at)?;
            }
            _ => return Err((ErrorKind::ControlCharacter, at)),
        }
    }
}

/// Bytes of the escape at `at`.
fn escape_length(bytes: &[u8], at: usize) -> Result<usize, (ErrorKind, usize)> {
    match bytes.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(2),
        Some(b'u') if bytes.get(at + 2..at + 6).and_then(hex4).is_some() => Ok(6),
        Some(b'u') => Err((ErrorKind::BadUnicodeEscape, at)),
        Some(_) => Err((ErrorKind::BadEscape, at)),
        None => Err((ErrorKind::UnterminatedString, at)),
    }
}

/// Appends `text` to `out` as the inside of a JSON string: quote, backslash and what is below 0x20 escaped, the short forms
/// where there are some and `\u00xx` in lower case otherwise; all else as it is.
pub fn escape_into(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut from = 0;
    for (i, &byte) in bytes.iter().enumerate() {
        let short = match byte {
            b'"' | b'\\' => byte,
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x08 => b'b',
            0x0c => b'f',
            0..0x20 => b'u',
            _ => continue,
        };
        out.extend_from_slice(&bytes[from..i]);
        out.extend_from_slice(&[b'\\', short]);
        if short == b'u' {
            let hex = b"0123456789abcdef";
            out.extend_from_slice(&[b'0', b'0', hex[usize::from(byte >> 4)]]);
            out.push(hex[usize::from(byte & 15)]);
        }
        from = i + 1;
    }
    out.extend_from_slice(&bytes[from..]);
}
