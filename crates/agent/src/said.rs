//! What came in at the annotation socket, as events, and what of it was lost.

use std::sync::Arc;

use warptrace_model::{Annotation, Event, Gap, GapCode, Loss, LossReason};

use crate::annotate::{AnnotationCounts, AnnotationReceiver, AnnotationSocket};

/// The source of its losses.
const SOURCE: &str = "annotate";

/// The pipeline's end of the socket.
pub(crate) struct Annotations {
    socket: Option<AnnotationSocket>,
    receiver: AnnotationReceiver,
    counts: Arc<AnnotationCounts>,
    scratch: Vec<Annotation>,
    /// Losses that were told, by name and whether they are of connections.
    told: Vec<(&'static str, bool, u64)>,
    untold: Vec<Gap>,
}

impl Annotations {
    pub(crate) fn new((socket, receiver): (AnnotationSocket, AnnotationReceiver)) -> Annotations {
        Annotations {
            counts: socket.counts(),
            socket: Some(socket),
            receiver,
            scratch: Vec::new(),
            told: Vec::new(),
            untold: Vec::new(),
        }
    }

    /// Takes in what senders have sent by now, and listens no more.
    pub(crate) fn stop(&mut self) {
        if let Some(socket) = self.socket.take() {
            socket.stop();
        }
    }

    /// Appends what has come since the last time, and how much of it was lost.
    pub(crate) fn hear(&mut self, events: &mut Vec<Event>) {
        self.receiver.drain(&mut self.scratch);
        let said = self.scratch.drain(..);
        events.extend(said.map(|a| Event::Annotation(Box::new(a))));
        for (name, connection, count) in self.counts.losses() {
            let before = self
                .told
                .iter_mut()
                .find(|(n, c, _)| *n == name && *c == connection);
            let new = match before {
                Some((.., told)) => count - std::mem::replace(told, count),
                None => {
                    self.told.push((name, connection, count));
                    count
                }
            };
            if new == 0 {
                continue;
            }
            let what = if connection { "connections" } else { "lines" };
            self.untold.push(Gap {
                code: GapCode::RecordsLost,
                detail: format!("annotations: {what} refused: {name}"),
                count: new,
            });
            if !connection {
                events.push(Event::Lost(Loss {
                    source: SOURCE,
                    reason: match name {
                        "rate_limited" | "lookup_limited" => LossReason::RateLimited,
                        "queue_full" => LossReason::QueueFull,
                        _ => LossReason::Malformed,
                    },
                    count: new,
                    window: None,
                    pid: None,
                }));
            }
        }
    }

    /// Why lines and connections were not taken, since the last time.
    pub(crate) fn gaps(&mut self) -> Vec<Gap> {
        std::mem::take(&mut self.untold)
    }
}
