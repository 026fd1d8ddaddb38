//! An annotation is refused for its syntax just when it is no JSON, however it comes in; what is taken can be written again and
//! is then the same.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use warptrace_formats::annotation::{Draft, Line, Lines, MAX_LINE_BYTES, Refusal, encode_labels};
use warptrace_model::Labels;

fuzz_target!(|input: &[u8]| {
    let Some((&cut, stream)) = input.split_first() else {
        return;
    };
    let whole = split(stream, stream.len().max(1));
    assert_eq!(whole, split(stream, usize::from(cut).max(1)));
    for line in whole.0 {
        assert!(line.len() < MAX_LINE_BYTES && !line.contains(&b'\n'));
        judge(&line);
    }
});

fn split(stream: &[u8], chunk: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut out, mut lines) = (Vec::new(), Lines::default());
    for chunk in stream.chunks(chunk) {
        if lines.push(chunk, |line| out.push(line.to_vec())).is_err() {
            return (out, true);
        }
    }
    lines.finish(|line| out.push(line.to_vec()));
    (out, false)
}

fn judge(line: &[u8]) {
    let draft = Draft::decode(line);
    let syntax = matches!(draft, Err(Refusal::Syntax));
    match serde_json::from_slice::<IgnoredAny>(line) {
        Ok(_) => assert!(!syntax, "refused, and is JSON"),
        // Its limit of 128 levels is not ours.
        Err(_) if line.iter().filter(|b| matches!(b, b'[' | b'{')).count() > 127 => {}
        Err(e) => assert!(syntax, "{e}"),
    }
    let Ok(line) = draft.and_then(Draft::check) else {
        return;
    };
    assert!((1..=Labels::MAX).contains(&line.labels.len()));
    for (key, value) in line.labels.iter() {
        assert!(Labels::is_key(key) && value.len() <= Labels::MAX_VALUE_BYTES);
        assert_eq!(line.labels.get(key), Some(value));
    }
    let stored: BTreeMap<String, String> =
        serde_json::from_str(&encode_labels(&line.labels)).unwrap();
    assert!(
        line.labels
            .iter()
            .eq(stored.iter().map(|(k, v)| (&**k, &**v)))
    );
    let mut bytes = Vec::new();
    match line.encode(&mut bytes) {
        Ok(()) => assert_eq!(Line::decode(&bytes[..bytes.len() - 1]), Ok(line)),
        Err(e) => assert_eq!((e, bytes.len()), (Refusal::LineTooLong, 0)),
    }
}
