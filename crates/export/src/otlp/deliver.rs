//! One request on its way: sent until the collector has it, or it is given up. The same for every signal.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use warptrace_formats::otlp::{Partial, UnreadableResponse};

use super::client::{Answer, Client};
use super::retry::{Backoff, Retry};

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Delivered {
    /// See [`Answer::Taken`].
    Taken(Result<Partial, UnreadableResponse>),
    /// Not taken, and would not be.
    Refused { why: String },
    /// Not taken for as long as we try.
    Exhausted { why: String },
    /// Its sender was closed meanwhile.
    Closed { why: String },
}

/// What a sender lets a request wait for.
pub(crate) trait Pace {
    /// How long the next try may take, at most; `most` is what the configuration says.
    fn time_for_a_try(&self, most: Duration) -> Duration;

    /// Waits before the next try, which is to be counted as one, since the last failed as `why` says; false when there is to be none.
    fn pause(&self, wait: Duration, why: &str) -> bool;
}

/// Sends `request` by `client`, and as often as `retry` says; `timeout` is for each try. After a panic in a library that sends,
/// `client` is made anew of `fresh`.
pub(crate) fn deliver(
    client: &mut Client,
    fresh: &Client,
    request: &[u8],
    timeout: Duration,
    retry: Retry,
    pace: &impl Pace,
) -> Delivered {
    /// So that the last try is one.
    const LEAST: Duration = Duration::from_millis(100);
    let first_try = Instant::now();
    let mut backoff = Backoff::new(retry);
    loop {
        let left = retry.total.saturating_sub(first_try.elapsed());
        let timeout = pace.time_for_a_try(timeout.min(left)).max(LEAST);
        // A panic, here or in a library that sends, must not end all exports.
        let answer = catch_unwind(AssertUnwindSafe(|| client.send(request, timeout)));
        let answer = answer.unwrap_or_else(|_| {
            *client = fresh.clone();
            let why = "sending panicked".to_owned();
            Answer::Again { after: None, why }
        });
        let (after, why) = match answer {
            Answer::Taken(partial) => return Delivered::Taken(partial),
            Answer::Refused { why } => return Delivered::Refused { why },
            Answer::Again { after, why } => (after, why),
        };
        match backoff.next(first_try.elapsed(), after, crate::spans::random()) {
            None => return Delivered::Exhausted { why },
            Some(wait) => {
                if !pace.pause(wait, &why) {
                    return Delivered::Closed { why };
                }
            }
        }
    }
}
