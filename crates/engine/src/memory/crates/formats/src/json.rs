//! JSON as a stream of tokens over bytes, with the place of each.
//!
//! Every format here has rules that a general library cannot give: which of two equal keys wins, raw bytes kept, lone
//! surrogates, integers of any size, `NaN`. So this module knows the grammar (RFC 8259) and nothing else: it neither
//! builds values nor judges keys. One [`Reader`] walks one document; what it returns borrows from the input.
//!
//! Cost: one pass, no recursion; no allocation up to 64 levels of nesting, nor for strings without escapes. The memory
//! of deeper documents is one bit a level, and [`Options::max_depth`] bounds it.

mod number;
mod string;

use std::ops::Range;

pub use self::number::Number;
use self::string::scan;
pub use self::string::{Invalid, Str, escape_into};

/// What a [`Reader`] accepts. The default is RFC 8259 with valid UTF-8 and at most 512 levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Levels of arrays and objects at most; one more is [`ErrorKind::TooDeep`].
    pub max_depth: u32,
    /// Also take `NaN`, `Infinity` and `-Infinity` as values, as Python's `json` writes them.
    pub non_finite: bool,
    /// Refuse strings that are not UTF-8. Without it their bytes are left to the consumer ([`Str::decode`]).
    pub check_utf8: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_depth: 512,
            non_finite: false,
            check_utf8: true,
        }
    }
}

/// One token. Commas and colons are checked, and not reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Token<'a> {
    ObjectStart,
    ObjectEnd,
    ArrayStart,
    ArrayEnd,
    /// A member's name; its value is what comes next.
    Key(Str<'a>),
    String(Str<'a>),
    Number(Number<'a>),
    /// `NaN`, `Infinity` or `-Infinity`; only with [`Options::non_finite`].
    NonFinite(f64),
    Bool(bool),
    Null,
}

/// Why bytes are not a document, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at byte {at}")]
pub struct Error {
    pub kind: ErrorKind,
    /// Offset in the input, from 0; the input's length when it ends too soon.
    pub at: usize,
}

/// What was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// The input ended outside of a string, with something still to come.
    #[error("unexpected end")]
    UnexpectedEnd,
    #[error("expected a value")]
    ExpectedValue,
    /// After `{` or a comma of an object. With `at` on `}` it is a trailing comma.
    #[error("expected a key")]
    ExpectedKey,
    #[error("expected a colon")]
    ExpectedColon,
    #[error("expected a comma or the end of the object")]
    ExpectedCommaOrObjectEnd,
    #[error("expected a comma or the end of the array")]
    ExpectedCommaOrArrayEnd,
    /// Something other than whitespace after the document.
    #[error("more after the end of the value")]
    TrailingData,
    /// A string without its closing quote; `at` is its opening one.
    #[error("string without an end")]
    UnterminatedString,
    /// A raw byte below 0x20 in a string.
    #[error("control character in a string")]
    ControlCharacter,
    /// A backslash before something that no escape begins with; `at` is the backslash.
    #[error("invalid escape")]
    BadEscape,
    /// `\u` without four hexadecimal digits; `at` is the backslash.
    #[error("invalid \\u escape")]
    BadUnicodeEscape,
    /// A leading zero or plus, a point or exponent without digits.
    #[error("invalid number")]
    BadNumber,
    /// `at` is the first byte that belongs to no character.
    #[error("invalid UTF-8")]
    BadUtf8,
    #[error("nested too deeply")]
    TooDeep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A value must come.
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After `{`.
    KeyOrEnd,
    /// After a value.
    Next,
}

/// Walks one document: [`Reader::next`] until `None`, which says that nothing but whitespace follows.
///
/// After an error the reader is of no more use.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    token: usize,
    state: State,
    depth: u32,
    /// The innermost (up to 64) open containers, the last one in bit 0: whether each is an object.
    objects: u64,
    /// The containers around those, 64 in each.
    outer: Vec<u64>,
    options: Options,
}

