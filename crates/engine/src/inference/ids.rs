//! Ids that the same recording gives again: hashes of what they name.
//!
//! FNV-1a, 128 bits (Fowler, Noll, Vo; RFC 9923), over pid (u32), stream (u64), time (u64), all big-endian, and one byte that
//! tells what the id is for. Another tracer falls back to the same hash where it has no random source (ingero 0.17.0).

use warptrace_model::inference::EventId;
use warptrace_model::{SpanContext, SpanId};

const EVENT: u8 = 1;
const TRACE: u8 = 2;
const SPAN: u8 = 3;
const STRAGGLE: u8 = 4;

fn hash(pid: u32, stream: u64, unix_nanos: u64, what: u8) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let (pid, stream, time) = (
        pid.to_be_bytes(),
        stream.to_be_bytes(),
        unix_nanos.to_be_bytes(),
    );
    let bytes = pid.iter().chain(&stream).chain(&time).chain([&what]);
    bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |h, b| {
        (h ^ u128::from(*b)).wrapping_mul(PRIME)
    })
}

/// The id of what happened at this time, a UUID by its version and variant bits.
pub(super) fn event(pid: u32, stream: u64, unix_nanos: u64) -> EventId {
    EventId(SpanId::from_random(hash(pid, stream, unix_nanos, EVENT)).to_bits())
}

/// The id of a straggle of this process that began at this time.
pub(super) fn straggle(pid: u32, unix_nanos: u64) -> EventId {
    EventId(SpanId::from_random(hash(pid, 0, unix_nanos, STRAGGLE)).to_bits())
}

/// The trace and the span of what began at this time. Neither is zero.
pub(super) fn span(pid: u32, stream: u64, begin_unix_nanos: u64) -> SpanContext {
    let trace = hash(pid, stream, begin_unix_nanos, TRACE);
    let span = (hash(pid, stream, begin_unix_nanos, SPAN) >> 64) as u64;
    SpanContext {
        trace: trace.max(1),
        span: span.max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_that_the_other_tracer_falls_back_to() {
        let (pid, stream, time) = (4242, 0x7f00, 1_700_000_000_000_000_000);
        let hashes = [EVENT, TRACE, SPAN].map(|w| format!("{:032x}", hash(pid, stream, time, w)));
        assert_eq!(
            hashes,
            [
                "cfe249070b29c7320438a7b8f11daceb",
                "cfe249070c29c7320438a7b8f11dae26",
                "cfe249070d29c7320438a7b8f11daf61"
            ]
        );
        assert_eq!(
            event(pid, stream, time).to_string(),
            "cfe24907-0b29-4732-8438-a7b8f11daceb"
        );
        let s = span(pid, stream, time);
        assert_eq!(s.trace, 0xcfe249070c29c7320438a7b8f11dae26);
        assert_eq!(s.span, 0xcfe249070d29c732);
    }
}
