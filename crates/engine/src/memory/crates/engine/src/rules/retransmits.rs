//! TCP segments are sent again.
//!
//! *What it says*: more than ten retransmits within ten seconds; MEDIUM, HIGH from more than a hundred on. Of the whole
//! machine: the kernel tells the sockets' ports, not whose they are.
//! *Evidence needed*: the events themselves; counted over ten seconds, so that a month's few make nothing.
//! *Looks like but is not*: a slow peer without loss; losses of RDMA, which are not TCP.
//! *Example*: a switch port that drops under load, NCCL over sockets.
//! *Source*: Linux tracepoint `tcp:tcp_retransmit_skb`.

use std::collections::VecDeque;

use warptrace_model::{Cause, Retransmit, Severity, Thread};

use super::Fact;
use crate::thresholds::FactRules;
use crate::world::window;

/// Retransmits of late.
#[derive(Default)]
pub(crate) struct Retransmits {
    recent: VecDeque<u64>,
    /// The finding that goes on: since when, its worst count, how many in all.
    open: Option<(u64, usize, u64)>,
}

impl Retransmits {
    /// Counts one; the fact, new or updated, when there are many.
    pub(crate) fn seen(&mut self, e: &Retransmit, rules: &FactRules) -> Option<Fact> {
        let now = e.at.0;
        let from = now.saturating_sub(rules.retransmit_window_nanos);
        while self.recent.front().is_some_and(|t| *t < from) {
            self.recent.pop_front();
        }
        // The count matters only up to the higher threshold; what is over it is not kept.
        if self.recent.len() > rules.retransmits_high + 1 {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        let n = self.recent.len();
        if n <= rules.retransmits_medium {
            if n == 1 {
                self.open = None;
            }
            return None;
        }
        let first = self.recent.front().copied().unwrap_or(now);
        let (since, worst, total) = self.open.unwrap_or((first, 0, n as u64 - 1));
        let open = (since, worst.max(n), total + 1);
        self.open = Some(open);
        Some(Fact {
            cause: Cause::NetworkWait,
            severity: if open.1 > rules.retransmits_high {
                Severity::High
            } else {
                Severity::Medium
            },
            thread: Thread::default(),
            device: None,
            op: None,
            window: window(since, now),
            what: format!("{} TCP retransmits on this machine", open.2),
            number: since,
        })
    }
}
