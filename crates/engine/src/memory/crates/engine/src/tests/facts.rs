//! Rules that state facts: what holds, and what looks alike but does not.

use expect_test::expect;

use super::check;

#[test]
fn an_oom_kill_is_told() {
    check(
        "process loader 99 job\nloader 5s oom-kill",
        expect![[r#"
        CRITICAL rule oom: loader in -, 5000..5000 ms, units 0..0 slow 0 worst 0, usual 0 ms of 0, excess 0 ms
          - loader killed by the kernel's OOM killer at 5000 ms for 0 ms
    "#]],
    );
}

#[test]
fn retransmits_are_told_from_eleven_within_ten_seconds_on() {
    check(
        "repeat 10 every 100ms\nnet 0ms retransmit\nend",
        expect![[""]],
    );
    check("repeat 40 every 2s\nnet 0ms retransmit\nend", expect![[""]]);
    check(
        "repeat 11 every 100ms\nnet 0ms retransmit\nend",
        expect![[r#"
            MEDIUM rule network_wait:  in -, 0..1000 ms, units 0..0 slow 0 worst 0, usual 0 ms of 0, excess 0 ms
              - ? 11 TCP retransmits on this machine at 0 ms for 1000 ms
        "#]],
    );
    check(
        "repeat 200 every 10ms\nnet 0ms retransmit\nend",
        expect![[r#"
            HIGH rule network_wait:  in -, 0..1990 ms, units 0..0 slow 0 worst 0, usual 0 ms of 0, excess 0 ms
              - ? 200 TCP retransmits on this machine at 0 ms for 1990 ms
        "#]],
    );
}

#[test]
fn a_wait_that_does_not_return_is_a_hang() {
    check(
        "process train 7 job\ntrain 0s +4.9s in-flight cudaStreamSync",
        expect![[""]],
    );
    check(
        "process train 7 job\ntrain 0s +60s in-flight cudaLaunchKernel",
        expect![[""]],
    );
    check(
        "process train 7 job\ntrain 0s +5s in-flight cudaStreamSync\ntrain 0s +9s in-flight cudaStreamSync",
        expect![[r#"
            CRITICAL rule hang: train in cudaStreamSync, 0..9000 ms, units 0..0 slow 0 worst 0, usual 0 ms of 0, excess 0 ms
              - train cudaStreamSync has not returned for 9.00 s at 0 ms for 9000 ms
        "#]],
    );
    // Calls of this op take a second: twenty of that are not over.
    check(
        "process train 7 job\nrepeat 5 every 1s\ntrain 0s +1s cudaDeviceSync\nend\ntrain 0s +9s in-flight cudaDeviceSync",
        expect![[""]],
    );
}

#[test]
fn a_lost_device_is_told_once_and_a_refused_call_is_not() {
    check(
        "process train 7 job
         train 0ms +1us cudaLaunchKernel
         train 1ms +1ms cudaStreamSync ret=700
         train 3ms +1ms cudaStreamSync ret=700
         train 5ms +1us cudaMalloc ret=2",
        expect![[r#"
            CRITICAL rule device_lost: train in cudaStreamSync, 4..4 ms, units 0..0 slow 0 worst 0, usual 0 ms of 0, excess 0 ms
              - train cudaStreamSync returned 700 (illegal address) at 4 ms for 0 ms
        "#]],
    );
    check(
        "process train 7 job\ntrain 0ms +1us cudaMalloc ret=46\ntrain 1ms +1us cudaMalloc ret=999",
        expect![[""]],
    );
    check(
        "process train 7 job\ntrain 0ms +1us cudaMalloc\ntrain 1ms +1us cudaMalloc ret=46",
        expect![[r#"
            CRITICAL rule device_lost: train in cudaMalloc, 1.001..1.001 ms, units 0..0 slow 0 worst 0, usual 0 ms of 0, excess 0 ms
              - train cudaMalloc returned 46 (devices unavailable) at 1.001 ms for 0 ms
        "#]],
    );
}

#[test]
fn graphs_that_fail_or_are_never_launched_are_told() {
    check(
        "process train 7 job
         train 0ms +1us graphBeginCapture stream=16
         train 1ms +1us graphEndCapture stream=16 ret=901
         train 2ms +1us graphBeginCapture stream=16
         train 3ms +1us graphEndCapture stream=16 ret=2",
        expect![[r#"
            HIGH rule oom: train in graphEndCapture, 3..3.001 ms, units 0..0 slow 0 worst 0, usual 0 ms of 0, excess 0 ms
              - train the capture of a CUDA graph failed: graphEndCapture returned 2 at 3 ms for 0.001 ms
            MEDIUM rule unexplained: train in graphEndCapture, 1..1.001 ms, units 0..0 slow 0 worst 0, usual 0 ms of 0, excess 0 ms
              - train the capture of a CUDA graph failed: graphEndCapture returned 901 at 1 ms for 0.001 ms
        "#]],
    );
    let unused = "process train 7 job
         train 0ms +1us graphInstantiate arg0=0xa arg1=0xb
         train 1ms +1us graphInstantiate arg0=0xc arg1=0xb
         train 2ms +1us graphLaunch arg0=0xc stream=16
         train 32s +1us cudaEventQuery";
    check(
        unused,
        expect![[r#"
        LOW rule unexplained: train in graphInstantiate, 0.001..30000.001 ms, units 0..0 slow 0 worst 0, usual 0 ms of 0, excess 0 ms
          - train the CUDA graph 0xa was instantiated and not launched at 0.001 ms for 30000 ms
    "#]],
    );
    check(&unused.replace("32s", "29s"), expect![[""]]);
}

#[test]
fn a_sample_of_memory_has_the_drivers_number_beside_that_of_the_calls() {
    use warptrace_model::{BootNanos, Event, GpuSample, Pid, SystemSample};
    let mut events = crate::testing::parse_trace(
        "process train 1 job
         train 1ms +1us cudaMalloc bytes=100 arg1=0xa
         train 2ms +1us cudaMalloc bytes=900 arg1=0xb
         train 3ms +1us cudaFree arg0=0xb
         train 20ms exit",
    )
    .unwrap();
    let at = BootNanos(10_000_000);
    // The machine's sample came first, and is taken after the device's of the same moment.
    events.push(Event::System(Box::new(SystemSample {
        at,
        ..SystemSample::default()
    })));
    events.push(Event::Gpu(Box::new(GpuSample {
        at,
        memory_used: Some(5_000),
        memory_total: Some(9_000),
        processes: vec![(Pid(1), None, Some(1_200))],
        ..GpuSample::default()
    })));
    let out = crate::testing::explain_events(events, crate::Rules::default());
    let said: Vec<_> = out
        .memory
        .iter()
        .map(|m| {
            let a = &m.allocator;
            (
                a.live_bytes,
                a.peak_bytes,
                m.process_used_bytes,
                m.device_used_bytes,
                m.last,
            )
        })
        .collect();
    assert_eq!(
        said,
        [
            (100, 1_000, Some(1_200), Some(5_000), false),
            (100, 100, None, None, true)
        ]
    );
}