impl<'a> Reader<'a> {
    /// A reader with the default [`Options`].
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader::with_options(bytes, Options::default())
    }

    pub fn with_options(bytes: &'a [u8], options: Options) -> Reader<'a> {
        Reader {
            bytes,
            at: 0,
            token: 0,
            state: State::Value,
            depth: 0,
            objects: 0,
            outer: Vec::new(),
            options,
        }
    }

    /// Where the last token stands: strings with their quotes, keys without the colon after them.
    pub fn range(&self) -> Range<usize> {
        let end = match self.bytes.get(self.token) {
            // A key's colon has been taken, too.
            Some(b'"') => {
                let taken = &self.bytes[self.token..self.at];
                self.token + taken.iter().rposition(|&b| b == b'"').unwrap_or(0) + 1
            }
            _ => self.at,
        };
        self.token..end
    }

    /// Offset of the first byte that has not been looked at yet.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Open arrays and objects: 0 before the first token, and after the last one of the document.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// The next token, or `None` at the end of the document.
    ///
    /// # Errors
    /// Where and why the input is not a document. Something after its end is [`ErrorKind::TrailingData`].
    #[expect(
        clippy::should_implement_trait,
        reason = "`?` inside the loop wants Result outside of Option"
    )]
    #[inline]
    pub fn next(&mut self) -> Result<Option<Token<'a>>, Error> {
        let mut byte = self.peek();
        match self.state {
            State::Value => {}
            State::ValueOrEnd => {
                if byte == Some(b']') {
                    return Ok(Some(self.close(Token::ArrayEnd)));
                }
            }
            State::KeyOrEnd => {
                return match byte {
                    Some(b'}') => Ok(Some(self.close(Token::ObjectEnd))),
                    _ => self.key(byte).map(Some),
                };
            }
            State::Next if self.depth == 0 => {
                return match byte {
                    None => Ok(None),
                    Some(_) => Err(self.error(ErrorKind::TrailingData)),
                };
            }
            State::Next => {
                let in_object = self.objects & 1 == 1;
                match byte {
                    Some(b',') => {
                        self.at += 1;
                        byte = self.peek();
                        if in_object {
                            return self.key(byte).map(Some);
                        }
                    }
                    Some(b'}') if in_object => return Ok(Some(self.close(Token::ObjectEnd))),
                    Some(b']') if !in_object => return Ok(Some(self.close(Token::ArrayEnd))),
                    None => return Err(self.error(ErrorKind::UnexpectedEnd)),
                    Some(_) if in_object => {
                        return Err(self.error(ErrorKind::ExpectedCommaOrObjectEnd));
                    }
                    Some(_) => return Err(self.error(ErrorKind::ExpectedCommaOrArrayEnd)),
                }
            }
        }
        self.value(byte).map(Some)
    }

    /// Goes past the next value, whatever it holds, and returns where it stands. To be called where a value must come: at
    /// the beginning, or after a key.
    ///
    /// # Errors
    /// As [`Reader::next`]; what is skipped is checked all the same.
    pub fn skip_value(&mut self) -> Result<Range<usize>, Error> {
        let depth = self.depth;
        let first = self.next()?;
        let start = self.token;
        if matches!(first, Some(Token::ObjectStart | Token::ArrayStart)) {
            self.skip_to(depth)?;
        }
        Ok(start..self.at)
    }

    /// Goes on until only `depth` containers are open: with [`Reader::depth`] as it was before the container that
    /// [`Token::ObjectStart`] or [`Token::ArrayStart`] began, to the end of that container.
    ///
    /// # Errors
    /// As [`Reader::next`].
    pub fn skip_to(&mut self, depth: u32) -> Result<(), Error> {
        while self.depth > depth {
            self.next()?;
        }
        Ok(())
    }

    #[inline]
    fn error(&self, kind: ErrorKind) -> Error {
        Error { kind, at: self.at }
    }

    /// The next byte that is not whitespace, not taken.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                Some(&byte) => return Some(byte),
                None => return None,
            }
        }
    }

    #[inline]
    fn key(&mut self, byte: Option<u8>) -> Result<Token<'a>, Error> {
        match byte {
            Some(b'"') => {}
            None => return Err(self.error(ErrorKind::UnexpectedEnd)),
            Some(_) => return Err(self.error(ErrorKind::ExpectedKey)),
        }
        let start = self.at;
        let key = self.string()?;
        match self.peek() {
            Some(b':') => self.at += 1,
            None => return Err(self.error(ErrorKind::UnexpectedEnd)),
            Some(_) => return Err(self.error(ErrorKind::ExpectedColon)),
        }
        self.token = start;
        self.state = State::Value;
        Ok(Token::Key(key))
    }

    #[inline]
    fn value(&mut self, byte: Option<u8>) -> Result<Token<'a>, Error> {
        let Some(byte) = byte else {
            return Err(self.error(ErrorKind::UnexpectedEnd));
        };
        self.token = self.at;
        let token = match byte {
            b'"' => Token::String(self.string()?),
            b'{' => return self.open(true),
            b'[' => return self.open(false),
            b'-' if self.options.non_finite && self.word(b"-Infinity").is_some() => {
                Token::NonFinite(f64::NEG_INFINITY)
            }
            b'-' | b'0'..=b'9' => self.number()?,
            b't' if self.word(b"true").is_some() => Token::Bool(true),
            b'f' if self.word(b"false").is_some() => Token::Bool(false),
            b'n' if self.word(b"null").is_some() => Token::Null,
            b'N' if self.options.non_finite && self.word(b"NaN").is_some() => {
                Token::NonFinite(f64::NAN)
            }
            b'I' if self.options.non_finite && self.word(b"Infinity").is_some() => {
                Token::NonFinite(f64::INFINITY)
            }
            _ => return Err(self.error(ErrorKind::ExpectedValue)),
        };
        self.state = State::Next;
        Ok(token)
    }

    /// Takes `word` if it comes next.
    #[inline]
    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.bytes[self.at..].starts_with(word).then(|| {
            self.at += word.len();
        })
    }

    #[inline]
    fn open(&mut self, object: bool) -> Result<Token<'a>, Error> {
        if self.depth >= self.options.max_depth {
            return Err(self.error(ErrorKind::TooDeep));
        }
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.objects);
        }
        self.objects = self.objects << 1 | u64::from(object);
        self.depth += 1;
        self.at += 1;
        Ok(if object {
            self.state = State::KeyOrEnd;
            Token::ObjectStart
        } else {
            self.state = State::ValueOrEnd;
            Token::ArrayStart
        })
    }

    #[inline]
    fn close(&mut self, token: Token<'a>) -> Token<'a> {
        self.token = self.at;
        self.at += 1;
        self.depth -= 1;
        self.objects = if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.pop().unwrap_or_default()
        } else {
            self.objects >> 1
        };
        self.state = State::Next;
        token
    }

    /// The string whose opening quote comes next.
    #[inline]
    fn string(&mut self) -> Result<Str<'a>, Error> {
        let start = self.at + 1;
        let scanned = scan(self.bytes, start).map_err(|(kind, at)| match kind {
            ErrorKind::UnterminatedString => Error { kind, at: self.at },
            _ => Error { kind, at },
        })?;
        let raw = &self.bytes[start..scanned.end];
        if !scanned.ascii
            && self.options.check_utf8
            && let Err(e) = std::str::from_utf8(raw)
        {
            return Err(Error {
                kind: ErrorKind::BadUtf8,
                at: start + e.valid_up_to(),
            });
        }
        self.at = scanned.end + 1;
        Ok(Str::of(raw, scanned))
    }

    /// The number whose first byte comes next.
    #[inline]
    fn number(&mut self) -> Result<Token<'a>, Error> {
        let bytes = self.bytes;
        let digits = |mut at: usize| {
            while bytes.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            at
        };
        let bad = |at| Error {
            kind: ErrorKind::BadNumber,
            at,
        };
        let start = self.at;
        let first = start + usize::from(bytes[start] == b'-');
        let mut at = digits(first);
        if at == first || (bytes[first] == b'0' && at > first + 1) {
            return Err(bad(first));
        }
        if bytes.get(at) == Some(&b'.') {
            let fraction = at + 1;
            at = digits(fraction);
            if at == fraction {
                return Err(bad(at));
            }
        }
        if matches!(bytes.get(at), Some(b'e' | b'E')) {
            let signed = matches!(bytes.get(at + 1), Some(b'+' | b'-'));
            let exponent = at + 1 + usize::from(signed);
            at = digits(exponent);
            if at == exponent {
                return Err(bad(at));
            }
        }
        self.at = at;
        Ok(Token::Number(Number::of(&bytes[start..at])))
    }
}

#[cfg(test)]
mod tests;
