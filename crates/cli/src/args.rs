//! The command line: words, defaults, help. Parsing has no effects.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

mod daemon;
mod inference;

pub(crate) use daemon::{CostArgs, DaemonArgs, StoreArgs};
pub(crate) use inference::{InferenceArgs, InferenceRules, OutgoingArgs};

use crate::config::JsonLines;

/// Tells you why your GPU job is slow.
///
/// Watches a training or inference process from outside (`trace`, by eBPF, as root) or from inside without root
/// (`record`), and explains each stall in milliseconds that add up.
#[derive(Debug, Parser)]
#[command(
    name = "warptrace",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Exit codes: 0 done, 1 the answer is bad (a check failed, --fail-on), 2 could not run. With a \
    command: its own code, 128 + n when signal n killed it; 125 when warptrace failed, 126 when the command cannot be \
    executed, 127 when it was not found."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where sessions are kept [default: $XDG_DATA_HOME/warptrace]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "WARPTRACE_DATA",
        hide_env_values = true
    )]
    pub(crate) data: Option<PathBuf>,
    /// Colour in the output
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value = "auto"
    )]
    pub(crate) color: Color,
    /// Tell more on stderr; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say what can be recorded on this machine, and what is missing
    Check(CheckArgs),
    /// Run a command and record it from inside: no root, no change to the command
    Record(RecordArgs),
    /// Record CUDA processes from outside, by eBPF (needs root, or CAP_BPF and CAP_PERFMON)
    Trace(TraceArgs),
    /// Say where the time went in a session
    Explain(ExplainArgs),
    /// Ask a session in SQL
    Query(QueryArgs),
    /// List sessions, remove them, or prune old ones
    Sessions(SessionsArgs),
    /// Show GPU memory over time from telemetry files, and say what is wrong with it
    Memory(MemoryArgs),
    /// Tell a running recorder what a job is doing: labels on a moment or an interval
    Annotate(AnnotateArgs),
    /// Have a paused recorder (`record --paused`) record, until Ctrl-C or for a time
    Resume(ResumeArgs),
    /// Follow the outliers that a running recorder finds among the steps of inference servers
    Outliers(OutliersArgs),
    /// Judge the steps of inference servers in a session again
    Replay(ReplayArgs),
    /// Read, check and repair the run logs of inference servers (JSON lines, toy/v1)
    #[command(subcommand)]
    Runlog(RunlogCommand),
    #[cfg(feature = "files")]
    /// Read files of other systems into a session: SQLite traces, annotations, memory telemetry, run logs
    Ingest(IngestArgs),
    #[cfg(feature = "files")]
    /// Write a session as a file of another system
    Export(ExportArgs),
    /// Settings in a file: check one, its schema, an example of all
    #[command(subcommand)]
    Config(ConfigCommand),
    #[cfg(feature = "demo")]
    /// Record and explain a real fault in a simulated GPU job
    Demo(DemoArgs),
    /// Print a completion script
    Completions(CompletionsArgs),
    /// Print the version and how it was built
    Version(JsonFlag),
    #[cfg(feature = "demo")]
    /// A workload on the simulated GPU
    #[command(hide = true, name = "simgpu-workload")]
    Workload(WorkloadArgs),
    /// Waits until it is told to go on, then becomes the command
    #[command(hide = true, name = "gated-exec")]
    GatedExec(GatedExecArgs),
    /// Looks up the stacks that a recorder asks for
    #[command(hide = true, name = "symbolize")]
    Symbolize,
    #[cfg(feature = "demo")]
    /// Injects a fault
    #[command(hide = true, name = "lab-fault")]
    Fault(FaultArgs),
}

