//! Inference by traces as text.

mod properties;

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use warptrace_model::inference::{Outlier, OutlierBucket, Phase, WorkloadState};
use warptrace_model::{BootNanos, Event, Pid, Severity};

use super::*;
use crate::order::MergeBuffer;
use crate::testing::parse_trace;
use crate::{Engine, Rules};

fn settings() -> InferenceSettings {
    InferenceSettings {
        pause_on: None,
        ..InferenceSettings::default()
    }
}

/// The events in their order, each with its place in time.
fn in_order(events: Vec<Event>) -> Vec<(u64, Event)> {
    let mut order = MergeBuffer::default();
    for e in events {
        order.push(e).unwrap();
    }
    order.take(u64::MAX)
}

fn follow_with(settings: InferenceSettings, trace: &str) -> Inference {
    let events = parse_trace(trace).unwrap_or_else(|e| panic!("{e}"));
    let mut i = Inference::new(settings).unwrap();
    for (at, e) in in_order(events) {
        i.take(BootNanos(at), &e);
    }
    i
}

fn follow(trace: &str) -> Inference {
    follow_with(settings(), trace)
}

fn ms(ns: u64) -> f64 {
    (ns as f64 / 1e6 * 1e3).round() / 1e3
}

fn told(o: &Outlier) -> String {
    let phase = o.key.phase.map_or("-", Phase::name);
    let mut s = format!(
        "{} {phase} pid {} stream {}: {} ms to {} ms by {}, usual {} of {} ms, {} launches, {} bytes",
        o.bucket.name(),
        o.key.process.pid,
        o.key.stream.0,
        ms(o.step_nanos),
        ms(o.at.0),
        o.op.name(),
        ms(o.mean_nanos),
        ms(o.p95_nanos),
        o.launches,
        o.copied_bytes
    );
    if o.memory_calls > 0 {
        let _ = write!(s, ", {} memory calls", o.memory_calls);
    }
    if o.throttle_reasons > 0 {
        let _ = write!(s, ", throttle {:#x}", o.throttle_reasons);
    }
    if let Some(clock) = o.min_sm_clock_mhz {
        let _ = write!(s, ", {clock} MHz");
    }
    if !o.kv_ages_millis.is_empty() {
        let _ = write!(s, ", ages {:?}", o.kv_ages_millis);
    }
    s.push('\n');
    s
}

/// All outliers, then all workloads.
fn render(i: &mut Inference) -> String {
    let mut s: String = i.drain().outliers.iter().map(told).collect();
    for w in i.state().workloads {
        let phase = w.key.phase.map_or("-", Phase::name);
        let _ = writeln!(
            s,
            "pid {} stream {} {phase}: {} steps of {} ms",
            w.key.process.pid,
            w.key.stream.0,
            w.steps,
            ms(w.mean_nanos)
        );
    }
    s
}

#[track_caller]
fn check(trace: &str, want: Expect) -> Inference {
    let mut i = follow(trace);
    want.assert_eq(&render(&mut i));
    i
}

