//! Spans: named units of the job's own work, as its SDK says them and as OTLP carries them.
//!
//! Plain data. The living span, which a program starts and stops, is the SDK's.

use std::fmt;

use crate::{Object, UnixNanos};

/// Identity of a span: 128 random bits in the form of a UUID (version 4, RFC 9562).
///
/// Its low 64 bits, of which 62 are random and which are never zero, are its id in OTLP; all of a root's are its trace's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(u128);

impl SpanId {
    /// Of 128 random bits, of which 122 are kept.
    pub const fn from_random(bits: u128) -> SpanId {
        const VERSION: u128 = 0xf << 76;
        const VARIANT: u128 = 0b11 << 62;
        SpanId(bits & !VERSION & !VARIANT | 4 << 76 | 0b10 << 62)
    }

    /// The id with exactly these bits, whatever their version.
    pub const fn from_bits(bits: u128) -> SpanId {
        SpanId(bits)
    }

    pub const fn to_bits(self) -> u128 {
        self.0
    }

    /// The id in OTLP, which has 64 bits.
    pub const fn otlp(self) -> u64 {
        self.0 as u64
    }

    /// Reads `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, in either case, or 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<SpanId> {
        let mut bits = 0_u128;
        let mut digits = 0;
        for (at, byte) in text.bytes().enumerate() {
            if byte == b'-' && text.len() == 36 && matches!(at, 8 | 13 | 18 | 23) {
                continue;
            }
            bits = bits << 4 | u128::from(char::from(byte).to_digit(16)?);
            digits += 1;
        }
        (digits == 32).then_some(SpanId(bits))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            (b >> 96) as u32,
            (b >> 80) as u16,
            (b >> 64) as u16,
            (b >> 48) as u16,
            b & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A place in a trace that something can be the child of: our own span, or another library's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanContext {
    /// Not zero.
    pub trace: u128,
    /// Not zero.
    pub span: u64,
}

impl SpanContext {
    /// The value of the header `traceparent` (W3C Trace Context, level 1), with the flag that says it is recorded.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-01", self.trace, self.span)
    }

    /// Reads that header; of a later version what this one has. `None` for what is not valid.
    pub fn parse_traceparent(text: &str) -> Option<SpanContext> {
        let hex = |text: &str, len: usize| {
            let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            (text.len() == len && digits).then(|| u128::from_str_radix(text, 16).ok())?
        };
        let mut parts = text.split('-');
        let version = hex(parts.next()?, 2)?;
        let trace = hex(parts.next()?, 32)?;
        let span = hex(parts.next()?, 16)?;
        hex(parts.next()?, 2)?;
        let more = parts.next().is_some();
        if version == 0xff || (version == 0 && more) || trace == 0 || span == 0 {
            return None;
        }
        Some(SpanContext {
            trace,
            span: u64::try_from(span).ok()?,
        })
    }
}

/// Something that happened in a span.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanEvent {
    pub name: Box<str>,
    pub at: UnixNanos,
    pub attributes: Object,
}

/// A span as it stands: finished, or still open.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanRecord {
    pub trace: u128,
    pub id: SpanId,
    /// In the same trace.
    pub parent: Option<u64>,
    pub name: Box<str>,
    pub start: UnixNanos,
    /// `None` while it is open.
    pub end: Option<UnixNanos>,
    pub attributes: Object,
    pub events: Vec<SpanEvent>,
    /// Events that happened but are not in `events`, which has a bound.
    pub dropped_events: u32,
    /// What went wrong in it, when something did: OTLP's status `ERROR` and its description.
    pub error: Option<Box<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_reads_back_and_what_is_not_one_does_not() {
        let context = SpanContext {
            trace: 0xabc,
            span: 7,
        };
        let text = context.traceparent();
        assert_eq!(
            text,
            "00-00000000000000000000000000000abc-0000000000000007-01"
        );
        assert_eq!(SpanContext::parse_traceparent(&text), Some(context));
        let later = format!("{}-more", text.replacen("00", "01", 1));
        assert_eq!(SpanContext::parse_traceparent(&later), Some(context));
        for bad in [
            "",
            "00-0-0-01",
            "ff-00000000000000000000000000000abc-0000000000000007-01",
            "00-00000000000000000000000000000000-0000000000000007-01",
            "00-00000000000000000000000000000abc-0000000000000000-01",
            "00-00000000000000000000000000000ABC-0000000000000007-01",
            "00-00000000000000000000000000000abc-0000000000000007-01-x",
        ] {
            assert_eq!(SpanContext::parse_traceparent(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_id_is_a_uuid_of_version_4_and_reads_back() {
        for bits in [0, u128::MAX, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
            let id = SpanId::from_random(bits);
            let text = id.to_string();
            assert_eq!(text.len(), 36);
            assert_eq!(text.as_bytes()[14], b'4', "{text}");
            assert!(b"89ab".contains(&text.as_bytes()[19]), "{text}");
            assert_eq!(SpanId::parse(&text), Some(id));
            assert_eq!(SpanId::parse(&text.replace('-', "")), Some(id));
            assert_ne!(id.otlp(), 0);
        }
        for bad in ["", "1", "0123456789abcdef0123456789abcde-", "zz"] {
            assert_eq!(SpanId::parse(bad), None, "{bad}");
        }
    }
}
