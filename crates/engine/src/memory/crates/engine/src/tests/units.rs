//! What a unit is, what is left out, and what could not be known.

use warptrace_model::{BootNanos, Category, GapCode, LossReason, StreamScope, Unit};

use crate::testing::{explain_trace, parse_trace, render};
use crate::{Engine, Output, Rules};

fn explain(trace: &str) -> Output {
    explain_trace(trace, Rules::default())
}

/// Start and length of units, µs.
fn windows(out: &Output) -> Vec<(u64, u64)> {
    out.units
        .iter()
        .map(|u| (u.start.0 / 1000, u.dur / 1000))
        .collect()
}

/// A unit's parts, µs.
fn parts(u: &Unit) -> Vec<(&'static str, u64)> {
    u.parts
        .iter()
        .map(|(c, ns)| (c.name(), ns / 1000))
        .collect()
}

#[test]
fn waits_that_drain_end_units_and_others_do_not() {
    let out = explain(
        "process train 1 job
         train 0ms +1ms cudaDeviceSync
         train 2ms +1ms cudaStreamQuery stream=16
         train 4ms +1ms cudaMemcpy bytes=4096 kind=1
         train 6ms +1ms cudaMemcpy bytes=4096 kind=2
         train 8ms +1ms cudaMemcpyAsync bytes=4096 kind=2 stream=16
         train 10ms +1ms cudaEventSync arg0=0xe
         train 12ms +1ms cudaStreamSync stream=16 ret=1
         train 14ms +1ms cudaStreamSync stream=16
         train 16ms +9ms cudaStreamSync stream=16 nested",
    );
    assert_eq!(
        windows(&out),
        [(1_000, 6_000), (7_000, 4_000), (11_000, 4_000)]
    );
}

#[test]
fn keys_tell_streams_and_work_apart() {
    let out = explain(
        "process train 1 job
         train 0ms +1ms cudaDeviceSync
         train 1ms +5us cudaLaunchKernel stream=16
         train 2ms +5us cudaEventRecord arg0=0xe stream=16
         train 3ms +5us cudaLaunchKernel stream=16
         train 4ms +1ms cudaEventSync arg0=0xe
         train 6ms +1ms cudaStreamSync stream=16
         train 8ms +1ms cudaStreamSync stream=0",
    );
    let keys: Vec<_> = out
        .units
        .iter()
        .map(|u| (u.key.stream, u.launches, u.key.class))
        .collect();
    let one = StreamScope::One(warptrace_model::Stream(16));
    assert_eq!(keys, [(one, 1, 1), (one, 1, 1), (StreamScope::Many, 0, 0)]);
}

#[test]
fn launches_of_a_graph_count_its_nodes() {
    let out = explain(
        "process train 1 job
         train 0ms +1ms cudaDeviceSync
         train 1ms +5us graphBeginCapture stream=16
         repeat 20 every 10us
         train 1.1ms +5us cudaLaunchKernel stream=16
         end
         at 0ms
         train 2ms +5us graphEndCapture arg0=0xa stream=16
         train 3ms +5us graphInstantiate arg0=0xb arg1=0xa
         train 4ms +5us graphLaunch arg0=0xb stream=16
         train 5ms +1ms cudaStreamSync stream=16",
    );
    assert_eq!(out.units[0].launches, 20);
}

#[test]
fn a_thread_with_switch_records_is_known_whole() {
    let out = explain(
        "process train 1 job
         train 0ms +1ms cudaStreamSync stream=16
         train 2ms +2ms blocked on=nanosleep timed runnable=0.5ms
         train 5ms +10us cudaLaunchKernel stream=16
         train 6ms +1ms preempted
         train 8ms +2ms cudaMalloc bytes=10
         train 10ms +4ms cudaStreamSync stream=16
         train 11ms +2ms preempted",
    );
    assert_eq!(
        parts(&out.units[0]),
        [
            ("run_queue_wait", 3_500),
            ("sleep", 1_500),
            ("allocator", 2_000),
            ("launch", 10),
            ("launch_gap", 3_990),
            ("device_wait", 2_000)
        ]
    );
}

#[test]
fn calls_alone_leave_the_rest_unexplained_and_say_so() {
    let out = explain(
        "process train 1 job
         train 0ms +1ms cudaStreamSync stream=16
         train 5ms +10us cudaLaunchKernel stream=16
         train 10ms +4ms cudaStreamSync stream=16",
    );
    assert_eq!(
        parts(&out.units[0]),
        [
            ("launch", 10),
            ("device_wait", 4_000),
            ("unexplained", 8_990)
        ]
    );
    assert_eq!(out.gaps[0].code, GapCode::NoSchedulerRecords);
}

