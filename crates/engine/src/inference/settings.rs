//! Every number that the judgement of steps depends on.

use std::fmt;

use warptrace_model::inference::OutlierBucket;
use warptrace_model::{BootNanos, ClockAnchor, Severity};

use super::phase::PhaseRules;
use super::sketch::MAX_HALF_LIFE;

const SECS: u64 = 1_000_000_000;

/// Settings of the inference engine. [`Default`] is what the product ships.
#[derive(Debug, Clone, PartialEq)]
pub struct InferenceSettings {
    /// Steps after which a workload is judged: 1 to 1,000,000. Below five it is five.
    pub warmup_steps: u32,
    /// Where the outermost bucket begins, in 95th percentiles: more than 1. At 2 or less nothing is in the bucket `2x`, at 1.5 or
    /// less nothing in `1.5x`.
    pub outlier_ratio: f64,
    /// While a finding of this severity or worse is fresh, steps of its process are neither learnt from nor judged. `None`: never.
    pub pause_on: Option<Severity>,
    /// How long a finding stays fresh, ns.
    pub pause_nanos: u64,
    /// An outlier of this bucket or further out makes the sampler keep everything. `None`: the sampler stays as it is.
    pub degrade_on: Option<OutlierBucket>,
    /// One event in this many is kept while all is well: at least 1, which keeps all.
    pub sample_one_in: u32,
    /// How long everything is kept after an outlier, ns.
    pub cooldown_nanos: u64,
    /// How steps are told apart by phase. `None`: one baseline a stream.
    pub phases: Option<PhaseRules>,
    /// The fingerprint of what a step launches is a part of its workload's key.
    pub fingerprint_key: bool,
    /// Follows allocations for the ages of the oldest. `None`: does not.
    pub kv_lineage: Option<KvLineage>,
    /// A baseline's memory: after so many steps what was before counts half. 1 to 16,384.
    pub half_life_steps: u32,
    /// When a lasting slow-down becomes the usual. `None`: never.
    pub shift: Option<ShiftRules>,
    /// A longer interval between two waits is no step, ns.
    pub max_step_nanos: u64,
    /// A thread that makes no call for so long between two waits had nothing to do, though it did not sleep (some servers spin
    /// while they wait for requests), ns.
    pub idle_nanos: u64,
    /// What a process asked of the device is forgotten when it made no call for so long, ns; what is usual for it is not.
    pub forget_nanos: u64,
    /// Unix time of the boot, ns, by the recording's first anchor: ids are made of Unix times. The same value gives the same ids
    /// again; 0 gives ids that another boot of the machine might give too.
    pub unix_of_boot_nanos: u64,
    pub caps: InferenceCaps,
}

/// How allocations are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLineage {
    /// Ages in an outlier: 1 to 64.
    pub top_n: usize,
    /// Live allocations remembered of a process, the oldest being given up first: 1 to 262,144.
    pub max_per_process: usize,
}

impl Default for KvLineage {
    fn default() -> KvLineage {
        KvLineage {
            top_n: 5,
            max_per_process: 8_192,
        }
    }
}

/// When a slow-down has lasted so long that it is the usual: as units' baselines do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShiftRules {
    /// At least so many outliers, 1 or more, which were at no time less than a tenth of the latest 256 steps …
    pub min_outliers: u64,
    /// … over at least this time, ns.
    pub min_nanos: u64,
}

/// Sizes of bounded tables, each at least 1. What is given up is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InferenceCaps {
    pub workloads: usize,
    pub processes: usize,
    pub streams_per_process: usize,
    pub threads_per_process: usize,
    pub events_per_process: usize,
    /// Allocations that are followed, of all processes.
    pub allocations: usize,
    /// Outliers that wait to be taken; the oldest are dropped.
    pub outliers: usize,
    /// The same for each other kind of message.
    pub messages: usize,
}

impl Default for InferenceSettings {
    fn default() -> InferenceSettings {
        InferenceSettings {
            warmup_steps: 30,
            outlier_ratio: 3.0,
            pause_on: Some(Severity::High),
            pause_nanos: 30 * SECS,
            degrade_on: Some(OutlierBucket::X3),
            sample_one_in: 100,
            cooldown_nanos: 30 * SECS,
            phases: Some(PhaseRules::default()),
            fingerprint_key: false,
            kv_lineage: None,
            half_life_steps: 512,
            shift: Some(ShiftRules {
                min_outliers: 256,
                min_nanos: 600 * SECS,
            }),
            max_step_nanos: 60 * SECS,
            idle_nanos: SECS,
            forget_nanos: 300 * SECS,
            unix_of_boot_nanos: 0,
            caps: InferenceCaps {
                workloads: 1_024,
                processes: 256,
                streams_per_process: 128,
                threads_per_process: 64,
                events_per_process: 512,
                allocations: 1 << 18,
                outliers: 4_096,
                messages: 256,
            },
        }
    }
}

