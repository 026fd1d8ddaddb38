//! A child of `fork` sends spans of its own, whatever its parent's threads were doing.
#![expect(
    unsafe_code,
    reason = "fork is unsafe: the child has one thread of many"
)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use support::*;
use warptrace_export::otlp::Protocol;
use warptrace_export::{Batching, SpanSender};

/// Runs `body` in a forked child, which ends with 0 when it returns true; no test harness, no destructors.
#[track_caller]
fn in_child(body: impl FnOnce() -> bool) {
    // SAFETY: the child calls `body` and ends at once. It allocates, starts threads and opens sockets, which glibc allows
    // after a fork of a process with threads; it touches no lock of the harness, and `_exit` runs nothing that would.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            let code = i32::from(!done.unwrap_or(false));
            // SAFETY: it does not return.
            unsafe { nix::libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None).unwrap();
            assert_eq!(ended, WaitStatus::Exited(child, 0));
        }
    }
}

fn counts(sender: &SpanSender) -> (u64, u64) {
    let counts = sender.counts();
    (counts.pushed(), counts.sent)
}

/// Sends from a parent with threads that push all the time, its child, its grandchild, and so on down.
fn all_generations_send(sender: &SpanSender) {
    const CHILDREN: u64 = 20;
    let collector_busy = AtomicBool::new(true);
    std::thread::scope(|scope| {
        // The lock is held at many of the forks.
        for _ in 0..3 {
            scope.spawn(|| {
                while collector_busy.load(Ordering::Relaxed) {
                    sender.push(span(0));
                }
            });
        }
        for n in 0..CHILDREN {
            in_child(|| {
                let fresh = counts(sender) == (0, 0) && sender.flush(soon());
                let first = sender.push(span(1000 + n));
                in_child(|| sender.push(span(2000 + n)) && sender.close(soon()));
                let sent = first && sender.flush(soon()) && counts(sender) == (1, 1);
                fresh && sent && sender.close(soon()) && !sender.push(span(0))
            });
        }
        collector_busy.store(false, Ordering::Relaxed);
    });
}

fn check(with: impl FnOnce(SpanSender) -> SpanSender) {
    let collector = Collector::taking_all();
    let batching = Batching {
        delay: Duration::from_millis(10),
        ..Batching::default()
    };
    let sender = with(sender(&collector.config(Protocol::HttpProtobuf), batching));
    all_generations_send(&sender);
    assert!(sender.close(soon()));
    let mut names: Vec<String> = Vec::new();
    let mut pids = std::collections::BTreeSet::new();
    for request in collector.so_far() {
        let own: Vec<String> = request.spans().into_iter().map(|span| span.name).collect();
        let of_children = own.iter().filter(|name| name.len() == "step 1000".len());
        names.extend(of_children.cloned());
        let resource = &request.decoded().resource_spans[0].resource;
        let pid = resource.as_ref().unwrap().attributes[1].clone();
        pids.insert(format!("{:?}", pid.value));
    }
    names.sort();
    let expected = (1000..1020).chain(2000..2020).map(|n| format!("step {n}"));
    assert_eq!(names, expected.collect::<Vec<_>>());
    assert_eq!(pids.len(), 41, "each process says its own id");
}

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// One test: a fork copies what other tests are doing, too.
#[test]
fn a_forked_child_and_its_children_send_what_is_theirs_and_nothing_else() {
    check(|sender| sender);

    // By a key that the caller has, such as a count of forks.
    let collector = Collector::taking_all();
    let config = collector.config(Protocol::HttpProtobuf);
    let sender = sender(&config, Batching::default())
        .with_process_key(|| GENERATION.load(Ordering::Relaxed));
    assert!(sender.push(span(0)));
    in_child(|| {
        GENERATION.fetch_add(1, Ordering::Relaxed);
        counts(&sender) == (0, 0) && sender.push(span(1)) && sender.close(soon())
    });
    assert_are(&collector.request().spans(), 1..2);
    assert!(sender.close(soon()));
    assert_are(&collector.request().spans(), 0..1);

    // Deeper than generations are kept apart, spans are dropped and counted.
    GENERATION.store(100, Ordering::Relaxed);
    for _ in 0..10 {
        sender.push(span(0));
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }
    let dropped = sender
        .counts()
        .dropped(warptrace_export::DropReason::ForkedTooDeep);
    assert_eq!(dropped, 3);
}