#[test]
fn stretches_give_amounts_and_no_names() {
    let out = explain(
        "process train 1 job
         train 0ms +1ms cudaStreamSync stream=16
         train 1ms +9ms stretch running=4ms runnable=3ms throttled=1ms
         train 10ms +4ms cudaStreamSync stream=16
         train 10ms +4.001ms stretch running=2ms runnable=1ms",
    );
    let u = &out.units[0];
    assert_eq!(
        parts(u),
        [
            ("run_queue_wait", 2_999),
            ("cpu_quota", 1_000),
            ("launch_gap", 4_000),
            ("device_wait", 3_000),
            ("unexplained", 2_000)
        ]
    );
    assert_eq!(u.parts.total(), u.dur);
}

#[test]
fn a_call_inside_a_library_has_its_own_class() {
    let out = explain(
        "process train 1 job
         train 0ms +1ms cudaStreamSync stream=16
         train 1ms +1us preempted
         train 3ms +1ms cudaMalloc bytes=10 in-library
         train 2ms +4ms ncclAllReduce stream=16
         train 10ms +4ms cudaStreamSync stream=16",
    );
    let u = &out.units[0];
    assert_eq!(u.parts[Category::Allocator], 1_000_000);
    assert_eq!(u.parts[Category::Launch], 3_000_000);
}

#[test]
fn a_stop_leaves_the_unit_out_and_counts_it() {
    let out = explain(
        "process train 1 job
         train 0ms +1ms cudaStreamSync stream=16
         train 2ms +900ms blocked on=read stopped
         train 910ms +1ms cudaStreamSync stream=16
         train 912ms +1ms cudaStreamSync stream=16",
    );
    assert_eq!(windows(&out), [(911_000, 2_000)]);
    assert_eq!(out.gaps[0].code, GapCode::UnitsLeftOut);
}

#[test]
fn a_server_without_requests_is_idle_and_a_loader_is_not() {
    let wait = |what: &str| {
        explain(&format!(
            "process serve 11 job
             process client 2
             thread loader 3 of serve
             serve 0ms +1ms cudaStreamSync stream=16
             serve 2ms +96ms {what}
             serve 100ms +10us cudaLaunchKernel stream=16
             serve 101ms +9ms cudaStreamSync stream=16"
        ))
    };
    let idle = [(98_000, 12_000)];
    assert_eq!(
        windows(&wait("blocked on=epoll sockets wake=interrupt by=client")),
        idle
    );
    assert_eq!(windows(&wait("blocked on=read file=pipe by=client")), idle);
    let whole = [(1_000, 109_000)];
    assert_eq!(windows(&wait("blocked on=futex by=loader")), whole);
    assert_eq!(
        windows(&wait("blocked on=pread file=regular iowait wake=interrupt")),
        whole
    );
}

#[test]
fn an_answer_from_the_network_does_not_cut_off_work_of_the_host() {
    let out = explain(
        "process train 1 job
         train 0ms +1ms cudaStreamSync stream=16
         train 50ms +1ms blocked on=recv file=socket wake=interrupt
         train 52ms +10us cudaLaunchKernel stream=16
         train 53ms +9ms cudaStreamSync stream=16",
    );
    assert_eq!(windows(&out), [(1_000, 61_000)]);
}

#[test]
fn without_wakers_a_server_is_cut_at_its_first_call_only_when_it_is_said_to_be_one() {
    let trace = "process serve 11 job
         serve 0ms +1ms cudaStreamSync stream=16
         serve 1ms +99ms stretch running=1ms
         serve 100ms +10us cudaLaunchKernel stream=16
         serve 101ms +9ms cudaStreamSync stream=16";
    assert_eq!(windows(&explain(trace)), [(1_000, 109_000)]);
    let rules = Rules {
        inference: true,
        ..Rules::default()
    };
    assert_eq!(windows(&explain_trace(trace, rules)), [(100_000, 10_000)]);
}

#[test]
fn a_chain_of_threads_is_followed_to_its_end() {
    let out = explain(
        "process train 1 job
         thread loader 2 of train
         process worker 3 parent=train
         train 0ms +1ms cudaStreamSync stream=16
         train 1ms +10us cudaLaunchKernel stream=16
         train 2ms +6ms blocked on=futex by=loader
         loader 3ms +4ms blocked on=read file=pipe by=worker
         worker 4ms +2ms blocked on=pread file=regular iowait wake=interrupt
         train 8ms +2ms cudaStreamSync stream=16",
    );
    let u = &out.units[0];
    // The worker read for 2 ms; it and the loader ran for the other 4, and the lead thread for 0.99 of its own.
    assert_eq!(u.parts[Category::DiskWait], 2_000_000);
    assert_eq!(u.parts[Category::LaunchGap], 4_990_000);
}