/// A setting that no judgement can be made by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SettingsError {
    /// The field of [`InferenceSettings`].
    pub field: &'static str,
    pub value: f64,
    /// What it may be.
    pub allowed: &'static str,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} is not {}", self.field, self.value, self.allowed)
    }
}

impl std::error::Error for SettingsError {}

impl InferenceSettings {
    /// For a recording whose first anchor this is.
    #[must_use]
    pub fn with_clock(mut self, first: ClockAnchor) -> InferenceSettings {
        self.unix_of_boot_nanos = first.unix(BootNanos(0)).0;
        self
    }

    /// # Errors
    /// The first field whose value is out of its range.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let check = |field, value: f64, ok: bool, allowed| {
            if ok {
                Ok(())
            } else {
                Err(SettingsError {
                    field,
                    value,
                    allowed,
                })
            }
        };
        let warmup = self.warmup_steps;
        check(
            "warmup_steps",
            f64::from(warmup),
            (1..=1_000_000).contains(&warmup),
            "from 1 to 1000000",
        )?;
        let ratio = self.outlier_ratio;
        check(
            "outlier_ratio",
            ratio,
            ratio > 1.0 && ratio.is_finite(),
            "a number above 1",
        )?;
        let one_in = self.sample_one_in;
        check("sample_one_in", f64::from(one_in), one_in > 0, "at least 1")?;
        let half_life = self.half_life_steps;
        check(
            "half_life_steps",
            f64::from(half_life),
            (1..=MAX_HALF_LIFE).contains(&half_life),
            "from 1 to 16384",
        )?;
        if let Some(kv) = self.kv_lineage {
            let (n, max) = (kv.top_n, kv.max_per_process);
            check(
                "kv_lineage.top_n",
                n as f64,
                (1..=64).contains(&n),
                "from 1 to 64",
            )?;
            check(
                "kv_lineage.max_per_process",
                max as f64,
                (1..=1 << 18).contains(&max),
                "from 1 to 262144",
            )?;
        }
        if let Some(shift) = self.shift {
            let n = shift.min_outliers;
            check("shift.min_outliers", n as f64, n > 0, "at least 1")?;
        }
        if let Some((low, high)) = self.phases.as_ref().and_then(|p| p.mixed_launches) {
            check(
                "phases.mixed_launches",
                low as f64,
                low <= high,
                "at most its upper end",
            )?;
        }
        let c = &self.caps;
        for (field, cap) in [
            ("caps.workloads", c.workloads),
            ("caps.processes", c.processes),
            ("caps.streams_per_process", c.streams_per_process),
            ("caps.threads_per_process", c.threads_per_process),
            ("caps.events_per_process", c.events_per_process),
            ("caps.allocations", c.allocations),
            ("caps.outliers", c.outliers),
            ("caps.messages", c.messages),
        ] {
            check(field, cap as f64, cap > 0, "at least 1")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound_and_what_is_not_is_named() {
        let ok = InferenceSettings::default();
        assert_eq!(ok.validate(), Ok(()));
        let error = |change: fn(&mut InferenceSettings)| {
            let mut s = InferenceSettings::default();
            change(&mut s);
            s.validate().unwrap_err().to_string()
        };
        assert_eq!(
            error(|s| s.outlier_ratio = 1.0),
            "outlier_ratio 1 is not a number above 1"
        );
        assert_eq!(
            error(|s| s.outlier_ratio = f64::NAN),
            "outlier_ratio NaN is not a number above 1"
        );
        assert_eq!(
            error(|s| s.warmup_steps = 0),
            "warmup_steps 0 is not from 1 to 1000000"
        );
        assert_eq!(
            error(|s| s.half_life_steps = 20_000),
            "half_life_steps 20000 is not from 1 to 16384"
        );
        assert_eq!(
            error(|s| s.caps.workloads = 0),
            "caps.workloads 0 is not at least 1"
        );
    }
}
