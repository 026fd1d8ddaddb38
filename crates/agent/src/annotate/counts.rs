//! What became of connections and lines.

use std::sync::atomic::{AtomicU64, Ordering};

use warptrace_formats::annotation::Refusal;

/// Why a line was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LineLoss {
    /// By what it says, or of whom.
    Refused(Refusal),
    /// Its connection had used up its second.
    RateLimited,
    /// Its user had used up the second's look-ups of processes.
    LookupLimited,
    /// The pipeline did not keep up.
    QueueFull,
}

/// Why a connection was not taken, or not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectionLoss {
    /// The kernel did not say whose it is.
    NoCredentials,
    TooMany,
    TooManyOfUser,
    /// The kernel gave no descriptor.
    AcceptFailed,
    /// It sent a line that is too long.
    Oversized,
}

impl LineLoss {
    const OTHERS: [LineLoss; 3] = [
        LineLoss::RateLimited,
        LineLoss::LookupLimited,
        LineLoss::QueueFull,
    ];

    /// Every reason, in the order of their places.
    pub fn all() -> impl Iterator<Item = LineLoss> {
        let refusals = Refusal::ALL.into_iter().map(LineLoss::Refused);
        refusals.chain(LineLoss::OTHERS)
    }

    /// A short snake_case word.
    pub const fn name(self) -> &'static str {
        match self {
            LineLoss::Refused(refusal) => refusal.name(),
            LineLoss::RateLimited => "rate_limited",
            LineLoss::LookupLimited => "lookup_limited",
            LineLoss::QueueFull => "queue_full",
        }
    }

    fn place(self) -> usize {
        match self {
            LineLoss::Refused(refusal) => refusal as usize,
            LineLoss::RateLimited => Refusal::ALL.len(),
            LineLoss::LookupLimited => Refusal::ALL.len() + 1,
            LineLoss::QueueFull => Refusal::ALL.len() + 2,
        }
    }
}

impl ConnectionLoss {
    pub const ALL: [ConnectionLoss; 5] = [
        ConnectionLoss::NoCredentials,
        ConnectionLoss::TooMany,
        ConnectionLoss::TooManyOfUser,
        ConnectionLoss::AcceptFailed,
        ConnectionLoss::Oversized,
    ];

    /// A short snake_case word.
    pub const fn name(self) -> &'static str {
        match self {
            ConnectionLoss::NoCredentials => "no_credentials",
            ConnectionLoss::TooMany => "too_many_connections",
            ConnectionLoss::TooManyOfUser => "too_many_connections_of_user",
            ConnectionLoss::AcceptFailed => "accept_failed",
            ConnectionLoss::Oversized => "line_too_long",
        }
    }
}

/// Counters of a socket, from its start. They only grow, and may be read at any time.
#[derive(Debug, Default)]
pub struct AnnotationCounts {
    accepted: AtomicU64,
    open: AtomicU64,
    taken: AtomicU64,
    narrowed: AtomicU64,
    lines: [AtomicU64; Refusal::ALL.len() + LineLoss::OTHERS.len()],
    connections: [AtomicU64; ConnectionLoss::ALL.len()],
}

impl AnnotationCounts {
    /// Connections that were accepted and not turned away.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are open: the one number here that also falls.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Lines that were handed to the pipeline.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Of those, lines that named no process and were taken as their sender's own, who may not speak for all.
    pub fn narrowed(&self) -> u64 {
        self.narrowed.load(Ordering::Relaxed)
    }

    /// Lines that were lost for one reason.
    pub fn lost(&self, reason: LineLoss) -> u64 {
        self.lines[reason.place()].load(Ordering::Relaxed)
    }

    /// Connections that were turned away or cut for one reason.
    pub fn cut(&self, reason: ConnectionLoss) -> u64 {
        self.connections[reason as usize].load(Ordering::Relaxed)
    }

    /// Lines lost, for all reasons.
    pub fn lost_lines(&self) -> u64 {
        LineLoss::all().map(|reason| self.lost(reason)).sum()
    }

    /// Every loss that happened, with its name: of lines, then of connections (`connection` is true).
    pub fn losses(&self) -> Vec<(&'static str, bool, u64)> {
        let lines = LineLoss::all().map(|r| (r.name(), false, self.lost(r)));
        let connections = ConnectionLoss::ALL.map(|r| (r.name(), true, self.cut(r)));
        let all = lines.chain(connections);
        all.filter(|(.., count)| *count > 0).collect()
    }

    pub(super) fn opened(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn count_taken(&self, count: usize) {
        self.taken.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn count_narrowed(&self) {
        self.narrowed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts, and says whether these are the first of their kind.
    pub(super) fn count_lost(&self, reason: LineLoss, count: usize) -> bool {
        count > 0 && self.lines[reason.place()].fetch_add(count as u64, Ordering::Relaxed) == 0
    }

    /// Counts, and says whether it is the first of its kind.
    pub(super) fn count_cut(&self, reason: ConnectionLoss) -> bool {
        self.connections[reason as usize].fetch_add(1, Ordering::Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_place_and_a_name_of_its_own() {
        let counts = AnnotationCounts::default();
        for (i, reason) in LineLoss::all().enumerate() {
            assert_eq!(reason.place(), i);
            assert!(counts.count_lost(reason, i + 1));
        }
        for (i, reason) in ConnectionLoss::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
        }
        let losses = counts.losses();
        assert_eq!(losses.len(), LineLoss::all().count());
        let mut names: Vec<_> = losses.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), losses.len());
    }
}