#[derive(Debug, Args)]
pub(crate) struct JsonFlag {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[derive(Debug, Args)]
pub(crate) struct RecordArgs {
    /// Print the explanation as JSON when the command has ended (its own output goes on as usual)
    #[arg(long)]
    pub(crate) json: bool,
    /// Take annotations: what the job says of its steps and requests (`warptrace annotate`, the SDK, ingero-annotate)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "on", value_name = "on|off", value_parser = parse_switch)]
    pub(crate) annotate: Option<bool>,
    /// Record nothing until the job asks for it (`with warptrace.record():`, capture::resume of the SDK), or `warptrace resume` does
    #[arg(long)]
    pub(crate) paused: bool,
    /// Do not explain at the end
    #[arg(long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) inference: InferenceArgs,
    #[command(flatten)]
    pub(crate) outgoing: OutgoingArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) cost: CostArgs,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "CMD", help_heading = None::<&'static str>)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// Only these processes and their children [default: every CUDA process]
    #[arg(short, long, value_name = "PID", value_delimiter = ',', num_args = 1..)]
    pub(crate) pid: Vec<u32>,
    /// Stop after this time (30s, 5m, 2h)
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// JSON lines instead of the table: findings, drops and a status now and then; `events` adds every event [default: off; findings with --inference]
    #[arg(long, value_name = "WHAT", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "findings")]
    pub(crate) json: Option<JsonLines>,
    /// Between two status lines of --json [default: 1m; 30s with --inference]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, hide_short_help = true)]
    pub(crate) heartbeat: Option<Duration>,
    /// Kernel buffer for records, a power of two [default: 8MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_ring_size)]
    pub(crate) ring_size: Option<u32>,
    /// Take annotations: what the job says of its steps and requests (`warptrace annotate`, the SDK, ingero-annotate)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "on", value_name = "on|off", value_parser = parse_switch)]
    pub(crate) annotate: Option<bool>,
    /// Do not explain at the end
    #[arg(long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) inference: InferenceArgs,
    #[command(flatten)]
    pub(crate) outgoing: OutgoingArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) cost: CostArgs,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// Start this command and trace it, after --
    #[arg(last = true, value_name = "CMD", conflicts_with = "pid", help_heading = None::<&'static str>)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Session: its id, the beginning of it, or its folder [default: the newest]
    pub(crate) session: Option<String>,
    /// Only the last part of it (90s, 5m)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) since: Option<Duration>,
    /// Account for each step that the job named
    #[arg(long, group = "by")]
    pub(crate) by_step: bool,
    /// Account for each request that the job named; requests overlap and share the GPU
    #[arg(long, group = "by")]
    pub(crate) by_request: bool,
    /// Only steps, requests and intervals that carry this label
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label, conflicts_with = "finding")]
    pub(crate) label: Option<(String, String)>,
    /// One finding, with all its evidence
    #[arg(long, value_name = "ID", conflicts_with = "by")]
    pub(crate) finding: Option<String>,
    /// Exit with 1 when there is a finding of this severity or above (low, medium, high, critical)
    #[arg(long, value_name = "SEVERITY", value_parser = parse_severity)]
    pub(crate) fail_on: Option<warptrace_model::Severity>,
    #[command(flatten)]
    pub(crate) cost: CostArgs,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    /// For example: "select op, count(*), sum(dur_ns) from events group by op order by 3 desc"
    pub(crate) sql: String,
    /// Session: its id, the beginning of it, or its folder; several times for several [default: the newest]
    #[arg(long, value_name = "SESSION")]
    pub(crate) session: Vec<String>,
    /// Rows at most
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) max_rows: usize,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Without --pid the labels are about everything that is recorded, if you may say that: as root, or as the \
    user that records. Other users see what is on the command line (ps); --from-file - keeps it from them."
)]
pub(crate) struct AnnotateArgs {
    /// What is so from now on: step=12 phase=train. Keys are of letters, digits, `_`, `.`, `-`
    #[arg(value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<(String, String)>,
    /// The process that they are about, by its pid as this shell sees it
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "from_file")]
    pub(crate) pid: Option<u32>,
    /// Only from this time on: 2026-11-22T08:00:00Z, or Unix nanoseconds
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with_all = ["since", "from_file"])]
    pub(crate) span_start: Option<std::time::SystemTime>,
    /// Up to this time [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "span_start")]
    pub(crate) span_end: Option<std::time::SystemTime>,
    /// Only for the last part of the time up to now (90s, 5m)
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with = "from_file")]
    pub(crate) since: Option<Duration>,
    /// Send the lines of a file as they are, - for standard input: {"labels":{"step":"12"},"pid":4711}
    #[arg(long, value_name = "FILE", conflicts_with = "labels")]
    pub(crate) from_file: Option<PathBuf>,
    /// Where the recorder listens [default: WARPTRACE_ANNOTATE_SOCKET, else the first of the usual places]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// For this time (30s, 5m) [default: until Ctrl-C]
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// The recorder, by its pid [default: the only one that is paused]
    #[arg(long, value_name = "PID")]
    pub(crate) recorder: Option<u32>,
    /// Where the recorder listens [default: beside the annotation socket]
    #[arg(long, value_name = "PATH", conflicts_with = "recorder")]
    pub(crate) socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct OutliersArgs {
    /// Where the recorder tells them [default: the only one that runs with --inference]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// End after so many
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// Session: its id, the beginning of it, or its folder [default: the newest]
    pub(crate) session: Option<String>,
    /// Settings from a YAML file; flags come before what it says
    #[arg(
        long,
        value_name = "FILE",
        env = "WARPTRACE_CONFIG",
        hide_env_values = true
    )]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) rules: InferenceRules,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[derive(Debug, Args)]
