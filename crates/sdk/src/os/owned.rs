//! A value that one thread owns and others visit now and then, at next to no cost for the owner.
//!
//! With a usual lock each side says that it comes in before it looks for the other, and since a processor holds stores back, each
//! pays for an exchange: 8 ns. Here only the visitor pays. It has the kernel make every running thread of the process catch up
//! (membarrier(2), private and expedited; Linux 4.14), which takes some µs; the owner stores, looks, and stores: 1 ns. Where the
//! kernel does not do that, both pay for a fence.
//!
//! Source of the method: Dice, Huang, Yang, *Asymmetric Dekker Synchronization* (2001); C++ proposal P1202, *Asymmetric Fences*.
#![expect(
    unsafe_code,
    reason = "the value is shared by flags, and membarrier is a system call"
)]

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// Looks of a visitor at whether the owner has left, before it sleeps between them: the owner may have been interrupted.
const LOOKS: u32 = 200;
const NAP: Duration = Duration::from_micros(20);

#[derive(Debug)]
struct Shared<T> {
    /// The owner is at the value, or about to look whether a visitor is.
    owner_in: AtomicBool,
    /// It was, since somebody came for news.
    owner_was_in: AtomicBool,
    /// A visitor is, or waits for the owner to leave.
    visitor_in: AtomicBool,
    /// Held by a visitor; and by the owner, while it is in, when it had to wait for one.
    turn: Mutex<()>,
    /// Visitors have the kernel make the owner catch up, so that it need not.
    asymmetric: bool,
    value: UnsafeCell<T>,
}

// SAFETY: only `Owner::with` and `Visitor::visit` reach the value, one at a time (see there), from different threads: so it must
// be one that may be sent from thread to thread. The rest may be shared as it is.
unsafe impl<T: Send> Sync for Shared<T> {}

/// The owner's end. It stays in its thread.
#[derive(Debug)]
pub(crate) struct Owner<T> {
    shared: Arc<Shared<T>>,
    this_thread: PhantomData<*const ()>,
}

/// Everybody else's end.
#[derive(Debug)]
pub(crate) struct Visitor<T>(Arc<Shared<T>>);

impl<T> Clone for Visitor<T> {
    fn clone(&self) -> Visitor<T> {
        Visitor(Arc::clone(&self.0))
    }
}

impl<T> Shared<T> {
    /// The owner waits for a visitor to leave, and keeps others out.
    #[cold]
    fn after_visitor(&self) -> MutexGuard<'_, ()> {
        self.owner_in.store(false, Ordering::Release);
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // So that whoever comes from within `look` turns back.
        self.owner_in.store(true, Ordering::Relaxed);
        self.owner_was_in.store(true, Ordering::Relaxed);
        turn
    }
}

/// Lowers a flag when it goes, also when what was done meanwhile panicked.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<T: Send> Owner<T> {
    /// A value of this thread's.
    pub(crate) fn new(value: T) -> Owner<T> {
        Owner::with_fences(value, *ASYMMETRIC)
    }

    fn with_fences(value: T, asymmetric: bool) -> Owner<T> {
        Owner {
            shared: Arc::new(Shared {
                owner_in: AtomicBool::new(false),
                owner_was_in: AtomicBool::new(false),
                visitor_in: AtomicBool::new(false),
                turn: Mutex::new(()),
                asymmetric,
                value: UnsafeCell::new(value),
            }),
            this_thread: PhantomData,
        }
    }

    pub(crate) fn visitor(&self) -> Visitor<T> {
        Visitor(Arc::clone(&self.shared))
    }

    pub(crate) fn is_visited_by(&self, visitor: &Visitor<T>) -> bool {
        Arc::ptr_eq(&self.shared, &visitor.0)
    }

    /// The value, for as long as `look` takes. `None` from within another `look`. Waits for a visitor that is in.
    #[inline]
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        let shared = &*self.shared;
        if shared.owner_in.load(Ordering::Relaxed) {
            return None;
        }
        shared.owner_in.store(true, Ordering::Relaxed);
        shared.owner_was_in.store(true, Ordering::Relaxed);
        match shared.asymmetric {
            true => compiler_fence(Ordering::SeqCst),
            false => fence(Ordering::SeqCst),
        }
        let mut turn = None;
        if shared.visitor_in.load(Ordering::Acquire) {
            turn = Some(shared.after_visitor());
        }
        let raised = Raised(&shared.owner_in);
        // SAFETY: without `turn`, `owner_in` was raised before `visitor_in` was found lowered, and a visitor raises that before it
        // looks at `owner_in`; of two such, with a fence between in both threads (the visitor's, of the kernel, stands in both),
        // one at least sees the other. So a visitor that comes now waits until `raised` goes; what one before us did came before
        // its store that we loaded. With `turn`, a visitor waits until we let go of that. The owner itself is in this thread, and
        // turned back above while it was in.
        let looked = look(unsafe { &mut *shared.value.get() });
        drop(raised);
        drop(turn);
        Some(looked)
    }

    /// In a forked child: no visitor was in at the fork, who would be in for ever. If one was, the value is not to be used any
    /// more, nor let go of: it may be half changed.
    pub(crate) fn is_whole(&self) -> bool {
        let turn = self.shared.turn.try_lock();
        let taken = matches!(turn, Err(TryLockError::WouldBlock));
        !taken && !self.shared.visitor_in.load(Ordering::Relaxed)
    }
}

