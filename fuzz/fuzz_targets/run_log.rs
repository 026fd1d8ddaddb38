//! A log read in chunks that are cut anywhere is the same log, what a record says is in its line, and repairing ends in records.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warptrace_formats::run_log::{
    Checker, Line, Lines, Record, Runs, Summary, SummaryOptions, is_blank, repair,
};

fuzz_target!(|input: &[u8]| {
    // The first byte says how long chunks are, the second how long lines may be.
    let [cut, limit, log @ ..] = input else {
        return;
    };
    let options = SummaryOptions {
        line_limit: usize::from(*limit) * 64,
        max_groups: 4,
        max_runs: 3,
        only_run: None,
    };
    let mut whole = Summary::new(options);
    whole.feed(log);
    whole.finish();
    let mut parts = Summary::new(options);
    for chunk in log.chunks(usize::from(*cut).max(1)) {
        parts.feed(chunk);
    }
    parts.finish();
    assert_eq!(told(&whole), told(&parts));
    assert!(whole.corrupt <= whole.lines && whole.recent().count() <= options.max_runs);

    let (mut checker, mut runs, mut repaired) = (Checker::new(), Runs::default(), Vec::new());
    let mut each = |line: Line<'_>| {
        checker.line(&line, |problem| assert!(problem.line == line.number));
        let Some(bytes) = line.bytes else { return };
        assert!(bytes.len() <= options.line_limit);
        let parts = repair(bytes);
        match Record::parse(bytes) {
            Ok(record) => {
                assert_eq!((parts.records.len(), parts.dropped.len()), (1, 0));
                runs.observe(&record);
                let _ = runs.request(&record);
            }
            Err(_) => assert!(parts.records.len() != 1 || !parts.dropped.is_empty()),
        }
        for range in parts.records {
            repaired.extend_from_slice(&bytes[range]);
            repaired.push(b'\n');
        }
    };
    let mut lines = Lines::new(options.line_limit);
    lines.feed(log, &mut each);
    lines.finish(&mut each);
    for line in repaired
        .split(|&b| b == b'\n')
        .filter(|line| !is_blank(line))
    {
        assert!(Record::parse(line).is_ok());
    }
});

/// All that a summary says.
fn told(summary: &Summary) -> String {
    let runs: Vec<_> = summary.recent().collect();
    let groups: Vec<_> = summary
        .by_model
        .iter()
        .chain(summary.by_principal.iter())
        .collect();
    format!(
        "{} {} {} {} {} {:?} {:?} {:?} {:?}",
        summary.lines,
        summary.corrupt,
        summary.torn_tail,
        summary.runs,
        summary.runs_given_up,
        summary.totals,
        runs,
        groups,
        summary.by_model.other
    )
}
