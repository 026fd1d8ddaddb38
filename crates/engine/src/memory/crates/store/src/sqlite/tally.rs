//! What was kept of an import, what was not, and why.

use std::collections::BTreeMap;

/// Places named of one reason; the rest is counted.
const PLACES: usize = 3;

/// Rows of one kind that were left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Skipped {
    pub count: u64,
    /// The first few, as `events row 17`.
    pub places: Vec<String>,
}

/// What became of the rows of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    /// Rows kept, by the table of the file.
    pub kept: BTreeMap<&'static str, u64>,
    /// Rows left out, by the table of the file and the reason.
    pub skipped: BTreeMap<(&'static str, String), Skipped>,
    /// What is wrong with the file itself: part of it could not be read.
    pub damage: Vec<String>,
}

impl Tally {
    pub(crate) fn keep(&mut self, table: &'static str, rows: u64) {
        if rows > 0 {
            *self.kept.entry(table).or_default() += rows;
        }
    }

    pub(crate) fn skip(&mut self, table: &'static str, reason: &str, row: i64) {
        // Reasons are ours, but for the names of ops: a hostile file must not make a long list of them.
        const REASONS: usize = 256;
        let known = self.skipped.contains_key(&(table, reason.to_owned()));
        let reason = match known || self.skipped.len() < REASONS {
            true => reason,
            false => "other reasons",
        };
        let skipped = self.skipped.entry((table, reason.to_owned())).or_default();
        skipped.count += 1;
        if skipped.places.len() < PLACES {
            skipped.places.push(format!("{table} row {row}"));
        }
    }

    /// Leaves out a whole table, or what is left of it.
    pub(crate) fn skip_rows(&mut self, table: &'static str, reason: &str, rows: u64) {
        if rows > 0 {
            self.skipped
                .entry((table, reason.to_owned()))
                .or_default()
                .count += rows;
        }
    }

    pub(crate) fn damaged(&mut self, what: String) {
        if !self.damage.contains(&what) {
            self.damage.push(what);
        }
    }

    /// Rows kept, of all tables.
    pub fn kept_rows(&self) -> u64 {
        self.kept.values().sum()
    }

    /// Rows left out, of all tables.
    pub fn skipped_rows(&self) -> u64 {
        self.skipped.values().map(|s| s.count).sum()
    }
}
