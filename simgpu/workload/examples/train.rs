//! Trains for some seconds and prints the summary as JSON:
//! `LD_LIBRARY_PATH=LIBRARIES cargo run -p simgpu-workload --example train -- 5`.

use std::{io, time::Duration};

use simgpu_workload::{TrainOptions, train};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let secs = std::env::args()
        .nth(1)
        .map_or(Ok(10), |text| text.parse())?;
    let summary = train(&TrainOptions {
        duration: Some(Duration::from_secs(secs)),
        ..TrainOptions::default()
    })?;
    Ok(summary.write_json(&mut io::stdout())?)
}
