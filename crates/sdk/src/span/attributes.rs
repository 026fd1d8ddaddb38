//! What a span or an event says of itself: named values, in the order in which they were first said.

use warptrace_model::{Object, Value};

use super::Error;

/// Bytes of text in one value; longer text is cut at a character, and counted as cut by whoever exports it.
pub const TEXT_LIMIT_BYTES: usize = 1 << 20;

/// Named values: strings, booleans, integers, doubles, or lists of one of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attributes(Object);

impl Attributes {
    pub const fn new() -> Attributes {
        Attributes(Object::new())
    }

    /// # Errors
    /// [`Error::MixedList`] when a list is not of one kind.
    pub fn from_object(object: Object) -> Result<Attributes, Error> {
        let mut attributes = Attributes(object);
        for (name, value) in attributes.0.iter_mut() {
            check(name, value)?;
        }
        Ok(attributes)
    }

    /// Of values that went through [`check`].
    pub(super) fn unchecked(object: Object) -> Attributes {
        Attributes(object)
    }

    /// Adds a value, or replaces the one of that name at its place. A list that is not of one kind is left out: see
    /// [`Attributes::try_add`].
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Attributes {
        let _ = self.try_add(name, value);
        self
    }

    /// Adds a value, or replaces the one of that name at its place.
    ///
    /// # Errors
    /// [`Error::MixedList`] when a list is not of one kind.
    pub fn try_add(&mut self, name: &str, value: impl Into<Value>) -> Result<(), Error> {
        let mut value = value.into();
        check(name, &mut value)?;
        self.0.insert(name, value);
        Ok(())
    }

    /// All of `other`, over what is here.
    pub fn merge(&mut self, other: &Attributes) {
        for (name, value) in other.iter() {
            self.0.insert(name, value.clone());
        }
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn as_object(&self) -> &Object {
        &self.0
    }

    pub fn into_object(self) -> Object {
        self.0
    }

    /// Where there is a value of that name it must be a boolean.
    ///
    /// # Errors
    /// [`Error::WrongType`]; so with the other three.
    pub fn get_bool(&self, name: &str) -> Result<Option<bool>, Error> {
        self.typed(name, Value::as_bool)
    }

    /// An integer, or a boolean as 0 or 1.
    ///
    /// # Errors
    /// [`Error::WrongType`].
    pub fn get_int(&self, name: &str) -> Result<Option<i64>, Error> {
        self.typed(name, |value| match value {
            Value::Bool(b) => Some(i64::from(*b)),
            Value::Int(n) => n.to_i64(),
            _ => None,
        })
    }

    /// A double, an integer, or a boolean as 0 or 1.
    ///
    /// # Errors
    /// [`Error::WrongType`].
    pub fn get_float(&self, name: &str) -> Result<Option<f64>, Error> {
        self.typed(name, |value| match value {
            Value::Bool(b) => Some(f64::from(u8::from(*b))),
            Value::Int(n) => Some(n.to_f64()),
            Value::Float(x) => Some(*x),
            _ => None,
        })
    }

    /// # Errors
    /// [`Error::WrongType`].
    pub fn get_str(&self, name: &str) -> Result<Option<&str>, Error> {
        self.typed(name, Value::as_str)
    }

    fn typed<'a, T>(
        &'a self,
        name: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => Err(Error::WrongType { name: name.into() }),
            },
        }
    }
}

impl<N: AsRef<str>, V: Into<Value>> FromIterator<(N, V)> for Attributes {
    /// Leaves out lists that are not of one kind.
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Attributes {
        pairs.into_iter().fold(Attributes::new(), |all, (n, v)| {
            all.with(n.as_ref(), v.into())
        })
    }
}

/// Cuts long text, and refuses lists of more than one kind.
///
/// A list is of its first element's kind, where a boolean also counts as an integer: `[1, true]` passes, `[true, 1]` doesn't.
pub(super) fn check(name: &str, value: &mut Value) -> Result<(), Error> {
    match value {
        Value::String(text) if text.len() > TEXT_LIMIT_BYTES => {
            let end = (0..=TEXT_LIMIT_BYTES)
                .rev()
                .find(|at| text.is_char_boundary(*at));
            *text = text[..end.unwrap_or(0)].into();
        }
        Value::Array(items) => {
            let Some((first, rest)) = items.split_first() else {
                return Ok(());
            };
            let same = |item: &Value| match (first, item) {
                (Value::Int(_), Value::Bool(_)) => true,
                _ => std::mem::discriminant(first) == std::mem::discriminant(item),
            };
            if !rest.iter().all(same) {
                return Err(Error::MixedList { name: name.into() });
            }
        }
        _ => {}
    }
    Ok(())
}
