//! What happens to real jobs, and what must be said of it.

use expect_test::expect;

use super::check;

/// A step of 25 ms: 3 ms of host work, launches, a wait of 20 ms that spins.
const STEPS: &str = "
    train 0ms +1us cudaEventQuery
    train 3ms +5us cudaLaunchKernel stream=1
    train 3.1ms +5us cudaLaunchKernel stream=1
    train 3.2ms +21.8ms cudaStreamSync stream=1
";

fn trace(before: &str, fault: &str, after: &str) -> String {
    format!(
        "process train 4711 job
         process wt-hog 4890 silent
         train 0ms +1ms cudaStreamSync stream=1
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
        train 18ms +5us cudaLaunchKernel stream=1
        train 18.1ms +5us cudaLaunchKernel stream=1
        train 18.2ms +21.8ms cudaStreamSync stream=1";
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
        train 18ms +5us cudaLaunchKernel stream=1
        train 18.1ms +5us cudaLaunchKernel stream=1
        train 18.2ms +21.8ms cudaStreamSync stream=1
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
