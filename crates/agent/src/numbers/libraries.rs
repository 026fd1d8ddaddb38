//! Which processes of the job have NCCL loaded, looked up on a thread of its own: it reads `/proc/PID/maps`, which holds up whoever reads
//! it for as long as the process changes its memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use warptrace_capture::proc::loaded;
use warptrace_model::metric::{Families, attribute, metric};
use warptrace_model::{Object, Pid};

use super::{count, texts};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(30);
/// Processes that are looked at; the newest, of more.
const PROCESSES: usize = 256;

#[derive(Default)]
struct State {
    /// Its processes, and their names.
    job: BTreeMap<Pid, String>,
    /// With the file that is loaded.
    found: BTreeMap<Pid, String>,
    looked: bool,
}

/// The answer of a moment ago.
pub(super) struct Libraries {
    state: Arc<Mutex<State>>,
    thread: Option<std::thread::Thread>,
}

impl Libraries {
    /// Without a thread there is no answer, ever.
    pub(super) fn start() -> Libraries {
        let state = Arc::new(Mutex::new(State::default()));
        let weak = Arc::downgrade(&state);
        let thread = std::thread::Builder::new().name("wt-libraries".to_owned());
        let started = thread.spawn(move || run(&weak)).ok();
        Libraries {
            state,
            thread: started.map(|handle| handle.thread().clone()),
        }
    }

    pub(super) fn process(&self, pid: Pid, name: &str) {
        let mut state = lock(&self.state);
        if state.job.len() >= PROCESSES && !state.job.contains_key(&pid) {
            let oldest = state.job.keys().next().copied();
            oldest.map(|oldest| state.job.remove(&oldest));
        }
        state.job.insert(pid, name.to_owned());
    }

    /// It has called the library by now.
    pub(super) fn called(&self, pid: Pid) {
        let state = lock(&self.state);
        if !state.found.contains_key(&pid) && state.job.contains_key(&pid) {
            self.wake();
        }
    }

    /// As if the thread had found it, which then finds nothing any more.
    #[cfg(test)]
    pub(super) fn found(&mut self, pid: Pid, path: &str) {
        self.state = Arc::new(Mutex::new(State {
            job: BTreeMap::new(),
            found: BTreeMap::from([(pid, path.to_owned())]),
            looked: true,
        }));
    }

    fn wake(&self) {
        self.thread.iter().for_each(std::thread::Thread::unpark);
    }

    pub(super) fn tell(&self, to: &mut Families) {
        let state = lock(&self.state);
        if !state.looked {
            return;
        }
        for (pid, path) in &state.found {
            let name = state.job.get(pid).map_or("", String::as_str);
            let mut attributes = Object::new();
            attributes.insert(attribute::PID.name, i64::from(pid.0));
            for (key, value) in texts(&[
                (&attribute::COMM, name),
                (&attribute::LIBRARY_PATH, path),
                (&attribute::LIBRARY_VERSION, version(path)),
            ])
            .iter()
            {
                attributes.insert(key, value.clone());
            }
            to.push(&metric::NCCL_LOADED, attributes, count(1));
        }
        let processes = count(state.found.len() as u64);
        to.push(&metric::NCCL_PROCESSES, Object::new(), processes);
    }
}

impl Drop for Libraries {
    fn drop(&mut self) {
        // It finds nobody there any more.
        self.state = Arc::default();
        self.wake();
    }
}

fn run(state: &Weak<Mutex<State>>) {
    let mut pause = Duration::ZERO;
    loop {
        std::thread::park_timeout(pause);
        pause = EVERY;
        let Some(state) = state.upgrade() else {
            return;
        };
        look(&state);
    }
}

fn look(state: &Mutex<State>) {
    let pids: Vec<Pid> = lock(state).job.keys().copied().collect();
    let file = |pid: &Pid| {
        let path = loaded(*pid, "libnccl").into_iter().next()?;
        Some((*pid, path.to_string_lossy().into_owned()))
    };
    let found = pids.iter().filter_map(file).collect();
    let mut state = lock(state);
    state.found = found;
    state.looked = true;
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What stands after `.so.` in a file's name: `2.21.5`, or only `2`.
fn version(path: &str) -> &str {
    path.rsplit_once(".so.").map_or("", |(_, version)| version)
}
