//! Flags of a recorder that runs for a long time: its settings' file, what it says of itself, what it keeps, what things cost.
//!
//! Nothing has a default here: what is not given is decided where the flags meet the file.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{parse_bytes, parse_duration, parse_switch};
use crate::config::LogLevel;

/// What a recorder says of itself, and where its settings are.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Recorder")]
pub(crate) struct DaemonArgs {
    /// Settings from a YAML file; flags come before what it says (`warptrace config example` prints one)
    #[arg(
        long,
        value_name = "FILE",
        env = "WARPTRACE_CONFIG",
        hide_env_values = true
    )]
    pub(crate) config: Option<PathBuf>,
    /// Write our own log to this file [default: stderr]
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(crate) log: Option<PathBuf>,
    /// What the log tells (error, warn, info, debug, trace, off) [default: warn]
    #[arg(long, value_name = "LEVEL", value_enum, hide_short_help = true)]
    pub(crate) log_level: Option<LogLevel>,
    /// Between two samples of the machine and its devices: memory, clocks, throttling [default: 1s]
    #[arg(long, alias = "throttle-poll-interval", value_name = "TIME", value_parser = parse_duration, hide_short_help = true)]
    pub(crate) sample_interval: Option<Duration>,
}

/// Which sessions there are, and what is in them.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Sessions")]
pub(crate) struct StoreArgs {
    /// A new session begins when the one that is written is so big [default: never; 1GiB with --inference]
    #[arg(long, alias = "db-rollover-size", value_name = "SIZE", value_parser = parse_bytes, hide_short_help = true)]
    pub(crate) rollover_size: Option<u64>,
    /// … or so old [default: never; 24h with --inference]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, hide_short_help = true)]
    pub(crate) rollover_age: Option<Duration>,
    /// Finished sessions of this recorder that are kept; the oldest go [default: all; 6 with --inference]
    #[arg(
        long,
        alias = "db-rollover-keep",
        value_name = "N",
        hide_short_help = true
    )]
    pub(crate) keep: Option<u32>,
    /// Remove the oldest sessions, anybody's, until all take at most this much
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, hide_short_help = true)]
    pub(crate) max_bytes: Option<u64>,
    /// Remove sessions that are older than this (7d, 4w)
    #[arg(long, value_name = "TIME", value_parser = parse_duration, hide_short_help = true)]
    pub(crate) max_age: Option<Duration>,
    /// Keep one event in a hundred while steps are healthy, each with its weight, and all around outliers [default: off]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "on", value_name = "on|off", value_parser = parse_switch, hide_short_help = true)]
    pub(crate) inference_sampler: Option<bool>,
}

/// What a GPU costs.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cost")]
pub(crate) struct CostArgs {
    /// Prices of GPUs, before the built-in ones (YAML or JSON: docs/cost.md)
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(crate) gpu_rates: Option<PathBuf>,
    /// Whose GPUs they are: aws, gcp, lambda, or one that --gpu-rates names
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub(crate) provider: Option<String>,
}
