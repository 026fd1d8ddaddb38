//! Which driver calls were made inside a runtime call.
//!
//! Each layer has its probes, so `cudaLaunchKernel` and the `cuLaunchKernel` inside it are two rows. They lie close
//! together in the file, in either order: what came last waits here for a while. Knows nothing but times and threads.

use std::collections::{HashMap, VecDeque};

use warptrace_model::{Call, Thread};
use warptrace_record::{Source, flag};

/// Rows that wait. The rings of both layers are drained many times a second, and 1,000 rows are written at once.
const WAITING: usize = 8_192;
/// Calls of one thread that are looked at.
const OF_A_THREAD: usize = 64;

#[derive(Default)]
pub(crate) struct Nesting {
    waiting: VecDeque<Call>,
    /// Number of the first that waits.
    first: u64,
    /// Numbers of a thread's calls that wait, and the last few of them at most.
    threads: HashMap<Thread, VecDeque<u64>>,
}

impl Nesting {
    /// Takes a call, and gives back one whose nesting is known as well as it will be.
    pub(crate) fn push(&mut self, mut call: Call) -> Option<Call> {
        let number = self.first + self.waiting.len() as u64;
        let of_thread = self.threads.entry(call.thread).or_default();
        for other in of_thread.iter() {
            let other = &mut self.waiting[(other - self.first) as usize];
            if is_inside(&call, other) {
                call.flags.0 |= flag::NESTED;
            } else if is_inside(other, &call) {
                other.flags.0 |= flag::NESTED;
            }
        }
        of_thread.push_back(number);
        if of_thread.len() > OF_A_THREAD {
            of_thread.pop_front();
        }
        self.waiting.push_back(call);
        (self.waiting.len() > WAITING).then(|| self.pop()).flatten()
    }

    /// The next of those that wait; after the last row, until there is none.
    pub(crate) fn pop(&mut self) -> Option<Call> {
        let call = self.waiting.pop_front()?;
        if let Some(numbers) = self.threads.get_mut(&call.thread) {
            if numbers.front() == Some(&self.first) {
                numbers.pop_front();
            }
            if numbers.is_empty() {
                self.threads.remove(&call.thread);
            }
        }
        self.first += 1;
        Some(call)
    }
}

fn is_inside(inner: &Call, outer: &Call) -> bool {
    inner.op.get().source == Source::Driver
        && matches!(outer.op.get().source, Source::Runtime | Source::Graph)
        && outer.start <= inner.start
        && inner.end() <= outer.end()
}

#[cfg(test)]
mod tests {
    use warptrace_model::{BootNanos, CallFlags, Cpu, Stream};
    use warptrace_record::OpId;

    use super::*;

    fn call(tid: u32, op: &str, start: u64, dur: u64) -> Call {
        Call {
            thread: Thread::new(1, tid),
            op: OpId::by_name(op).unwrap(),
            start: BootNanos(start),
            dur,
            device: None,
            stream: Stream(0),
            ret: 0,
            flags: CallFlags(0),
            arg0: 0,
            arg1: 0,
            stack_id: 0,
            cpu: Cpu(0),
        }
    }

    #[test]
    fn a_driver_call_is_nested_when_a_runtime_call_of_its_thread_is_around_it_in_either_order() {
        let runtime = call(7, "cudaLaunchKernel", 100, 50);
        let cases = [
            (call(7, "cuLaunchKernel", 110, 20), true),
            (call(7, "cuLaunchKernel", 100, 50), true),
            (call(7, "cuLaunchKernel", 140, 20), false),
            (call(8, "cuLaunchKernel", 110, 20), false),
            (call(7, "cudaMemcpy", 110, 20), false),
        ];
        for (other, nested) in cases {
            for order in [[runtime, other], [other, runtime]] {
                let mut n = Nesting::default();
                assert!(order.iter().all(|c| n.push(*c).is_none()));
                let out: Vec<Call> = std::iter::from_fn(|| n.pop()).collect();
                let found = out.iter().find(|c| {
                    (c.op, c.start) == (other.op, other.start) && c.thread == other.thread
                });
                assert_eq!(found.unwrap().flags.nested(), nested, "{other:?}");
                assert!(n.threads.is_empty());
            }
        }
    }

    #[test]
    fn calls_come_out_in_their_order_and_memory_is_bounded() {
        let mut n = Nesting::default();
        let mut out = Vec::new();
        for i in 0..3 * WAITING as u64 {
            out.extend(n.push(call(i as u32 % 3, "cudaMemcpy", i, 1)));
            assert!(
                n.waiting.len() <= WAITING && n.threads.values().all(|t| t.len() <= OF_A_THREAD)
            );
        }
        out.extend(std::iter::from_fn(|| n.pop()));
        assert!(out.iter().map(|c| c.start.0).eq(0..3 * WAITING as u64));
        assert!(n.threads.is_empty());
    }
}
