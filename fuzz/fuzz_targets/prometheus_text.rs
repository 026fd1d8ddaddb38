//! Whatever a server calls its metrics is read without a panic; every line is a sample, a bad one, or says nothing; and what is
//! read has the names that the format lets it have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warptrace_formats::prometheus_text::{MAX_LABELS, Samples};

fuzz_target!(|text: &[u8]| {
    let lines = text.split(|byte| *byte == b'\n').count();
    let mut seen = 0;
    let mut last = 0;
    for line in Samples::new(text) {
        seen += 1;
        match line {
            Ok(sample) => {
                assert!(!sample.name.is_empty() && sample.name.starts_with(sample.family()));
                assert!(sample.labels.len() <= MAX_LABELS);
                for (i, (name, _)) in sample.labels.iter().enumerate() {
                    assert!(sample.labels[..i].iter().all(|(other, _)| other != name));
                }
            }
            Err(bad) => {
                assert!(bad.number > last && bad.number <= lines);
                last = bad.number;
            }
        }
    }
    assert!(seen <= lines);
});
