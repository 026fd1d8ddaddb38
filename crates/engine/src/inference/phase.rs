//! What a step did, told by what was asked of the device in it.
//!
//! The rules are those of ingero 0.17.0, in its order; each threshold can be taken away. They look at counts and at the length of
//! launch calls, never at the length of the step: a slow decode stays a decode.

use warptrace_model::inference::Phase;

/// When a step is of which phase. The first rule that holds decides; a rule whose threshold is `None` never holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseRules {
    /// Decode: this many calls that take memory or give it back, and fewer than `decode_max_launches`.
    pub decode_min_memory_calls: Option<u32>,
    /// Prefill: a collective was called. (Under tensor parallelism whose collectives are not in graphs that is every step.)
    pub prefill_by_collectives: bool,
    /// Prefill: launch calls took longer than this on average, ns: the launch queue was full of long kernels.
    pub prefill_min_average_launch_nanos: Option<u64>,
    /// Prefill: more launches than this.
    pub prefill_min_launches: Option<u64>,
    /// Decode: fewer launches than this …
    pub decode_max_launches: Option<u64>,
    /// … and fewer bytes copied than this. `None`: however many.
    pub decode_max_copied_bytes: Option<u64>,
    /// Mixed: launches in this range, both ends included …
    pub mixed_launches: Option<(u64, u64)>,
    /// … or at least so many bytes copied.
    pub mixed_min_copied_bytes: Option<u64>,
}

impl Default for PhaseRules {
    fn default() -> PhaseRules {
        PhaseRules {
            decode_min_memory_calls: Some(1),
            prefill_by_collectives: true,
            prefill_min_average_launch_nanos: Some(500_000),
            prefill_min_launches: Some(200),
            decode_max_launches: Some(50),
            decode_max_copied_bytes: Some(1 << 20),
            mixed_launches: Some((50, 200)),
            mixed_min_copied_bytes: Some(10 << 20),
        }
    }
}

/// What was asked of the device in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Observed {
    /// Calls that launched a kernel or a graph.
    pub(super) launches: u64,
    /// How long they took on the host, ns.
    pub(super) launch_nanos: u64,
    pub(super) collectives: u64,
    pub(super) copied_bytes: u64,
    /// Calls that take device memory from the driver or give it back, by the whole process.
    pub(super) memory_calls: u64,
}

pub(super) fn classify(o: &Observed, rules: &PhaseRules) -> Phase {
    let few = rules.decode_max_launches.is_some_and(|n| o.launches < n);
    let over = |limit: Option<u64>, value: u64| limit.is_some_and(|l| value > l);
    if few
        && rules
            .decode_min_memory_calls
            .is_some_and(|n| o.memory_calls >= u64::from(n))
    {
        return Phase::Decode;
    }
    if rules.prefill_by_collectives && o.collectives > 0 {
        return Phase::Prefill;
    }
    if o.launches == 0 && o.copied_bytes == 0 {
        return Phase::Unknown;
    }
    let average = o.launch_nanos.checked_div(o.launches).unwrap_or(0);
    if over(rules.prefill_min_average_launch_nanos, average)
        || over(rules.prefill_min_launches, o.launches)
    {
        return Phase::Prefill;
    }
    if few
        && rules
            .decode_max_copied_bytes
            .is_none_or(|n| o.copied_bytes < n)
    {
        return Phase::Decode;
    }
    let between = |(low, high)| (low..=high).contains(&o.launches);
    if rules.mixed_launches.is_some_and(between)
        || rules
            .mixed_min_copied_bytes
            .is_some_and(|n| o.copied_bytes >= n)
    {
        return Phase::Mixed;
    }
    Phase::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn of(launches: u64) -> Observed {
        Observed {
            launches,
            launch_nanos: launches * 5_000,
            ..Observed::default()
        }
    }

    #[track_caller]
    fn is(phase: Phase, o: Observed) {
        assert_eq!(classify(&o, &PhaseRules::default()), phase, "{o:?}");
    }

    fn copies(o: Observed, copied_bytes: u64) -> Observed {
        Observed { copied_bytes, ..o }
    }

    fn allocates(o: Observed) -> Observed {
        Observed {
            memory_calls: 1,
            ..o
        }
    }

    #[test]
    fn the_first_rule_that_holds_decides() {
        is(Phase::Decode, allocates(of(0)));
        let collective = Observed {
            collectives: 1,
            ..of(49)
        };
        is(Phase::Decode, allocates(collective));
        is(Phase::Prefill, collective);
        is(Phase::Mixed, allocates(of(50)));
        is(Phase::Unknown, of(0));
        let averages = |nanos: u64| Observed {
            launch_nanos: 10 * nanos,
            ..of(10)
        };
        is(Phase::Decode, averages(500_000));
        is(Phase::Prefill, averages(500_001));
        is(Phase::Decode, copies(of(49), MIB - 1));
        is(Phase::Unknown, copies(of(49), MIB));
        is(Phase::Unknown, copies(of(30), 2 * MIB));
        is(Phase::Mixed, copies(of(0), 10 * MIB));
        is(Phase::Mixed, copies(of(30), 10 * MIB));
        is(Phase::Mixed, of(50));
        is(Phase::Mixed, of(200));
        is(Phase::Prefill, of(201));
    }

    #[test]
    fn a_rule_that_was_taken_away_never_holds() {
        let phase = |o: Observed, change: fn(&mut PhaseRules)| {
            let mut rules = PhaseRules::default();
            change(&mut rules);
            classify(&o, &rules)
        };
        let collective = Observed {
            collectives: 1,
            ..of(60)
        };
        assert_eq!(
            phase(allocates(copies(of(10), 2 * MIB)), |r| r
                .decode_min_memory_calls =
                None),
            Phase::Unknown
        );
        assert_eq!(
            phase(collective, |r| r.prefill_by_collectives = false),
            Phase::Mixed
        );
        assert_eq!(
            phase(of(201), |r| r.prefill_min_launches = None),
            Phase::Unknown
        );
        assert_eq!(
            phase(of(10), |r| r.decode_max_launches = None),
            Phase::Unknown
        );
        assert_eq!(
            phase(allocates(of(10)), |r| r.decode_max_launches = None),
            Phase::Unknown
        );
        assert_eq!(
            phase(copies(of(10), 99 * MIB), |r| r.decode_max_copied_bytes =
                None),
            Phase::Decode
        );
        assert_eq!(phase(of(60), |r| r.mixed_launches = None), Phase::Unknown);
        assert_eq!(
            phase(copies(of(0), 10 * MIB), |r| r.mixed_min_copied_bytes = None),
            Phase::Unknown
        );
        let slow = Observed {
            launch_nanos: 10_000_000,
            ..of(10)
        };
        assert_eq!(
            phase(slow, |r| r.prefill_min_average_launch_nanos = None),
            Phase::Decode
        );
    }
}
