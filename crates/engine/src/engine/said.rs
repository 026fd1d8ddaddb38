//! What the job says of itself: units that it names.

use warptrace_model::{Annotation, GapCode, StreamScope, UnitKind};

use super::Engine;
use crate::units::{self, Closed, Key};
use crate::world::ProcessIx;

impl Engine {
    /// The job said something of itself: a unit that it names may be over by that.
    pub(super) fn annotation(&mut self, at: u64, a: &Annotation) {
        let whose: Vec<ProcessIx> = match a.scope {
            Some(scope) => {
                let ix = self.world.process_ix(scope.pid);
                let known = self.world.processes.get(&ix);
                let known = known.map_or(0, |p| p.incarnation().start_ticks);
                let same = known == scope.start_ticks || known == 0 || scope.start_ticks == 0;
                same.then_some(ix).into_iter().collect()
            }
            // What everybody does, those do who use the device.
            None => {
                let all = self.world.processes.iter();
                let mut users: Vec<ProcessIx> = all
                    .filter(|(_, p)| p.has_calls && p.ended.is_none())
                    .map(|(ix, _)| *ix)
                    .collect();
                users.sort_unstable();
                users
            }
        };
        for ix in whose {
            let Some(p) = self.world.processes.get_mut(&ix) else {
                continue;
            };
            p.seen = p.seen.max(at);
            match p.named.hear(a) {
                Ok(Some(ended)) => {
                    let covered = p.named.covered(ended.window);
                    let key = Key {
                        process: ix,
                        device: covered.device,
                        stream: StreamScope::Many,
                        kind: UnitKind::Named,
                        class: ended.class,
                    };
                    let closed = Closed {
                        key,
                        lead: units::named::lead(p.pid, &covered),
                        window: ended.window,
                        set: covered.set,
                        op: covered.op,
                        call: None,
                        name: Some(ended.name),
                        provisional: p.work.outstanding > 0,
                    };
                    let due = at.saturating_add(self.rules.settle_nanos);
                    self.closed.push_back((due, closed));
                }
                Ok(None) => {}
                Err(_) => self.gap(
                    GapCode::UnitsLeftOut,
                    "spans that began before what is kept",
                    1,
                ),
            }
        }
    }

    pub(super) fn step_without_end(&mut self) {
        let what = "the last step of a process: nothing says when it ended";
        self.gap(GapCode::UnitsLeftOut, what, 1);
    }
}
