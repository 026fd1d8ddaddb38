//! Labels that the job puts on a moment or an interval of its own work.

use std::fmt;

use crate::{BootNanos, Incarnation, Window};

/// Names and values, in order of name. What a name or a value may be: [`Labels::insert`].
///
/// One allocation, whatever their number: a recording may hold very many. They are kept as the text `name=value\n…`, which
/// is unambiguous since no name holds `=` and no value a line feed.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Labels {
    text: Box<str>,
    len: u32,
}

/// Why labels were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LabelError {
    None,
    TooMany,
    BadKey,
    ValueTooLong,
    ControlCharacter,
}

impl LabelError {
    /// A short snake_case word.
    pub const fn name(self) -> &'static str {
        match self {
            LabelError::None => "no_labels",
            LabelError::TooMany => "too_many_labels",
            LabelError::BadKey => "bad_key",
            LabelError::ValueTooLong => "value_too_long",
            LabelError::ControlCharacter => "control_char",
        }
    }
}

impl fmt::Display for LabelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LabelError::None => f.write_str("no labels"),
            LabelError::TooMany => write!(f, "more than {} labels", Labels::MAX),
            LabelError::BadKey => write!(
                f,
                "a key is 1 to {} bytes of A-Z a-z 0-9 _ . -",
                Labels::MAX_KEY_BYTES
            ),
            LabelError::ValueTooLong => {
                write!(f, "a value above {} bytes", Labels::MAX_VALUE_BYTES)
            }
            LabelError::ControlCharacter => f.write_str("a control character in a value"),
        }
    }
}

impl std::error::Error for LabelError {}

impl Labels {
    /// Labels of one line at most.
    pub const MAX: usize = 32;
    pub const MAX_KEY_BYTES: usize = 64;
    pub const MAX_VALUE_BYTES: usize = 256;

    /// Whether `key` is 1 to 64 bytes of `A-Z a-z 0-9 _ . -`.
    pub fn is_key(key: &str) -> bool {
        (1..=Labels::MAX_KEY_BYTES).contains(&key.len())
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    }

    /// Labels from pairs in any order; of equal names the last wins. One allocation when the names ascend.
    ///
    /// # Errors
    /// The first thing wrong, in the order: none, too many, then pair by pair as [`Labels::insert`].
    pub fn from_pairs<K: AsRef<str>, V: AsRef<str>>(
        pairs: &[(K, V)],
    ) -> Result<Labels, LabelError> {
        if pairs.is_empty() {
            return Err(LabelError::None);
        }
        if pairs.is_sorted_by(|a, b| a.0.as_ref() < b.0.as_ref()) {
            return Labels::from_ascending(pairs);
        }
        // The sort is stable, so of equal names the last one said stands first when the order is reversed.
        let mut sorted: Vec<(&str, &str)> = pairs
            .iter()
            .rev()
            .map(|(k, v)| (k.as_ref(), v.as_ref()))
            .collect();
        sorted.sort_by(|a, b| a.0.cmp(b.0));
        sorted.dedup_by(|later, earlier| later.0 == earlier.0);
        Labels::from_ascending(&sorted)
    }

    fn from_ascending<K: AsRef<str>, V: AsRef<str>>(
        pairs: &[(K, V)],
    ) -> Result<Labels, LabelError> {
        if pairs.len() > Labels::MAX {
            return Err(LabelError::TooMany);
        }
        let mut bytes = 0;
        for (key, value) in pairs {
            let (key, value) = (key.as_ref(), value.as_ref());
            check(key, value)?;
            bytes += key.len() + value.len() + 2;
        }
        let mut text = String::with_capacity(bytes);
        for (key, value) in pairs {
            push(&mut text, key.as_ref(), value.as_ref());
        }
        Ok(Labels {
            text: text.into_boxed_str(),
            len: pairs.len() as u32,
        })
    }

    /// Sets a label; a key that is there already gets the new value.
    ///
    /// # Errors
    /// A key that [`Labels::is_key`] refuses, a value above 256 bytes or with a byte below 0x20 or 0x7f, or a 33rd key.
    pub fn insert(&mut self, key: &str, value: &str) -> Result<(), LabelError> {
        check(key, value)?;
        if self.len() >= Labels::MAX && self.get(key).is_none() {
            return Err(LabelError::TooMany);
        }
        self.set(key, value);
        Ok(())
    }

