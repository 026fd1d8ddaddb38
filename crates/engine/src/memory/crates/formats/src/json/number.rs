//! Numbers as they stand in the input, of any size.

/// A number as it stands in the input, well formed and of any size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number<'a> {
    raw: &'a [u8],
}

impl<'a> Number<'a> {
    /// A number from a well-formed literal.
    pub(super) fn of(raw: &'a [u8]) -> Number<'a> {
        Number { raw }
    }

    /// The literal's text.
    pub fn text(&self) -> &'a str {
        // Always ASCII: the grammar of numbers lets nothing else in.
        std::str::from_utf8(self.raw).unwrap_or_default()
    }

    /// Whether it is written without point and exponent, as an integer is.
    pub fn is_integer_literal(&self) -> bool {
        !self.raw.iter().any(|b| matches!(b, b'.' | b'e' | b'E'))
    }

    /// The value of an integer literal in range; `None` for `8.0` and `8e0`, too.
    pub fn as_i64(&self) -> Option<i64> {
        self.text().parse().ok()
    }

    /// The value of an integer literal in range; `None` for `8.0` and `8e0`, too. `-0` is `None`.
    pub fn as_u64(&self) -> Option<u64> {
        self.text().parse().ok()
    }

    /// The nearest double; infinite when it is too large.
    pub fn as_f64(&self) -> f64 {
        self.text().parse().unwrap_or(f64::NAN)
    }

    /// The exact value when it is integral and in range, however it is written: `8`, `8.0`, `80e-1`, `-0`.
    pub fn integral_u64(&self) -> Option<u64> {
        match self.magnitude()? {
            (true, 1..) => None,
            (_, value) => Some(value),
        }
    }

    /// The exact value when it is integral and in range, however it is written.
    pub fn integral_i64(&self) -> Option<i64> {
        match self.magnitude()? {
            (true, value) => 0i64.checked_sub_unsigned(value),
            (false, value) => i64::try_from(value).ok(),
        }
    }

    /// Sign and exact magnitude, when it is integral and fits.
    fn magnitude(&self) -> Option<(bool, u64)> {
        // Most are short and plain; 19 digits always fit.
        if self.raw.len() <= 19 && self.raw.iter().all(u8::is_ascii_digit) {
            let digits = self.raw.iter();
            return Some((
                false,
                digits.fold(0, |value, digit| value * 10 + u64::from(digit - b'0')),
            ));
        }
        let (negative, rest) = match self.raw.strip_prefix(b"-") {
            Some(rest) => (true, rest),
            None => (false, self.raw),
        };
        let (mantissa, exponent) = match rest.iter().position(|b| matches!(b, b'e' | b'E')) {
            Some(e) => (&rest[..e], parse_exponent(&rest[e + 1..])),
            None => (rest, 0),
        };
        let point = mantissa.iter().position(|&b| b == b'.');
        let fraction_digits = point.map_or(0, |point| mantissa.len() - point - 1);
        let digits = || mantissa.iter().filter(|&&b| b != b'.');
        let zeros = digits().rev().take_while(|&&b| b == b'0').count();
        let significant = digits().count() - zeros;
        if significant == 0 {
            return Some((negative, 0));
        }
        // The value is `significant` digits times ten to the power `shift`.
        let shift = exponent
            .saturating_sub(fraction_digits as i64)
            .saturating_add(zeros as i64);
        let mut value: u64 = 0;
        for &digit in digits().take(significant) {
            value = value
                .checked_mul(10)?
                .checked_add(u64::from(digit - b'0'))?;
        }
        let shift = u32::try_from(shift).ok()?;
        Some((negative, value.checked_mul(10u64.checked_pow(shift)?)?))
    }
}

/// An exponent's value, saturating far beyond any number of digits that fits in memory.
fn parse_exponent(text: &[u8]) -> i64 {
    let (sign, digits) = match text {
        [b'-', digits @ ..] => (-1, digits),
        [b'+', digits @ ..] => (1, digits),
        digits => (1, digits),
    };
    let magnitude = digits.iter().fold(0i64, |value, digit| {
        value
            .saturating_mul(10)
            .saturating_add(i64::from(digit - b'0'))
            .min(i64::MAX / 4)
    });
    sign * magnitude
}
