//! Every number that a judgement depends on, by name and with its unit.

/// Thresholds of the engine. [`Default`] is what the product ships; tests set single fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// How late an event may come and still be explained, ns. Events are put in order within this window.
    pub merge_window_nanos: u64,
    /// How long after its end a unit is taken apart, ns: records that end a little later than the wait still count.
    pub settle_nanos: u64,
    /// How far a sample of the device may lie from a unit and still speak for it, ns.
    pub sample_reach_nanos: u64,
    /// How far back from a unit's end the threads that woke its lead thread are followed, ns.
    pub follow_reach_nanos: u64,
    /// How many wakers are followed in a row.
    pub follow_depth: usize,
    pub baseline: BaselineRules,
    pub finding: FindingRules,
    pub steady: SteadyRules,
    pub cold_start: ColdStartRules,
    pub device: DeviceRules,
    pub fact: FactRules,
    pub caps: Caps,
    /// The job answers requests: a lead thread's time before the first call of a unit is idle when nothing says otherwise.
    pub inference: bool,
}

/// When a unit is slow.
#[derive(Debug, Clone, PartialEq)]
pub struct BaselineRules {
    /// Healthy units that a baseline remembers.
    pub window_units: usize,
    /// Units after which judging starts.
    pub min_units: usize,
    /// The same for units whose median is at least `long_unit_nanos`.
    pub min_units_long: usize,
    pub long_unit_nanos: u64,
    /// Slow: longer than the median by this many MAD (4.5 standard deviations of a normal distribution) …
    pub mad_factor: f64,
    /// … and by this fraction of the median …
    pub median_fraction: f64,
    /// … and by this much, ns.
    pub min_excess_nanos: u64,
    /// Units of classes too rare to have a baseline are slow from this many medians of all such units on.
    pub rare_factor: u64,
    /// A class is rare, and not only young, when this many units of its process, device and stream came …
    pub rare_after: u64,
    /// … and fewer than one in this many was of it.
    pub rare_one_in: u64,
    /// A lasting shift becomes the new normal after this many slow units in a row …
    pub shift_units: usize,
    /// … and this long, ns.
    pub shift_after_nanos: u64,
    /// "Ordinary spread" of a shift: its MAD is at most this fraction of its median, or the old MAD.
    pub shift_spread: f64,
}

/// When slow units are a finding, and how bad it is.
#[derive(Debug, Clone, PartialEq)]
pub struct FindingRules {
    /// An incident ends after more than this many ordinary units.
    pub gap_units: u64,
    /// An incident ends when no unit was slow for this long, ns.
    pub gap_nanos: u64,
    /// Small incidents of one cause that come again within this time are one finding, ns.
    pub recur_nanos: u64,
    /// Findings below this excess are not made, ns.
    pub min_excess_nanos: u64,
    /// Severity looks at the worst stretch of this length, ns.
    pub severity_window_nanos: u64,
    /// HIGH: this fraction of the worst stretch was lost.
    pub high_fraction: f64,
    pub medium_fraction: f64,
    /// HIGH too: one unit of this many medians …
    pub high_unit_factor: u64,
    /// … and at least this long, ns.
    pub high_unit_nanos: u64,
    /// A second cause is named from this fraction of the excess on.
    pub second_fraction: f64,
    /// Overlaps kept as evidence.
    pub evidence: usize,
    /// A call outside any unit is slow from this many medians of its op on …
    pub call_factor: u64,
    /// … and at least this long, ns …
    pub call_min_nanos: u64,
    /// … once its op was called this often.
    pub call_min_count: u64,
}

/// When a part of the usual unit is a finding.
#[derive(Debug, Clone, PartialEq)]
pub struct SteadyRules {
    pub min_units: u64,
    /// Sum of the units' durations, ns.
    pub min_nanos: u64,
    /// MEDIUM from this fraction of the mean unit on.
    pub medium_fraction: f64,
    pub high_fraction: f64,
    /// And at least this fraction of all units' time in the process.
    pub process_fraction: f64,
    /// Looked at this often, and at the end, ns.
    pub period_nanos: u64,
}

/// When a process's start is a finding.
#[derive(Debug, Clone, PartialEq)]
pub struct ColdStartRules {
    /// Units after which the start is told from the usual.
    pub units: usize,
    /// A unit is still cold when it is longer than this many medians of the first units.
    pub factor: f64,
    /// A start that took less than this beyond the usual is ordinary, ns.
    pub min_excess_nanos: u64,
    /// MEDIUM from this fraction of the recording on …
    pub medium_fraction: f64,
    /// … if the recording is at least this long, ns. A demonstration sets 0: it compares with its own recording.
    pub min_recording_nanos: u64,
}

