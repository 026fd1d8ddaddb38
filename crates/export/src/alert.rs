//! Alerts to people: findings, outliers and stragglers to Slack, PagerDuty, or any webhook.
//!
//! An alert has a key: told once, told again only when it gets worse (or after a reminder's time), and resolved when it is over
//! or was not heard of for a while. What to say is [`Book`]'s, when to send it to one receiver is [`Outbox`]'s; both are pure.
//! [`Alerter`] is them with threads, one a receiver: whoever raises an alert never waits for the network, what does not fit is
//! dropped and counted.
//!
//! Keys and addresses come from the environment only ([`AlertConfig::from_value`]).

mod alerter;
mod body;
mod book;
mod config;
mod hook;
mod outbox;
mod source;
mod template;

use warptrace_model::{Severity, UnixNanos};

pub use self::alerter::{AlertCounts, Alerter, ReceiverCounts};
pub use self::book::{Action, Book, Notice, Rules};
pub use self::config::{AlertConfig, AlertConfigError, Receiver, ReceiverKind, Secret};
pub use self::outbox::{Delivery, Outbox, OutboxCounts, Outcome, Step};
pub use self::source::{Raised, of_finding, of_outlier, of_shift, of_straggle};
pub use self::template::{Template, TemplateError};

/// Longest of an alert's texts, bytes; a longer one is cut.
const MAX_TEXT: usize = 1024;
/// Most details of an alert.
const MAX_DETAILS: usize = 32;
/// PagerDuty's limit for a `dedup_key`, bytes.
const MAX_KEY: usize = 255;

/// Something that somebody should know of while it lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// The same incident has the same key, on every node another one.
    pub key: String,
    pub severity: Severity,
    /// What happened, in one line.
    pub summary: String,
    /// Where: the node. Filled in from the configuration where it is empty.
    pub source: String,
    /// What of it: the process, the workload.
    pub component: String,
    /// The cluster; may be empty.
    pub group: String,
    /// A short word for the kind: `run_queue_wait`, `inference_outlier`.
    pub class: String,
    /// Further facts, by name.
    pub details: Vec<(String, String)>,
    pub at: UnixNanos,
    /// How often it must be raised before it is told; at least 1.
    pub needs: u32,
}

impl Alert {
    /// Within the limits: texts cut, control characters as spaces, a long key by its beginning and its hash.
    fn within_limits(mut self, source: &str) -> Alert {
        if self.key.len() > MAX_KEY {
            let hash = fnv1a(self.key.as_bytes());
            let start = crate::start_of(&self.key, MAX_KEY - 17);
            self.key = format!("{start}-{hash:016x}");
        }
        if self.source.trim().is_empty() {
            source.clone_into(&mut self.source);
        }
        let texts = [
            &mut self.summary,
            &mut self.source,
            &mut self.component,
            &mut self.group,
            &mut self.class,
        ];
        self.details.truncate(MAX_DETAILS);
        let details = self.details.iter_mut().flat_map(|(k, v)| [k, v]);
        for text in texts.into_iter().chain(details) {
            *text = one_line(text);
        }
        self.needs = self.needs.max(1);
        self
    }
}

/// `text` in one line of limited length.
fn one_line(text: &str) -> String {
    let text = crate::start_of(text.trim(), MAX_TEXT);
    text.replace(char::is_control, " ")
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
