//! The outlier stream: what a consumer of the socket gets, one JSON object a line, `type` first.
//!
//! Contract version 1 of the tracer `ingero` 0.17.0: [`Memory`] and [`Straggle`] are stable (no field is removed or renamed), the
//! rest is experimental. A reader ignores types and fields that it does not know, and a field that is missing or null has its
//! empty value; so may a writer leave out what the tables mark with `?` when it is empty. Numbers are exact: handles of streams
//! and throttle reasons are 64-bit integers, which a reader in JavaScript must not read as doubles.
//!
//! It knows no socket and no clock; how messages follow from what the engine concluded is in [`Node`].

mod field;
mod from_model;

use self::field::Field as _;
use crate::json::{self, Invalid, Reader, Token};

pub use self::field::Unwritable;
pub use self::from_model::Node;

/// A longer line is refused when read, and not written.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// Declares messages: their fields in wire order, `?` before those that are left out when empty.
macro_rules! messages {
    ($(
        $(#[$doc:meta])*
        $name:ident = $tag:literal {
            $( $(#[$field_doc:meta])* $field:ident $(: ? $optional:ty)? $(: = $always:ty)?, )*
        }
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Default)]
            pub struct $name {
                $( $(#[$field_doc])* pub $field: $($optional)? $($always)?, )*
            }

            impl $name {
                /// What `type` says.
                pub const TYPE: &str = $tag;

                fn write(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
                    $(
                        messages!(@write self, out, $field $(: ? $optional)? $(: = $always)?);
                    )*
                    Ok(())
                }

                fn read(&mut self, key: &str, reader: &mut Reader<'_>) -> Result<(), BadMessage> {
                    match key {
                        $( stringify!($field) => {
                            self.$field = field::read(reader, stringify!($field))?;
                        } )*
                        _ => {
                            reader.skip_value()?;
                        }
                    }
                    Ok(())
                }
            }
        )*

        /// Any message.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Message {
            $( $name($name), )*
        }

        impl Message {
            /// What `type` says.
            pub const fn type_name(&self) -> &'static str {
                match self {
                    $( Message::$name(_) => $name::TYPE, )*
                }
            }

            fn empty(type_name: &str) -> Option<Message> {
                match type_name {
                    $( $tag => Some(Message::$name($name::default())), )*
                    _ => None,
                }
            }

            fn write(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
                match self {
                    $( Message::$name(message) => message.write(out), )*
                }
            }

            fn read(&mut self, key: &str, reader: &mut Reader<'_>) -> Result<(), BadMessage> {
                match self {
                    $( Message::$name(message) => message.read(key, reader), )*
                }
            }
        }

        $(
            impl From<$name> for Message {
                fn from(message: $name) -> Message {
                    Message::$name(message)
                }
            }
        )*
    };
    (@write $self:ident, $out:ident, $field:ident : ? $optional:ty) => {
        if !$self.$field.is_empty_value() {
            field::write($out, stringify!($field), &$self.$field)?;
        }
    };
    (@write $self:ident, $out:ident, $field:ident : = $always:ty) => {
        field::write($out, stringify!($field), &$self.$field)?;
    };
}

/// A time on the wire: RFC 3339 in UTC with up to nine digits of a second; 0 is the year 1, as Go writes no time at all.
pub use warptrace_model::UnixNanos as Timestamp;

messages! {
    /// Device memory was allocated or freed by a process. Stable.
    Memory = "memory" {
        pid: = u32,
        comm: ? String,
        gpu_id: = u32,
        /// What this process allocated and did not free, as far as it was watched.
        allocated_bytes: = u64,
        /// Of the device.
        total_vram: = u64,
        /// Allocated of total, times 100.
        utilization_pct: = f64,
        /// Of the call that this is about.
        last_alloc_size: = u64,
        /// Unix time.
        timestamp_ns: = i64,
    }

    /// A process launches less than usual while it is preempted. Stable.
    Straggle = "straggle" {
        pid: = u32,
        comm: ? String,
        /// How much of the usual launches a second is missing, percent.
        throughput_drop_pct: = f64,
        sched_switch_count: = u32,
        /// Written as null when there are none.
        preempting_pids: = Option<Vec<u32>>,
        /// Unix time.
        timestamp_ns: = i64,
        /// Said before, and still so.
        sustained: = bool,
        event_id: ? String,
        rank: ? i64,
        world_size: ? i64,
    }

    /// The node has become slower than its peers.
    StragglerState = "straggler_state" {
        node_id: = String,
        cluster_id: = String,
        score: = f64,
        threshold: = f64,
        /// `fleet`, `fleet-cached`, `local-cached` or `local-baseline`.
        detection_mode: = String,
        /// `throughput`, `compute`, `memory`, `cpu` or `unknown`.
        dominant_signal: = String,
        timestamp: = Timestamp,
        event_id: ? String,
        rank: ? i64,
        world_size: ? i64,
    }

    /// It is not any more.
    StragglerResolved = "straggler_resolved" {
        node_id: = String,
        cluster_id: = String,
        timestamp: = Timestamp,
        event_id: ? String,
        rank: ? i64,
        world_size: ? i64,
    }

    /// A step of an inference engine took much longer than its workload's usual.
    InferenceOutlier = "inference_outlier" {
        node_id: = String,
        cluster_id: = String,
        timestamp: = Timestamp,
        event_id: ? String,
        cgroup_path_hash: ? String,
        pid: = u32,
        stream_handle: ? u64,
        phase: ? String,
        step_duration_ns: = i64,
        baseline_p95_ns: = i64,
        baseline_mean_ns: ? i64,
        /// `1.5x`, `2x` or `3x`.
        bucket: = String,
        rank: ? i64,
        world_size: ? i64,
        memfrag_events_in_step: ? u32,
        /// NVML's bits.
        throttle_reasons: ? u64,
        min_sm_clock_mhz: ? u32,
        /// The oldest first.
        kv_cache_top_alloc_ages_ms: ? Vec<u64>,
    }

    /// The sampler admits every event from now on, since an outlier was that far out.
    InferenceSamplerDegraded = "inference_sampler_degraded" {
        node_id: = String,
        cluster_id: = String,
        timestamp: = Timestamp,
        cgroup_path_hash: ? String,
        pid: = u32,
        stream_handle: ? u64,
        phase: ? String,
        bucket: = String,
        cause: = String,
        cooldown_end: = Timestamp,
        rank: ? i64,
        world_size: ? i64,
    }
}

/// Why a line is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    #[error("the line is above {MAX_LINE_BYTES} bytes")]
    TooLong,
    #[error(transparent)]
    Json(#[from] json::Error),
    #[error("not an object")]
    NotAnObject,
    #[error("\"type\" is missing or no text")]
    NoType,
    #[error("{field:?} is not {expected}")]
    Field {
        field: &'static str,
        expected: &'static str,
    },
}

impl Message {
    /// Appends the message as a line, with its line feed; or nothing, when it cannot be written.
    ///
    /// # Errors
    /// See [`Unwritable`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        let begin = out.len();
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(self.type_name().as_bytes());
        out.push(b'"');
        let written = self.write(out).and_then(|()| {
            out.extend_from_slice(b"}\n");
            match out.len() - begin <= MAX_LINE_BYTES {
                true => Ok(()),
                false => Err(Unwritable::TooLong),
            }
        });
        if written.is_err() {
            out.truncate(begin);
        }
        written
    }

    /// Reads a line, with or without its line feed. `None` is a message of a type that this version does not know.
    ///
    /// `type` may stand anywhere; of a field that is there twice, the last holds.
    ///
    /// # Errors
    /// See [`BadMessage`].
    pub fn decode(line: &[u8]) -> Result<Option<Message>, BadMessage> {
        if line.len() > MAX_LINE_BYTES {
            return Err(BadMessage::TooLong);
        }
        let type_name = type_of(line)?;
        let Some(mut message) = Message::empty(&type_name) else {
            return Ok(None);
        };
        let mut reader = Reader::new(line);
        reader.next()?;
        while let Some(token) = reader.next()? {
            if let Token::Key(key) = token {
                let key = key.decode(Invalid::Replace).unwrap_or_default();
                message.read(&key, &mut reader)?;
            }
        }
        Ok(Some(message))
    }
}

/// Checks the whole line, and finds `type`.
fn type_of(line: &[u8]) -> Result<String, BadMessage> {
    let mut reader = Reader::new(line);
    if reader.next()? != Some(Token::ObjectStart) {
        return Err(BadMessage::NotAnObject);
    }
    let mut found = None;
    while let Some(token) = reader.next()? {
        match token {
            Token::Key(key) if key.is("type") => {
                found = match reader.next()? {
                    Some(Token::String(text)) => {
                        text.decode(Invalid::Replace).map(|t| t.into_owned())
                    }
                    _ => return Err(BadMessage::NoType),
                };
            }
            Token::Key(_) => {
                reader.skip_value()?;
            }
            _ => {}
        }
    }
    found.ok_or(BadMessage::NoType)
}

#[cfg(test)]
mod tests;