    /// Sets all of `newer`. What several lines say together may be more than [`Labels::MAX`].
    pub fn merge(&mut self, newer: &Labels) {
        for (key, value) in newer.iter() {
            self.set(key, value);
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        let mut text = String::with_capacity(self.text.len() + key.len() + value.len() + 2);
        let mut rest = self.iter().peekable();
        let mut len = 1;
        while let Some((k, v)) = rest.next_if(|(k, _)| *k < key) {
            push(&mut text, k, v);
            len += 1;
        }
        rest.next_if(|(k, _)| *k == key);
        push(&mut text, key, value);
        for (k, v) in rest {
            push(&mut text, k, v);
            len += 1;
        }
        *self = Labels {
            text: text.into_boxed_str(),
            len,
        };
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| *k == key).map(|(_, v)| v)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.text
            .split_terminator('\n')
            .filter_map(|line| line.split_once('='))
    }

    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that they take besides the value itself.
    pub fn heap_bytes(&self) -> usize {
        self.text.len()
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

fn check(key: &str, value: &str) -> Result<(), LabelError> {
    if !Labels::is_key(key) {
        return Err(LabelError::BadKey);
    }
    if value.len() > Labels::MAX_VALUE_BYTES {
        return Err(LabelError::ValueTooLong);
    }
    if value.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err(LabelError::ControlCharacter);
    }
    Ok(())
}

fn push(text: &mut String, key: &str, value: &str) {
    text.push_str(key);
    text.push('=');
    text.push_str(value);
    text.push('\n');
}

/// Labels on a moment or an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// When it was said. An instant holds from here until its process says the same key again.
    pub at: BootNanos,
    /// The interval that it names, when it is not an instant. Here the end is part of it: a span that ends where it starts
    /// names that moment.
    pub span: Option<Window>,
    /// Whose; `None`: everybody's.
    pub scope: Option<Incarnation>,
    pub labels: Labels,
    /// Who sent it; `None` when it was read from a file.
    pub sender: Option<Sender>,
}

/// Credentials of a connection, as the kernel gave them (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_refused_for_its_key_its_value_or_its_number() {
        let mut labels = Labels::default();
        assert_eq!(labels.insert("", "v"), Err(LabelError::BadKey));
        assert_eq!(labels.insert("a b", "v"), Err(LabelError::BadKey));
        assert_eq!(labels.insert(&"k".repeat(65), "v"), Err(LabelError::BadKey));
        assert_eq!(
            labels.insert("k", &"é".repeat(129)),
            Err(LabelError::ValueTooLong)
        );
        assert_eq!(
            labels.insert("k", "a\u{7f}"),
            Err(LabelError::ControlCharacter)
        );
        assert_eq!(labels.insert("k", "a\u{85}\u{2028}"), Ok(()));
        for i in 1..Labels::MAX {
            assert_eq!(labels.insert(&format!("k{i}"), ""), Ok(()));
        }
        assert_eq!(labels.insert("one-more", ""), Err(LabelError::TooMany));
        assert_eq!(labels.insert("k", "again"), Ok(()));
        assert_eq!(
            (labels.get("k"), labels.len()),
            (Some("again"), Labels::MAX)
        );
    }

    #[test]
    fn of_equal_names_the_last_wins_and_all_are_in_order() {
        let labels = Labels::from_pairs(&[("b", "1"), ("a", "x=y"), ("b", "2"), ("B", "")]);
        let labels = labels.unwrap();
        let pairs: Vec<_> = labels.iter().collect();
        assert_eq!(pairs, [("B", ""), ("a", "x=y"), ("b", "2")]);
        assert_eq!(labels.len(), 3);
        let mut one_by_one = Labels::default();
        for (k, v) in [("b", "2"), ("B", ""), ("a", ""), ("a", "x=y")] {
            one_by_one.insert(k, v).unwrap();
        }
        assert_eq!(one_by_one, labels);
    }

    #[test]
    fn pairs_are_refused_for_their_number_first() {
        assert_eq!(Labels::from_pairs::<&str, &str>(&[]), Err(LabelError::None));
        let names: Vec<String> = (0..33).map(|i| format!("{i:02} ")).collect();
        let pairs: Vec<_> = names.iter().map(|n| (n.as_str(), "v")).collect();
        assert_eq!(Labels::from_pairs(&pairs), Err(LabelError::TooMany));
        assert_eq!(Labels::from_pairs(&pairs[1..]), Err(LabelError::BadKey));
        let same = [("k", "v"); 100];
        assert_eq!(Labels::from_pairs(&same).map(|l| l.len()), Ok(1));
    }

    #[test]
    fn merged_labels_may_be_more_than_one_line_can_say() {
        let names: Vec<String> = (0..64).map(|i| format!("k{i}")).collect();
        let pairs: Vec<_> = names.iter().map(|n| (n.as_str(), "v")).collect();
        let mut all = Labels::from_pairs(&pairs[..32]).unwrap();
        all.merge(&Labels::from_pairs(&pairs[32..]).unwrap());
        assert_eq!(all.len(), 64);
    }
}
