//! Windows of time, one after the other, and what they add up to.

use crate::span::{Error, Timestamp};

/// Measures windows that do not overlap. It is never reset within a job, and keeps sums, not windows.
#[derive(Debug, Clone)]
pub(super) struct Timer {
    running_since: Option<Timestamp>,
    started: i64,
    completed: i64,
    total_secs: f64,
    min_secs: f64,
    max_secs: f64,
}

impl Default for Timer {
    fn default() -> Timer {
        Timer {
            running_since: None,
            started: 0,
            completed: 0,
            total_secs: 0.0,
            min_secs: f64::INFINITY,
            max_secs: 0.0,
        }
    }
}

/// What the windows of a timer were, s. Windows that are still open, or whose end was refused, are not among them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Windows {
    pub(super) total_secs: f64,
    pub(super) avg_secs: f64,
    pub(super) min_secs: f64,
    pub(super) max_secs: f64,
}

impl Timer {
    /// # Errors
    /// `timer_already_active`.
    pub(super) fn start(&mut self, at: Timestamp, what: &str) -> Result<(), Error> {
        if self.running_since.is_some() {
            let message = format!("{what} has begun already");
            return Err(Error::rule("timer_already_active", message));
        }
        self.running_since = Some(at);
        self.started += 1;
        Ok(())
    }

    /// Ends the window, also where that is an error; s that it lasted.
    ///
    /// # Errors
    /// `timer_not_active`, `timer_stop_before_start`.
    pub(super) fn stop(&mut self, at: Timestamp, what: &str) -> Result<f64, Error> {
        let Some(began) = self.running_since.take() else {
            let message = format!("{what} ends, but has not begun");
            return Err(Error::rule("timer_not_active", message));
        };
        if at.unix_nanos() < began.unix_nanos() {
            let message = format!("{what} ends before it began");
            return Err(Error::rule("timer_stop_before_start", message));
        }
        let secs = at.secs_since(began);
        self.completed += 1;
        self.total_secs += secs;
        self.min_secs = self.min_secs.min(secs);
        self.max_secs = self.max_secs.max(secs);
        Ok(secs)
    }

    pub(super) fn is_running(&self) -> bool {
        self.running_since.is_some()
    }

    /// Windows that were begun.
    pub(super) fn started(&self) -> i64 {
        self.started
    }

    pub(super) fn total_secs(&self) -> f64 {
        self.total_secs
    }

    /// `None` before the first window was completed.
    pub(super) fn windows(&self) -> Option<Windows> {
        (self.completed > 0).then(|| Windows {
            total_secs: self.total_secs,
            avg_secs: self.total_secs / self.completed as f64,
            min_secs: self.min_secs,
            max_secs: self.max_secs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: f64) -> Timestamp {
        Timestamp::from_secs(1_750_000_000.0 + secs, 1000.0 + secs)
    }

    #[test]
    fn windows_add_up_and_what_failed_is_not_among_them() {
        let mut timer = Timer::default();
        timer.start(at(0.0), "it").unwrap();
        assert_eq!(timer.windows(), None);
        assert_eq!(timer.stop(at(0.5), "it").unwrap(), 0.5);
        timer.start(at(2.0), "it").unwrap();
        assert_eq!(
            timer.stop(at(1.0), "it").unwrap_err().code(),
            "timer_stop_before_start"
        );
        assert!(!timer.is_running());
        timer.start(at(2.0), "it").unwrap();
        timer.stop(at(2.25), "it").unwrap();
        let windows = timer.windows().unwrap();
        assert_eq!(timer.started(), 3);
        assert_eq!(windows.avg_secs, 0.375);
        assert_eq!((windows.min_secs, windows.max_secs), (0.25, 0.5));
    }

    #[test]
    fn a_step_of_the_wall_clock_is_not_measured() {
        let mut timer = Timer::default();
        timer.start(Timestamp::from_secs(10.0, 5.0), "it").unwrap();
        let secs = timer.stop(Timestamp::from_secs(100.0, 6.0), "it").unwrap();
        assert_eq!(secs, 1.0);
    }
}