impl<T: Send> Visitor<T> {
    /// The value, for as long as `look` takes, which is not to come back here. Waits for the owner and other visitors to leave.
    /// `None`, in theory: when the kernel refuses a barrier that it has granted before.
    pub(crate) fn visit<R>(&self, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        let shared = &*self.0;
        let _turn = shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
        shared.visitor_in.store(true, Ordering::Relaxed);
        let _raised = Raised(&shared.visitor_in);
        if !catch_up(shared.asymmetric) {
            return None;
        }
        let mut looks = 0;
        while shared.owner_in.load(Ordering::Acquire) {
            looks += 1;
            match looks % LOOKS {
                0 => std::thread::sleep(NAP),
                _ => std::hint::spin_loop(),
            }
        }
        // SAFETY: `turn` keeps other visitors out, and an owner that had to wait for one. `visitor_in` was raised before `owner_in`
        // was found lowered, with a fence between: see `Owner::with`. What the owner did came before its store that we loaded.
        Some(look(unsafe { &mut *shared.value.get() }))
    }

    /// The same, unless the owner was not in since this was called last. That it was is seen at once after [`everywhere`]; else it
    /// can take some ns.
    pub(crate) fn visit_for_news<R>(&self, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        let news = &self.0.owner_was_in;
        let visit = || {
            self.visit(|value| {
                // An owner that waits for us raises it again when it comes in.
                news.store(false, Ordering::Relaxed);
                look(value)
            })
        };
        news.load(Ordering::Relaxed).then(visit).flatten()
    }
}

/// The kernel grants barriers.
static ASYMMETRIC: LazyLock<bool> = LazyLock::new(|| {
    // Miri knows no such system call.
    !cfg!(miri) && {
        membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
            && membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    }
});

/// A fence here, between what this thread did before and does after; and one in every [`Owner`], between coming in and what it does
/// after that.
pub(crate) fn everywhere() {
    catch_up(*ASYMMETRIC);
}

fn catch_up(asymmetric: bool) -> bool {
    fence(Ordering::SeqCst);
    // A forked child may have to register again.
    !asymmetric
        || membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
        || (membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
            && membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED))
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: the system call takes three integers, and changes nothing but when stores are seen.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: u64 = if cfg!(miri) { 100 } else { 20_000 };

    /// Two fields that are equal whenever nobody is in.
    #[derive(Default)]
    struct Twice(u64, u64);

    impl Twice {
        fn add(&mut self) {
            assert_eq!(self.0, self.1);
            self.0 += 1;
            std::hint::black_box(&mut *self);
            self.1 += 1;
        }
    }

    #[test]
    fn owner_and_visitors_are_never_in_at_the_same_time() {
        for asymmetric in [*ASYMMETRIC, false] {
            let owner = Owner::with_fences(Twice::default(), asymmetric);
            let visits = std::thread::scope(|scope| {
                let visitors: Vec<_> = (0..2)
                    .map(|_| {
                        let visitor = owner.visitor();
                        scope.spawn(move || {
                            let visits = (0..TIMES / 20).map(|_| visitor.visit(Twice::add));
                            visits.flatten().count() as u64
                        })
                    })
                    .collect();
                for _ in 0..TIMES {
                    owner.with(Twice::add).unwrap();
                }
                let visits = visitors.into_iter().map(|visitor| visitor.join().unwrap());
                visits.sum::<u64>()
            });
            assert_eq!(visits, 2 * (TIMES / 20));
            assert_eq!(owner.with(|value| value.1), Some(TIMES + visits));
        }
    }

    #[test]
    fn an_owner_that_is_in_already_turns_back() {
        let owner = Owner::new(1);
        let nested = owner.with(|_| owner.with(|value| *value));
        assert_eq!(nested, Some(None));
        assert_eq!(owner.with(|value| *value), Some(1));
        // Also when it came in by turn.
        owner.shared.visitor_in.store(true, Ordering::Relaxed);
        let nested = owner.with(|_| owner.with(|value| *value));
        assert_eq!(nested, Some(None));
        assert!(owner.shared.turn.try_lock().is_ok());
    }

    #[test]
    fn a_panic_while_somebody_is_in_locks_nobody_out() {
        let owner = Owner::new(1);
        let visitor = owner.visitor();
        let caught = std::panic::AssertUnwindSafe(|| owner.with(|_| panic!("expected")));
        assert!(std::panic::catch_unwind(caught).is_err());
        let caught = std::panic::AssertUnwindSafe(|| visitor.visit(|_| panic!("expected")));
        assert!(std::panic::catch_unwind(caught).is_err());
        assert_eq!(owner.with(|value| *value), Some(1));
        assert_eq!(visitor.visit(|value| *value), Some(1));
        assert!(owner.is_whole());
    }

    #[test]
    fn there_is_news_when_the_owner_was_in_since_somebody_came_for_it() {
        let owner = Owner::new(1);
        let visitor = owner.visitor();
        let news = || visitor.visit_for_news(|value| *value);
        assert_eq!(news(), None);
        owner.with(|value| *value += 1);
        assert_eq!(visitor.visit(|value| *value), Some(2));
        assert_eq!((news(), news()), (Some(2), None));
        // Also when it had to wait for whoever came.
        owner.with(|value| *value += 1);
        let (inside, wait) = std::sync::mpsc::sync_channel(1);
        std::thread::scope(|scope| {
            let visitor = owner.visitor();
            scope.spawn(move || visitor.visit_for_news(|_| inside.send(())));
            wait.recv().unwrap();
            owner.with(|value| *value += 1);
        });
        assert_eq!(news(), Some(4));
    }
}
