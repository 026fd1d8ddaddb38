//! Records of GPU memory telemetry: lines, first by themselves, then again through a decoder that knows the lines before, which
//! must say the same; and what they say, written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use warptrace_formats::memory::{
    Batch, Chunk, ChunkDecoder, Upgrade, Version, open_json, projected, read_csv, read_document,
    record,
};
use warptrace_model::Value;

fn chunk(bytes: &[u8]) -> Chunk {
    Chunk {
        bytes: bytes.to_vec(),
        first_line: 1,
        too_long: None,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let upgrade = Upgrade {
        default_session_id: Some("default".into()),
        ..Upgrade::default()
    };
    // Each line by a decoder that has seen nothing.
    let mut alone = Vec::new();
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let mut batch = Batch::default();
        ChunkDecoder::new(upgrade.clone()).decode(&chunk(line), &mut batch);
        alone.extend(batch.events);
    }
    // All of them, twice over, by one that remembers.
    let mut decoder = ChunkDecoder::new(upgrade.clone());
    for _ in 0..2 {
        let mut batch = Batch::default();
        decoder.decode(&chunk(bytes), &mut batch);
        // NaN is not equal to itself: compare as it is written.
        assert_eq!(format!("{:?}", batch.events), format!("{alone:?}"));
    }
    for event in &alone {
        let written = record(event, Version::V4).expect("v4 says every event");
        let text = open_json::to_string(&Value::Object(written), open_json::Style::LINE);
        let mut batch = Batch::default();
        ChunkDecoder::new(upgrade.clone()).decode(&chunk(text.as_bytes()), &mut batch);
        assert_eq!(batch.events.len(), 1, "{text}");
        let again = record(&batch.events[0], Version::V4).expect("v4 says every event");
        assert_eq!(
            text,
            open_json::to_string(&Value::Object(again), open_json::Style::LINE)
        );
        projected(event, None);
        let _ = record(event, Version::V3);
    }
    let _ = read_document(&mut || Ok(bytes), None, &upgrade, &mut |_| {});
    let _ = read_csv(bytes, "/x", &mut |_, _| {});
});
