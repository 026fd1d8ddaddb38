//! The words of warptrace: clocks, ids, events, units, findings.
