//! Hogs the device for some seconds: `LD_LIBRARY_PATH=LIBRARIES cargo run -p simgpu-workload --example hog -- 5`.

use std::time::Duration;

use simgpu_workload::{HogOptions, hog_gpu};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let secs = std::env::args()
        .nth(1)
        .map_or(Ok(10), |text| text.parse())?;
    let summary = hog_gpu(&HogOptions {
        duration: Duration::from_secs(secs),
        delay: Duration::from_secs(1),
        busy: Duration::from_secs(1),
        pause: Duration::from_secs(1),
        ..HogOptions::default()
    })?;
    println!(
        "{} kernels in {} bursts",
        summary.kernels,
        summary.bursts.len()
    );
    Ok(())
}
