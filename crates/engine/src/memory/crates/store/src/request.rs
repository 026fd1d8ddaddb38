//! The table `requests`: what inference servers say of the requests that they answered, or failed to.

use warptrace_model::{BootNanos, ClockAnchor, Request, RequestOutcome, UnixNanos};

use crate::rows::RequestRow;

/// A row of `requests`, and its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRequest {
    /// The log it is from.
    pub log: String,
    /// On the session's clock; 0 when the log does not say when.
    pub end: BootNanos,
    pub request: Request,
}

impl RequestRow {
    pub(crate) fn new(log: &str, r: &Request, anchor: &ClockAnchor) -> RequestRow {
        let text = |t: &Option<Box<str>>| t.as_deref().map(str::to_owned);
        let (failed, status, code, message) = match &r.outcome {
            RequestOutcome::Served => (false, None, None, None),
            RequestOutcome::Failed {
                status,
                code,
                message,
            } => (true, *status, text(code), text(message)),
        };
        RequestRow {
            boot_ns: r.end.map_or(0, |at| anchor.boot(at).0),
            log: log.to_owned(),
            run: r.run,
            start_unix_ns: r.start.map(|at| at.0),
            end_unix_ns: r.end.map(|at| at.0),
            since_start_ns: r.since_start_nanos,
            latency_ns: r.latency_nanos,
            model: text(&r.model),
            principal: text(&r.principal),
            request_id: text(&r.request_id),
            prompt_tokens: r.prompt_tokens,
            completion_tokens: r.completion_tokens,
            failed,
            status,
            code,
            message,
        }
    }

    pub(crate) fn request(self) -> Option<StoredRequest> {
        let text = |t: Option<String>| t.map(Box::from);
        Some(StoredRequest {
            log: self.log,
            end: BootNanos(self.boot_ns),
            request: Request {
                run: self.run,
                start: self.start_unix_ns.map(UnixNanos),
                end: self.end_unix_ns.map(UnixNanos),
                since_start_nanos: self.since_start_ns,
                latency_nanos: self.latency_ns,
                model: text(self.model),
                principal: text(self.principal),
                request_id: text(self.request_id),
                prompt_tokens: self.prompt_tokens,
                completion_tokens: self.completion_tokens,
                outcome: if self.failed {
                    RequestOutcome::Failed {
                        status: self.status,
                        code: text(self.code),
                        message: text(self.message),
                    }
                } else {
                    RequestOutcome::Served
                },
            },
        })
    }
}
