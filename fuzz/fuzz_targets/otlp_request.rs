//! Whatever a client sends as spans, in either encoding, is read without a panic and within bounds, and goes on as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warptrace_formats::otlp::{ExportTraceServiceRequest, MAX_REQUEST_ITEMS};

fuzz_target!(|body: &[u8]| {
    if let Ok(request) = ExportTraceServiceRequest::decode_protobuf(body) {
        // A value that is not a number equals no other: bytes are compared.
        let written = request.to_protobuf();
        let again = ExportTraceServiceRequest::decode_protobuf(&written).expect("it was read before");
        assert_eq!(again.to_protobuf(), written);
        passes_as_json(&request);
    }
    if let Ok(request) = ExportTraceServiceRequest::decode_json(body) {
        passes_as_json(&request);
    }
});

fn passes_as_json(request: &ExportTraceServiceRequest) {
    assert!(request.span_count() <= MAX_REQUEST_ITEMS as u64);
    let written = request.to_json();
    // Of JSON, fewer levels are read, and marks are counted another way.
    if let Ok(again) = ExportTraceServiceRequest::decode_json(&written) {
        assert_eq!(again.to_json(), written);
        assert_eq!(again.span_count(), request.span_count());
    }
}
