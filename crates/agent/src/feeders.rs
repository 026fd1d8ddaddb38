//! The threads that feed the pipeline: one polls the sources, one samples the machine and its devices.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use tracing::warn;
use warptrace_capture::pollers::{GpuPoller, SystemPoller};
use warptrace_capture::symbols::UserStack;
use warptrace_capture::{Batch, Source, clock};
use warptrace_model::Event;

use crate::pipeline::Message;
use crate::symbols;

/// How often the capture thread asks its sources. The rings hold seconds of the usual load.
const POLL_EVERY: Duration = Duration::from_millis(10);

/// The capture thread: polls every source until told to stop, then stops them and polls once more. What ended before `drained` has
/// been sent.
pub(crate) fn capture(
    mut sources: Vec<Box<dyn Source>>,
    stop: &AtomicBool,
    drained: &AtomicU64,
    sender: &SyncSender<Message>,
    stacks: Option<&SyncSender<UserStack>>,
) {
    let mut pending: Vec<Batch> = sources.iter().map(|_| Batch::default()).collect();
    let mut failed = vec![false; sources.len()];
    let mut stopping = false;
    loop {
        let (began, mut all_sent) = (clock::boot_now(), true);
        for ((source, batch), failed) in sources.iter_mut().zip(&mut pending).zip(&mut failed) {
            // What found no room goes first. Its source is not asked meanwhile: its ring holds more, and counts what it cannot hold.
            if !stopping && !offer(sender, source.name(), batch) {
                all_sent = false;
                continue;
            }
            if stopping {
                // Calls that are still under way belong to the recording: they may be what it is about.
                batch.records.extend(source.in_flight());
                source.stop();
            }
            let offered = batch.stacks.len();
            if !*failed && let Err(e) = source.poll(batch) {
                warn!(source = source.name(), error = %e, "the source ended");
                *failed = true;
            }
            for stack in batch.stacks.iter().skip(offered) {
                if let Some(stacks) = stacks
                    && let Err(TrySendError::Full(_)) = stacks.try_send(stack.clone())
                {
                    let why = "too many new stacks at once";
                    batch.gaps.push(symbols::unresolved(why));
                }
            }
            if stopping {
                let rest = std::mem::take(batch);
                let _ = sender.send(Message::Batch(source.name(), Box::new(rest)));
            } else {
                all_sent &= offer(sender, source.name(), batch);
            }
        }
        if all_sent {
            drained.store(began.0, Ordering::Release);
        }
        if stopping {
            return;
        }
        stopping = stop.load(Ordering::Acquire);
        if !stopping {
            std::thread::park_timeout(POLL_EVERY);
        }
    }
}

/// Sends what is in `batch` if there is room; whether nothing is left in it.
fn offer(sender: &SyncSender<Message>, source: &'static str, batch: &mut Batch) -> bool {
    if batch.is_empty() {
        return true;
    }
    let message = Message::Batch(source, Box::new(std::mem::take(batch)));
    match sender.try_send(message) {
        Err(TrySendError::Full(Message::Batch(_, back))) => {
            *batch = *back;
            false
        }
        _ => true,
    }
}

/// The sampler thread: the machine and the devices, once every `every`.
pub(crate) fn sample(
    mut gpu: Option<GpuPoller>,
    every: Duration,
    stop: &AtomicBool,
    sender: &SyncSender<Message>,
) {
    let mut system = SystemPoller::default();
    while !stop.load(Ordering::Acquire) {
        let now = clock::boot_now();
        let mut events = vec![Event::System(Box::new(system.sample(now)))];
        if let Some(gpu) = &mut gpu {
            events.extend(
                gpu.sample(now)
                    .into_iter()
                    .map(|sample| Event::Gpu(Box::new(sample))),
            );
        }
        // A sample that finds no room is not missed: the next one comes.
        let _ = sender.try_send(Message::Sampled(events));
        let next = now.plus(every.as_nanos() as u64);
        while !stop.load(Ordering::Acquire) {
            let left = next.since(clock::boot_now());
            if left == 0 {
                break;
            }
            std::thread::park_timeout(Duration::from_nanos(left));
        }
    }
}
