//! Serves for some seconds, and prints how many requests it had and how long its steps took:
//! `LD_LIBRARY_PATH=LIBRARIES cargo run -p simgpu-workload --example serve -- 5`.

use std::time::Duration;

use simgpu_workload::{ServeOptions, serve};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let secs = std::env::args()
        .nth(1)
        .map_or(Ok(10), |text| text.parse())?;
    let mut options = ServeOptions::default();
    options.load.duration = Duration::from_secs(secs);
    let summary = serve(&options)?;
    println!("{} requests", summary.requests.len());
    for (what, steps) in [("prefill", &summary.prefills), ("decode", &summary.decodes)] {
        let mut millis: Vec<u64> = steps.iter().map(|s| s.duration_ns / 1_000_000).collect();
        millis.sort_unstable();
        if let (Some(least), Some(most)) = (millis.first(), millis.last()) {
            println!("{what}: {} steps, {least} to {most} ms", steps.len());
        }
    }
    Ok(())
}
