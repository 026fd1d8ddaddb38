//! The thresholds of memory analysis, with their units and reasons.

use super::leak::LeakRules;
use super::ranks::RankRules;

/// All of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    pub leak: LeakRules,
    pub ranks: RankRules,
    pub hidden: HiddenRules,
    pub fragmentation: FragmentationRules,
    pub full: FullRules,
    pub caps: Caps,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            leak: LeakRules::default(),
            ranks: RankRules::default(),
            hidden: HiddenRules {
                min_spike_bytes: 128 << 20,
                min_spike_share: 0.02,
                spike_distances: 6.0,
                min_steady_share: 0.1,
                min_samples: 8,
            },
            fragmentation: FragmentationRules {
                ratio: 0.3,
                high_ratio: 0.5,
                min_inactive_bytes: 256 << 20,
                min_samples: 8,
            },
            full: FullRules {
                enter_ratio: 0.95,
                leave_ratio: 0.9,
            },
            caps: Caps {
                series: 4096,
                points: 2048,
                points_in_all: 262_144,
                boundaries: 65_536,
                markers: 10_000,
                spans: 2000,
                ooms: 1000,
                issues: 1000,
                sessions: 10_000,
            },
        }
    }
}

/// When memory of the device outside the allocator is worth a word.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HiddenRules {
    /// A spike is at least this far above the median, bytes.
    pub min_spike_bytes: i64,
    /// And at least this share of the device's total.
    pub min_spike_share: f64,
    /// And at least this many times the median distance of the samples from their median: the spike itself is not in it.
    pub spike_distances: f64,
    /// A steady amount is worth a word from this share of the device's total.
    pub min_steady_share: f64,
    /// Below it nothing is said.
    pub min_samples: u64,
}

/// When free blocks between used ones are worth a word.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FragmentationRules {
    /// Mean of inactive split blocks in reserved, 0..=1.
    pub ratio: f64,
    /// From here it is severe.
    pub high_ratio: f64,
    /// And the mean of the inactive blocks, bytes: a third of little is little.
    pub min_inactive_bytes: i64,
    pub min_samples: u64,
}

/// When a device is nearly full. Two levels, so that a level in between does not make an episode of every sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FullRules {
    /// An episode begins at this share of the total.
    pub enter_ratio: f64,
    /// And ends below this one.
    pub leave_ratio: f64,
}

/// What is kept at most. What does not fit is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Series: a session's process, rank and device.
    pub series: usize,
    /// Points of one series; a longer one is kept in coarser points.
    pub points: usize,
    pub points_in_all: usize,
    /// Entries to and exits from phases.
    pub boundaries: usize,
    pub markers: usize,
    /// Phases that a report lists one by one, the longest.
    pub spans: usize,
    pub ooms: usize,
    pub issues: usize,
    pub sessions: usize,
}
