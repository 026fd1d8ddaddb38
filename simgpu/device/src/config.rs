//! The `SIMGPU_*` variables, read once when a process first uses the device.
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `SIMGPU_SHM` | `/dev/shm/simgpu-<euid>` | the file that holds the device; processes with the same file share it |
//! | `SIMGPU_DEVICES` | 1 | number of devices, 1 to 8; the first process on a file decides |
//! | `SIMGPU_MEMORY_MIB` | 24576 | memory of each device, up to 32768; the first process decides |
//! | `SIMGPU_SYNC` | by the context's flags | `spin`, `yield` or `block`, whatever the flags say |
//! | `SIMGPU_KERNEL_NS` | 2000 | what every kernel takes |
//! | `SIMGPU_NS_PER_BLOCK` | 1000 | what a kernel takes for each block of its grid, on top |
//! | `SIMGPU_LAUNCH_DEPTH` | 1024 | kernels that a context may have outstanding before a launch waits |
//! | `SIMGPU_H2D_GBPS`, `SIMGPU_D2H_GBPS` | 12, 12 | copies from and to pinned memory, 10⁹ bytes a second |
//! | `SIMGPU_PAGEABLE_GBPS` | 4 | copies from and to pageable memory, both directions |
//! | `SIMGPU_D2D_GBPS` | 600 | copies and fills within a device |
//! | `SIMGPU_COPY_NS` | 8000 | what every copy takes, on top |
//! | `SIMGPU_MALLOC_NS` | 10000 | host time of an allocation or a free that changes pages |
//! | `SIMGPU_MALLOC_NS_PER_PAGE` | 500 | host time for each 2 MiB page of it, on top |
//! | `SIMGPU_COLD_START_MS` | 0 | host time of initialisation: 60 % in the first context, 20 % in the first module, 5 % in the first launch of each of the first four functions |
//! | `SIMGPU_THROTTLE` | none | `START-END:FACTOR:REASONS[,…]`, see [`Throttle`] |

use std::{fmt, path::PathBuf};

use crate::{
    machine::{MAX_DEVICES, MAX_PAGES, PAGE_BYTES},
    wait::SyncMode,
};

/// A slow-down that begins `start_secs` after the first context of the process that asks for it, and ends at `end_secs`.
///
/// Written `START-END:FACTOR:REASONS`, as in `20-40:1.8:0x40`: seconds, how many times longer kernels take (at least 1, 3
/// decimals), NVML's bit mask of clock event reasons. Every process that reads the device by NVML sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttle {
    pub start_secs: f64,
    pub end_secs: f64,
    /// Thousandths: 1800 makes a kernel take 1.8 times as long, and the clock be 1/1.8 of its base.
    pub factor_milli: u64,
    /// `nvmlClocksEventReason*`: 0x8 hardware slowdown, 0x20 software thermal, 0x40 hardware thermal, 0x80 power brake.
    pub reasons: u64,
}

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub shm: PathBuf,
    pub devices: usize,
    pub memory_pages: usize,
    pub sync: Option<SyncMode>,
    pub kernel_nanos: u64,
    pub nanos_per_block: u64,
    pub launch_depth: usize,
    pub h2d_gbps: f64,
    pub d2h_gbps: f64,
    pub pageable_gbps: f64,
    pub d2d_gbps: f64,
    pub copy_nanos: u64,
    pub malloc_nanos: u64,
    pub malloc_nanos_per_page: u64,
    pub cold_start_nanos: u64,
    pub throttle: Vec<Throttle>,
}

/// A variable with a value that means nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub variable: &'static str,
    pub value: String,
    pub wanted: &'static str,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}={:?} is not {}",
            self.variable, self.value, self.wanted
        )
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// The first variable whose value means nothing.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()))
    }

    /// The same from any source of variables; an empty value counts as absent.
    ///
    /// # Errors
    /// The first variable whose value means nothing.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let source = Source(&lookup);
        let max_mib = (MAX_PAGES * PAGE_BYTES) >> 20;
        let page_mib = PAGE_BYTES >> 20;
        Ok(Self {
            shm: source
                .text("SIMGPU_SHM")
                .map_or_else(default_shm, PathBuf::from),
            devices: source.number(
                "SIMGPU_DEVICES",
                "a number from 1 to 8",
                1,
                1..=MAX_DEVICES as u64,
            )? as usize,
            memory_pages: source.number(
                "SIMGPU_MEMORY_MIB",
                "a number from 2 to 32768",
                24576,
                page_mib as u64..=max_mib as u64,
            )? as usize
                / page_mib,
            sync: source.parsed("SIMGPU_SYNC", "spin, yield or block", |v| match v {
                "spin" => Some(SyncMode::Spin),
                "yield" => Some(SyncMode::Yield),
                "block" => Some(SyncMode::Block),
                _ => None,
            })?,
            kernel_nanos: source.nanos("SIMGPU_KERNEL_NS", 2_000)?,
            nanos_per_block: source.nanos("SIMGPU_NS_PER_BLOCK", 1_000)?,
            launch_depth: source.number(
                "SIMGPU_LAUNCH_DEPTH",
                "a number from 1 to 65536",
                1024,
                1..=65536,
            )? as usize,
            h2d_gbps: source.gbps("SIMGPU_H2D_GBPS", 12.0)?,
            d2h_gbps: source.gbps("SIMGPU_D2H_GBPS", 12.0)?,
            pageable_gbps: source.gbps("SIMGPU_PAGEABLE_GBPS", 4.0)?,
            d2d_gbps: source.gbps("SIMGPU_D2D_GBPS", 600.0)?,
            copy_nanos: source.nanos("SIMGPU_COPY_NS", 8_000)?,
            malloc_nanos: source.nanos("SIMGPU_MALLOC_NS", 10_000)?,
            malloc_nanos_per_page: source.nanos("SIMGPU_MALLOC_NS_PER_PAGE", 500)?,
            cold_start_nanos: source.number(
                "SIMGPU_COLD_START_MS",
                "a number of milliseconds up to 600000",
                0,
                0..=600_000,
            )? * 1_000_000,
            throttle: source
                .parsed("SIMGPU_THROTTLE", THROTTLE_FORM, parse_throttle)?
                .unwrap_or_default(),
        })
    }
}

