//! Open data: what a telemetry format lets its writers say freely, kept as it was said.
//!
//! Integers have no size limit, objects keep the order of their keys, and a key is there once. It knows no syntax:
//! `formats` reads and writes it.
//!
//! A string is text. Where a format can say half of a surrogate pair (JSON's `"\ud800"`), which no Unicode text holds, the
//! half is kept as the code point `0x10F800 + its low 11 bits`, the last 2,048 of plane 16's private use area, and goes out
//! as it came. See [`lone_surrogate`] and [`surrogate_half`].

use std::cmp::Ordering;
use std::fmt;

/// An integer of any size: 16 bytes, without an allocation within `i64`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Int(Repr);

/// `Big` holds only what `i64` cannot, so that equality is by parts.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Repr {
    Small(i64),
    Big(Box<Big>),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Big {
    negative: bool,
    /// Decimal, without leading zeros.
    digits: Box<str>,
}

impl Int {
    pub const ZERO: Int = Int::new(0);
    pub const ONE: Int = Int::new(1);

    pub const fn new(value: i64) -> Int {
        Int(Repr::Small(value))
    }

    /// An integer in decimal: an optional sign and at least one of `0-9`; leading zeros are dropped.
    ///
    /// Cost: O(length), and an allocation only for what `i64` cannot hold.
    pub fn parse(text: &str) -> Option<Int> {
        let (negative, digits) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Some(Int::from_digits(negative, digits))
    }

    /// `digits` are `0-9`.
    fn from_digits(negative: bool, digits: &str) -> Int {
        let digits = digits.trim_start_matches('0');
        if digits.len() <= 19 {
            // 19 digits fit in u64, and so in i128 with their sign.
            let size = digits
                .bytes()
                .fold(0_i128, |n, b| n * 10 + i128::from(b - b'0'));
            if let Ok(small) = i64::try_from(if negative { -size } else { size }) {
                return Int::new(small);
            }
        }
        Int(Repr::Big(Box::new(Big {
            negative,
            digits: digits.into(),
        })))
    }

    /// The integer nearest to `value` towards zero; `None` for NaN and the infinities.
    pub fn truncate(value: f64) -> Option<Int> {
        value
            .is_finite()
            .then(|| Int::parse(&format!("{:.0}", value.trunc())))
            .flatten()
    }

    pub fn to_i64(&self) -> Option<i64> {
        match &self.0 {
            Repr::Small(n) => Some(*n),
            Repr::Big(_) => None,
        }
    }

    pub fn to_u64(&self) -> Option<u64> {
        match &self.0 {
            Repr::Small(n) => u64::try_from(*n).ok(),
            Repr::Big(big) if !big.negative => big.digits.parse().ok(),
            Repr::Big(_) => None,
        }
    }

    pub fn to_i128(&self) -> Option<i128> {
        match &self.0 {
            Repr::Small(n) => Some(i128::from(*n)),
            Repr::Big(_) => self.to_string().parse().ok(),
        }
    }

    /// The nearest `f64`; infinite where none is.
    pub fn to_f64(&self) -> f64 {
        match &self.0 {
            Repr::Small(n) => *n as f64,
            Repr::Big(_) => self.to_string().parse().unwrap_or(f64::NAN),
        }
    }

    pub fn is_negative(&self) -> bool {
        match &self.0 {
            Repr::Small(n) => *n < 0,
            Repr::Big(big) => big.negative,
        }
    }

    /// The difference, exact.
    pub fn minus(&self, other: &Int) -> Int {
        if let (Repr::Small(a), Repr::Small(b)) = (&self.0, &other.0)
            && let Some(small) = a.checked_sub(*b)
        {
            return Int::new(small);
        }
        let (a, b) = (self.parts(), other.parts());
        if a.0 != b.0 {
            return Int::from_digits(a.0, &add(&a.1, &b.1));
        }
        match by_size(&a.1, &b.1) {
            Ordering::Equal => Int::ZERO,
            Ordering::Greater => Int::from_digits(a.0, &subtract(&a.1, &b.1)),
            Ordering::Less => Int::from_digits(!a.0, &subtract(&b.1, &a.1)),
        }
    }

    /// The sum, exact.
    pub fn plus(&self, other: &Int) -> Int {
        match (&self.0, &other.0) {
            (Repr::Small(a), Repr::Small(b)) if a.checked_add(*b).is_some() => Int::new(a + b),
            _ => self.minus(&Int::ZERO.minus(other)),
        }
    }

    fn parts(&self) -> (bool, String) {
        match &self.0 {
            Repr::Small(n) => (*n < 0, n.unsigned_abs().to_string()),
            Repr::Big(big) => (big.negative, big.digits.to_string()),
        }
    }
}

/// Sizes of decimals without leading zeros.
fn by_size(a: &str, b: &str) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Digits of `text` from the last on, then zeros for ever.
fn digits_from_last(text: &str) -> impl Iterator<Item = u8> {
    text.bytes()
        .rev()
        .map(|b| b - b'0')
        .chain(std::iter::repeat(0))
}

