//! What happens to real jobs, and what must be said of it.

use expect_test::expect;
use warptrace_model::Cause;

use super::check;

/// A step of 25 ms: 3 ms of host work, launches, a wait of 20 ms that spins.
const STEPS: &str = "
    train 0ms +1us cudaEventQuery
    train 3ms +5us cudaLaunchKernel stream=16
    train 3.1ms +5us cudaLaunchKernel stream=16
    train 3.2ms +21.8ms cudaStreamSync stream=16
";

fn trace(before: &str, fault: &str, after: &str) -> String {
    format!(
        "process train 4711 job
         process wt-hog 4890 silent
         train 0ms +1ms cudaStreamSync stream=16
         at 1ms
         train 0.5ms +1us blocked on=poll by=train
         repeat 40 every 25ms
         {STEPS} {before}
         end
         repeat 40 every 40ms
         {fault}
         end
         repeat 40 every 25ms
         {STEPS} {after}
         end"
    )
}

#[test]
fn a_hog_on_the_core_is_run_queue_wait_and_is_named() {
    let hogged = "
        train 1ms +15ms preempted cpu=1
        cpu1 1ms +7.5ms ran wt-hog
        cpu1 8.5ms +7.5ms ran wt-hog
        train 18ms +5us cudaLaunchKernel stream=16
        train 18.1ms +5us cudaLaunchKernel stream=16
        train 18.2ms +21.8ms cudaStreamSync stream=16";
    check(
        &trace("", hogged, ""),
        expect![[r#"
        MEDIUM incident run_queue_wait: train in cudaStreamSync, 1001..2601 ms, units 40..79 slow 40 worst 40, usual 25 ms of 40, excess 600 ms
          run_queue_wait 599.999 ms, lost 600 ms: wt-hog (pid 4890) held cpu 1 for 600 ms
          launch_gap 0.001 ms, lost 0.001 ms: train ran its own code instead of feeding the device
          - wt-hog held cpu 1 at 1009.5 ms for 7.5 ms
          - wt-hog held cpu 1 at 1049.5 ms for 7.5 ms
          - wt-hog held cpu 1 at 1089.5 ms for 7.5 ms
          - wt-hog held cpu 1 at 1129.5 ms for 7.5 ms
          - wt-hog held cpu 1 at 1169.5 ms for 7.5 ms
    "#]],
    );
}

#[test]
fn inside_the_process_a_hog_is_run_queue_wait_of_nobody_known() {
    let calm = "
        train 0ms +3.2ms stretch running=3.2ms
        train 3.2ms +21.8ms stretch running=21.8ms";
    let hogged = "
        train 18ms +5us cudaLaunchKernel stream=16
        train 18.1ms +5us cudaLaunchKernel stream=16
        train 18.2ms +21.8ms cudaStreamSync stream=16
        train 0ms +18.2ms stretch running=3.2ms runnable=15ms
        train 18.2ms +21.8ms stretch running=21.8ms";
    let text = trace(calm, hogged, calm).replace("train 0.5ms +1us blocked on=poll by=train", "");
    check(
        &text,
        expect![[r#"
        MEDIUM incident run_queue_wait: train in cudaStreamSync, 1001..2601 ms, units 40..79 slow 40 worst 40, usual 25 ms of 40, excess 600 ms
          run_queue_wait 600 ms, lost 600 ms: no CPU owner known
        gap no_scheduler_records 120: who held the CPU is not known: recorded from inside the process
    "#]],
    );
}

#[test]
fn the_worked_example_comes_out_to_the_nanosecond() {
    // Disk by way of the loader, own code, 4.1 ms of launches, a hog, the wait. Usual: 38.2 ms; then one of 60.1 ms.
    let unit = |disk: &str, own: &str, hog: &str, wait: &str| {
        [
            &format!("train 0ms +{disk} blocked on=futex by=loader-3\n"),
            &format!(
                "loader-3 0ms +{disk} blocked on=pread fd=9 file=regular iowait wake=interrupt\n"
            ),
            &format!("loader-3 0ms +{disk} io\n"),
            &format!("pause {disk}\n"),
            &format!("pause {own}\n"),
            "repeat 82 every 50us\n train 0ms +50us cudaLaunchKernel stream=16\nend\n",
            &format!("train 0ms +{hog} preempted cpu=1\ncpu1 0ms +{hog} ran stress\n"),
            &format!("pause {hog}\n"),
            &format!("train 0ms +{wait} cudaStreamSync stream=16\n"),
            &format!("pause {wait}\n"),
        ]
        .concat()
    };
    let text = format!(
        "process train 4711 job
         process stress 4890 silent
         thread loader-3 4713 of train
         file train 9 data/shard-03.tar
         train 0ms +1ms cudaStreamSync stream=16
         at 1ms
         {}{}",
        unit("0.5ms", "2.2ms", "0.4ms", "31ms").repeat(40),
        unit("2.1ms", "2.5ms", "40.4ms", "11ms"),
    );
    let out = check(
        &text,
        expect![[r#"
            LOW incident run_queue_wait: train in cudaStreamSync, 1529..1589.1 ms, units 40..40 slow 1 worst 40, usual 38.2 ms of 40, excess 21.9 ms
              run_queue_wait 20 ms, lost 40 ms: stress (pid 4890) held cpu 1 for 40.4 ms
              disk_wait 1.6 ms, lost 1.6 ms: data/shard-03.tar, 1 requests
              launch_gap 0.3 ms, lost 0.3 ms: train ran its own code instead of feeding the device
              - stress held cpu 1 at 1537.7 ms for 40.4 ms
        "#]],
    );
    let f = &out.findings[0];
    let of = |cause| {
        let b = f.blame.iter().find(|b| b.cause == cause).unwrap();
        (b.ns, b.lost_ns)
    };
    assert_eq!((f.baseline_ns, f.excess_ns), (38_200_000, 21_900_000));
    assert_eq!(of(Cause::RunQueueWait), (20_000_000, 40_000_000));
    assert_eq!(of(Cause::DiskWait), (1_600_000, 1_600_000));
    assert_eq!(of(Cause::LaunchGap), (300_000, 300_000));
    assert_eq!(of(Cause::Unexplained), (0, 0));
}

#[test]
fn a_slow_disk_behind_a_loader_is_disk_wait_with_its_path() {
    let trace = format!(
        "process train 4711 job
         thread loader 4712 of train
         file train 7 data/shard-03.tar
         train 0ms +1ms cudaStreamSync stream=16
         at 1ms
         repeat 40 every 26ms
           train 0ms +1ms blocked on=futex by=loader
           {MORE}
         end
         repeat 5 every 60ms
           train 0ms +35ms blocked on=futex by=loader
           loader 1ms +33ms blocked on=pread fd=7 file=regular iowait wake=interrupt
           loader 1ms +16ms io
           loader 17ms +17ms io
           train 37ms +5us cudaLaunchKernel stream=16
           train 37.2ms +22.8ms cudaStreamSync stream=16
         end",
        MORE = "train 4ms +5us cudaLaunchKernel stream=16
           train 4.2ms +21.8ms cudaStreamSync stream=16"
    );
    check(
        &trace,
        expect![[r#"
        LOW incident disk_wait: train in cudaStreamSync, 1041..1341 ms, units 40..44 slow 5 worst 40, usual 26 ms of 40, excess 170 ms
          disk_wait 165 ms, lost 165 ms: data/shard-03.tar, 10 requests
          unexplained 5 ms, lost 5 ms:
          - loader read or wrote a file at 1042 ms for 33 ms train ← loader
          - loader read or wrote a file at 1102 ms for 33 ms train ← loader
          - loader read or wrote a file at 1162 ms for 33 ms train ← loader
          - loader read or wrote a file at 1222 ms for 33 ms train ← loader
          - loader read or wrote a file at 1282 ms for 33 ms train ← loader
    "#]],
    );
}

#[test]
fn a_quota_is_not_competition_and_reclaim_is_not_work() {
    let trace = |fault: &str| {
        format!(
            "process train 4711 job
             train 0ms +1ms cudaStreamSync stream=16
             at 1ms
             train 0.1ms +1us preempted
             repeat 40 every 25ms
             {STEPS}
             end
             repeat 5 every 45ms
               {fault}
               train 23ms +5us cudaLaunchKernel stream=16
               train 23.1ms +5us cudaLaunchKernel stream=16
               train 23.2ms +21.8ms cudaStreamSync stream=16
             end"
        )
    };
    check(
        &trace("train 1ms +20ms preempted throttled=20ms"),
        expect![[r#"
            LOW incident cpu_quota: train in cudaStreamSync, 1001..1226 ms, units 40..44 slow 5 worst 40, usual 25 ms of 40, excess 100 ms
              cpu_quota 100 ms, lost 100 ms: the CPU quota of its cgroup held it back for 100 ms
              launch_gap 0 ms, lost 0 ms: train ran its own code instead of feeding the device
              - train was held back by its CPU quota at 1002 ms for 20 ms
              - train was held back by its CPU quota at 1047 ms for 20 ms
              - train was held back by its CPU quota at 1092 ms for 20 ms
              - train was held back by its CPU quota at 1137 ms for 20 ms
              - train was held back by its CPU quota at 1182 ms for 20 ms
        "#]],
    );
    check(
        &trace("train 1ms +20ms reclaim cgroup pages=512"),
        expect![[r#"
            LOW incident reclaim: train in cudaStreamSync, 1001..1226 ms, units 40..44 slow 5 worst 40, usual 25 ms of 40, excess 100 ms
              reclaim 100 ms, lost 100 ms:
              launch_gap 0 ms, lost 0 ms: train ran its own code instead of feeding the device
              - train reclaimed memory at 1002 ms for 20 ms
              - train reclaimed memory at 1047 ms for 20 ms
              - train reclaimed memory at 1092 ms for 20 ms
              - train reclaimed memory at 1137 ms for 20 ms
              - train reclaimed memory at 1182 ms for 20 ms
        "#]],
    );
    check(
        &trace("train 1ms +20ms blocked on=fault iowait wake=interrupt"),
        expect![[r#"
            LOW incident page_fault: train in cudaStreamSync, 1001..1226 ms, units 40..44 slow 5 worst 40, usual 25 ms of 40, excess 100 ms
              page_fault 100 ms, lost 100 ms:
              launch_gap 0 ms, lost 0 ms: train ran its own code instead of feeding the device
              - train waited for a page at 1002 ms for 20 ms
              - train waited for a page at 1047 ms for 20 ms
              - train waited for a page at 1092 ms for 20 ms
              - train waited for a page at 1137 ms for 20 ms
              - train waited for a page at 1182 ms for 20 ms
        "#]],
    );
    check(
        &trace("train 1ms +20ms blocked on=recv fd=5 file=socket wake=interrupt"),
        expect![[""]],
    );
    check(
        &trace("train 0.5ms +1us cudaEventQuery\ntrain 1ms +20ms blocked on=recv fd=5 file=socket"),
        expect![[r#"
            LOW incident network_wait: train in cudaStreamSync, 1001..1226 ms, units 40..44 slow 5 worst 40, usual 25 ms of 40, excess 100 ms
              network_wait 100 ms, lost 100 ms: descriptor 5 of 4711
              launch_gap 0 ms, lost 0 ms: train ran its own code instead of feeding the device
              - train waited for the network at 1002 ms for 20 ms descriptor 5 of 4711
              - train waited for the network at 1047 ms for 20 ms descriptor 5 of 4711
              - train waited for the network at 1092 ms for 20 ms descriptor 5 of 4711
              - train waited for the network at 1137 ms for 20 ms descriptor 5 of 4711
              - train waited for the network at 1182 ms for 20 ms descriptor 5 of 4711
        "#]],
    );
    check(
        &trace("train 1ms +20ms blocked on=futex"),
        expect![[r#"
        LOW incident lock_wait: train in cudaStreamSync, 1001..1226 ms, units 40..44 slow 5 worst 40, usual 25 ms of 40, excess 100 ms
          lock_wait 100 ms, lost 100 ms:
          launch_gap 0 ms, lost 0 ms: train ran its own code instead of feeding the device
          - train waited for a lock at 1002 ms for 20 ms
          - train waited for a lock at 1047 ms for 20 ms
          - train waited for a lock at 1092 ms for 20 ms
          - train waited for a lock at 1137 ms for 20 ms
          - train waited for a lock at 1182 ms for 20 ms
    "#]],
    );
    check(
        &trace("train 1ms +20ms blocked on=nanosleep timed wake=interrupt"),
        expect![[r#"
            LOW incident sleep: train in cudaStreamSync, 1001..1226 ms, units 40..44 slow 5 worst 40, usual 25 ms of 40, excess 100 ms
              sleep 100 ms, lost 100 ms:
              launch_gap 0 ms, lost 0 ms: train ran its own code instead of feeding the device
              - train slept at 1002 ms for 20 ms
              - train slept at 1047 ms for 20 ms
              - train slept at 1092 ms for 20 ms
              - train slept at 1137 ms for 20 ms
              - train slept at 1182 ms for 20 ms
        "#]],
    );
    check(
        &trace("train 1ms +20ms blocked on=read file=pipe wake=interrupt"),
        expect![[r#"
            LOW incident unexplained: train in cudaStreamSync, 1001..1226 ms, units 40..44 slow 5 worst 40, usual 25 ms of 40, excess 100 ms
              launch_gap 0 ms, lost 0 ms: train ran its own code instead of feeding the device
              unexplained 100 ms, lost 100 ms:
        "#]],
    );
    check(
        &trace(""),
        expect![[r#"
        LOW incident launch_gap: train in cudaStreamSync, 1001..1226 ms, units 40..44 slow 5 worst 40, usual 25 ms of 40, excess 100 ms
          launch_gap 100 ms, lost 100 ms: train ran its own code instead of feeding the device
          - train ran outside CUDA calls at 1001 ms for 23 ms
          - train ran outside CUDA calls at 1046 ms for 23 ms
          - train ran outside CUDA calls at 1091 ms for 23 ms
          - train ran outside CUDA calls at 1136 ms for 23 ms
          - train ran outside CUDA calls at 1181 ms for 23 ms
    "#]],
    );
}

#[test]
fn copies_that_are_always_there_are_a_steady_finding() {
    let trace = "
        process train 4711 job
        train 0ms +1ms cudaStreamSync stream=16
        at 1ms
        train 0.1ms +1us preempted
        repeat 100 every 40ms
          train 1ms +30ms cudaMemcpy bytes=300000000 kind=1
          train 31.1ms +5us cudaLaunchKernel stream=16
          train 31.2ms +8.8ms cudaStreamSync stream=16
        end";
    check(
        trace,
        expect![[r#"
        HIGH steady copy: train in cudaStreamSync, 1..4001 ms, units 0..99 slow 100 worst 0, usual 10 ms of 100, excess 3000 ms
          copy 3000 ms, lost 3000 ms: 100 × cudaMemcpy, 3.00 s
          - train cudaMemcpy at 2 ms for 30 ms
    "#]],
    );
}

#[test]
fn a_storm_of_allocations_every_so_often_is_one_finding() {
    let trace = format!(
        "process train 4711 job
         train 0ms +1ms cudaStreamSync stream=16
         at 1ms
         train 0.1ms +1us preempted
         repeat 40 every 25ms
         {STEPS}
         end
         repeat 8 every 1287ms
           repeat 50 every 25ms
           {STEPS}
           end
           train 0ms +1us cudaEventQuery
           train 3ms +3ms cudaMalloc bytes=512000000
           train 6ms +3ms cudaFree
           train 9ms +3ms cudaMalloc bytes=512000000
           train 12ms +3ms cudaFree
           train 15ms +5us cudaLaunchKernel stream=16
           train 15.1ms +5us cudaLaunchKernel stream=16
           train 15.2ms +21.8ms cudaStreamSync stream=16
         end"
    );
    let out = check(
        &trace,
        expect![[r#"
        LOW incident allocator: train in cudaStreamSync, 2251..11297 ms, units 90..447 slow 8 worst 90, usual 25 ms of 256, excess 96 ms
          allocator 96 ms, lost 96 ms: 16 × cudaMalloc, 48.0 ms
          launch_gap 0 ms, lost 0 ms: train ran its own code instead of feeding the device
          - train cudaMalloc at 2254 ms for 3 ms
          - train cudaFree at 2257 ms for 3 ms
          - train cudaMalloc at 3541 ms for 3 ms
          - train cudaFree at 3544 ms for 3 ms
          - train cudaMalloc at 4828 ms for 3 ms
    "#]],
    );
    assert_eq!(out.findings.len(), 1);
}

#[test]
fn another_process_on_the_device_is_contention() {
    let trace = format!(
        "process train 4711 job
         process miner 5000
         train 0ms +1ms cudaStreamSync stream=16
         at 1ms
         train 0.1ms +1us preempted
         repeat 40 every 25ms
         {STEPS}
         end
         repeat 30 every 50ms
           train 3ms +5us cudaLaunchKernel stream=16
           train 3.1ms +5us cudaLaunchKernel stream=16
           train 3.2ms +46.8ms cudaStreamSync stream=16
           miner 1ms +5us cudaLaunchKernel stream=9
           miner 2ms +46ms cudaStreamSync stream=9
         end
         repeat 40 every 25ms
         {STEPS}
         end"
    );
    check(
        &trace,
        expect![[r#"
        MEDIUM incident gpu_contention: train in cudaStreamSync, 1001..2501 ms, units 40..69 slow 30 worst 40, usual 25 ms of 40, excess 750 ms
          gpu_contention 749.999 ms, lost 750 ms: miner (pid 5000) had work on the device for 1.35 s
          launch_gap 0.001 ms, lost 0.001 ms: train ran its own code instead of feeding the device
          - miner had work on the device at 1004 ms for 45 ms
          - miner had work on the device at 1054 ms for 45 ms
          - miner had work on the device at 1104 ms for 45 ms
          - miner had work on the device at 1154 ms for 45 ms
          - miner had work on the device at 1204 ms for 45 ms
        gap no_scheduler_records 29: what threads did outside their calls is not known: neither switches nor run delay were recorded
    "#]],
    );
    // On another device it changes nothing: the wait is unexplained.
    check(
        &trace.replace("stream=9", "stream=9 device=1"),
        expect![[r#"
            MEDIUM incident unexplained: train in cudaStreamSync, 1001..2501 ms, units 40..69 slow 30 worst 40, usual 25 ms of 40, excess 750 ms
              launch_gap 0.001 ms, lost 0.001 ms: train ran its own code instead of feeding the device
              unexplained 749.999 ms, lost 750 ms:
              - train cudaStreamSync at 1004.2 ms for 46.8 ms
              - train cudaStreamSync at 1054.2 ms for 46.8 ms
              - train cudaStreamSync at 1104.2 ms for 46.8 ms
              - train cudaStreamSync at 1154.2 ms for 46.8 ms
              - train cudaStreamSync at 1204.2 ms for 46.8 ms
            gap no_scheduler_records 29: what threads did outside their calls is not known: neither switches nor run delay were recorded
        "#]],
    );
    // Seen by the device's poller only.
    let by_nvml = trace
        .lines()
        .filter(|l| !l.trim_start().starts_with("miner"))
        .collect::<Vec<_>>()
        .join("\n")
        .replace("repeat 30 every 50ms", "gpu0 0ms sample busy=train:0.9\ngpu0 1500ms sample busy=train:0.5,miner:0.5\nrepeat 30 every 50ms");
    check(
        &by_nvml,
        expect![[r#"
            MEDIUM incident gpu_contention: train in cudaStreamSync, 1001..2501 ms, units 40..69 slow 30 worst 40, usual 25 ms of 40, excess 750 ms
              gpu_contention 704.999 ms, lost 705 ms: miner (pid 5000) had work on the device for 705 ms
              launch_gap 0.001 ms, lost 0.001 ms: train ran its own code instead of feeding the device
              unexplained 45 ms, lost 45 ms:
              - miner had work on the device at 1004 ms for 47 ms
              - miner had work on the device at 1054 ms for 47 ms
              - miner had work on the device at 1104 ms for 47 ms
              - miner had work on the device at 1154 ms for 47 ms
              - miner had work on the device at 1204 ms for 47 ms
        "#]],
    );
}

#[test]
fn a_throttled_clock_takes_its_share_of_the_wait() {
    let trace = format!(
        "process train 4711 job
         train 0ms +1ms cudaStreamSync stream=16
         at 1ms
         train 0.1ms +1us preempted
         gpu0 0ms sample clock=1800 max=1980 throttle=0
         repeat 40 every 25ms
         {STEPS}
         end
         gpu0 0ms sample clock=900 max=1980 throttle=0x20
         repeat 30 every 50ms
           train 3ms +5us cudaLaunchKernel stream=16
           train 3.1ms +5us cudaLaunchKernel stream=16
           train 3.2ms +46.8ms cudaStreamSync stream=16
         end
         gpu0 0ms sample clock=1800 max=1980 throttle=0"
    );
    check(
        &trace,
        expect![[r#"
            MEDIUM incident gpu_throttle: train in cudaStreamSync, 1001..2501 ms, units 40..69 slow 30 worst 40, usual 25 ms of 40, excess 750 ms
              gpu_throttle 375 ms, lost 375 ms: the clock was 900 MHz instead of 1800
              launch_gap 0.001 ms, lost 0.001 ms: train ran its own code instead of feeding the device
              unexplained 375 ms, lost 375 ms:
              - train cudaStreamSync at 1004.2 ms for 46.8 ms
              - train cudaStreamSync at 1054.2 ms for 46.8 ms
              - train cudaStreamSync at 1104.2 ms for 46.8 ms
              - train cudaStreamSync at 1154.2 ms for 46.8 ms
              - train cudaStreamSync at 1204.2 ms for 46.8 ms
        "#]],
    );
}

#[test]
fn more_work_and_more_bytes_are_said_before_unexplained() {
    let trace = format!(
        "process train 4711 job
         train 0ms +1ms cudaStreamSync stream=16
         at 1ms
         train 0.1ms +1us preempted
         repeat 40 every 25ms
          train 0.1ms +1ms cudaMemcpy bytes=12000000 kind=1
          {body}
         end
         repeat 5 every 75ms
          train 0.1ms +1ms cudaMemcpy bytes=12000000 kind=1
          train 2ms +3us cudaMemcpyAsync bytes=360000000 kind=1 stream=16
          train 3ms +5us cudaLaunchKernel stream=16
          train 3.1ms +5us cudaLaunchKernel stream=16
          train 3.2ms +71.8ms cudaStreamSync stream=16
         end",
        body = "train 3ms +5us cudaLaunchKernel stream=16
          train 3.1ms +5us cudaLaunchKernel stream=16
          train 3.2ms +21.8ms cudaStreamSync stream=16"
    );
    check(
        &trace,
        expect![[r#"
            LOW incident copy: train in cudaStreamSync, 1001..1376 ms, units 40..44 slow 5 worst 40, usual 25 ms of 40, excess 250 ms
              copy 150.006 ms, lost 150.015 ms: 360000000 more bytes copied a unit than usual
              unexplained 99.994 ms, lost 100 ms:
              - train cudaMemcpy at 1001.1 ms for 1 ms
              - train cudaMemcpy at 1076.1 ms for 1 ms
              - train cudaMemcpy at 1151.1 ms for 1 ms
              - train cudaMemcpy at 1226.1 ms for 1 ms
              - train cudaMemcpy at 1301.1 ms for 1 ms
        "#]],
    );
}

#[test]
fn a_start_that_is_slow_is_cold_start_and_nothing_else() {
    let trace = format!(
        "process train 4711 job from-start
         train 100ms +800ms cudaFree
         train 950ms +5us cudaLaunchKernel stream=16
         train 1000ms +500ms cudaStreamSync stream=16
         at 1500ms
         train 0.1ms +1us preempted
         train 3ms +100ms cudaLaunchKernel stream=16
         train 103.2ms +21.8ms cudaStreamSync stream=16
         at 1625ms
         repeat 60 every 25ms
         {STEPS}
         end"
    );
    check(
        &trace,
        expect![[r#"
            LOW incident cold_start: train in cudaStreamSync, 100..1625 ms, units 0..1 slow 2 worst 0, usual 25 ms of 16, excess 1475 ms
              cold_start 1475 ms, lost 1475 ms: cudaFree took 800 ms
              - train cudaFree at 100 ms for 800 ms
              - train cudaStreamSync at 1000 ms for 500 ms
              - train cudaLaunchKernel at 1503 ms for 100 ms
              - train ran outside CUDA calls at 900 ms for 50 ms
        "#]],
    );
    let mut demo = crate::Rules::default();
    demo.cold_start.min_recording_nanos = 0;
    super::check_with(
        demo,
        &trace,
        expect![[r#"
            MEDIUM incident cold_start: train in cudaStreamSync, 100..1625 ms, units 0..1 slow 2 worst 0, usual 25 ms of 16, excess 1475 ms
              cold_start 1475 ms, lost 1475 ms: cudaFree took 800 ms
              - train cudaFree at 100 ms for 800 ms
              - train cudaStreamSync at 1000 ms for 500 ms
              - train cudaLaunchKernel at 1503 ms for 100 ms
              - train ran outside CUDA calls at 900 ms for 50 ms
        "#]],
    );
}

#[test]
fn ordinary_noise_is_no_finding() {
    let mut trace = String::from(
        "process train 4711 job
         process kworker 9 silent
         train 0ms +1ms cudaStreamSync stream=16
         at 1ms
         train 0.1ms +1us preempted\n",
    );
    for i in 0..400u32 {
        let jitter = i.wrapping_mul(2_654_435_761) % 1500;
        trace.push_str(&format!(
            "train 1ms +{jitter}us preempted cpu=1
             cpu1 1ms +{jitter}us ran kworker
             train 3ms +5us cudaLaunchKernel stream=16
             train 3.1ms +5us cudaLaunchKernel stream=16
             train 3.2ms +21.8ms cudaStreamSync stream=16
             pause 25ms\n"
        ));
    }
    check(&trace, expect![[""]]);
}

#[test]
fn noise_before_a_hog_neither_stretches_its_window_nor_hides_it() {
    let late = "
        train 1ms +6ms preempted cpu=1
        cpu1 1ms +6ms ran hog
        train 9ms +5us cudaLaunchKernel stream=16
        train 9.1ms +5us cudaLaunchKernel stream=16
        train 9.2ms +21.8ms cudaStreamSync stream=16";
    let trace = format!(
        "process train 4711 job
         process hog 4890 silent
         train 0ms +1ms cudaStreamSync stream=16
         at 1ms
         train 0.1ms +1us preempted
         repeat 40 every 25ms
         {STEPS}
         end
         repeat 10 every 1031ms
           repeat 40 every 25ms
           {STEPS}
           end
           {late}
         end
         repeat 300 every 40ms
           train 1ms +15ms preempted cpu=1
           cpu1 1ms +15ms ran hog
           train 18ms +5us cudaLaunchKernel stream=16
           train 18.1ms +5us cudaLaunchKernel stream=16
           train 18.2ms +21.8ms cudaStreamSync stream=16
         end"
    );
    let out = check(
        &trace,
        expect![[r#"
        HIGH incident run_queue_wait: train in cudaStreamSync, 11280..23311 ms, units 449..749 slow 301 worst 450, usual 25 ms of 256, excess 4506 ms
          run_queue_wait 4506 ms, lost 4506 ms: hog (pid 4890) held cpu 1 for 4.51 s
          - hog held cpu 1 at 11312 ms for 15 ms
          - hog held cpu 1 at 11352 ms for 15 ms
          - hog held cpu 1 at 11392 ms for 15 ms
          - hog held cpu 1 at 11432 ms for 15 ms
          - hog held cpu 1 at 11472 ms for 15 ms
        LOW incident run_queue_wait: train in cudaStreamSync, 2001..10280 ms, units 80..408 slow 9 worst 80, usual 25 ms of 256, excess 54 ms
          run_queue_wait 54 ms, lost 54 ms: hog (pid 4890) held cpu 1 for 54.0 ms
          launch_gap 0 ms, lost 0 ms: train ran its own code instead of feeding the device
          - hog held cpu 1 at 2002 ms for 6 ms
          - hog held cpu 1 at 3033 ms for 6 ms
          - hog held cpu 1 at 4064 ms for 6 ms
          - hog held cpu 1 at 5095 ms for 6 ms
          - hog held cpu 1 at 6126 ms for 6 ms
    "#]],
    );
    let severities: Vec<_> = out.findings.iter().map(|f| f.severity.name()).collect();
    assert_eq!(severities, ["HIGH", "LOW"]);
}
