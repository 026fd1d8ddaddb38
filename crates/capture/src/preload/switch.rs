//! Recording switched on and off while the job runs, by the generation in the control page.

use std::fs::File;
use std::mem::offset_of;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use warptrace_model::CaptureSwitched;
use warptrace_record::ring::control::{Control, PAUSED};

use crate::clock::boot_now;

/// The first generation of a recording.
pub(super) fn first(paused: bool) -> u32 {
    if paused { 1 | PAUSED } else { 1 }
}

/// Switches recording in every process of a job. Clones are the same switch; it may outlive its [`super::Preload`].
#[derive(Debug, Clone)]
pub struct Switch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    control: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    generation: u32,
    on: bool,
    /// The recording has ended.
    over: bool,
    /// Not taken yet.
    changes: Vec<CaptureSwitched>,
}

/// Of a job that switches faster than anybody reads, the last ones are kept: each [`CaptureSwitched`] is 16 bytes.
const MAX_CHANGES: usize = 65_536;

impl Switch {
    pub(super) fn new(control: File, paused: bool) -> Switch {
        let mut changes = Vec::new();
        if paused {
            changes.push(CaptureSwitched {
                at: boot_now(),
                on: false,
            });
        }
        Switch {
            shared: Arc::new(Shared {
                control,
                state: Mutex::new(State {
                    generation: first(false),
                    on: !paused,
                    over: false,
                    changes,
                }),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_on(&self) -> bool {
        self.lock().on
    }

    /// Switches on or off, in effect when it returns: a call that begins later is recorded, or is not. Cost: one `pwrite`.
    ///
    /// # Errors
    /// The control page cannot be written; nothing has changed.
    pub fn set(&self, on: bool) -> std::io::Result<()> {
        let mut state = self.lock();
        if state.on == on || state.over {
            return Ok(());
        }
        let generation = match on {
            // Another one, so that threads begin anew.
            true => (state.generation % (PAUSED - 2)) + 1,
            false => state.generation | PAUSED,
        };
        // The stretch that is not recorded is rather told too long than too short.
        let before = boot_now();
        let page = &self.shared.control;
        let at = offset_of!(Control, generation) as u64;
        page.write_all_at(&generation.to_le_bytes(), at)?;
        let at = if on { boot_now() } else { before };
        (state.on, state.generation) = (on, generation & !PAUSED);
        if state.changes.len() >= MAX_CHANGES {
            // A pair: what is left begins and ends as before.
            state.changes.drain(1..3);
        }
        state.changes.push(CaptureSwitched { at, on });
        Ok(())
    }

    /// What was switched since the last call.
    pub(super) fn take_changes(&self, out: &mut Vec<CaptureSwitched>) {
        out.append(&mut self.lock().changes);
    }

    /// The recording ends: nothing switches it on again.
    pub(super) fn end(&self) {
        self.lock().over = true;
    }
}
