//! Messages of what the engine concluded.

use warptrace_model::ClockAnchor;
use warptrace_model::inference::{
    Degradation, Outlier, Phase, Straggle as Straggling, StraggleState, WorkloadKey,
};

use super::{InferenceOutlier, InferenceSamplerDegraded, Straggle};

/// Who says it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    pub node_id: String,
    pub cluster_id: String,
    /// Rank of the node, and size of its world; with a size of 0 neither is said.
    pub rank: u32,
    pub world_size: u32,
}

impl Node {
    /// An outlier.
    pub fn outlier(&self, outlier: &Outlier, clock: ClockAnchor) -> InferenceOutlier {
        let key = &outlier.key;
        let (rank, world_size) = self.place();
        InferenceOutlier {
            node_id: self.node_id.clone(),
            cluster_id: self.cluster_id.clone(),
            timestamp: clock.unix(outlier.at),
            event_id: outlier.id.to_string(),
            cgroup_path_hash: cgroup(key),
            pid: key.process.pid.0,
            stream_handle: key.stream.0,
            phase: phase(key),
            step_duration_ns: signed(outlier.step_nanos),
            baseline_p95_ns: signed(outlier.p95_nanos),
            baseline_mean_ns: signed(outlier.mean_nanos),
            bucket: outlier.bucket.name().to_owned(),
            rank,
            world_size,
            memfrag_events_in_step: outlier.memory_calls,
            throttle_reasons: outlier.throttle_reasons,
            min_sm_clock_mhz: outlier.min_sm_clock_mhz.unwrap_or(0),
            kv_cache_top_alloc_ages_ms: outlier.kv_ages_millis.clone(),
        }
    }

    /// The sampler admits every event.
    pub fn degradation(
        &self,
        degradation: &Degradation,
        clock: ClockAnchor,
    ) -> InferenceSamplerDegraded {
        let key = &degradation.key;
        let (rank, world_size) = self.place();
        InferenceSamplerDegraded {
            node_id: self.node_id.clone(),
            cluster_id: self.cluster_id.clone(),
            timestamp: clock.unix(degradation.at),
            cgroup_path_hash: cgroup(key),
            pid: key.process.pid.0,
            stream_handle: key.stream.0,
            phase: phase(key),
            bucket: degradation.bucket.name().to_owned(),
            cause: degradation.cause(),
            cooldown_end: clock.unix(degradation.cooldown_end),
            rank,
            world_size,
        }
    }

    /// A process that is held up by others; `None` for one that is not any more, for which there is no message.
    pub fn straggle(&self, straggle: &Straggling, clock: ClockAnchor) -> Option<Straggle> {
        let (rank, world_size) = self.place();
        let sustained = match straggle.state {
            StraggleState::Began => false,
            StraggleState::Sustained => true,
            StraggleState::Resolved => return None,
        };
        let others: Vec<u32> = straggle.preempted_by.iter().map(|pid| pid.0).collect();
        Some(Straggle {
            pid: straggle.process.pid.0,
            comm: straggle.comm.clone(),
            throughput_drop_pct: f64::from(straggle.drop_millis) / 10.0,
            sched_switch_count: straggle.preemptions,
            preempting_pids: (!others.is_empty()).then_some(others),
            timestamp_ns: signed(clock.unix(straggle.at).0),
            sustained,
            event_id: straggle.id.to_string(),
            rank,
            world_size,
        })
    }

    fn place(&self) -> (i64, i64) {
        match self.world_size {
            0 => (0, 0),
            size => (i64::from(self.rank), i64::from(size)),
        }
    }
}

fn cgroup(key: &WorkloadKey) -> String {
    key.cgroup.map(|hash| hash.to_string()).unwrap_or_default()
}

fn phase(key: &WorkloadKey) -> String {
    key.phase.map_or("", Phase::name).to_owned()
}

fn signed(nanos: u64) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}
