//! What a setting is: a key, its value, what is said about it. One declaration ([`section!`]) gives the type, the reader, the schema, the
//! example and the reference.
//!
//! Knows nothing of flags, files or variables, nor which settings there are.

use warptrace_model::{Object, Value, nearest};

/// What of a layer of settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Of the key, from the top (`inference.baseline.warmup_samples`).
    pub(crate) path: String,
    pub(crate) message: String,
}

/// Reads one layer of settings over those that there are, and keeps account of what it says.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    path: String,
    /// Keys that were given a value.
    pub(crate) said: Vec<String>,
}

impl Reader {
    pub(super) fn within<T>(&mut self, key: &str, read: impl FnOnce(&mut Reader) -> T) -> T {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        let result = read(self);
        self.path.truncate(length);
        result
    }

    pub(super) fn wrong(&self, message: impl Into<String>) -> Wrong {
        Wrong {
            path: self.path.clone(),
            message: message.into(),
        }
    }

    /// A key that is not one of `known`.
    pub(super) fn unknown(&self, key: &str, known: &[&'static str]) -> Wrong {
        let below = |name: &str| match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        let key: String = key.chars().take(64).collect();
        let path = below(&key);
        let message = match (secret(&path), nearest(&key, known.iter().copied())) {
            (Some(variable), _) => {
                format!("a key, which no file holds: set the variable {variable} instead")
            }
            (None, Some(near)) => format!("unknown key: did you mean {}?", below(near)),
            (None, None) => format!("unknown key; there are {}", known.join(", ")),
        };
        Wrong { path, message }
    }
}

/// The variable that holds what somebody wrote into a file.
fn secret(path: &str) -> Option<&'static str> {
    Some(match path {
        "alerts.slack.webhook_url" | "alerts.slack.url" => "WARPTRACE_ALERT_SLACK_URL",
        "alerts.pagerduty.routing_key" | "alerts.pagerduty.key" | "alerter" => {
            "WARPTRACE_ALERT_PAGERDUTY_KEY"
        }
        "alerts.webhook.url" => "WARPTRACE_ALERT_WEBHOOK_URL",
        "alerts.webhook.token" => "WARPTRACE_ALERT_WEBHOOK_TOKEN",
        "prometheus.token" => "WARPTRACE_PROMETHEUS_TOKEN",
        "otlp.receive.token" => "WARPTRACE_OTLP_RECEIVE_TOKEN",
        "otlp.token" | "otlp.api_key" | "otlp.authorization" => "OTEL_EXPORTER_OTLP_HEADERS",
        _ => return None,
    })
}

/// A value or a section of them.
pub(crate) trait Node {
    fn shape() -> Shape;
    /// Takes what `value` says over what there is.
    fn read(&mut self, value: &Value, reader: &mut Reader) -> Result<(), Wrong>;
    /// As [`read`](Node::read) reads it.
    fn show(&self) -> Value;
}

/// What may be said at a place.
#[derive(Debug)]
pub(crate) enum Shape {
    Section(Vec<Key>),
    /// By a fragment of a JSON schema.
    Leaf(serde_json::Value),
}

/// A key of a section.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) flag: Option<&'static str>,
    /// A value to show instead of the default: where that is nothing, or depends on other settings.
    pub(crate) like: Option<&'static str>,
    pub(crate) default: Value,
    pub(crate) shape: Shape,
}

/// One value.
pub(crate) trait Leaf: Sized {
    /// A JSON schema of it, without what every key has.
    fn schema() -> serde_json::Value;
    /// Of a text, as on the command line or in a variable.
    ///
    /// # Errors
    /// What it should be.
    fn parse(text: &str) -> Result<Self, String>;
    fn read(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Int(n) => Self::parse(&n.to_string()),
            Value::Float(n) => Self::parse(&n.to_string()),
            // YAML's words for yes and no are ours for on and off.
            Value::Bool(true) => Self::parse("on"),
            Value::Bool(false) => Self::parse("off"),
            Value::Null => Err("no value".into()),
            Value::Array(_) => Err("a list, where a value is wanted".into()),
            Value::Object(_) => Err("a section, where a value is wanted".into()),
        }
    }
    /// As [`read`](Leaf::read) reads it.
    fn shown(&self) -> Value;
}

impl<T: Leaf> Node for T {
    fn shape() -> Shape {
        Shape::Leaf(T::schema())
    }