fn written(mut from_last: Vec<u8>) -> String {
    from_last.reverse();
    from_last.iter().map(|d| char::from(b'0' + d)).collect()
}

fn add(a: &str, b: &str) -> String {
    let mut carry = 0;
    let digits = digits_from_last(a)
        .zip(digits_from_last(b))
        .take(a.len().max(b.len()) + 1);
    written(
        digits
            .map(|(x, y)| {
                let sum = x + y + carry;
                carry = sum / 10;
                sum % 10
            })
            .collect(),
    )
}

/// `a - b`, where `a` is not smaller.
fn subtract(a: &str, b: &str) -> String {
    let mut borrow = 0;
    let digits = digits_from_last(a).zip(digits_from_last(b)).take(a.len());
    written(
        digits
            .map(|(x, y)| {
                let from = x + 10 - y - borrow;
                borrow = u8::from(from < 10);
                from % 10
            })
            .collect(),
    )
}

impl Ord for Int {
    fn cmp(&self, other: &Int) -> Ordering {
        match (&self.0, &other.0) {
            (Repr::Small(a), Repr::Small(b)) => a.cmp(b),
            // What i64 cannot hold is beyond all that it can.
            (Repr::Small(_), Repr::Big(big)) => {
                if big.negative {
                    Ordering::Greater
                } else {
                    Ordering::Less
                }
            }
            (Repr::Big(_), Repr::Small(_)) => other.cmp(self).reverse(),
            (Repr::Big(a), Repr::Big(b)) => match (a.negative, b.negative) {
                (false, true) => Ordering::Greater,
                (true, false) => Ordering::Less,
                (false, false) => by_size(&a.digits, &b.digits),
                (true, true) => by_size(&b.digits, &a.digits),
            },
        }
    }
}

impl PartialOrd for Int {
    fn partial_cmp(&self, other: &Int) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq<i64> for Int {
    fn eq(&self, other: &i64) -> bool {
        self.to_i64() == Some(*other)
    }
}

impl PartialOrd<i64> for Int {
    fn partial_cmp(&self, other: &i64) -> Option<Ordering> {
        Some(self.cmp(&Int::new(*other)))
    }
}

impl Default for Int {
    fn default() -> Int {
        Int::ZERO
    }
}

impl From<i64> for Int {
    fn from(value: i64) -> Int {
        Int::new(value)
    }
}

impl From<u64> for Int {
    fn from(value: u64) -> Int {
        i64::try_from(value).map_or_else(|_| Int::from_digits(false, &value.to_string()), Int::new)
    }
}

impl From<i128> for Int {
    fn from(value: i128) -> Int {
        i64::try_from(value).map_or_else(
            |_| Int::from_digits(value < 0, &value.unsigned_abs().to_string()),
            Int::new,
        )
    }
}

impl fmt::Display for Int {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Small(n) => fmt::Display::fmt(n, f),
            Repr::Big(big) => f.pad_integral(!big.negative, "", &big.digits),
        }
    }
}