/// Its only workload.
#[track_caller]
fn only(i: &Inference) -> WorkloadState {
    let mut all = i.state().workloads;
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

/// A server that prefills with 210 launches and waits for an event, then decodes four times with 16 launches and waits for the
/// stream; `slow` says how long the wait of a decode is, µs, that is not 10 ms long.
fn serve(iterations: usize, slow: impl Fn(usize) -> Option<u64>) -> String {
    let mut s = String::from("process serve 11 job\n");
    let mut now = 1_000;
    for i in 0..iterations {
        let _ = writeln!(s, "at {now}us");
        let _ = writeln!(
            s,
            "repeat 210 every 20us\nserve 0us +5us cudaLaunchKernel stream=16 arg0=0x1\nend\n\
             serve 0us +5us cudaEventRecord arg0=0xe stream=16\nserve 10us +30ms cudaEventSync arg0=0xe"
        );
        now += 210 * 20 + 30_010;
        for step in 0..4 {
            let wait = slow(i * 4 + step).unwrap_or(10_000);
            let _ = writeln!(
                s,
                "at {now}us\nrepeat 16 every 20us\nserve 1ms +5us cudaLaunchKernel stream=16 arg0=0x2\nend\n\
                 serve 1ms +5us cudaMemcpyAsync bytes=64 kind=2 stream=16\nserve 1010us +{wait}us cudaStreamSync stream=16"
            );
            now += 16 * 20 + 1_010 + wait;
        }
    }
    s
}

#[test]
fn a_slow_decode_among_prefills_is_an_outlier_of_decode_and_a_prefill_is_charged_to_itself() {
    let trace = serve(40, |step| (step == 130).then_some(100_000));
    let mut i = follow(&trace);
    expect![[r#"
        3x decode pid 11 stream 16: 100.33 ms to 2704.16 ms by cudaStreamSync, usual 10.33 of 10.289 ms, 16 launches, 64 bytes
        pid 11 stream 16 decode: 160 steps of 10.33 ms
        pid 11 stream 16 prefill: 39 steps of 34.21 ms
    "#]]
    .assert_eq(&render(&mut i));
    let s = i.state();
    assert_eq!((s.steps, s.phases), (199, [160, 0, 39, 0]));
    assert_eq!(s.left_out.first, 1);
    assert_eq!(s.outliers, [0, 0, 1]);
    assert_eq!(s.degradations, 1);
    let cause = s.last_degradation.unwrap().cause();
    assert_eq!(cause, "3x:cgroup=,pid=11,phase=decode");
}

#[test]
fn without_phases_a_stream_has_one_baseline() {
    let trace = serve(40, |_| None);
    let off = InferenceSettings {
        phases: None,
        ..settings()
    };
    let i = follow_with(off, &trace);
    let w = only(&i);
    assert_eq!((w.key.phase, w.steps), (None, 199));
}

#[test]
fn the_driver_s_calls_make_steps_as_the_runtime_s_do() {
    check(
        "process serve 11 job
         repeat 3 every 10ms
         serve 1ms +5us cuLaunchKernel stream=16
         serve 2ms +5ms cuStreamSynchronize stream=16
         end
         at 50ms
         serve 1ms +5us cuLaunchKernelEx stream=32
         serve 2ms +5us cuEventRecord arg0=0xe stream=32
         serve 3ms +5ms cuEventSynchronize arg0=0xe
         at 60ms
         serve 1ms +5us cuLaunchKernel stream=32
         serve 2ms +5us cuEventRecord arg0=0xe stream=32
         serve 3ms +5ms cuEventSynchronize arg0=0xe
         at 70ms
         serve 1ms +5us cuLaunchKernel stream=0
         serve 2ms +5ms cuCtxSynchronize
         at 80ms
         serve 1ms +5us cuLaunchKernel stream=0
         serve 2ms +5ms cuCtxSynchronize",
        expect![[r#"
            pid 11 stream 0 decode: 1 steps of 6 ms
            pid 11 stream 16 decode: 2 steps of 6 ms
            pid 11 stream 32 decode: 1 steps of 7 ms
        "#]],
    );
}

#[test]
fn a_loop_that_asks_until_it_is_done_is_a_wait_and_a_look_in_passing_is_not() {
    let step = "serve 0ms +5us cudaLaunchKernel stream=16
         serve 0.1ms +5us cudaEventRecord arg0=0xe stream=16\n";
    let polls = "repeat 9 every 1ms
         serve 1ms +2us cudaEventQuery arg0=0xe ret=600
         end
         serve 1ms +2us cudaEventQuery arg0=0xe\n";
    let trace = |asks: &str| {
        let mut s = String::from("process serve 11 job\n");
        for n in 0..5 {
            let _ = writeln!(s, "at {}ms\n{step}{asks}", n * 20);
        }
        s
    };
    let i = follow(&trace(polls));
    let w = only(&i);
    assert_eq!((w.steps, w.key.stream.0), (4, 16));
    assert!(w.mean_nanos < 11_000_000, "from the launch to the answer");
    for passing in [
        "serve 1ms +2us cudaEventQuery arg0=0xe\n",
        "serve 1ms +2us cudaEventQuery arg0=0xe ret=600\nserve 2ms +2us cudaLaunchKernel stream=16\nserve 3ms +2us cudaEventQuery arg0=0xe\n",
        // Once in a while is no waiting.
        "serve 1ms +2us cudaEventQuery arg0=0xe ret=600\nserve 9ms +2us cudaEventQuery arg0=0xe\n",
    ] {
        let i = follow(&trace(passing));
        assert_eq!(
            (i.state().steps, i.state().left_out.first),
            (0, 0),
            "{passing}"
        );
    }
}

#[test]
fn what_the_default_stream_was_given_is_not_lost_when_another_stream_is_waited_for() {
    let step = |n: u64| {
        format!(
            "at {}ms
             repeat 60 every 10us
             serve 0ms +5us cudaLaunchKernel stream=0
             end
             repeat 5 every 10us
             serve 0ms +5us cudaLaunchKernel stream=16
             end
             serve 1ms +2ms cudaStreamSync stream=16
             serve 4ms +2ms cudaStreamSync stream=0\n",
            n * 10
        )
    };
    let trace: String = (0..4).map(step).collect();
    check(
        &format!("process serve 11 job\n{trace}"),
        expect![[r#"
            pid 11 stream 0 mixed: 3 steps of 6.65 ms
            pid 11 stream 16 decode: 3 steps of 3.05 ms
        "#]],
    );
    let device = trace.replace("cudaStreamSync stream=0", "cudaDeviceSync");
    check(
        &format!("process serve 11 job\n{device}"),
        expect![[r#"
            pid 11 stream 0 mixed: 3 steps of 6.65 ms
            pid 11 stream 16 decode: 3 steps of 3.05 ms
        "#]],
    );
}

#[test]
fn copies_to_the_host_that_wait_end_steps_of_all_streams_that_nobody_waits_for() {
    let step = |n: u64| {
        format!(
            "at {}ms
             repeat 60 every 10us
             serve 0ms +5us cudaLaunchKernel stream=16
             end
             serve 1ms +2ms cudaMemcpy bytes=400 kind=2\n",
            n * 10
        )
    };
    let trace: String = (0..4).map(step).collect();
    check(
        &format!("process serve 11 job\n{trace}"),
        expect![[r#"
            pid 11 stream 0 mixed: 3 steps of 3.6 ms
        "#]],
    );
}

#[test]
fn work_that_is_launched_before_the_wait_for_the_step_before_belongs_to_its_own() {
    // Steps are launched one ahead: twice 60 launches, then twice 5, in turn.
    let mut s = String::from("process serve 11 job\n");
    let launch = |s: &mut String, n: usize, event: &str| {
        let _ = writeln!(
            s,
            "repeat {n} every 10us\nserve 0ms +5us cudaLaunchKernel stream=16\nend\nserve 0ms +5us cudaEventRecord arg0={event} stream=16"
        );
    };
    launch(&mut s, 60, "0xa");
    for i in 0..40 {
        let (n, next, this) = if i % 2 == 0 {
            (5, "0xb", "0xa")
        } else {
            (60, "0xa", "0xb")
        };
        let _ = writeln!(s, "at {}ms", 10 + i * 10);
        launch(&mut s, n, next);
        let _ = writeln!(s, "serve 1ms +6ms cudaEventSync arg0={this}");
    }
    check(
        &s,
        expect![[r#"
            pid 11 stream 16 decode: 20 steps of 10.55 ms
            pid 11 stream 16 mixed: 19 steps of 9.45 ms
        "#]],
    );
}

#[test]
fn a_graph_is_one_launch_and_what_is_captured_is_none() {
    let i = follow(
        "process serve 11 job
         serve 0ms +1ms cudaStreamSync stream=16
         serve 1ms +5us graphBeginCapture stream=16
         repeat 300 every 10us
         serve 1.1ms +5us cudaLaunchKernel stream=16
         end
         at 0ms
         serve 5ms +5us graphEndCapture arg0=0xa stream=16
         serve 6ms +5us graphInstantiate arg0=0xb arg1=0xa
         serve 7ms +5us graphLaunch arg0=0xb stream=16
         serve 8ms +5ms cudaStreamSync stream=16",
    );
    let w = only(&i);
    assert_eq!((w.key.phase, w.steps), (Some(Phase::Decode), 1));
}

#[test]
fn idle_time_between_requests_is_no_part_of_a_step() {
    let step =
        "serve 0ms +5us cudaLaunchKernel stream=16\nserve 0.1ms +10ms cudaStreamSync stream=16\n";
    let many = |idle: &str| {
        let mut s = String::from("process serve 11 job\n");
        for n in 0..60 {
            let _ = writeln!(s, "at {}ms\n{step}", n * 12);
        }
        // A request comes after 800 ms.
        let _ = writeln!(s, "at 720ms\n{idle}at 1520ms\n{step}");
        s
    };
    for idle in [
        "serve 0ms +800ms blocked on=epoll sockets\n",
        "serve 0ms +300ms blocked on=read file=socket\nserve 301ms +499ms blocked on=futex\n",
        // Nothing is known of its time.
        "",
    ] {
        let mut i = follow(&many(idle));
        assert_eq!(i.drain().outliers, [], "{idle}");
        assert_eq!(only(&i).steps, 60);
    }
    // It had something to do, and could not.
    for busy in [
        "serve 0ms +800ms preempted\n",
        "serve 0ms +800ms blocked on=pread file=regular iowait\n",
        "serve 0ms +100ms blocked on=read file=socket\nserve 101ms +699ms preempted\n",
    ] {
        let mut i = follow(&many(busy));
        assert_eq!(i.drain().outliers.len(), 1, "{busy}");
    }
    // A server that spins is idle after a second without a call.
    let spins = many("serve 0ms +1us preempted\n");
    assert_eq!(follow(&spins).drain().outliers.len(), 1);
    let long = spins.replace("at 1520ms", "at 1820ms");
    assert_eq!(follow(&long).drain().outliers, []);
}

#[test]
fn a_sleep_in_the_wait_itself_is_the_step_s() {
    let mut s = String::from("process serve 11 job\n");
    for n in 0..60 {
        let long = if n == 50 { 60 } else { 0 };
        let at = n * 12 + if n > 50 { 60 } else { 0 };
        let _ = writeln!(
            s,
            "at {at}ms\nserve 0ms +5us cudaLaunchKernel stream=16
             serve 0.2ms +{}ms blocked on=poll\nserve 0.1ms +{}ms cudaStreamSync stream=16",
            9 + long,
            10 + long
        );
    }
    assert_eq!(follow(&s).drain().outliers.len(), 1);
}

#[test]
fn steps_of_which_a_part_is_not_known_are_left_out() {
    let with = |between: &str| {
        let i = follow(&format!(
            "process serve 11 job
             process other 12 job
             serve 0ms +1ms cudaStreamSync stream=16
             {between}
             serve 6ms +5us cudaLaunchKernel stream=16
             serve 8ms +1ms cudaStreamSync stream=16"
        ));
        (i.state().steps, i.state().left_out)
    };
    assert_eq!(with("").0, 1);
    assert_eq!(with("lost 2ms +1ms other 5").0, 1);
    let lost = with("lost 2ms +1ms serve 5");
    assert_eq!((lost.0, lost.1.lost_records), (0, 1));
    assert_eq!(with("lost 2ms +5ms all 5").1.lost_records, 1);
    let stopped = with("serve 6.5ms +1ms blocked on=read stopped");
    assert_eq!((stopped.0, stopped.1.paused), (0, 1));
    assert_eq!(with("serve 1s +1ms cudaStreamSync stream=16 ret=700").0, 1);
    assert_eq!(with("serve 2ms +1ms cudaStreamSync stream=16 nested").0, 1);
    let unknown = with("serve 2ms +1ms cudaEventSync arg0=0xe");
    assert_eq!((unknown.0, unknown.1.unknown_event), (1, 1));
}

#[test]
fn a_minute_between_two_waits_is_no_step() {
    let i = follow(
        "process serve 11 job
         serve 0ms +1ms cudaStreamSync stream=16
         serve 2ms +5us cudaLaunchKernel stream=16
         serve 62s +1ms cudaStreamSync stream=16
         serve 63s +5us cudaLaunchKernel stream=16
         serve 64s +1ms cudaStreamSync stream=16",
    );
    let s = i.state();
    assert_eq!((s.steps, s.left_out.length), (1, 1));
}

#[test]
fn memory_taken_from_the_driver_makes_a_step_with_few_launches_a_decode() {
    let i = follow(
        "process serve 11 job
         serve 0ms +1ms cudaStreamSync stream=16
         serve 1ms +5us cudaLaunchKernel stream=16
         serve 2ms +5us cudaMemcpyAsync bytes=4000000 kind=1 stream=16
         serve 3ms +1ms cudaStreamSync stream=16
         serve 5ms +5us cudaLaunchKernel stream=16
         serve 6ms +5us cudaMemcpyAsync bytes=4000000 kind=1 stream=16
         serve 7ms +5us cuMemCreate bytes=2097152 arg1=0xa
         serve 7.1ms +5us cuMemMap bytes=2097152
         serve 8ms +1ms cudaStreamSync stream=16
         serve 9ms +5us cudaMemPrefetchAsync bytes=40000000 kind=0 stream=16
         serve 9.5ms +5us cudaMallocAsync bytes=64 arg1=0xb stream=16
         serve 10ms +1ms cudaStreamSync stream=16",
    );
    let phases: Vec<_> = i.state().workloads.iter().map(|w| w.key.phase).collect();
    assert_eq!(phases, [Some(Phase::Decode), Some(Phase::Unknown)]);
    assert_eq!(i.state().phases, [1, 0, 0, 2], "a prefetch is no copy");
}

#[test]
fn an_outlier_says_what_the_device_and_the_memory_did() {
    let mut s = String::from(
        "process serve 11 job
         serve 1ms +5us cudaMalloc bytes=1000 arg1=0xa
         serve 2ms +5us cuMemAlloc bytes=1000 arg1=0xb
         serve 3ms +5us cudaMalloc bytes=1000 arg1=0xc
         serve 4ms +5us cudaFree arg0=0xa\n",
    );
    for n in 0..41 {
        let _ = writeln!(
            s,
            "at {}ms\nserve 0ms +5us cudaLaunchKernel stream=16\nserve 1ms +{}ms cudaStreamSync stream=16",
            10 + n * 12,
            if n == 40 { 50 } else { 10 }
        );
    }
    s.push_str(
        "at 0ms
         gpu0 100ms sample clock=1900 throttle=1
         gpu0 495ms sample clock=1200 throttle=0x40
         gpu0 515ms sample clock=900 throttle=0x8
         gpu0 700ms sample clock=100 throttle=0x80
         gpu1 495ms sample clock=50 throttle=0x20",
    );
    let with = InferenceSettings {
        kv_lineage: Some(KvLineage::default()),
        ..settings()
    };
    let mut i = follow_with(with, &s);
    expect![[r#"
        3x decode pid 11 stream 16: 51 ms to 541 ms by cudaStreamSync, usual 11 of 10.945 ms, 1 launches, 0 bytes, throttle 0x48, 900 MHz, ages [538, 537]
        pid 11 stream 16 decode: 40 steps of 11 ms
    "#]]
    .assert_eq(&render(&mut i));
    let state = i.state();
    assert_eq!(state.throttled_outliers, [0, 0, 1]);
    assert_eq!(state.workloads[0].throttled_outliers, [0, 0, 1]);
    assert_eq!((state.kv_ages.count(), state.kv_ages.sum), (2, 1_075));
}

#[test]
fn a_number_that_comes_again_is_another_process() {
    let life = |at: u64, ticks: u64, wait: u64| {
        let mut s = format!("at {at}ms\nprocess p{ticks} 11 job ticks={ticks}\n");
        for n in 0..40 {
            let _ = writeln!(
                s,
                "at {}ms\np{ticks} 1ms +5us cudaLaunchKernel stream=16\np{ticks} 2ms +{wait}ms cudaStreamSync stream=16",
                at + n * (wait + 3)
            );
        }
        s
    };
    let trace = format!(
        "{}at 900ms\np100 0ms exit\n{}",
        life(1, 100, 10),
        life(1_000, 200, 100)
    );
    let mut i = follow(&trace);
    assert_eq!(
        i.drain().outliers,
        [],
        "what was usual for the one is not for the other"
    );
    let keys: Vec<_> = i
        .state()
        .workloads
        .iter()
        .map(|w| (w.key.process.start_ticks, w.steps))
        .collect();
    assert_eq!(
        keys,
        [(200, 39)],
        "the first one's workload went when its number came again"
    );
    let exit = format!("{}at 900ms\np100 0ms exit\n", life(1, 100, 10));
    let mut i = follow(&exit);
    i.advance(BootNanos(50_000_000_000));
    assert_eq!(i.state().workloads.len(), 1, "exporters can still see it");
    i.advance(BootNanos(70_000_000_000));
    assert_eq!(i.state().workloads, []);
}

#[test]
fn what_a_process_held_goes_with_it() {
    let held = |after: &str| {
        let with = InferenceSettings {
            kv_lineage: Some(KvLineage::default()),
            ..settings()
        };
        let trace = format!(
            "process serve 11 job
             serve 0ms +1ms cudaMalloc bytes=100 arg1=0xa
             serve 2ms +1ms cuMemCreate bytes=100 arg1=0xb
             serve 4ms +1ms cudaMalloc bytes=100 arg1=0xc ret=2
             serve 6ms +1ms cudaFree arg0=0xa
             serve 8ms +1ms cudaFree arg0=0xf\n{after}"
        );
        follow_with(with, &trace).allocations
    };
    assert_eq!(held(""), 1);
    assert_eq!(held("serve 10ms exit"), 0);
}

#[test]
fn the_default_streams_of_two_devices_are_two() {
    let step = |n: u64| {
        format!(
            "at {}ms
             serve 0ms +5us cudaLaunchKernel stream=0 device=0
             serve 0.1ms +5us cudaLaunchKernel stream=1 device=1
             serve 1ms +2ms cudaDeviceSync device=0
             serve 4ms +3ms cudaStreamSync stream=0 device=1\n",
            n * 10
        )
    };
    let trace: String = (0..5).map(step).collect();
    let i = follow(&format!("process serve 11 job\n{trace}"));
    let of: Vec<_> = i.state().workloads;
    let of: Vec<_> = of
        .iter()
        .map(|w| (w.key.device.unwrap().0, w.steps, w.mean_nanos))
        .collect();
    assert_eq!(of, [(0, 4, 3_000_000), (1, 4, 6_900_000)]);
}

#[test]
fn a_wait_for_an_event_that_was_known_to_be_done_ends_no_step() {
    let i = follow(
        "process serve 11 job
         serve 0ms +1ms cudaStreamSync stream=16
         serve 1ms +5us cudaLaunchKernel stream=16
         serve 1.1ms +5us cudaEventRecord arg0=0xe stream=16
         serve 2ms +5ms cudaStreamSync stream=16
         serve 8ms +5us cudaLaunchKernel stream=16
         serve 9ms +5us cudaEventSync arg0=0xe
         serve 10ms +5ms cudaStreamSync stream=16",
    );
    assert_eq!(only(&i).all.sum, 6_000_000 + 7_000_000);
}

#[test]
fn a_cgroup_is_told_by_the_hash_of_its_path() {
    assert_eq!(
        cgroup_hash("/kubepods.slice/pod1").unwrap().to_string(),
        "f6f7a079fa79fb5d"
    );
    assert_eq!(cgroup_hash(""), None);
}

#[test]
fn fingerprints_tell_workloads_apart_when_they_are_asked_for() {
    let mut s = String::from("process serve 11 job\n");
    for n in 0..9 {
        let _ = writeln!(
            s,
            "at {}ms\nserve 1ms +5us cudaLaunchKernel stream=16 arg0=0x1000
             serve 2ms +5us cudaLaunchKernel stream=16 arg0={}\nserve 3ms +5ms cudaStreamSync stream=16",
            n * 10,
            if n % 3 == 0 { "0x1000" } else { "0x2000" }
        );
    }
    assert_eq!(only(&follow(&s)).key.fingerprint, 0);
    let on = InferenceSettings {
        fingerprint_key: true,
        ..settings()
    };
    let i = follow_with(on, &s);
    let keys: Vec<_> = i
        .state()
        .workloads
        .iter()
        .map(|w| (w.key.fingerprint, w.steps))
        .collect();
    assert_eq!(keys.len(), 2);
    assert!(keys.contains(&(0x3e72_8807_e2e7_9fed, 6)), "{keys:x?}");
}

#[test]
fn a_fresh_finding_pauses_learning_and_judging_of_its_process_for_half_a_minute() {
    let s = serve(400, |step| (step >= 130).then_some(25_000));
    let paused = InferenceSettings::default();
    let mut i = Inference::new(paused).unwrap();
    for (at, e) in in_order(parse_trace(&s).unwrap()) {
        if at > 2_000_000_000 && i.state().paused_steps == 0 {
            i.found(Pid(11), Severity::Medium, BootNanos(at));
            i.found(Pid(12), Severity::High, BootNanos(at));
            assert_eq!(i.state().paused_steps, 0);
            i.found(Pid(11), Severity::High, BootNanos(at));
        }
        i.take(BootNanos(at), &e);
        if i.state().paused_steps > 0 {
            break;
        }
    }
    let before = i.state();
    assert_eq!(before.outliers, [0; 3]);
    let mut rest = in_order(parse_trace(&s).unwrap());
    rest.retain(|(at, _)| *at > i.now);
    for (at, e) in rest {
        i.take(BootNanos(at), &e);
    }
    let first = &i.drain().outliers[0];
    assert!(first.at.0 > 31_900_000_000, "{:?}", first.at);
    assert_eq!(
        first.p95_nanos, before.workloads[0].p95_nanos,
        "nothing was learnt meanwhile"
    );
    let state = i.state();
    let all: u64 = state.workloads.iter().map(|w| w.paused_steps).sum();
    assert_eq!(state.paused_steps, all);
}

#[test]
fn the_engine_s_own_findings_pause_and_what_is_always_slow_does_not() {
    // Steps of 12 ms; from 5 s on a hog holds the CPU for 40 ms of each.
    let mut s = String::from("process serve 11 job\nprocess hog 99\n");
    let mut now = 0;
    for n in 0..900 {
        let hog = if (400..800).contains(&n) { 40 } else { 0 };
        let _ = writeln!(s, "at {now}ms\nserve 0ms +5us cudaLaunchKernel stream=16");
        if hog > 0 {
            let _ = writeln!(
                s,
                "serve 1ms +{hog}ms preempted cpu=1\ncpu1 1ms +{hog}ms ran hog"
            );
        }
        let _ = writeln!(s, "serve {}ms +10ms cudaStreamSync stream=16", 1 + hog);
        now += 12 + hog;
    }
    let run = |settings| {
        let inference = Inference::new(settings).unwrap();
        let mut e = Engine::with_inference(Rules::default(), inference);
        for event in parse_trace(&s).unwrap() {
            e.push(event);
        }
        e.finish(BootNanos(0));
        let out = e.drain();
        assert_eq!(out.findings[0].severity, Severity::High);
        let state = e.inference().unwrap().state();
        (out.inference.outliers.len(), state.paused_steps)
    };
    let (outliers, paused) = run(InferenceSettings::default());
    assert!(outliers >= 1, "the first ones are told");
    assert!(paused >= 350, "{paused}");
    assert!(outliers + (paused as usize) >= 400);
    assert_eq!(run(settings()), (400, 0));
}

#[test]
fn a_process_that_is_held_up_straggles_until_it_is_not_any_more() {
    let mut s = String::from("process serve 11 job\nprocess hog 99\nprocess other 98\n");
    for sec in 0..20 {
        let slow = (10..13).contains(&sec);
        let _ = writeln!(
            s,
            "at {sec}s\nrepeat {} every 10ms\nserve 1ms +5us cudaLaunchKernel stream=16\nend\nat {sec}s",
            if slow { 40 } else { 90 }
        );
        if slow {
            let _ = writeln!(
                s,
                "repeat 6 every 20ms\nserve 2ms +10ms preempted cpu=1\ncpu1 2ms +8ms ran hog\ncpu1 10ms +2ms ran other\nend"
            );
        }
    }
    let mut i = follow(&s);
    i.advance(BootNanos(21_000_000_000));
    let told: Vec<_> = i
        .drain()
        .straggles
        .iter()
        .map(|s| {
            let by: Vec<u32> = s.preempted_by.iter().map(|p| p.0).collect();
            (
                s.at.0 / 1_000_000_000,
                s.state,
                s.drop_millis,
                s.preemptions,
                by,
                s.id,
                s.comm.clone(),
            )
        })
        .collect();
    use warptrace_model::inference::StraggleState::{Began, Resolved, Sustained};
    let id = told[0].5;
    let comm = || "serve".to_owned();
    assert_eq!(
        told,
        [
            (11, Began, 555, 6, vec![99, 98], id, comm()),
            (12, Sustained, 555, 6, vec![99, 98], id, comm()),
            (13, Sustained, 555, 6, vec![99, 98], id, comm()),
            (14, Resolved, 0, 0, vec![], id, comm()),
        ]
    );
}

#[test]
fn a_lasting_slow_down_is_told_once_and_is_the_usual_then() {
    let mut s = String::from("process serve 11 job\n");
    let mut now = 0;
    for n in 0..8_000 {
        let wait = if n < 200 { 20 } else { 200 };
        let _ = writeln!(
            s,
            "at {now}ms\nserve 0ms +5us cudaLaunchKernel stream=16\nserve 1ms +{wait}ms cudaStreamSync stream=16"
        );
        now += wait + 1;
    }
    let mut i = follow(&s);
    let out = i.drain();
    assert_eq!(out.shifts.len(), 1);
    let shift = out.shifts[0];
    assert!(shift.window.nanos() >= 600_000_000_000 && shift.window.nanos() < 601_000_000_000);
    assert!(out.outliers.last().unwrap().at <= shift.window.end);
    assert_eq!(i.state().outliers[2], shift.outliers);
    assert!(only(&i).p95_nanos > 199_000_000);
}

#[test]
fn ids_do_not_depend_on_what_was_seen_before() {
    let slow = |n| serve(n, |step| (step == 130).then_some(100_000));
    let (a, b) = (follow(&slow(40)).drain(), follow(&slow(60)).drain());
    assert_eq!(a, b);
    let mut later = settings();
    later.unix_of_boot_nanos = 1_700_000_000_000_000_000;
    let c = follow_with(later, &slow(40)).drain();
    assert_ne!(c.outliers[0].id, a.outliers[0].id);
    assert_eq!(c.outliers[0].at, a.outliers[0].at);
}
