//! The engine by traces as text.

mod facts;
mod named;
mod properties;
mod scenarios;
mod units;

use expect_test::Expect;

use crate::testing::{explain_trace, render};
use crate::{Output, Rules};

/// What the engine with its default rules says of a trace.
#[track_caller]
fn check(trace: &str, want: Expect) -> Output {
    check_with(Rules::default(), trace, want)
}

#[track_caller]
fn check_with(rules: Rules, trace: &str, want: Expect) -> Output {
    let out = explain_trace(trace, rules);
    want.assert_eq(&render(&out));
    out
}
