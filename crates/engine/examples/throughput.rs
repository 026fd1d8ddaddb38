//! How many events a second the engine takes: `cargo run --release -p warptrace-engine --features testing --example throughput`.
//!
//! Steps of forty launches with their switch records, in batches of 50 ms as a recorder delivers them.

use std::time::Instant;

use warptrace_engine::testing::parse_trace;
use warptrace_engine::{Engine, Rules};
use warptrace_model::BootNanos;

fn main() {
    let step = "
        train 0ms +1ms blocked on=futex by=loader
        repeat 40 every 50us
          train 2ms +6us cudaLaunchKernel stream=16
        end
        train 2.1ms +100us preempted cpu=1
        cpu1 2.1ms +100us ran hog
        train 2.3ms +15ms cudaStreamSync stream=16
        pause 18ms\n";
    let text = format!(
        "process train 4711 job\nprocess hog 9 silent\nthread loader 4712 of train\n\
         train 0ms +1ms cudaStreamSync stream=16\nat 1ms\n{}",
        step.repeat(20_000)
    );
    let events = parse_trace(&text).expect("the notation");
    let count = events.len();
    let mut engine = Engine::new(Rules::default());
    let mut units = 0;
    let mut next = 50_000_000;
    let begin = Instant::now();
    for e in events {
        let at = e.end().map_or(0, |t| t.0);
        if at > next {
            engine.advance(BootNanos(at));
            units += engine.drain().units.len();
            next = at + 50_000_000;
        }
        engine.push(e);
    }
    engine.finish(BootNanos(0));
    units += engine.drain().units.len();
    let took = begin.elapsed();
    println!(
        "{count} events, {units} units, {:.2} million events/s",
        count as f64 / took.as_secs_f64() / 1e6
    );
}
