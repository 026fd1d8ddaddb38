//! Whatever text a caller hands over, the line is one record with no key twice, and says what it was told to say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warptrace_formats::json::{Reader, Token};
use warptrace_formats::run_log::encode::{Failed, RunStart, Served, error, request, run_start};
use warptrace_formats::run_log::{Checker, Kind, Line, ProblemKind, Record};

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    let (model, extra) = text.split_at(text.find('{').unwrap_or(0));
    let mut line = Vec::new();

    let served = Served {
        model,
        completion_tokens: 7,
        latency_micros: -1,
        extra,
        ..Served::default()
    };
    request(&mut line, 1_500_000, &served);
    let record = check(&line, Kind::Request);
    assert!(record.model.is_some_and(|m| m.is(model)));
    assert_eq!(
        (
            record.completion_tokens,
            record.latency_micros,
            record.t_secs
        ),
        (Some(7), Some(0), Some(1.5))
    );

    let mut line = Vec::new();
    let failed = Failed {
        model: extra,
        status: 503,
        code: model,
        message: &text,
        latency_micros: 9,
        extra,
    };
    error(&mut line, 0, Some(&failed));
    let record = check(&line, Kind::RequestError);
    assert!(record.message.is_some_and(|m| m.is(&text)) && record.status == Some(503));

    let mut line = Vec::new();
    run_start(
        &mut line,
        i64::from(input.len() as u32),
        &RunStart {
            host: model,
            config: extra,
            ..RunStart::default()
        },
    );
    check(&line, Kind::RunStart);
});

fn check(line: &[u8], kind: Kind) -> Record<'_> {
    let text = line.strip_suffix(b"\n").unwrap_or_default();
    let record =
        Record::parse(text).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(text)));
    assert_eq!((record.kind, record.text), (kind, text));
    let whole = Line {
        number: 1,
        offset: 0,
        terminated: true,
        bytes: Some(text),
    };
    Checker::new().line(&whole, |problem| {
        assert_ne!(problem.kind, ProblemKind::RepeatedKey)
    });
    // No whitespace between tokens: all that is not in a token is a comma or a colon.
    let (mut reader, mut end) = (Reader::new(text), 0);
    while let Ok(Some(token)) = reader.next() {
        let range = reader.range();
        assert!(
            text[end..range.start]
                .iter()
                .all(|b| matches!(b, b',' | b':'))
        );
        end = range.end + usize::from(matches!(token, Token::Key(_)));
    }
    record
}
