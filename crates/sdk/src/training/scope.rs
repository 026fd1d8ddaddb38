//! Phases of a job by blocks of code.

use super::{CheckpointStrategy, TrainStart, Training, When};
use crate::span::{Error, Span};

/// A phase that ends with its scope.
#[must_use = "the phase ends when this is dropped"]
#[derive(Debug)]
pub struct Phase {
    open: Option<(Training, Span)>,
    end: fn(&Training, When) -> Result<(), Error>,
}

impl Phase {
    fn new(
        training: &Training,
        start: impl FnOnce(&Training) -> Result<Option<Span>, Error>,
        end: fn(&Training, When) -> Result<(), Error>,
    ) -> Phase {
        // What did not start is not ended: that would end somebody else's.
        let span = start(training).ok().flatten();
        Phase {
            open: span.map(|span| (training.clone(), span)),
            end,
        }
    }

    /// `None` when nothing is recorded.
    pub fn span(&self) -> Option<&Span> {
        self.open.as_ref().map(|(_, span)| span)
    }

    /// Ends it here.
    ///
    /// # Errors
    /// Those of the end callback.
    pub fn end(mut self) -> Result<(), Error> {
        self.close()
    }

    fn close(&mut self) -> Result<(), Error> {
        match self.open.take() {
            Some((training, _)) => (self.end)(&training, When::Now),
            None => Ok(()),
        }
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        // Counted and signalled by the recorder.
        let _ = self.close();
    }
}

/// A checkpoint that is being saved. It has failed unless [`CheckpointScope::saved`] says otherwise.
#[must_use = "the checkpoint ends when this is dropped"]
#[derive(Debug)]
pub struct CheckpointScope {
    phase: Phase,
    global_step: i64,
}

impl CheckpointScope {
    /// `None` when nothing is recorded.
    pub fn span(&self) -> Option<&Span> {
        self.phase.span()
    }

    /// It is written: reports its success, and ends. An asynchronous one only ends here, since it is written later: see
    /// [`Training::on_save_checkpoint_success`].
    ///
    /// # Errors
    /// Those of the callbacks.
    pub fn saved(self) -> Result<(), Error> {
        if let Some((training, _)) = &self.phase.open
            && let Some(config) = training.config()
            && config.save_checkpoint_strategy == CheckpointStrategy::Sync
        {
            training.on_save_checkpoint_success(self.global_step, When::Now)?;
        }
        self.phase.end()
    }
}

/// Each calls the start callback, and the end callback when its scope ends, also by an error or a panic.
impl Training {
    /// Ends with everything closed.
    pub fn application(&self) -> Phase {
        Phase::new(
            self,
            |t| t.on_app_start(When::Now),
            |t, at| t.on_app_end(at),
        )
    }

    pub fn distributed_init(&self) -> Phase {
        Phase::new(
            self,
            |t| t.on_distributed_init_start(When::Now),
            |t, at| t.on_distributed_init_end(at),
        )
    }

    pub fn model_init(&self) -> Phase {
        Phase::new(
            self,
            |t| t.on_model_init_start(When::Now),
            |t, at| t.on_model_init_end(at),
        )
    }

    pub fn dataloader_init(&self) -> Phase {
        Phase::new(
            self,
            |t| t.on_dataloader_init_start(When::Now),
            |t, at| t.on_dataloader_init_end(at),
        )
    }

    pub fn optimizer_init(&self) -> Phase {
        Phase::new(
            self,
            |t| t.on_optimizer_init_start(When::Now),
            |t, at| t.on_optimizer_init_end(at),
        )
    }

    pub fn checkpoint_load(&self) -> Phase {
        Phase::new(
            self,
            |t| t.on_load_checkpoint_start(When::Now),
            |t, at| t.on_load_checkpoint_end(at),
        )
    }

    pub fn training_loop(&self, start: TrainStart) -> Phase {
        Phase::new(
            self,
            |t| t.on_train_start(start),
            |t, at| t.on_train_end(at),
        )
    }

    pub fn training_iteration(&self) -> Phase {
        Phase::new(
            self,
            |t| t.on_training_single_iteration_start(When::Now),
            |t, at| t.on_training_single_iteration_end(at),
        )
    }

    pub fn validation_loop(&self) -> Phase {
        Phase::new(
            self,
            |t| t.on_validation_start(When::Now),
            |t, at| t.on_validation_end(at),
        )
    }

    pub fn validation_iteration(&self) -> Phase {
        Phase::new(
            self,
            |t| t.on_validation_single_iteration_start(When::Now),
            |t, at| t.on_validation_single_iteration_end(at),
        )
    }

    pub fn testing_loop(&self) -> Phase {
        Phase::new(
            self,
            |t| t.on_testing_start(When::Now),
            |t, at| t.on_testing_end(at),
        )
    }

    pub fn checkpoint_save(&self, global_step: i64) -> CheckpointScope {
        CheckpointScope {
            phase: Phase::new(
                self,
                |t| t.on_save_checkpoint_start(global_step, When::Now),
                |t, at| t.on_save_checkpoint_end(at),
            ),
            global_step,
        }
    }
}
