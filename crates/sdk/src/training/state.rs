//! What a job has done so far: sums and latest values, of a size that does not depend on how long it runs.

use std::collections::VecDeque;

use super::names::{SpanName, Timed};
use super::timer::Timer;
use crate::fork::{ForkMutex, Inherit};
use crate::span::{Error, Recorder, Rules, Span, Timestamp};

/// Checkpoints whose success may still be reported, at most: beyond that the oldest is forgotten.
const PENDING_CHECKPOINTS: usize = 1024;

/// The state of a job, and what it demands of the spans: the recorder asks it, the callbacks change it.
pub(super) struct Shared(ForkMutex<State>);

impl Default for Shared {
    fn default() -> Shared {
        Shared(ForkMutex::new(State::default()))
    }
}

impl Shared {
    /// Not held while the recorder is called: it comes back for the rules.
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock()
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct State {
    timers: [Timer; Timed::COUNT],
    open: [Slot; SpanName::ALL.len()],
    /// Checkpoints are not timed; see [`super::TrainingConfig::is_save_checkpoint_enabled`].
    pub(super) checkpoints_untimed: bool,
    /// Checkpoints that were begun, timed or not: synchronous and asynchronous ones.
    checkpoint_attempts: [i64; 2],

    pub(super) train_iterations_start: i64,
    /// By all jobs that the training took so far.
    pub(super) completed_iterations: i64,
    pub(super) train_samples_start: i64,
    pub(super) samples_this_job: i64,
    pub(super) tokens_this_job: Option<i128>,
    pub(super) flops_this_loop: i128,
    /// By all jobs; unknown without throughput.
    pub(super) completed_flops: Option<i128>,
    pub(super) throughput: Option<Extremes>,
    pub(super) iteration_throughput: Option<Extremes>,
    pub(super) validation_interval_start: i64,
    pub(super) testing_interval_start: i64,

    // Moments, s since the Unix epoch.
    pub(super) loop_start_secs: Option<f64>,
    pub(super) iteration_finish_secs: Option<FirstLast>,
    pub(super) checkpoint_success_secs: Option<FirstLast>,

    pub(super) checkpoint_successes: i64,
    pending_checkpoints: VecDeque<(i64, Productivity)>,
}

/// A span of a name that there may be one of.
#[derive(Debug, Clone, Default)]
enum Slot {
    #[default]
    Free,
    /// Between the rule's yes and the span.
    Taken,
    Open(Span),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct FirstLast {
    pub(super) first: f64,
    pub(super) last: f64,
}

impl FirstLast {
    pub(super) fn note(this: &mut Option<FirstLast>, at: f64) -> FirstLast {
        let first = this.map_or(at, |t| t.first);
        *this.insert(FirstLast { first, last: at })
    }
}

/// TFLOP/s of one rank.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extremes {
    pub(super) latest: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Extremes {
    pub(super) fn note(this: &mut Option<Extremes>, latest: f64) {
        let (min, max) = this.map_or((latest, latest), |t| (t.min.min(latest), t.max.max(latest)));
        *this = Some(Extremes { latest, min, max });
    }
}

/// What a training had brought when a checkpoint began: what the checkpoint keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Productivity {
    pub(super) iterations: i64,
    pub(super) samples: i64,
    pub(super) train_secs: f64,
    pub(super) validation_secs: f64,
    pub(super) flops: Option<i128>,
}

/// How much one iteration is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Iteration {
    pub(super) batch: i64,
    pub(super) seq_length: Option<i64>,
    /// With throughput: operations an iteration, and ranks.
    pub(super) throughput: Option<(i128, i64)>,
}

impl State {
    pub(super) fn timer(&self, timed: Timed) -> &Timer {
        &self.timers[timed as usize]
    }

    pub(super) fn start_timer(&mut self, timed: Timed, at: Timestamp) -> Result<(), Error> {
        self.timers[timed as usize].start(at, timed.span().as_str())
    }

    pub(super) fn stop_timer(&mut self, timed: Timed, at: Timestamp) -> Result<f64, Error> {
        self.timers[timed as usize].stop(at, timed.span().as_str())
    }

    /// The span of that name.
    ///
    /// # Errors
    /// `active_span_count` when there is none.
    pub(super) fn open(&self, name: SpanName) -> Result<Span, Error> {
        self.find(name).ok_or_else(|| {
            let message = format!("there is no active span {}", name.as_str());
            Error::rule("active_span_count", message)
        })
    }

    pub(super) fn find(&self, name: SpanName) -> Option<Span> {
        match &self.open[name.index()] {
            Slot::Open(span) => Some(span.clone()),
            Slot::Free | Slot::Taken => None,
        }
    }

