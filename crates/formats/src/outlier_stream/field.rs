//! Values of fields, to JSON and back.

use warptrace_model::UnixNanos;

use super::BadMessage;
use crate::json::{Invalid, Reader, Token, escape_into};
use crate::utc::{format_utc, parse_utc};

/// Why a message cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    #[error("a number is not finite")]
    NotFinite,
    #[error("the line is above {} bytes", super::MAX_LINE_BYTES)]
    TooLong,
}

/// A type that fields have.
pub(super) trait Field: Default {
    /// For a person: what is expected.
    const EXPECTED: &str;

    /// Whether it is left out where that is allowed: 0, empty, false.
    fn is_empty_value(&self) -> bool;

    fn write(&self, out: &mut Vec<u8>) -> Result<(), Unwritable>;

    /// Of the first token of a value that is not null; `None` if it is something else.
    fn read(first: Token<'_>, reader: &mut Reader<'_>) -> Result<Option<Self>, BadMessage>;
}

pub(super) fn write(out: &mut Vec<u8>, key: &str, value: &impl Field) -> Result<(), Unwritable> {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
    value.write(out)
}

/// The next value; null is the empty one.
pub(super) fn read<F: Field>(
    reader: &mut Reader<'_>,
    field: &'static str,
) -> Result<F, BadMessage> {
    let wrong = || BadMessage::Field {
        field,
        expected: F::EXPECTED,
    };
    match reader.next()?.ok_or_else(wrong)? {
        Token::Null => Ok(F::default()),
        first => F::read(first, reader)?.ok_or_else(wrong),
    }
}

macro_rules! integers {
    ($($int:ty, $read:ident, $expected:literal;)*) => {
        $(
            impl Field for $int {
                const EXPECTED: &str = $expected;

                fn is_empty_value(&self) -> bool {
                    *self == 0
                }

                fn write(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
                    out.extend_from_slice(self.to_string().as_bytes());
                    Ok(())
                }

                fn read(first: Token<'_>, _: &mut Reader<'_>) -> Result<Option<$int>, BadMessage> {
                    Ok(match first {
                        Token::Number(n) => n.$read().and_then(|n| n.try_into().ok()),
                        _ => None,
                    })
                }
            }
        )*
    };
}

integers! {
    u32, integral_u64, "an integer of 32 bits";
    u64, integral_u64, "an integer of 64 bits";
    i64, integral_i64, "an integer of 64 bits";
}

impl Field for f64 {
    const EXPECTED: &str = "a number";

    fn is_empty_value(&self) -> bool {
        *self == 0.0
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        if !self.is_finite() {
            return Err(Unwritable::NotFinite);
        }
        // As many digits as make the same number; very great and small ones with an exponent.
        let size = self.abs();
        let text = match size != 0.0 && !(1e-6..1e21).contains(&size) {
            true => format!("{self:e}"),
            false => self.to_string(),
        };
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn read(first: Token<'_>, _: &mut Reader<'_>) -> Result<Option<f64>, BadMessage> {
        Ok(match first {
            Token::Number(n) => Some(n.as_f64()).filter(|x| x.is_finite()),
            _ => None,
        })
    }
}

impl Field for bool {
    const EXPECTED: &str = "true or false";

    fn is_empty_value(&self) -> bool {
        !self
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        out.extend_from_slice(if *self { b"true" } else { b"false" });
        Ok(())
    }

    fn read(first: Token<'_>, _: &mut Reader<'_>) -> Result<Option<bool>, BadMessage> {
        Ok(match first {
            Token::Bool(b) => Some(b),
            _ => None,
        })
    }
}

impl Field for String {
    const EXPECTED: &str = "a text";

    fn is_empty_value(&self) -> bool {
        self.is_empty()
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        out.push(b'"');
        escape_into(out, self);
        out.push(b'"');
        Ok(())
    }

    fn read(first: Token<'_>, _: &mut Reader<'_>) -> Result<Option<String>, BadMessage> {
        Ok(match first {
            Token::String(text) => text.decode(Invalid::Replace).map(|text| text.into_owned()),
            _ => None,
        })
    }
}

/// RFC 3339 in UTC, without zeros at the end of the fraction, as Go writes it.
impl Field for UnixNanos {
    const EXPECTED: &str = "a time (RFC 3339)";

    fn is_empty_value(&self) -> bool {
        self.0 == 0
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        let (secs, nanos) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        let text = format_utc(i64::try_from(secs).unwrap_or(i64::MAX));
        out.push(b'"');
        out.extend_from_slice(text.trim_end_matches('Z').as_bytes());
        if nanos > 0 {
            let fraction = format!(".{nanos:09}");
            out.extend_from_slice(fraction.trim_end_matches('0').as_bytes());
        }
        out.extend_from_slice(b"Z\"");
        Ok(())
    }

    fn read(first: Token<'_>, _: &mut Reader<'_>) -> Result<Option<UnixNanos>, BadMessage> {
        let Token::String(text) = first else {
            return Ok(None);
        };
        let text = text.decode(Invalid::Refuse);
        Ok(text.and_then(|text| match text.starts_with("0001-") {
            // Go's zero time: none was set.
            true => Some(UnixNanos(0)),
            false => parse_utc(&text).map(UnixNanos),
        }))
    }
}

impl<F: Field> Field for Vec<F> {
    const EXPECTED: &str = "a list of numbers";

    fn is_empty_value(&self) -> bool {
        self.is_empty()
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        out.push(b'[');
        for (i, item) in self.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            item.write(out)?;
        }
        out.push(b']');
        Ok(())
    }

    fn read(first: Token<'_>, reader: &mut Reader<'_>) -> Result<Option<Vec<F>>, BadMessage> {
        if first != Token::ArrayStart {
            return Ok(None);
        }
        let mut items = Vec::new();
        loop {
            match reader.next()? {
                None | Some(Token::ArrayEnd) => return Ok(Some(items)),
                Some(token) => match F::read(token, reader)? {
                    Some(item) => items.push(item),
                    None => return Ok(None),
                },
            }
        }
    }
}

/// Null when it is `None`.
impl<F: Field> Field for Option<F> {
    const EXPECTED: &str = F::EXPECTED;

    fn is_empty_value(&self) -> bool {
        self.is_none()
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        match self {
            Some(value) => value.write(out),
            None => {
                out.extend_from_slice(b"null");
                Ok(())
            }
        }
    }

    fn read(first: Token<'_>, reader: &mut Reader<'_>) -> Result<Option<Option<F>>, BadMessage> {
        Ok(F::read(first, reader)?.map(Some))
    }
}
