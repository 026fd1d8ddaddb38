//! What is true of the whole process: where its recorder is, the control page, who we are, and whether we were forked.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use warptrace_record::ring::control::{self, Clock, Control};
use warptrace_record::ring::{Layout, Owner};

use crate::arch;
use crate::elf::Object;
use crate::sys::{self, Fd};

/// Longest directory of rings; a longer one is not used.
const MAX_DIRECTORY: usize = 200;

struct Directory(UnsafeCell<[u8; MAX_DIRECTORY]>);

// SAFETY: written once, by the initialiser, before the program has threads.
unsafe impl Sync for Directory {}

static DIRECTORY: Directory = Directory(UnsafeCell::new([0; MAX_DIRECTORY]));
static DIRECTORY_LEN: AtomicUsize = AtomicUsize::new(0);

/// Takes the directory of rings from `environment`. Cost: one comparison a variable.
///
/// # Safety
/// `environment` is null, or points to pointers to strings, ended by a null; no other thread runs.
pub(crate) unsafe fn remember_directory(environment: *const *const c_char) {
    if environment.is_null() {
        return;
    }
    let mut at = environment;
    // SAFETY: the caller's promise.
    unsafe {
        while !(*at).is_null() {
            let variable = CStr::from_ptr(*at).to_bytes();
            if let Some(rest) = variable.strip_prefix(control::DIRECTORY_VARIABLE.as_bytes())
                && let Some(path) = rest.strip_prefix(b"=")
                && path.first() == Some(&b'/')
                && path.len() <= MAX_DIRECTORY
            {
                (&mut *DIRECTORY.0.get())[..path.len()].copy_from_slice(path);
                DIRECTORY_LEN.store(path.len(), Ordering::Relaxed);
                return;
            }
            at = at.add(1);
        }
    }
    look_for_generation_at(&OFF);
}

/// A recorder has started this program, or one of its parents.
pub(crate) fn has_directory() -> bool {
    DIRECTORY_LEN.load(Ordering::Relaxed) != 0
}

/// A path in the directory of rings.
pub(crate) struct Path([u8; MAX_DIRECTORY + 48]);