    /// Everything that the end of a training iteration changes, in the order in which a failure leaves it half done.
    pub(super) fn complete_iteration(
        &mut self,
        iteration: Iteration,
        at: Timestamp,
    ) -> Result<(), Error> {
        let secs = self.stop_timer(Timed::TrainingIteration, at)?;
        self.completed_iterations = self.completed_iterations.saturating_add(1);
        self.samples_this_job = self.samples_this_job.saturating_add(iteration.batch);
        if let Some(length) = iteration.seq_length.filter(|n| *n != 0) {
            let tokens = i128::from(length).saturating_mul(self.samples_this_job.into());
            self.tokens_this_job = Some(tokens);
        }
        FirstLast::note(&mut self.iteration_finish_secs, at.unix_secs());
        if let Some((flops, world_size)) = iteration.throughput {
            self.flops_this_loop = self.flops_this_loop.saturating_add(flops);
            let overall = self.completed_flops.unwrap_or(0);
            self.completed_flops = Some(overall.saturating_add(flops));
            let total_secs = self.timer(Timed::TrainingIteration).total_secs();
            if total_secs <= 0.0 {
                let message = "the iterations took no time: there is no throughput";
                return Err(Error::rule("zero_iteration_time", message));
            }
            let tflops = |flops: i128, secs: f64| flops as f64 / (secs * 1e12 * world_size as f64);
            let mean = tflops(self.flops_this_loop, total_secs);
            Extremes::note(&mut self.throughput, mean);
            if secs > 0.0 {
                Extremes::note(&mut self.iteration_throughput, tflops(flops, secs));
            }
        }
        Ok(())
    }

    /// Begins a checkpoint; gives how many of its kind there were with it.
    pub(super) fn start_checkpoint(
        &mut self,
        timed: Timed,
        step: i64,
        enabled: bool,
        at: Timestamp,
    ) -> Result<i64, Error> {
        self.checkpoints_untimed = !enabled;
        if enabled {
            self.remember_checkpoint(step);
            self.start_timer(timed, at)?;
        }
        let attempts =
            &mut self.checkpoint_attempts[usize::from(timed == Timed::CheckpointSaveAsync)];
        *attempts += 1;
        Ok(*attempts)
    }

    fn remember_checkpoint(&mut self, step: i64) {
        let productivity = Productivity {
            iterations: self.completed_iterations,
            samples: self
                .train_samples_start
                .saturating_add(self.samples_this_job),
            train_secs: self.timer(Timed::TrainingIteration).total_secs(),
            validation_secs: self.timer(Timed::ValidationIteration).total_secs(),
            flops: self.completed_flops,
        };
        // The same step again replaces what was remembered of it.
        self.pending_checkpoints
            .retain(|(pending, _)| *pending != step);
        if self.pending_checkpoints.len() == PENDING_CHECKPOINTS {
            self.pending_checkpoints.pop_front();
        }
        self.pending_checkpoints.push_back((step, productivity));
    }

    /// What was remembered of a checkpoint, once.
    pub(super) fn take_checkpoint(&mut self, step: i64) -> Option<Productivity> {
        let pending = &mut self.pending_checkpoints;
        let at = pending.iter().position(|(pending, _)| *pending == step)?;
        pending.remove(at).map(|(_, productivity)| productivity)
    }
}

impl Inherit for State {
    /// A child goes on from where its parent was; from nothing, when the fork came in the middle of a change.
    fn inherit(parent: Option<&mut State>) -> State {
        parent.map(|p| p.clone()).unwrap_or_default()
    }
}

impl Rules for Shared {
    fn may_start(&self, _: &Recorder, name: &str) -> Result<(), Error> {
        let Some(name) = SpanName::parse(name) else {
            return Ok(());
        };
        let mut state = self.lock();
        if !matches!(state.open[name.index()], Slot::Free) {
            let message = format!("the span {} is active already", name.as_str());
            return Err(Error::rule("duplicate_active_span", message));
        }
        let excused = state.checkpoints_untimed
            && matches!(
                name,
                SpanName::CheckpointSaveSync | SpanName::CheckpointSaveAsync
            );
        if let Some(timed) = name.timed()
            && !excused
            && !state.timer(timed).is_running()
        {
            let message = format!("a span {} is started by its callback", name.as_str());
            return Err(Error::rule("span_timer_not_active", message));
        }
        state.open[name.index()] = Slot::Taken;
        Ok(())
    }

    fn started(&self, span: &Span) {
        if let Some(name) = SpanName::parse(span.name()) {
            self.lock().open[name.index()] = Slot::Open(span.clone());
        }
    }

    fn stopping(&self, span: &Span, at: Timestamp) -> Option<String> {
        let name = SpanName::parse(span.name())?;
        let mut state = self.lock();
        let slot = &mut state.open[name.index()];
        if !matches!(slot, Slot::Open(open) if open == span) {
            return None;
        }
        *slot = Slot::Free;
        let timed = name.timed()?;
        if !state.timer(timed).is_running() {
            return None;
        }
        // A stop that lies before the start ends the window, too.
        let _ = state.stop_timer(timed, at);
        drop(state);
        Some(format!(
            "the span {} was stopped while it was being timed: its end callback was not called, or the program failed",
            name.as_str()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_that_never_succeed_are_forgotten_oldest_first() {
        let mut state = State::default();
        for step in 0..2_000 {
            state.completed_iterations = step;
            state.remember_checkpoint(step);
        }
        assert_eq!(state.pending_checkpoints.len(), PENDING_CHECKPOINTS);
        assert!(state.take_checkpoint(2_000 - 1_025).is_none());
        let last = state.take_checkpoint(1_999).unwrap();
        assert_eq!(last.iterations, 1_999);
        assert!(state.take_checkpoint(1_999).is_none());
    }
}