impl fmt::Debug for Int {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A value of open data.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value {
    #[default]
    Null,
    Bool(bool),
    Int(Int),
    /// Also NaN and the infinities, which some writers' JSON has.
    Float(f64),
    String(Box<str>),
    Array(Vec<Value>),
    Object(Object),
}

impl Value {
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Value::Object(object) => Some(object),
            _ => None,
        }
    }

    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Value::Array(items) => Some(items),
            _ => None,
        }
    }

    pub fn as_int(&self) -> Option<&Int> {
        match self {
            Value::Int(n) => Some(n),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::String(text.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}

impl From<Int> for Value {
    fn from(value: Int) -> Value {
        Value::Int(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Value {
        Value::Int(Int::new(value))
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Value {
        Value::Float(value)
    }
}

impl From<String> for Value {
    fn from(value: String) -> Value {
        Value::String(value.into())
    }
}

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(items: Vec<T>) -> Value {
        Value::Array(items.into_iter().map(Into::into).collect())
    }
}

impl From<Object> for Value {
    fn from(value: Object) -> Value {
        Value::Object(value)
    }
}

/// Keys and values in the order in which the keys were first said; a key is there once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Object(Vec<(Box<str>, Value)>);

impl Object {
    pub const fn new() -> Object {
        Object(Vec::new())
    }

    /// An object of pairs in which a key may be repeated: the last value holds, at the first one's place.
    ///
    /// Cost: O(n log n).
    pub fn from_pairs(mut pairs: Vec<(Box<str>, Value)>) -> Object {
        // Small objects, nearly all of them, are compared pair by pair; large ones through a sorted index.
        if pairs.len() <= 16 {
            let mut at = 1;
            while at < pairs.len() {
                match pairs[..at].iter().position(|(key, _)| *key == pairs[at].0) {
                    Some(first) => pairs[first].1 = pairs.remove(at).1,
                    None => at += 1,
                }
            }
            return Object(pairs);
        }
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by(|a, b| pairs[*a].0.cmp(&pairs[*b].0).then(a.cmp(b)));
        let runs: Vec<Vec<usize>> = order
            .chunk_by(|a, b| pairs[*a].0 == pairs[*b].0)
            .filter(|run| run.len() > 1)
            .map(<[usize]>::to_vec)
            .collect();
        let mut keep = vec![true; pairs.len()];
        for run in runs {
            pairs[run[0]].1 = std::mem::take(&mut pairs[run[run.len() - 1]].1);
            run[1..].iter().for_each(|again| keep[*again] = false);
        }
        let mut keep = keep.into_iter();
        pairs.retain(|_| keep.next() == Some(true));
        Object(pairs)
    }

    /// The value at `key`. Cost: O(keys).
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(k, _)| &**k == key).map(|(_, v)| v)
    }

    pub fn contains(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Sets `key`, at its old place if it has one, else at the end. Cost: O(keys).
    pub fn insert(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.0.iter_mut().find(|(k, _)| &**k == key) {
            Some(pair) => pair.1 = value,
            None => self.0.push((key.into(), value)),
        }
    }

    /// Takes `key` out. Cost: O(keys).
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.0.iter().position(|(k, _)| &**k == key)?;
        Some(self.0.remove(at).1)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(k, v)| (&**k, v))
    }

    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = (&str, &mut Value)> {
        self.0.iter_mut().map(|(k, v)| (&**k, v))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The character that stands for half of a surrogate pair; `None` if `unit` is none.
pub fn lone_surrogate(unit: u16) -> Option<char> {
    (0xD800..=0xDFFF)
        .contains(&unit)
        .then(|| char::from_u32(0x10_F800 + (u32::from(unit) & 0x7FF)))
        .flatten()
}

/// The half of a surrogate pair that `c` stands for.
pub fn surrogate_half(c: char) -> Option<u16> {
    (c >= '\u{10F800}').then(|| 0xD800 + (u32::from(c) & 0x7FF) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(text: &str) -> Int {
        Int::parse(text).unwrap()
    }

    #[test]
    fn integers_of_any_size_are_kept_ordered_and_subtracted_exactly() {
        assert_eq!(std::mem::size_of::<Option<Int>>(), 16);
        let in_order = [
            "-340282366920938463463374607431768211456",
            "-9223372036854775809",
            "-9223372036854775808",
            "-1",
            "0",
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551616",
            "100000000000000000000000000000000000000000",
        ];
        for pair in in_order.windows(2) {
            assert!(int(pair[0]) < int(pair[1]), "{pair:?}");
        }
        for text in in_order {
            assert_eq!(int(text).to_string(), text);
            assert_eq!(int(text).minus(&int(text)), Int::ZERO);
            assert_eq!(int(text).minus(&Int::ONE).plus(&Int::ONE), int(text));
        }
        for a in in_order.iter().filter_map(|t| int(t).to_i128()) {
            for b in in_order.iter().filter_map(|t| int(t).to_i128()) {
                assert_eq!(Int::from(a).minus(&Int::from(b)), Int::from(a - b));
                assert_eq!(Int::from(a).plus(&Int::from(b)), Int::from(a + b));
            }
        }
        assert_eq!(int("-00"), Int::ZERO);
        assert_eq!(int("+0012"), Int::new(12));
        assert_eq!(Int::from(u64::MAX).to_u64(), Some(u64::MAX));
        for bad in ["", "-", "+", "1_0", "1.0", " 1"] {
            assert_eq!(Int::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_float_is_truncated_exactly_whatever_its_size() {
        assert_eq!(Int::truncate(-1.9), Some(Int::new(-1)));
        assert_eq!(Int::truncate(-0.5), Some(Int::ZERO));
        assert_eq!(Int::truncate(1e23), Some(int("99999999999999991611392")));
        assert_eq!(Int::truncate(f64::NAN), None);
        assert_eq!(Int::truncate(f64::INFINITY), None);
    }

    #[test]
    fn a_repeated_key_has_its_last_value_at_its_first_place() {
        for extra in [0, 40] {
            let mut pairs: Vec<(Box<str>, Value)> = vec![
                ("a".into(), 1.into()),
                ("b".into(), 2.into()),
                ("a".into(), 3.into()),
                ("a".into(), 4.into()),
            ];
            pairs.extend((0..extra).map(|i| (format!("k{i}").into(), i.into())));
            let object = Object::from_pairs(pairs);
            assert_eq!(object.len(), 2 + extra as usize);
            assert_eq!(object.iter().next(), Some(("a", &Value::from(4))));
            assert_eq!(object.iter().nth(1), Some(("b", &Value::from(2))));
        }
    }

    #[test]
    fn every_surrogate_half_has_a_character_and_comes_back() {
        for unit in 0xD800..=0xDFFF_u16 {
            assert_eq!(surrogate_half(lone_surrogate(unit).unwrap()), Some(unit));
        }
        assert_eq!(lone_surrogate(0xE000), None);
        assert_eq!(surrogate_half('\u{10F7FF}'), None);
    }
}