pub(crate) struct SessionsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<SessionsCommand>,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// Remove sessions
    Rm {
        /// Ids, or unique beginnings of them
        #[arg(required = true)]
        sessions: Vec<String>,
    },
    /// Remove the oldest sessions until the rest fits
    Prune {
        /// Keep at most this much (500MiB, 10GiB)
        #[arg(long, value_name = "SIZE", value_parser = parse_bytes, required_unless_present = "max_age")]
        max_size: Option<u64>,
        /// Keep none older than this (7d, 4w)
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        max_age: Option<Duration>,
    },
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Reads the files, sinks' folders and folders of them that GPU memory trackers write (JSON lines, JSON, \
    CSV; stormlog's versions 2 to 4 and before). Times are shown since the start, and in UTC."
)]
pub(crate) struct MemoryArgs {
    #[command(subcommand)]
    pub(crate) view: Option<MemoryView>,
    #[command(flatten)]
    pub(crate) options: MemoryOptions,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MemoryView {
    /// The runs of collectors: when, where, how they ended
    Sessions(MemoryOptions),
    /// Allocated, reserved and used over time
    Timeline(MemoryOptions),
    /// The highest of each level: when, and in which phase
    Peaks(MemoryOptions),
    /// Memory that is taken and never given back
    Leaks(MemoryOptions),
    /// Free memory that no request fits in
    Fragmentation(MemoryOptions),
    /// Device memory outside the allocator
    Gaps(MemoryOptions),
    /// Which rank rose first, and which holds more than its peers
    Ranks(MemoryOptions),
    /// Alerts, out-of-memory errors and collectors in trouble, each once with how often
    Issues(MemoryOptions),
}

#[derive(Debug, Args)]
pub(crate) struct MemoryOptions {
    /// Telemetry files, sinks' folders, folders of them, or sessions [default: the newest session]
    #[arg(value_name = "FILE|DIR|SESSION")]
    pub(crate) inputs: Vec<PathBuf>,
    /// Write a table; - for stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Write a report with plots that needs no network; - for stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Points of a series in timelines, tables and plots, at most; more are joined, extremes kept
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = parse_points)]
    pub(crate) points: usize,
    /// Fail at the first bad record instead of leaving it out
    #[arg(long)]
    pub(crate) strict: bool,
    /// Exit with 1 when there is a finding of this severity or above (low, medium, high, critical)
    #[arg(long, value_name = "SEVERITY", value_parser = parse_severity)]
    pub(crate) fail_on: Option<warptrace_model::Severity>,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunlogCommand {
    /// Requests, errors, tokens, rate and latency: of the file, its runs, models and principals
    Summary(RunlogSummaryArgs),
    /// Show the last records, and with -f those to come, through rotation and truncation
    Tail(RunlogTailArgs),
    /// Say what is wrong, by line; exit code 1 when something is
    Check(RunlogCheckArgs),
    /// Write a log with every whole record of another, byte for byte, on a line of its own
    Repair(RunlogRepairArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunlogSummaryArgs {
    /// Logs; - for stdin
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Only this run, from 1; 0 for what is before the first
    #[arg(long, value_name = "N")]
    pub(crate) run: Option<u32>,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[derive(Debug, Args)]
pub(crate) struct RunlogTailArgs {
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Lines to begin with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    pub(crate) lines: u64,
    /// Go on with records as they come
    #[arg(short, long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[derive(Debug, Args)]
pub(crate) struct RunlogCheckArgs {
    /// Logs; - for stdin
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Problems that are told one by one; all are counted
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) max_lines: usize,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[derive(Debug, Args)]
pub(crate) struct RunlogRepairArgs {
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Where the repaired log goes; must not exist
    #[arg(
        long = "output",
        value_name = "NEW",
        required_unless_present = "in_place",
        conflicts_with = "in_place"
    )]
    pub(crate) output_file: Option<PathBuf>,
    /// Replace each file when its repaired form is on the disk; stop its server first
    #[arg(long)]
    pub(crate) in_place: bool,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[cfg(feature = "files")]
#[derive(Debug, Args)]
#[command(
    after_help = "What a file is, its content says, not its name. All goes into one new session, but each node that a \
    SQLite trace names into one of its own. Files are only read.\n\nExit codes: 0 something was kept, 1 nothing could be, \
    2 could not run."
)]
pub(crate) struct IngestArgs {
    /// Files, or folders of them
    #[arg(required = true, value_name = "FILE|DIR")]
    pub(crate) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[cfg(feature = "files")]
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Session: its id, the beginning of it, or its folder [default: the newest]
    pub(crate) session: Option<String>,
    #[arg(long, value_enum)]
    pub(crate) format: ExportFormat,
    /// The file, or the folder, to write
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: PathBuf,
    /// Replace the file if there is one
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// The SQLite trace database of ingero 0.17
    IngeroDb,
    /// A folder of GPU memory telemetry, as stormlog 0.4 loads it
    MemoryTelemetry,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print what a file of settings comes to, or what is wrong with it (exit code 1)
    Check {
        file: PathBuf,
        #[command(flatten)]
        output: JsonFlag,
    },
    /// Print the JSON schema of such files, for editors
    Schema,
    /// Print a file with every setting, its default, and what it is for
    Example,
}

#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Which (see --list)
    #[arg(default_value = "incident")]
    pub(crate) scenario: String,
    /// List the scenarios
    #[arg(long)]
    pub(crate) list: bool,
    /// How to record [default: ebpf where it is allowed, else preload]
    #[arg(long, value_enum, value_name = "BACKEND")]
    pub(crate) capture: Option<Backend>,
    /// How long the workload runs
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Write what the injector knows of its own effect, as JSON
    #[arg(long, hide = true, value_name = "FILE")]
    pub(crate) truth: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    Ebpf,
    Preload,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub(crate) struct WorkloadArgs {
    /// JSON: which workload, and its options
    pub(crate) options: String,
}

#[derive(Debug, Args)]
pub(crate) struct GatedExecArgs {
    /// Descriptor whose end of file lets the command go
    #[arg(long)]
    pub(crate) gate: i32,
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub(crate) struct FaultArgs {
    /// JSON: which fault, and its options
    pub(crate) options: String,
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(d) if d.is_zero() => Err("a time above zero is needed (30s, 5m, 2h)".into()),
        Ok(d) => Ok(d),
        Err(_) => Err("not a time: write a number with a unit (500ms, 30s, 5m, 2h, 7d)".into()),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if warptrace_model::Labels::is_key(key) => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err("a label is KEY=VALUE, its key made of letters, digits, _ . and -".into()),
    }
}

fn parse_time(text: &str) -> Result<std::time::SystemTime, String> {
    let nanos = text.parse().ok().map(Duration::from_nanos);
    let since_epoch = nanos.and_then(|nanos| std::time::UNIX_EPOCH.checked_add(nanos));
    since_epoch
        .or_else(|| humantime::parse_rfc3339_weak(text).ok())
        .ok_or_else(|| "not a time: write 2026-11-22T08:00:00Z (UTC), or Unix nanoseconds".into())
}

fn parse_severity(text: &str) -> Result<warptrace_model::Severity, String> {
    warptrace_model::Severity::by_name(text)
        .ok_or_else(|| "one of low, medium, high, critical".into())
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" | "yes" => Ok(true),
        "off" | "false" | "no" => Ok(false),
        _ => Err("on or off".into()),
    }
}

