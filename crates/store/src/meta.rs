//! `session.json`: what a session is, apart from its tables.

use std::path::Path;

use serde::{Deserialize, Serialize};
use warptrace_model::{BootNanos, ClockAnchor, UnixNanos};

use crate::error::StoreError;

/// The newest format that this version reads, and the one that it writes.
pub const FORMAT_VERSION: u32 = 1;

/// Its name in a session's directory.
pub(crate) const FILE: &str = "session.json";

/// More than a session.json ever has.
pub(crate) const MAX_BYTES: u64 = 16 << 20;

/// What a session is, as it stands in `session.json`. Times there are strings: JSON readers round big numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionMeta {
    /// Format of the tables and of this file, [`FORMAT_VERSION`].
    pub format: u32,
    /// Sorts by the time of its making: `20261121T230501Z-4f2a9c1b`.
    pub id: String,
    pub host: String,
    /// Id of the node in its cluster; empty for none.
    #[serde(default)]
    pub node: String,
    #[serde(rename = "created_unix_ns", with = "unix")]
    pub created: UnixNanos,
    /// Absent until the session was ended in good order.
    #[serde(rename = "ended_unix_ns", with = "unix_option", default)]
    pub ended: Option<UnixNanos>,
    /// The command that was recorded; empty when it was not started by the recorder.
    #[serde(default)]
    pub command: Vec<String>,
    /// Names of the capture backends and pollers.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Both clocks, measured as the session ran, in order of time.
    #[serde(default, with = "anchors")]
    pub clock: Vec<ClockAnchor>,
    #[serde(default)]
    pub identity: Identity,
    /// While all was well, single events were kept one in so many; absent when all were. Counts, units and findings are of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_one_in: Option<u32>,
    /// Of a recording that goes on over several sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// The user whose session it is.
    #[serde(default)]
    pub uid: u32,
    /// Of warptrace.
    #[serde(default)]
    pub version: String,
    /// Release of the kernel.
    #[serde(default)]
    pub kernel: String,
    #[serde(default)]
    pub cpus: u32,
}

/// Whose work it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Identity {
    #[serde(default)]
    pub cluster: String,
    /// Whose machine it is: `aws`, or what somebody said; empty when that is not known, as in older sessions.
    #[serde(default)]
    pub provider: String,
    #[serde(default)]
    pub job: String,
    #[serde(default)]
    pub rank: Option<u32>,
    #[serde(default)]
    pub local_rank: Option<u32>,
    #[serde(default)]
    pub world_size: Option<u32>,
}

/// Which part of a recording a session is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Id of the recording's first session.
    pub recording: String,
    /// 1 is that first session.
    pub number: u32,
}

impl SessionMeta {
    /// A session that begins at `anchor`, with a new id; everything else is empty.
    pub fn new(anchor: ClockAnchor) -> SessionMeta {
        SessionMeta {
            format: FORMAT_VERSION,
            id: new_id(anchor.unix),
            host: String::new(),
            node: String::new(),
            created: anchor.unix,
            ended: None,
            command: Vec::new(),
            sources: Vec::new(),
            clock: vec![anchor],
            identity: Identity::default(),
            sample_one_in: None,
            part: None,
            uid: 0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: String::new(),
            cpus: 0,
        }
    }

    /// The first of the sessions of a recording that will go on in others.
    #[must_use]
    pub fn rolling(self) -> SessionMeta {
        let first = Part {
            recording: self.id.clone(),
            number: 1,
        };
        SessionMeta {
            part: Some(first),
            ..self
        }
    }

    /// The session in which this one's recording goes on from `anchor`.
    #[must_use]
    pub fn next(&self, anchor: ClockAnchor) -> SessionMeta {
        let part = self.part.clone().unwrap_or_else(|| Part {
            recording: self.id.clone(),
            number: 1,
        });
        let new = SessionMeta::new(anchor);
        SessionMeta {
            id: new.id,
            created: new.created,
            ended: None,
            clock: new.clock,
            part: Some(Part {
                number: part.number.saturating_add(1),
                ..part
            }),
            ..self.clone()
        }
    }

    /// The conversion between the clocks that holds at `at`: the last anchor measured until then, or else the first.
    pub fn anchor_at(&self, at: BootNanos) -> ClockAnchor {
        let after = self.clock.partition_point(|a| a.boot <= at);
        let anchor = self.clock.get(after.saturating_sub(1));
        anchor.copied().unwrap_or(ClockAnchor {
            boot: BootNanos(0),
            unix: self.created,
        })
    }

    /// Unix time of a moment of the session.
    pub fn unix(&self, at: BootNanos) -> UnixNanos {
        self.anchor_at(at).unix(at)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("strings and integers only");
        json.push(b'\n');
        json
    }

