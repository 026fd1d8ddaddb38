//! The tokenizer takes what `serde_json` takes, places follow each other, and no string or number makes it panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use warptrace_formats::json::{Error, Invalid, Options, Reader, Str, Token};

fuzz_target!(|input: &[u8]| {
    let lenient = Options {
        check_utf8: false,
        ..Options::default()
    };
    let grammar = walk(input, lenient);
    // Arrays deeper than 128 levels are the other's limit, not ours.
    match serde_json::from_slice::<IgnoredAny>(input) {
        Ok(_) => assert!(grammar.is_ok() || deep(input)),
        Err(e) => assert!(grammar.is_err(), "{e}"),
    }
    let strict = walk(input, Options::default());
    assert_eq!(
        strict.is_ok(),
        grammar.is_ok() && std::str::from_utf8(input).is_ok()
    );
    let python = Options {
        non_finite: true,
        max_depth: 4,
        ..Options::default()
    };
    let _ = walk(input, python);
});

fn deep(input: &[u8]) -> bool {
    input.iter().filter(|b| matches!(b, b'[' | b'{')).count() > 512
}

fn walk(input: &[u8], options: Options) -> Result<(), Error> {
    let mut reader = Reader::with_options(input, options);
    let mut last = 0;
    while let Some(token) = reader.next()? {
        let range = reader.range();
        assert!(last <= range.start && range.start < range.end && range.end <= reader.position());
        assert!(reader.depth() <= options.max_depth);
        last = range.end;
        match token {
            Token::Key(s) | Token::String(s) => {
                assert_eq!(s.raw(), &input[range.start + 1..range.end - 1]);
                check(s);
            }
            Token::Number(n) => {
                assert_eq!(n.text().as_bytes(), &input[range]);
                if let Some(value) = n.integral_i64() {
                    let near = value as f64 - n.as_f64();
                    assert!(near.abs() <= 1024.0, "{}", n.text());
                }
                let exact = n.as_i64();
                assert!(exact.is_none() || exact == n.integral_i64());
                let _ = (n.as_u64(), n.integral_u64());
            }
            _ => {}
        }
    }
    assert_eq!(reader.depth(), 0);
    Ok(())
}

fn check(s: Str<'_>) {
    let kept = s.decode_wtf8();
    match s.decode(Invalid::Refuse) {
        Some(text) => {
            assert!(s.is(&text));
            assert_eq!(text.as_bytes(), &*kept);
            assert_eq!(s.decode(Invalid::Replace).as_deref(), Some(&*text));
        }
        None => {
            let replaced = s.decode(Invalid::Replace).unwrap_or_default();
            let bytes = s.decode(Invalid::ReplaceBytes).unwrap_or_default();
            assert!(
                replaced.contains('\u{fffd}') && bytes.chars().count() >= replaced.chars().count()
            );
            assert!(!s.is(&replaced));
        }
    }
    assert_eq!(Str::from_raw(s.raw()), Some(s));
}
