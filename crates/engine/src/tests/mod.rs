//! The engine by traces as text.

mod scenarios;

use expect_test::Expect;

use crate::testing::{explain_trace, render};
use crate::{Output, Rules};

/// What the engine with its default rules says of a trace.
#[track_caller]
fn check(trace: &str, want: Expect) -> Output {
    let out = explain_trace(trace, Rules::default());
    want.assert_eq(&render(&out));
    out
}