fn default_shm() -> PathBuf {
    PathBuf::from(format!(
        "/dev/shm/simgpu-{}",
        crate::machine::effective_uid()
    ))
}

const THROTTLE_FORM: &str =
    "START-END:FACTOR:REASONS (seconds, factor 1 to 100, NVML mask), up to 4 of them with commas";

fn parse_throttle(text: &str) -> Option<Vec<Throttle>> {
    let windows: Vec<Throttle> = text
        .split(',')
        .map(|part| {
            let mut fields = part.split(':');
            let (span, factor, reasons) = (fields.next()?, fields.next()?, fields.next()?);
            let (start, end) = span.split_once('-')?;
            let (start_secs, end_secs): (f64, f64) = (start.parse().ok()?, end.parse().ok()?);
            let factor: f64 = factor.parse().ok()?;
            let reasons = match reasons.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok()?,
                None => reasons.parse().ok()?,
            };
            let sane = fields.next().is_none()
                && (0.0..=1e6).contains(&start_secs)
                && (start_secs..=1e6).contains(&end_secs)
                && (1.0..=100.0).contains(&factor);
            sane.then_some(Throttle {
                start_secs,
                end_secs,
                factor_milli: (factor * 1000.0).round() as u64,
                reasons,
            })
        })
        .collect::<Option<_>>()?;
    (windows.len() <= 4).then_some(windows)
}

struct Source<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Source<'_> {
    fn text(&self, variable: &str) -> Option<String> {
        (self.0)(variable).filter(|v| !v.is_empty())
    }

    fn parsed<T>(
        &self,
        variable: &'static str,
        wanted: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.text(variable) else {
            return Ok(None);
        };
        match parse(&value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(ConfigError {
                variable,
                value,
                wanted,
            }),
        }
    }

    fn number(
        &self,
        variable: &'static str,
        wanted: &'static str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let parse = |v: &str| v.parse().ok().filter(|n| range.contains(n));
        Ok(self.parsed(variable, wanted, parse)?.unwrap_or(default))
    }

    fn nanos(&self, variable: &'static str, default: u64) -> Result<u64, ConfigError> {
        self.number(
            variable,
            "a number of nanoseconds up to 60000000000",
            default,
            0..=60_000_000_000,
        )
    }

    fn gbps(&self, variable: &'static str, default: f64) -> Result<f64, ConfigError> {
        let parse = |v: &str| v.parse().ok().filter(|n| (0.001..=100_000.0).contains(n));
        let wanted = "a number from 0.001 to 100000";
        Ok(self.parsed(variable, wanted, parse)?.unwrap_or(default))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variable: &str, value: &str) -> Result<Config, ConfigError> {
        Config::from_lookup(|name| (name == variable).then(|| value.to_owned()))
    }

    #[test]
    fn a_throttle_schedule_is_read_window_by_window() {
        let config = with("SIMGPU_THROTTLE", "1.5-3:2:0x40,10-11:1.25:8").unwrap();
        assert_eq!(
            config.throttle,
            [
                Throttle {
                    start_secs: 1.5,
                    end_secs: 3.0,
                    factor_milli: 2000,
                    reasons: 0x40
                },
                Throttle {
                    start_secs: 10.0,
                    end_secs: 11.0,
                    factor_milli: 1250,
                    reasons: 8
                },
            ]
        );
    }

    #[test]
    fn a_value_that_means_nothing_is_named_and_never_replaced_by_the_default() {
        for (variable, value) in [
            ("SIMGPU_DEVICES", "0"),
            ("SIMGPU_DEVICES", "nine"),
            ("SIMGPU_MEMORY_MIB", "1"),
            ("SIMGPU_SYNC", "poll"),
            ("SIMGPU_H2D_GBPS", "0"),
            ("SIMGPU_H2D_GBPS", "NaN"),
            ("SIMGPU_THROTTLE", "3-1:2:8"),
            ("SIMGPU_THROTTLE", "1-3:0.5:8"),
            ("SIMGPU_THROTTLE", "1-3:2"),
        ] {
            let error = with(variable, value).unwrap_err();
            assert_eq!((error.variable, error.value.as_str()), (variable, value));
        }
    }

    #[test]
    fn an_empty_value_is_an_absent_one() {
        assert_eq!(with("SIMGPU_DEVICES", "").unwrap().devices, 1);
    }
}
