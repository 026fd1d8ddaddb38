//! A line of the outlier stream is refused for its syntax just when it is no JSON; what is taken can be written again and is then
//! the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use warptrace_formats::outlier_stream::{BadMessage, MAX_LINE_BYTES, Message, Unwritable};

fuzz_target!(|line: &[u8]| {
    let decoded = Message::decode(line);
    let syntax = matches!(decoded, Err(BadMessage::Json(_)));
    match serde_json::from_slice::<IgnoredAny>(line) {
        // serde_json looks not at the bytes of what it ignores. What is no object is refused before its end is looked at.
        Ok(_) => assert!(
            !syntax || std::str::from_utf8(line).is_err(),
            "refused, and is JSON"
        ),
        Err(_) if line.iter().filter(|b| matches!(b, b'[' | b'{')).count() > 127 => {}
        Err(e) => assert!(decoded.is_err(), "{e}"),
    }
    let Ok(Some(message)) = decoded else {
        return;
    };
    let mut out = Vec::new();
    match message.encode(&mut out) {
        Ok(()) => {
            assert!(out.len() <= MAX_LINE_BYTES && out.ends_with(b"\n"));
            assert_eq!(Message::decode(&out), Ok(Some(message)));
        }
        Err(Unwritable::TooLong) => assert!(out.is_empty()),
        Err(Unwritable::NotFinite) => panic!("JSON has no such number"),
    }
});
