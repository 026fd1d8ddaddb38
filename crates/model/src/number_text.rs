//! Numbers and blanks as Python's `int`, `repr` and `str.strip` take and give them, which launchers' variables and files of Python programs
//! may hold: blanks around, a sign, digits of any script, single underscores between digits.

use crate::Int;

/// Zeros of the scripts that have decimal digits, beside ASCII's (Unicode 14, as Python 3.11 knows them); 1 to 9 follow each.
const ZEROS: [u32; 65] = [
    0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66,
    0x0DE6, 0x0E50, 0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90,
    0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10,
    0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650,
    0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x16A60, 0x16AC0, 0x16B50,
    0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E950, 0x1FBF0,
];

/// Python refuses longer texts since 3.11, because its conversion takes quadratic time.
pub const MAX_INT_DIGITS: usize = 4300;

/// The value of a decimal digit of any script.
pub fn decimal_digit(c: char) -> Option<u8> {
    if c.is_ascii() {
        return c.is_ascii_digit().then(|| c as u8 - b'0');
    }
    let at = ZEROS.partition_point(|zero| *zero <= u32::from(c));
    let digit = u32::from(c) - ZEROS[at.checked_sub(1)?];
    (digit < 10).then_some(digit as u8)
}

/// Whether Python's `str.isspace` says so: Unicode's white space and the four separators 0x1C to 0x1F.
pub fn is_blank_char(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Whether `text` is empty or only white space.
pub fn is_blank(text: &str) -> bool {
    text.chars().all(is_blank_char)
}

/// `text` without white space at both ends.
pub fn trim(text: &str) -> &str {
    text.trim_matches(is_blank_char)
}

/// An integer's text, leniently; `None` where Python's `int` fails. Up to [`MAX_INT_DIGITS`] digits.
pub fn parse_int(text: &str) -> Option<Int> {
    let text = trim(text);
    let (sign, rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (&text[..1], rest),
        None => ("", text),
    };
    let mut decimal = String::from(sign);
    let mut may_separate = false;
    for c in rest.chars() {
        match decimal_digit(c) {
            Some(digit) => decimal.push(char::from(b'0' + digit)),
            None if c == '_' && may_separate => {}
            None => return None,
        }
        may_separate = c != '_';
    }
    if !may_separate || decimal.len() > MAX_INT_DIGITS + sign.len() {
        return None;
    }
    Int::parse(&decimal)
}

/// A float as Python's `repr` writes it: the shortest digits that read back, an exponent below 1e-4 and from 1e16.
pub fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    let plain = format!("{value}");
    match plain.contains('.') {
        true => plain,
        false => plain + ".0",
    }
}

/// An integer in decimal, in place: for where `to_string` would allocate once a call that happens very often.
#[derive(Debug, Clone, Copy)]
pub struct Decimal {
    /// As many as `u64::MAX` has digits, and `i64::MIN` characters.
    bytes: [u8; 20],
    start: usize,
}

impl Decimal {
    fn new(negative: bool, mut size: u64) -> Decimal {
        let mut bytes = [b'-'; 20];
        let mut start = bytes.len();
        loop {
            start -= 1;
            bytes[start] = b'0' + (size % 10) as u8;
            size /= 10;
            if size == 0 {
                break;
            }
        }
        // The byte before the digits is a sign already.
        start -= usize::from(negative);
        Decimal { bytes, start }
    }

    pub fn as_str(&self) -> &str {
        // Digits and a sign: it cannot fail.
        std::str::from_utf8(&self.bytes[self.start..]).unwrap_or_default()
    }
}

impl From<i64> for Decimal {
    fn from(value: i64) -> Decimal {
        Decimal::new(value < 0, value.unsigned_abs())
    }
}

impl From<u64> for Decimal {
    fn from(value: u64) -> Decimal {
        Decimal::new(false, value)
    }
}

impl From<u32> for Decimal {
    fn from(value: u32) -> Decimal {
        Decimal::new(false, value.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_in_place_are_as_they_are_displayed() {
        for n in [0, 1, -1, 9, 10, -10, 99, 100, i64::MAX, i64::MIN] {
            assert_eq!(Decimal::from(n).as_str(), n.to_string());
        }
        assert_eq!(Decimal::from(u64::MAX).as_str(), u64::MAX.to_string());
        assert_eq!(Decimal::from(u32::MAX).as_str(), u32::MAX.to_string());
    }

    #[test]
    fn integers_are_read_as_python_reads_them() {
        for (text, want) in [
            ("7", Some(7)),
            (" \u{a0}-1_000\n\u{1f}", Some(-1000)),
            ("+0", Some(0)),
            ("00", Some(0)),
            ("\u{661}\u{665}", Some(15)),
            ("\u{ff10}\u{1fbf9}", Some(9)),
            ("", None),
            ("_1", None),
            ("1_", None),
            ("1__0", None),
            ("+ 1", None),
            ("--1", None),
            ("1.0", None),
            ("0x10", None),
            ("\u{b2}", None),
            ("1 2", None),
        ] {
            assert_eq!(parse_int(text), want.map(Int::new), "{text:?}");
        }
        assert!(parse_int(&"9".repeat(4300)).is_some());
        assert_eq!(parse_int(&"9".repeat(4301)), None);
    }

    #[test]
    fn blanks_are_unicodes_and_the_four_separators() {
        assert!(is_blank("\u{1c}\u{1f}\u{85}\u{a0}\u{3000} \t"));
        assert!(is_blank(""));
        assert!(!is_blank("\u{200b}"));
        assert_eq!(trim("\u{2028} a b\u{1d}"), "a b");
    }
}
