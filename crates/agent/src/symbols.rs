//! The thread that has user stacks looked up, while the processes live, and what it may take.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use warptrace_capture::symbols::{ResolvedStack, SymbolError, Symbols, UserStack};
use warptrace_model::{Gap, GapCode};

/// New stacks that may wait. A training loop has some ten in all.
pub(crate) const QUEUE_STACKS: usize = 256;
/// For one stack: the first of a file with gigabytes of debug information takes seconds.
const A_STACK: Duration = Duration::from_secs(5);
/// For all that are left when the recording stops.
const THE_REST: Duration = Duration::from_millis(200);
/// Without a new stack for so long, the helper's memory is given back.
const IDLE: Duration = Duration::from_secs(30);
/// Of a core, on average; and what may be used at once.
const SHARE: f64 = 0.1;
const AT_ONCE: Duration = Duration::from_secs(5);

/// Looks up what comes until the capture thread is gone; gives what it learns to `tell`.
pub(crate) fn run(
    mut symbols: Symbols,
    stacks: &Receiver<UserStack>,
    stop: &AtomicBool,
    mut tell: impl FnMut(Result<ResolvedStack, Gap>),
) {
    let mut left = AT_ONCE;
    let mut refilled = Instant::now();
    let mut stopping: Option<Instant> = None;
    loop {
        let stack = match stacks.recv_timeout(IDLE) {
            Ok(stack) => stack,
            Err(RecvTimeoutError::Timeout) => {
                symbols.rest();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        left = AT_ONCE.min(left + refilled.elapsed().mul_f64(SHARE));
        refilled = Instant::now();
        if left.is_zero() {
            tell(Err(unresolved("new stacks came too fast")));
            continue;
        }
        let began = Instant::now();
        let noticed = std::cell::Cell::new(stopping);
        let patience = || {
            if noticed.get().is_none() && stop.load(Ordering::Acquire) {
                noticed.set(Some(Instant::now()));
            }
            let one = A_STACK.saturating_sub(began.elapsed());
            noticed
                .get()
                .map_or(one, |at| one.min(THE_REST.saturating_sub(at.elapsed())))
        };
        match symbols.resolve(&stack, patience) {
            Ok(resolved) => tell(Ok(resolved)),
            // That was said when it was given up.
            Err(SymbolError::GivenUp(_)) => {}
            Err(e) => tell(Err(unresolved(&e.to_string()))),
        }
        stopping = noticed.get();
        left = left.saturating_sub(began.elapsed());
    }
}

/// Some lines of code will be missing, and why.
pub(crate) fn unresolved(why: &str) -> Gap {
    Gap {
        code: GapCode::NoStacks,
        detail: format!("the code lines of some waits are not known: {why}"),
        count: 1,
    }
}
