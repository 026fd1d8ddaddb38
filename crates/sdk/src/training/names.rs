//! Names of training telemetry: spans, events and attributes, which dashboards and other readers know by heart.

use std::collections::HashSet;

use crate::span::Filter;

/// A span that a training job has at most one of at a time, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanName {
    Application,
    TrainingLoop,
    ValidationLoop,
    TestingLoop,
    DistributedInit,
    DataLoaderInit,
    ModelInit,
    OptimizerInit,
    CheckpointLoad,
    CheckpointSaveSync,
    CheckpointSaveAsync,
    /// No callback makes it.
    CheckpointSaveFinalization,
    TrainingIteration,
    ValidationIteration,
    TestingIteration,
    DataLoading,
    ModelForward,
    ZeroGrad,
    ModelBackward,
    OptimizerUpdate,
}

impl SpanName {
    pub const ALL: [SpanName; 20] = [
        SpanName::Application,
        SpanName::TrainingLoop,
        SpanName::ValidationLoop,
        SpanName::TestingLoop,
        SpanName::DistributedInit,
        SpanName::DataLoaderInit,
        SpanName::ModelInit,
        SpanName::OptimizerInit,
        SpanName::CheckpointLoad,
        SpanName::CheckpointSaveSync,
        SpanName::CheckpointSaveAsync,
        SpanName::CheckpointSaveFinalization,
        SpanName::TrainingIteration,
        SpanName::ValidationIteration,
        SpanName::TestingIteration,
        SpanName::DataLoading,
        SpanName::ModelForward,
        SpanName::ZeroGrad,
        SpanName::ModelBackward,
        SpanName::OptimizerUpdate,
    ];

    /// The short ones: thousands of them, of interest one by one only to who looks at a single step.
    pub const SHORT: [SpanName; 8] = [
        SpanName::TrainingIteration,
        SpanName::ValidationIteration,
        SpanName::TestingIteration,
        SpanName::DataLoading,
        SpanName::ModelForward,
        SpanName::ZeroGrad,
        SpanName::ModelBackward,
        SpanName::OptimizerUpdate,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            SpanName::Application => "application",
            SpanName::TrainingLoop => "training_loop",
            SpanName::ValidationLoop => "validation_loop",
            SpanName::TestingLoop => "testing_loop",
            SpanName::DistributedInit => "distributed_code_initialization",
            SpanName::DataLoaderInit => "data_loader_initialization",
            SpanName::ModelInit => "model_initialization",
            SpanName::OptimizerInit => "optimizer_initialization",
            SpanName::CheckpointLoad => "checkpoint_load",
            SpanName::CheckpointSaveSync => "checkpoint_save_sync",
            SpanName::CheckpointSaveAsync => "checkpoint_save_async",
            SpanName::CheckpointSaveFinalization => "checkpoint_save_finalization",
            SpanName::TrainingIteration => "training_single_iteration",
            SpanName::ValidationIteration => "validation_single_iteration",
            // As nv-one-logger-training-telemetry 2.3.1 has it.
            SpanName::TestingIteration => "TESTING_SINGLE_ITERATION",
            SpanName::DataLoading => "data_loading",
            SpanName::ModelForward => "model_forward",
            SpanName::ZeroGrad => "zero_grad",
            SpanName::ModelBackward => "model_backward",
            SpanName::OptimizerUpdate => "optimizer_update",
        }
    }

    pub fn parse(name: &str) -> Option<SpanName> {
        SpanName::ALL.into_iter().find(|n| n.as_str() == name)
    }

    /// Its place in [`SpanName::ALL`].
    pub(super) const fn index(self) -> usize {
        self as usize
    }

    /// Which timer measures it; `None` for spans that have none.
    pub(super) const fn timed(self) -> Option<Timed> {
        match self {
            SpanName::CheckpointLoad => Some(Timed::CheckpointLoad),
            SpanName::CheckpointSaveSync => Some(Timed::CheckpointSaveSync),
            SpanName::CheckpointSaveAsync => Some(Timed::CheckpointSaveAsync),
            SpanName::TrainingIteration => Some(Timed::TrainingIteration),
            SpanName::ValidationIteration => Some(Timed::ValidationIteration),
            _ => None,
        }
    }
}

/// What has a timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timed {
    CheckpointLoad,
    CheckpointSaveSync,
    CheckpointSaveAsync,
    TrainingIteration,
    ValidationIteration,
}

impl Timed {
    pub(super) const COUNT: usize = 5;

    pub(super) const fn span(self) -> SpanName {
        match self {
            Timed::CheckpointLoad => SpanName::CheckpointLoad,
            Timed::CheckpointSaveSync => SpanName::CheckpointSaveSync,
            Timed::CheckpointSaveAsync => SpanName::CheckpointSaveAsync,
            Timed::TrainingIteration => SpanName::TrainingIteration,
            Timed::ValidationIteration => SpanName::ValidationIteration,
        }
    }
}

/// What is exported unless something else is asked for: all but [`SpanName::SHORT`].
pub fn default_filter() -> Filter {
    let short: HashSet<Box<str>> = SpanName::SHORT.map(|n| n.as_str().into()).into();
    Filter::AllBut(short)
}

/// Events.
pub mod event {
    /// On `application`: what the job is.
    pub const INITIALIZATION: &str = "one_logger_initialization";
    /// On `application`: how it trains.
    pub const CONFIG: &str = "update_training_telemetry_config";
    /// On `training_loop`.
    pub const TRAINING_METRICS: &str = "training_metrics_update";
    /// On `validation_loop`.
    pub const VALIDATION_METRICS: &str = "validation_metrics_update";
    /// On `testing_loop`.
    pub const TESTING_METRICS: &str = "testing_metrics_update";
    /// On `checkpoint_save_sync`; on `application` for an asynchronous checkpoint.
    pub const CHECKPOINT_SUCCESS: &str = "save_checkpoint_success";
    /// On `checkpoint_save_sync` or `checkpoint_save_async`.
    pub const CHECKPOINT_METRICS: &str = "sync_checkpoint_metrics_update";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_at_its_place_and_read_back() {
        for (at, name) in SpanName::ALL.into_iter().enumerate() {
            assert_eq!(name.index(), at);
            assert_eq!(SpanName::parse(name.as_str()), Some(name));
            if let Some(timed) = name.timed() {
                assert_eq!(timed.span(), name);
                assert!((timed as usize) < Timed::COUNT);
            }
        }
        assert_eq!(SpanName::parse("testing_single_iteration"), None);
    }
}
