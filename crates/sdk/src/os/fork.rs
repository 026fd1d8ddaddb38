//! Knowing that we are in a forked child, for the price of one load.
//!
//! A child has its parent's memory and only the thread that forked: locks that other threads held stay locked, and threads
//! that did work for us are gone. [`generation`] changes in the child, so that whoever owns such a thing can make another.
#![expect(unsafe_code, reason = "pthread_atfork is C")]

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};

static GENERATION: AtomicU32 = AtomicU32::new(0);
/// This process' id; 0 until somebody asked.
static PROCESS_ID: AtomicU32 = AtomicU32::new(0);

/// This process' id. Cost: one load, but for the first time in a process, which is a system call.
pub fn process_id() -> u32 {
    match PROCESS_ID.load(Ordering::Relaxed) {
        0 => {
            watch();
            let id = std::process::id();
            PROCESS_ID.store(id, Ordering::Relaxed);
            id
        }
        id => id,
    }
}

thread_local! {
    /// In which process the id was asked for, and the id.
    static THREAD_ID: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// This thread's id as the operating system counts them. Cost: two loads, but for the first time in a thread.
pub fn thread_id() -> u32 {
    let process = process_id();
    // A thread that ends has no place any more.
    let known = THREAD_ID.try_with(Cell::get).unwrap_or_default();
    if known.0 == process {
        return known.1;
    }
    let id = u32::try_from(nix::unistd::gettid().as_raw()).unwrap_or(0);
    let _ = THREAD_ID.try_with(|known| known.set((process, id)));
    id
}

/// How many forks lie between this process and the one that first asked.
///
/// Cost: one load, after [`watch`].
#[inline]
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Counts forks from now on. Called by whatever remembers a [`generation`], before it does.
pub(crate) fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        extern "C" fn in_child() {
            GENERATION.fetch_add(1, Ordering::Relaxed);
            PROCESS_ID.store(0, Ordering::Relaxed);
        }
        // SAFETY: the handler is a function for as long as the process lives, and does nothing that is unsafe between fork
        // and exec: atomic operations. A failure (no memory) leaves forks unseen.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

/// What a forked child goes on with.
pub(crate) trait Inherit: Sized {
    /// Of the parent's value, which nobody was changing; or of `None` when another thread held the lock at the fork.
    fn inherit(parent: Option<&mut Self>) -> Self;
}

/// A lock that a child never finds held by a thread that it does not have.
#[derive(Debug)]
pub(crate) struct ForkMutex<T> {
    generation: u32,
    value: Mutex<T>,
    child: OnceLock<Box<ForkMutex<T>>>,
}

impl<T: Inherit> ForkMutex<T> {
    pub(crate) fn new(value: T) -> ForkMutex<T> {
        watch();
        ForkMutex {
            generation: generation(),
            value: Mutex::new(value),
            child: OnceLock::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        if self.generation == generation() {
            return self.value.lock().unwrap_or_else(PoisonError::into_inner);
        }
        let child = self.child.get_or_init(|| {
            let mut parent = self.value.try_lock().ok();
            Box::new(ForkMutex::new(T::inherit(parent.as_deref_mut())))
        });
        child.lock()
    }
}