impl Path {
    pub(crate) fn in_directory(name: &str, number: Option<u64>) -> Path {
        let mut path = Path([0; MAX_DIRECTORY + 48]);
        let len = DIRECTORY_LEN.load(Ordering::Relaxed);
        // SAFETY: written before there were threads.
        let directory = unsafe { &(&*DIRECTORY.0.get())[..len] };
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            path.0[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(directory);
        put(b"/");
        put(name.as_bytes());
        if let Some(number) = number {
            let mut digits = [0; 20];
            let mut first = digits.len();
            let mut rest = number;
            loop {
                first -= 1;
                digits[first] = b'0' + (rest % 10) as u8;
                rest /= 10;
                if rest == 0 {
                    break;
                }
            }
            put(&digits[first..]);
        }
        path
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        // The buffer is longer than the longest name, so it ends in zeros.
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

/// A page that is zero again in a forked child, so that the child finds out without a system call.
#[repr(C)]
pub(crate) struct Page {
    /// The process, when it is ready; 0 in a child that has not noticed yet.
    token: AtomicU64,
    state: AtomicU32,
    /// The kernel does not zero the page in children: the process must be asked for in each call.
    ask: AtomicU32,
    pid_namespace: AtomicU64,
    start_ticks: AtomicU64,
}

const NEW: u32 = 0;
const BUSY: u32 = 1;
const READY: u32 = 2;
const USELESS: u32 = 3;

static PAGE: AtomicPtr<Page> = AtomicPtr::new(core::ptr::null_mut());
static CONTROL: AtomicPtr<Control> = AtomicPtr::new(core::ptr::null_mut());
static OFF: AtomicU32 = AtomicU32::new(0);
static UNKNOWN: AtomicU32 = AtomicU32::new(control::PAUSED - 1);
/// Where the recording's generation stands: in the control page, once that is known.
static GENERATION: AtomicPtr<AtomicU32> = AtomicPtr::new((&raw const UNKNOWN).cast_mut());

/// The recording: 0 when nothing is to be recorded, which is known without looking further; with [`control::PAUSED`] when nothing is
/// now. Until the control page is known, a value that is neither.
#[inline(always)]
pub(crate) fn generation() -> u32 {
    // SAFETY: points to a static, or into the control page, which is never unmapped.
    unsafe { &*GENERATION.load(Ordering::Relaxed) }.load(Ordering::Relaxed)
}

/// Whether calls of `generation` are recorded.
#[inline(always)]
pub(crate) fn records(generation: u32) -> bool {
    // One comparison: 0 becomes the greatest number.
    generation.wrapping_sub(1) < control::PAUSED - 1
}

fn look_for_generation_at(place: &'static AtomicU32) {
    GENERATION.store(core::ptr::from_ref(place).cast_mut(), Ordering::Relaxed);
}

static VDSO: AtomicUsize = AtomicUsize::new(0);

/// A process that can be recorded.
#[derive(Clone, Copy)]
pub(crate) struct Process {
    pub(crate) page: &'static Page,
    pub(crate) control: &'static Control,
}

impl Page {
    /// The process id, or 0 in a child that has not noticed that it was forked.
    #[inline]
    pub(crate) fn token(&self) -> u64 {
        self.token.load(Ordering::Relaxed)
    }

    /// Every call must ask whether it is still in the same process.
    pub(crate) fn must_ask(&self) -> bool {
        self.ask.load(Ordering::Relaxed) != 0
    }
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.page.token() as u32
    }

    /// As the control page wants rings; `None` when it wants nonsense.
    pub(crate) fn layout(&self) -> Option<Layout> {
        Layout::new(self.control.capacity, self.control.op_slots)
    }

    pub(crate) fn counts_ticks(&self) -> bool {
        self.control.clock == Clock::Counter as u32
    }

    pub(crate) fn vdso(&self) -> usize {
        VDSO.load(Ordering::Relaxed)
    }

    pub(crate) fn owner(&self, tid: u32, created: u64) -> Owner {
        Owner {
            pid: self.pid(),
            tid,
            pid_namespace: self.page.pid_namespace.load(Ordering::Relaxed),
            start_ticks: self.page.start_ticks.load(Ordering::Relaxed),
            comm: sys::thread_name(),
            clock: self.control.clock,
            created,
        }
    }
}

/// How often another thread is given the CPU while it makes the process ready: half a second at least, on an idle CPU.
const PATIENCE: u32 = 1_000_000;

/// The process, made ready when it is not yet: at the first traced call, and at the first one after a fork. `forked` is called in
/// the second case, when nothing else of the new process runs here. `None` when there is no recorder.
///
/// The first calls of other threads wait until it is ready; a signal handler in the thread that makes it so must not come here.
pub(crate) fn ready(forked: impl FnOnce()) -> Option<Process> {
    let mut page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        page = make_page()?;
    }
    // SAFETY: the page is never unmapped, and zero is a valid value of all its fields.
    let page = unsafe { &*page };
    if page.must_ask() && page.token() != 0 && page.token() != u64::from(sys::pid()) {
        page.token.store(0, Ordering::Relaxed);
        page.state.store(NEW, Ordering::Relaxed);
    }
    match page
        .state
        .compare_exchange(NEW, BUSY, Ordering::Acquire, Ordering::Acquire)
    {
        Ok(_) => {
            let was_forked = !CONTROL.load(Ordering::Relaxed).is_null();
            if was_forked {
                forked();
            }
            let state = if prepare(page) { READY } else { USELESS };
            page.state.store(state, Ordering::Release);
        }
        Err(_) => {
            let mut patience = PATIENCE;
            while page.state.load(Ordering::Acquire) == BUSY && patience > 0 {
                sys::give_way();
                patience -= 1;
            }
        }
    }
    if page.state.load(Ordering::Acquire) != READY {
        return None;
    }
    // SAFETY: mapped by `prepare`, never unmapped.
    let control = unsafe { CONTROL.load(Ordering::Acquire).as_ref()? };
    Some(Process { page, control })
}

fn make_page() -> Option<*mut Page> {
    const LEN: usize = 65536;
    let at = sys::map_private(LEN).ok()?;
    let page = at as *mut Page;
    if sys::zero_in_children(at, LEN).is_err() {
        // SAFETY: just mapped, writable.
        unsafe { &*page }.ask.store(1, Ordering::Relaxed);
    }
    match PAGE.compare_exchange(
        core::ptr::null_mut(),
        page,
        Ordering::AcqRel,
        Ordering::Acquire,
    ) {
        Ok(_) => Some(page),
        Err(theirs) => {
            // SAFETY: nobody else has seen it.
            unsafe { sys::unmap(at, LEN) };
            Some(theirs)
        }
    }
}

/// Fills in `page` and maps the control page; `false` when there is no recorder, or none that can be understood.
fn prepare(page: &Page) -> bool {
    if CONTROL.load(Ordering::Relaxed).is_null() {
        let Some(control) = map_control() else {
            look_for_generation_at(&OFF);
            return false;
        };
        CONTROL.store(control, Ordering::Release);
        // SAFETY: just mapped, and never unmapped.
        look_for_generation_at(unsafe { &(*control).generation });
        VDSO.store(find_vdso_clock(), Ordering::Relaxed);
    }
    page.pid_namespace.store(
        sys::inode(c"/proc/self/ns/pid").unwrap_or(0),
        Ordering::Relaxed,
    );
    page.start_ticks
        .store(start_ticks().unwrap_or(0), Ordering::Relaxed);
    page.token.store(u64::from(sys::pid()), Ordering::Release);
    true
}

fn map_control() -> Option<*mut Control> {
    if !has_directory() {
        return None;
    }
    let path = Path::in_directory(control::FILE, None);
    let fd = Fd::read_write(path.as_c_str()).ok()?;
    if fd.size()? < control::BYTES as u64 {
        return None;
    }
    let control = fd.map(control::BYTES, false).ok()? as *mut Control;
    // SAFETY: the file has as many bytes, and every value of them is a valid `Control`.
    let c = unsafe { &*control };
    let understood = c.magic == control::MAGIC
        && Layout::new(c.capacity, c.op_slots).is_some()
        && (c.clock == Clock::Counter as u32 || c.clock == Clock::BootNanos as u32);
    understood.then_some(control)
}

/// Address of the kernel's `clock_gettime` that needs no system call, or 0.
fn find_vdso_clock() -> usize {
    const AT_SYSINFO_EHDR: u64 = 33;
    let mut bytes = [0; 1024];
    let len = sys::read_file(c"/proc/self/auxv", &mut bytes);
    let (words, _) = bytes[..len].as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    pairs
        .iter()
        .find(|pair| u64::from_le_bytes(pair[0]) == AT_SYSINFO_EHDR)
        // SAFETY: that entry says where the kernel mapped the object.
        .and_then(|pair| unsafe { Object::of_vdso(u64::from_le_bytes(pair[1]) as usize) })
        .and_then(|vdso| vdso.function(arch::VDSO_CLOCK))
        .unwrap_or(0)
}

/// Start of the process in clock ticks since boot: field 22 of its `stat`, the 20th after the name.
fn start_ticks() -> Option<u64> {
    let mut bytes = [0; 1024];
    let len = sys::read_file(c"/proc/self/stat", &mut bytes);
    let stat = &bytes[..len];
    let after = stat.iter().rposition(|&b| b == b')')? + 1;
    let field = stat[after..].split(|&b| b == b' ').nth(20)?;
    parse(field)
}

/// A decimal number, nothing else.
pub(crate) fn parse(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |n, &b| {
        n.checked_mul(10)?
            .checked_add(u64::from(b.is_ascii_digit().then(|| b - b'0')?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_this_process_and_the_kernels_clock_are_found() {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let after = stat.rsplit_once(')').unwrap().1;
        let field = after.split_whitespace().nth(19).unwrap();
        assert_eq!(start_ticks(), Some(field.parse().unwrap()));
        let vdso = find_vdso_clock();
        assert_ne!(vdso, 0);
        let (a, b, c) = (
            sys::boot_nanos(0),
            sys::boot_nanos(vdso),
            sys::boot_nanos(0),
        );
        assert!(a <= b && b <= c, "{a} {b} {c}");
    }

    #[test]
    fn paths_are_the_directory_a_name_and_a_number() {
        let path = Path::in_directory("ring.", Some(u64::MAX));
        assert_eq!(path.as_c_str(), c"/ring.18446744073709551615");
        let path = Path::in_directory("ring.", Some(0));
        assert_eq!(path.as_c_str(), c"/ring.0");
    }

    #[test]
    fn only_decimal_digits_are_a_number() {
        assert_eq!(parse(b"0"), Some(0));
        assert_eq!(parse(b"18446744073709551615"), Some(u64::MAX));
        for bad in [&b""[..], b"18446744073709551616", b"1 ", b"-1", b"x"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
