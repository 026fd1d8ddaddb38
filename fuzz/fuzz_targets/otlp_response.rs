//! Whatever a collector answers, in either encoding, is read without a panic, and says nothing that it did not say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warptrace_formats::otlp::{Partial, Refusal};

fuzz_target!(|body: &[u8]| {
    for partial in [Partial::decode_protobuf(body), Partial::decode_json(body)] {
        if let Ok(partial) = partial {
            assert!(partial.rejected <= i64::MAX as u64);
            assert!(partial.message.len() <= body.len());
        }
    }
    for refusal in [Refusal::decode_protobuf(body), Refusal::decode_json(body)] {
        assert!(refusal.message.len() <= body.len());
    }
});
