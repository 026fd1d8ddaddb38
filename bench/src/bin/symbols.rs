//! What it takes to look a stack's code up: of a file that is met for the first time, of another place in it, and again.
//!
//! `cargo run --release -p warptrace-bench --bin symbols -- WARPTRACE`. The helper is that binary; what it looks into is this
//! program, with its debug information, and the C library. All of it happens in the helper, at a nice value of 10; the
//! recorder waits for it in a thread of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use warptrace_capture::symbols::{Symbols, UserStack};

/// Places that are looked up in each file.
const PLACES: u64 = 200;

fn main() -> anyhow::Result<()> {
    let helper: PathBuf = std::env::args()
        .nth(1)
        .context("usage: symbols WARPTRACE")?
        .into();
    let own = std::env::current_exe()?;
    for file in [own.to_string_lossy().into_owned(), "/libc.so.6".to_owned()] {
        let (start, end) =
            code_of(&file).with_context(|| format!("no code of {file} is mapped"))?;
        let program = helper.clone();
        let mut symbols = Symbols::new(move || {
            let mut command = Command::new(&program);
            command.arg("symbolize");
            command
        });
        let mut look = |address: u64| -> anyhow::Result<f64> {
            let stack = UserStack {
                id: 1,
                pid: std::process::id(),
                addresses: vec![address],
            };
            let began = Instant::now();
            symbols.resolve(&stack, || Duration::from_secs(60))?;
            Ok(began.elapsed().as_secs_f64() * 1e3)
        };
        let first = look(start + 1)?;
        let places: Vec<u64> = (1..=PLACES)
            .map(|n| start + n * (end - start) / (PLACES + 2))
            .collect();
        let new = places
            .iter()
            .map(|p| look(*p))
            .collect::<Result<Vec<_>, _>>()?;
        let again = places
            .iter()
            .map(|p| look(*p))
            .collect::<Result<Vec<_>, _>>()?;
        println!(
            "{file}: first {first:.1} ms with the helper's start, another place {:.2} ms, the same place {:.2} ms (medians of {PLACES})",
            median(new),
            median(again)
        );
    }
    Ok(())
}

/// Where the code of a file whose path ends so is mapped in this process.
fn code_of(path: &str) -> Option<(u64, u64)> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps
        .lines()
        .find(|l| l.contains(" r-xp ") && l.ends_with(path))?;
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some((hex(start)?, hex(end)?))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