#[test]
fn lost_records_make_their_time_unexplained() {
    let out = explain(
        "process train 1 job
         train 0ms +1ms cudaStreamSync stream=16
         train 2ms +4ms preempted
         lost 3ms +2ms train 17
         train 8ms +2ms cudaStreamSync stream=16",
    );
    let u = &out.units[0];
    assert!(u.incomplete);
    assert_eq!(u.parts[Category::Unexplained], 2_000_000);
    assert_eq!(u.parts[Category::RunQueueWait], 2_000_000);
    assert_eq!(
        (out.gaps[0].code, out.gaps[0].count),
        (GapCode::RecordsLost, 17)
    );
}

#[test]
fn what_comes_after_its_time_was_judged_is_counted_and_left_out() {
    let mut e = Engine::new(Rules::default());
    let events = parse_trace(
        "process train 1 job
         train 0ms +1ms cudaStreamSync stream=16
         train 2ms +2ms cudaStreamSync stream=16",
    )
    .unwrap();
    let (early, late) = events.split_at(events.len() - 1);
    early.iter().cloned().for_each(|x| e.push(x));
    e.advance(BootNanos(5_000_000_000));
    late.iter().cloned().for_each(|x| e.push(x));
    e.finish(BootNanos(6_000_000_000));
    let out = e.drain();
    assert_eq!(
        (out.losses[0].reason, out.losses[0].count),
        (LossReason::Late, 1)
    );
    assert!(out.units.is_empty());
    assert!(render(&out).contains("late_records"));
}

#[test]
fn counts_of_a_backend_replace_those_of_its_records() {
    use warptrace_model::record::OpId;
    use warptrace_model::{Device, Event, Histogram, OpCount, OpKey, Pid, Window};
    let mut e = Engine::new(Rules::default());
    for x in parse_trace(
        "process a 1\nprocess b 2\na 0ms +1ms cudaFree\nb 0ms +1ms cudaFree\nb 2ms +3ms cudaFree",
    )
    .unwrap()
    {
        e.push(x);
    }
    let mut durations = Histogram::default();
    (0..10).for_each(|_| durations.record(2_000_000));
    e.push(Event::Counts(Box::new(OpCount {
        key: OpKey {
            pid: Pid(1),
            device: Some(Device(0)),
            op: OpId::by_name("cudaFree").unwrap(),
        },
        window: Window::at(BootNanos(0), 10_000_000),
        total: 20_000_000,
        durations,
    })));
    e.finish(BootNanos(20_000_000));
    let ops: Vec<_> = e
        .ops()
        .iter()
        .map(|o| (o.key.pid.0, o.count, o.total))
        .collect();
    assert_eq!(ops, [(1, 10, 20_000_000), (2, 2, 4_000_000)]);
    assert_eq!(e.ops_window().len(), 2);
}

#[test]
fn a_lasting_shift_is_told_once_and_becomes_the_usual() {
    let mut rules = Rules::default();
    rules.baseline.shift_after_nanos = 1_000_000_000;
    let step = |n: u32, ms: u32| {
        format!(
            "repeat {n} every {ms}ms\ntrain 1ms +10us cudaLaunchKernel stream=16\ntrain 2ms +{}ms cudaStreamSync stream=16\nend\n",
            ms - 2
        )
    };
    let trace = format!(
        "process train 1 job\ntrain 0ms +1ms cudaStreamSync stream=16\nat 1ms\ntrain 0ms +1us preempted\n{}{}",
        step(40, 20),
        step(400, 30)
    );
    let out = explain_trace(&trace, rules);
    assert_eq!(out.findings.len(), 1, "{}", render(&out));
    assert!(out.findings[0].shifted);
    assert_eq!(out.findings[0].units.slow, 256);
}

#[test]
fn rare_work_is_judged_with_other_rare_work() {
    // A validation every 60 steps is ten times as long, and usual for what it is.
    let mut trace = String::from(
        "process train 1 job\ntrain 0ms +1ms cudaStreamSync stream=16\nat 1ms\ntrain 0ms +1us preempted\n",
    );
    for _ in 0..20 {
        trace.push_str(
            "repeat 60 every 20ms\ntrain 1ms +10us cudaLaunchKernel stream=16\ntrain 2ms +18ms cudaStreamSync stream=16\nend
             repeat 50 every 1ms\ntrain 0.1ms +10us cudaLaunchKernel stream=16\nend
             train 1ms +199ms cudaStreamSync stream=16\npause 200ms\n",
        );
    }
    let out = explain(&trace);
    assert_eq!(render(&out), "");
    assert!(out.units.iter().all(|u| !u.slow));
}
