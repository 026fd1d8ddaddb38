//! The live table over made-up numbers: to look at it, and for the test that runs it on a terminal of its own.
//!
//! `cargo run -p warptrace-tui --example live` until q or Ctrl-C; with the argument `panic` it panics after the first
//! screen.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::SIGINT;
use warptrace_api::{Live, LiveOp};
use warptrace_tui::{Action, Tui};

fn main() -> io::Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, Arc::clone(&interrupted))?;
    let panics = std::env::args().nth(1).is_some_and(|word| word == "panic");

    let mut live = Live {
        session: "made-up".to_owned(),
        target: "nothing (made-up numbers)".to_owned(),
        window_ns: 10_000_000_000,
        ops: vec![LiveOp {
            layer: "cuda",
            op: "cudaStreamSync",
            pid: std::process::id(),
            device: Some(0),
            count: 0,
            recent: 1,
            p50_ns: 31_000_000,
            p95_ns: 33_000_000,
            p99_ns: 59_600_000,
            wall_share: 0.81,
            tail: false,
        }],
        ..Live::default()
    };
    let period = Duration::from_millis(500);
    let mut tui = Tui::start()?;
    let by = loop {
        if tui.draw(&live)? == Action::Stop {
            break "a key";
        }
        assert!(!panics, "as asked");
        if tui.wait(&live, period)? == Action::Stop {
            break "a key";
        }
        if interrupted.load(Ordering::Relaxed) {
            break "a signal";
        }
        live.elapsed_ns += period.as_nanos() as u64;
        live.ops[0].count += 20;
    };
    drop(tui);
    println!("stopped by {by}");
    Ok(())
}