    fn read(&mut self, value: &Value, reader: &mut Reader) -> Result<(), Wrong> {
        *self = <T as Leaf>::read(value).map_err(|wrong| reader.wrong(wrong))?;
        reader.said.push(reader.path.clone());
        Ok(())
    }

    fn show(&self) -> Value {
        self.shown()
    }
}

/// The pairs of a section; one that is empty says nothing.
pub(super) fn pairs<'a>(
    value: &'a Value,
    reader: &Reader,
    empty: &'a Object,
) -> Result<&'a Object, Wrong> {
    match value {
        Value::Object(object) => Ok(object),
        Value::Null => Ok(empty),
        _ => Err(reader.wrong("a value, where a section is wanted")),
    }
}

/// Declares a section of settings with their defaults. A key is its field's name; its documentation is the user's.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        $name:ident {
            $(
                $(#[doc = $key_about:literal])*
                $key:ident: $kind:ty = $default:expr $(, flag $flag:literal)? $(, like $like:literal)?;
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        pub(crate) struct $name {
            $( $(#[doc = $key_about])* pub(crate) $key: $kind, )*
        }

        impl Default for $name {
            fn default() -> $name {
                $name { $( $key: $default, )* }
            }
        }

        impl $crate::config::tree::Node for $name {
            fn shape() -> $crate::config::tree::Shape {
                let default = $name::default();
                $crate::config::tree::Shape::Section(vec![
                    $( $crate::config::tree::Key {
                        name: stringify!($key),
                        about: concat!($($key_about,)*).trim_ascii(),
                        flag: None$(.or(Some($flag)))?,
                        like: None$(.or(Some($like)))?,
                        default: $crate::config::tree::Node::show(&default.$key),
                        shape: <$kind as $crate::config::tree::Node>::shape(),
                    }, )*
                ])
            }

            fn read(
                &mut self,
                value: &warptrace_model::Value,
                reader: &mut $crate::config::tree::Reader,
            ) -> Result<(), $crate::config::tree::Wrong> {
                let empty = warptrace_model::Object::new();
                for (key, value) in $crate::config::tree::pairs(value, reader, &empty)?.iter() {
                    match key {
                        $( stringify!($key) => reader.within(key, |reader| {
                            $crate::config::tree::Node::read(&mut self.$key, value, reader)
                        })?, )*
                        unknown => return Err(reader.unknown(unknown, &[$( stringify!($key), )*])),
                    }
                }
                Ok(())
            }

            fn show(&self) -> warptrace_model::Value {
                let mut object = warptrace_model::Object::new();
                $( object.insert(stringify!($key), $crate::config::tree::Node::show(&self.$key)); )*
                warptrace_model::Value::Object(object)
            }
        }
    };
}

/// Declares a value that is one of some words.
macro_rules! choice {
    (
        $(#[doc = $about:literal])*
        $name:ident { $( $(#[doc = $word_about:literal])* $variant:ident = $word:literal, )* }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
        pub(crate) enum $name {
            $( $(#[doc = $word_about])* #[value(name = $word)] $variant, )*
        }

        impl $crate::config::tree::Leaf for $name {
            fn schema() -> serde_json::Value {
                $crate::config::tree::words(&[$( $word, )*])
            }

            fn parse(text: &str) -> Result<$name, String> {
                match text {
                    $( $word => Ok($name::$variant), )*
                    other => Err($crate::config::tree::no_word(other, &[$( $word, )*])),
                }
            }

            fn shown(&self) -> warptrace_model::Value {
                match self { $( $name::$variant => $word.into(), )* }
            }
        }
    };
}

pub(crate) use {choice, section};

/// Of a schema: one of `words`. YAML 1.1 takes some of them for booleans.
pub(super) fn words(words: &[&str]) -> serde_json::Value {
    let mut all: Vec<serde_json::Value> = words.iter().map(|w| (*w).into()).collect();
    for (word, value) in [("off", false), ("on", true)] {
        if words.contains(&word) {
            all.push(value.into());
        }
    }
    serde_json::json!({ "enum": all })
}

pub(super) fn no_word(text: &str, words: &[&'static str]) -> String {
    let near = nearest(text, words.iter().copied());
    let near = near.map(|n| format!(" (nearest: {n})")).unwrap_or_default();
    let text: String = text.chars().take(64).collect();
    format!("{text:?} is not one of {}{near}", words.join(", "))
}