fn parse_points(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(points @ 2..=100_000) => Ok(points),
        _ => Err("a number from 2 to 100000".into()),
    }
}

pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong =
        || "not a size: write a number with a unit (4096, 512KiB, 500MiB, 10GiB)".to_owned();
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..split].parse().map_err(|_| wrong())?;
    let unit: u64 = match text[split..].trim() {
        "" | "B" => 1,
        "k" | "K" | "KiB" => 1 << 10,
        "m" | "M" | "MiB" => 1 << 20,
        "g" | "G" | "GiB" => 1 << 30,
        "t" | "T" | "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

pub(crate) fn parse_ring_size(text: &str) -> Result<u32, String> {
    let bytes = parse_bytes(text)?;
    let human = |b: u64| {
        if b >= 1 << 20 {
            format!("{}MiB", b >> 20)
        } else {
            format!("{}KiB", b >> 10)
        }
    };
    match u32::try_from(bytes) {
        Ok(size) if size.is_power_of_two() && size >= 64 << 10 => Ok(size),
        Ok(size) if size >= 64 << 10 => {
            let below = u64::from(size.next_power_of_two() / 2);
            Err(format!(
                "{text} is not a power of two (nearest: {}, {})",
                human(below),
                human(below * 2)
            ))
        }
        _ => Err("between 64KiB and 2GiB".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_binary_units_and_errors_say_what_is_near() {
        assert_eq!(parse_bytes("10GiB"), Ok(10 << 30));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert!(parse_bytes("ten").is_err() && parse_bytes("99999999999999TiB").is_err());
        assert_eq!(parse_ring_size("8MiB"), Ok(8 << 20));
        assert_eq!(
            parse_ring_size("3MiB").unwrap_err(),
            "3MiB is not a power of two (nearest: 2MiB, 4MiB)"
        );
    }
}
