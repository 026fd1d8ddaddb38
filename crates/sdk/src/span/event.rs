//! What happens within a span.

use std::borrow::Cow;

use warptrace_model::{SpanEvent, Value};

use super::{Attributes, Timestamp};

/// Names that events have by convention.
pub mod name {
    pub const SPAN_START: &str = "span_start";
    pub const SPAN_STOP: &str = "span_stop";
    pub const ERROR: &str = "error";
    pub const TELEMETRY_DATA_ERROR: &str = "telemetry_data_error";
}

/// Names of attributes that the SDK sets itself.
pub mod attribute {
    /// When an event was, ms since the Unix epoch.
    pub const TIMESTAMP_MSEC: &str = "timestamp_msec";
    /// What a span lasted, ms.
    pub const DURATION_MSEC: &str = "duration_msec";
    pub const ERROR_MESSAGE: &str = "error_message";
    pub const EXCEPTION_TYPE: &str = "exception_type";
    pub const EXCEPTION_MESSAGE: &str = "exception_message";
    pub const EXCEPTION_TRACEBACK: &str = "exception_traceback";
    pub const TELEMETRY_DATA_ERROR_TYPE: &str = "telemetry_data_error_type";
}

/// Something at one moment: a name and attributes. It does not change.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    name: Cow<'static, str>,
    at: Timestamp,
    /// Without the time, which is [`Event::at`].
    own: Attributes,
}

/// An error of the program: what it says, and the exception (a panic, an `Error`) behind it when there is one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exception {
    pub kind: Box<str>,
    pub message: Box<str>,
    pub traceback: Option<Box<str>>,
}

/// What is wrong with the data that was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataLoss {
    /// There is none.
    NoData,
    /// Some is missing, or cannot be relied on.
    Incomplete,
}

impl DataLoss {
    pub const fn as_str(self) -> &'static str {
        match self {
            DataLoss::NoData => "no_telemetry_data",
            DataLoss::Incomplete => "incomplete_telemetry_data",
        }
    }
}

impl Event {
    pub fn new(name: impl Into<Cow<'static, str>>, at: Timestamp, attributes: Attributes) -> Event {
        Event {
            name: name.into(),
            at,
            own: attributes,
        }
    }

    /// An error of the program.
    pub fn error(message: &str, exception: Option<&Exception>, at: Timestamp) -> Event {
        let mut own = Attributes::new().with(attribute::ERROR_MESSAGE, message);
        if let Some(e) = exception {
            own = own
                .with(attribute::EXCEPTION_TYPE, &*e.kind)
                .with(attribute::EXCEPTION_MESSAGE, &*e.message);
            if let Some(traceback) = &e.traceback {
                own = own.with(attribute::EXCEPTION_TRACEBACK, &**traceback);
            }
        }
        Event::new(name::ERROR, at, own)
    }

    /// That exported data is missing or cannot be relied on, as opposed to an error of the program.
    pub fn data_error(
        message: &str,
        loss: DataLoss,
        extra: Option<&Attributes>,
        at: Timestamp,
    ) -> Event {
        let mut own = Attributes::new()
            .with(attribute::ERROR_MESSAGE, message)
            .with(attribute::TELEMETRY_DATA_ERROR_TYPE, loss.as_str());
        if let Some(extra) = extra {
            own.merge(extra);
        }
        Event::new(name::TELEMETRY_DATA_ERROR, at, own)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// What it was given, without its time.
    pub const fn own_attributes(&self) -> &Attributes {
        &self.own
    }

    /// What it was given, and `timestamp_msec`.
    pub fn attributes(&self) -> Attributes {
        let mut all = self.own.clone();
        let millis = Value::from(self.at.unix_millis());
        let added = all.try_add(attribute::TIMESTAMP_MSEC, millis);
        debug_assert!(added.is_ok(), "an integer is no list");
        all
    }

    /// The message of an error.
    pub fn error_message(&self) -> Option<&str> {
        self.own.get(attribute::ERROR_MESSAGE)?.as_str()
    }

    /// What an error says in one line: the exception behind it if there is one, else its message.
    pub fn error_text(&self) -> Option<Box<str>> {
        let text = |name| self.own.get(name).and_then(Value::as_str);
        match (
            text(attribute::EXCEPTION_TYPE),
            text(attribute::EXCEPTION_MESSAGE),
        ) {
            (Some(kind), Some("") | None) => Some(kind.into()),
            (Some(kind), Some(message)) => Some(format!("{kind}: {message}").into()),
            (None, _) => text(attribute::ERROR_MESSAGE).map(Into::into),
        }
    }

    /// As OTLP carries it.
    pub fn record(&self) -> SpanEvent {
        SpanEvent {
            name: self.name.as_ref().into(),
            at: self.at.unix(),
            attributes: self.own.as_object().clone(),
        }
    }
}

impl Exception {
    /// Of a Rust error: its type's name, and its message with those of its sources.
    pub fn of<E: std::error::Error + ?Sized>(error: &E) -> Exception {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Exception {
            kind: std::any::type_name::<E>().into(),
            message: message.into(),
            traceback: None,
        }
    }
}