    /// Reads a `session.json`; `path` is for errors.
    pub(crate) fn decode(json: &[u8], path: &Path) -> Result<SessionMeta, StoreError> {
        #[derive(Deserialize)]
        struct Format {
            format: u64,
        }
        let foreign = |source| StoreError::Foreign {
            path: path.to_owned(),
            source,
        };
        // The version alone first: the rest of a newer file may mean anything.
        let Format { format } = serde_json::from_slice(json).map_err(foreign)?;
        if format > u64::from(FORMAT_VERSION) {
            return Err(StoreError::Newer {
                path: path.to_owned(),
                found: format,
            });
        }
        serde_json::from_slice(json).map_err(foreign)
    }
}

/// An id that sorts by time and that no other session has: the second in UTC, and 32 random bits.
fn new_id(now: UnixNanos) -> String {
    use std::hash::{BuildHasher as _, RandomState};
    let random = RandomState::new().hash_one(now.0) as u32;
    format!("{}-{random:08x}", utc_second(now))
}

/// The begin of ids made at `now`.
pub(crate) fn utc_second(now: UnixNanos) -> String {
    let seconds = now.0 / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar.
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// Nanoseconds as a string of digits.
mod digits {
    use serde::{Deserialize as _, Deserializer, de::Error as _};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
        let digits = std::borrow::Cow::<str>::deserialize(d)?;
        digits.parse().map_err(D::Error::custom)
    }
}

mod unix {
    use serde::{Deserializer, Serializer};
    use warptrace_model::UnixNanos;

    pub(super) fn serialize<S: Serializer>(t: &UnixNanos, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&t.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<UnixNanos, D::Error> {
        super::digits::deserialize(d).map(UnixNanos)
    }
}

mod unix_option {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};
    use warptrace_model::UnixNanos;

    pub(super) fn serialize<S: Serializer>(t: &Option<UnixNanos>, s: S) -> Result<S::Ok, S::Error> {
        t.map(|t| t.0.to_string()).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<UnixNanos>, D::Error> {
        let digits = Option::<String>::deserialize(d)?;
        let parsed = digits.map(|t| t.parse().map(UnixNanos)).transpose();
        parsed.map_err(D::Error::custom)
    }
}

mod anchors {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use warptrace_model::{BootNanos, ClockAnchor, UnixNanos};

    #[derive(Serialize, Deserialize)]
    struct Anchor {
        #[serde(
            rename = "boot_ns",
            serialize_with = "digits",
            deserialize_with = "super::digits::deserialize"
        )]
        boot: u64,
        #[serde(
            rename = "unix_ns",
            serialize_with = "digits",
            deserialize_with = "super::digits::deserialize"
        )]
        unix: u64,
    }

    fn digits<S: Serializer>(n: &u64, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(n)
    }

    pub(super) fn serialize<S: Serializer>(
        anchors: &[ClockAnchor],
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.collect_seq(anchors.iter().map(|a| Anchor {
            boot: a.boot.0,
            unix: a.unix.0,
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Vec<ClockAnchor>, D::Error> {
        let anchors = Vec::<Anchor>::deserialize(d)?;
        Ok(anchors
            .into_iter()
            .map(|a| ClockAnchor {
                boot: BootNanos(a.boot),
                unix: UnixNanos(a.unix),
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(boot: u64, unix: u64) -> ClockAnchor {
        ClockAnchor {
            boot: BootNanos(boot),
            unix: UnixNanos(unix),
        }
    }

    #[test]
    fn ids_begin_with_the_second_in_utc() {
        for (second, text) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (1_795_303_501, "20261121T232501Z"),
            (4_102_444_800, "21000101T000000Z"),
        ] {
            assert_eq!(utc_second(UnixNanos(second * 1_000_000_000)), text);
        }
    }

    #[test]
    fn what_is_encoded_decodes_with_every_nanosecond() {
        let mut meta = SessionMeta::new(anchor(u64::MAX - 1, u64::MAX));
        meta.ended = Some(UnixNanos((1 << 53) + 1));
        meta.clock.push(anchor((1 << 53) + 1, 3));
        meta.identity.rank = Some(7);
        let back = SessionMeta::decode(&meta.encode(), Path::new("s")).unwrap();
        assert_eq!(back, meta);
    }

    #[test]
    fn each_moment_is_converted_by_the_anchor_before_it() {
        let mut meta = SessionMeta::new(anchor(100, 1_000));
        meta.clock.push(anchor(200, 1_105));
        for (boot, unix) in [
            (50, 950),
            (100, 1_000),
            (199, 1_099),
            (200, 1_105),
            (300, 1_205),
        ] {
            assert_eq!(meta.unix(BootNanos(boot)), UnixNanos(unix), "at {boot}");
        }
    }

    #[test]
    fn a_newer_format_asks_for_an_upgrade_whatever_else_is_in_it() {
        let error = SessionMeta::decode(br#"{"format":3,"id":5}"#, Path::new("s")).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#""s" was made by a newer warptrace (format 3, this one reads up to 1): upgrade"#
        );
        let error = SessionMeta::decode(br#"{"name":"other"}"#, Path::new("s")).unwrap_err();
        assert_eq!(error.to_string(), r#""s" is not a session of warptrace"#);
    }
}