/// How the wait for the device is divided.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceRules {
    /// A launch waits for room in the launch queue from this length on, ns …
    pub long_launch_nanos: u64,
    /// … and this many medians of its op.
    pub long_launch_factor: u64,
    /// Fixed cost of a copy, ns.
    pub copy_overhead_nanos: u64,
    /// Bandwidth assumed before a copy was measured, bytes a second (PCIe 3.0 × 16).
    pub default_bandwidth: u64,
    /// A faster "copy" was not waited for, bytes a second (NVLink-C2C moves 450 GB/s a direction).
    pub max_bandwidth: u64,
    /// Work nobody waited for is taken as done this long after the last launch, ns.
    pub forgotten_nanos: u64,
}

/// Thresholds of the rules that state facts.
#[derive(Debug, Clone, PartialEq)]
pub struct FactRules {
    /// A wait hangs from this length on, ns …
    pub hang_nanos: u64,
    /// … and this many medians of its op.
    pub hang_factor: u64,
    /// TCP retransmits: more than `retransmits_medium` within `retransmit_window_nanos` are a finding.
    pub retransmit_window_nanos: u64,
    pub retransmits_medium: usize,
    pub retransmits_high: usize,
    /// A graph that was instantiated and not launched for this long, ns.
    pub graph_unused_nanos: u64,
}

/// Sizes of bounded tables. What is given up is counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Caps {
    pub processes: usize,
    pub threads: usize,
    /// Calls, off-CPU intervals and stretches, each, remembered of one thread.
    pub records_per_thread: usize,
    pub slices_per_cpu: usize,
    pub cpus: usize,
    pub block_ios: usize,
    pub names: usize,
    pub files: usize,
    pub streams_per_process: usize,
    pub events_per_process: usize,
    pub graphs_per_process: usize,
    pub baselines: usize,
    pub ops: usize,
    pub findings: usize,
}

const MILLIS: u64 = 1_000_000;
const SECS: u64 = 1_000 * MILLIS;

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            merge_window_nanos: SECS,
            settle_nanos: 100 * MILLIS,
            sample_reach_nanos: 2 * SECS,
            follow_reach_nanos: 60 * SECS,
            follow_depth: 4,
            baseline: BaselineRules {
                window_units: 256,
                min_units: 30,
                min_units_long: 8,
                long_unit_nanos: SECS,
                mad_factor: 4.5 * 1.4826,
                median_fraction: 0.10,
                min_excess_nanos: MILLIS / 2,
                rare_factor: 10,
                rare_after: 64,
                rare_one_in: 32,
                shift_units: 256,
                shift_after_nanos: 600 * SECS,
                shift_spread: 0.10,
            },
            finding: FindingRules {
                gap_units: 5,
                gap_nanos: 30 * SECS,
                recur_nanos: 60 * SECS,
                min_excess_nanos: 20 * MILLIS,
                severity_window_nanos: 10 * SECS,
                high_fraction: 0.10,
                medium_fraction: 0.03,
                high_unit_factor: 10,
                high_unit_nanos: 100 * MILLIS,
                second_fraction: 0.25,
                evidence: 5,
                call_factor: 10,
                call_min_nanos: 20 * MILLIS,
                call_min_count: 30,
            },
            steady: SteadyRules {
                min_units: 10,
                min_nanos: 2 * SECS,
                medium_fraction: 0.20,
                high_fraction: 0.40,
                process_fraction: 0.10,
                period_nanos: 60 * SECS,
            },
            cold_start: ColdStartRules {
                units: 16,
                factor: 1.5,
                min_excess_nanos: 100 * MILLIS,
                medium_fraction: 0.10,
                min_recording_nanos: 300 * SECS,
            },
            device: DeviceRules {
                long_launch_nanos: 50_000,
                long_launch_factor: 10,
                copy_overhead_nanos: 10_000,
                default_bandwidth: 12_000_000_000,
                max_bandwidth: 500_000_000_000,
                forgotten_nanos: 10 * SECS,
            },
            fact: FactRules {
                hang_nanos: 5 * SECS,
                hang_factor: 20,
                retransmit_window_nanos: 10 * SECS,
                retransmits_medium: 10,
                retransmits_high: 100,
                graph_unused_nanos: 30 * SECS,
            },
            caps: Caps {
                processes: 4_096,
                threads: 16_384,
                records_per_thread: 65_536,
                slices_per_cpu: 16_384,
                cpus: 4_096,
                block_ios: 65_536,
                names: 65_536,
                files: 16_384,
                streams_per_process: 1_024,
                events_per_process: 8_192,
                graphs_per_process: 4_096,
                baselines: 1_024,
                ops: 4_096,
                findings: 256,
            },
            inference: false,
        }
    }
}
