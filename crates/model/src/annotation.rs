//! Labels that the job puts on a moment or an interval of its own work.

use std::collections::BTreeMap;

use crate::{BootNanos, Incarnation, Window};

/// Names and values, in order of name. What a name or a value may be: [`Labels::insert`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels(BTreeMap<Box<str>, Box<str>>);

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

impl Labels {
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

    /// Sets a label; a key that is there already gets the new value.
    ///
    /// # Errors
    /// A key that [`Labels::is_key`] refuses, a value above 256 bytes or with a byte below 0x20 or 0x7f, or a 33rd key.
    pub fn insert(&mut self, key: &str, value: &str) -> Result<(), LabelError> {
        if !Labels::is_key(key) {
            return Err(LabelError::BadKey);
        }
        if value.len() > Labels::MAX_VALUE_BYTES {
            return Err(LabelError::ValueTooLong);
        }
        if value.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err(LabelError::ControlCharacter);
        }
        if self.0.len() >= Labels::MAX && !self.0.contains_key(key) {
            return Err(LabelError::TooMany);
        }
        self.0.insert(key.into(), value.into());
        Ok(())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|v| &**v)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (&**k, &**v))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Labels on a moment or an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// When it was said. An instant holds from here until its process says the same key again.
    pub at: BootNanos,
    /// The interval that it names, when it is not an instant.
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
}
