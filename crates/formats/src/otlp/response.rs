//! What a collector answers: that it took all, some or none of a request.
//!
//! It knows bodies, not status codes nor headers: whether a refusal may be tried again is the exporter's to say.

use std::time::Duration;

use prost::Message as _;

use super::proto::{ExportTraceServiceResponse, RetryInfo, RpcStatus};

/// What of an accepted request was not taken after all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Partial {
    /// Spans or points. 0 with a message is a warning.
    pub rejected: u64,
    /// For a person; empty when there is nothing to say.
    pub message: String,
}

impl ExportTraceServiceResponse {
    /// As protobuf; empty when all was taken.
    pub fn to_protobuf(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// As OTLP's JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Partial {
    /// Of the body of a response in protobuf. An empty body says that all was taken.
    ///
    /// # Errors
    /// When it is no such response.
    pub fn decode_protobuf(body: &[u8]) -> Result<Partial, UnreadableResponse> {
        let response = ExportTraceServiceResponse::decode(body);
        response.map(Partial::of).map_err(|_| UnreadableResponse)
    }

    /// Of the body of a response in JSON. An empty body is taken as one that says nothing.
    ///
    /// # Errors
    /// When it is no such response.
    pub fn decode_json(body: &[u8]) -> Result<Partial, UnreadableResponse> {
        if body.trim_ascii().is_empty() {
            return Ok(Partial::default());
        }
        let response = serde_json::from_slice(body);
        response.map(Partial::of).map_err(|_| UnreadableResponse)
    }

    fn of(response: ExportTraceServiceResponse) -> Partial {
        let partial = response.partial_success.unwrap_or_default();
        Partial {
            // A collector that rejects fewer than none rejects none.
            rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
            message: partial.error_message,
        }
    }
}

/// The body of a response that said success is not what OTLP has there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the collector's answer is not OTLP's")]
pub struct UnreadableResponse;

/// Why a request was not taken, as far as its body says: OTLP puts a `google.rpc.Status` there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refusal {
    /// For a person; may be empty.
    pub message: String,
    /// When to try again, by `google.rpc.RetryInfo`.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// Of a `google.rpc.Status` in protobuf: the body of an HTTP response, or gRPC's `grpc-status-details-bin`. What is
    /// none is a refusal without words.
    pub fn decode_protobuf(body: &[u8]) -> Refusal {
        let status = RpcStatus::decode(body).unwrap_or_default();
        let retry_info = status
            .details
            .iter()
            .find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"));
        let delay = retry_info
            .and_then(|any| RetryInfo::decode(any.value.as_slice()).ok())
            .and_then(|info| info.retry_delay);
        Refusal {
            message: status.message,
            retry_after: delay.and_then(|delay| {
                let whole = Duration::from_secs(u64::try_from(delay.seconds).ok()?);
                let part = Duration::from_nanos(u64::try_from(delay.nanos).ok()?);
                whole.checked_add(part)
            }),
        }
    }

    /// Its message as a `google.rpc.Status` in protobuf. When to try again is said by a header, and the code, which clients do not
    /// look at, is left out.
    pub fn to_protobuf(&self) -> Vec<u8> {
        self.status().encode_to_vec()
    }

    /// The same in JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.status()).unwrap_or_default()
    }

    fn status(&self) -> RpcStatus {
        RpcStatus {
            message: self.message.clone(),
            ..RpcStatus::default()
        }
    }

    /// Of a `google.rpc.Status` in JSON.
    pub fn decode_json(body: &[u8]) -> Refusal {
        let status: RpcStatus = serde_json::from_slice(body).unwrap_or_default();
        Refusal {
            message: status.message,
            retry_after: None,
        }
    }
}
