//! The shared file: devices with their engines and pages, and who uses them.
//!
//! A file of zeros is a valid, fresh machine, so there is no moment of initialisation to race for. Everything is an atomic, and no
//! word is a lock: a process can be killed at any instruction. What it held (a slot, pages, a place in an engine's queue) is found
//! to belong to a dead owner by whoever next needs it, and taken back.
//!
//! Layout: see `Shared`; all fields are native-endian atomics. The file is private to a user (mode 0600) unless made by hand.
#![expect(
    unsafe_code,
    reason = "one mapping of shared memory, viewed as a struct of atomics"
)]

use std::{
    fmt, fs,
    io::{self, Read as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::*},
};

use crate::{Config, wait::boot_ns};

/// Devices in one file, at most.
pub const MAX_DEVICES: usize = 8;
/// Processes that use one file at a time, at most.
pub const MAX_PROCESSES: usize = 64;
/// Pages of a device, at most: 32 GiB.
pub const MAX_PAGES: usize = 16384;
/// What device memory is given out in. Real drivers map memory in pages of 2 MiB as well.
pub const PAGE_BYTES: usize = 2 << 20;

/// Busy time is kept in pieces of this length, which is also the finest that utilisation can be asked for.
pub const BUCKET_NANOS: u64 = 100_000_000;
/// How much of the future and the past together has pieces: 6.4 s.
const BUCKETS: usize = 64;
const THROTTLES: usize = 8;
const MAGIC: u64 = u64::from_le_bytes(*b"simgpu\0\x01");

/// What works at the same time on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Compute = 0,
    HostToDevice = 1,
    DeviceToHost = 2,
}
const ENGINES: usize = 3;

#[repr(C)]
struct Shared {
    /// 0 in a fresh file, else [`MAGIC`], which names the layout too.
    magic: AtomicU64,
    /// 0 until the first process decides.
    device_count: AtomicU32,
    reserved: AtomicU32,
    devices: [DeviceState; MAX_DEVICES],
    processes: [ProcessSlot; MAX_PROCESSES],
}

#[repr(C)]
struct DeviceState {
    /// 0 until the first process decides.
    page_count: AtomicU32,
    reserved: AtomicU32,
    /// When each engine has done all that was queued. BOOTTIME ns.
    busy_until: [AtomicU64; ENGINES],
    throttles: [ThrottleSlot; THROTTLES],
    /// For each page 0, or the number of its owner's slot plus 1.
    pages: [AtomicU16; MAX_PAGES],
}

#[repr(C)]
struct ThrottleSlot {
    /// BOOTTIME ns; written last. A window that is over is a free slot.
    start: AtomicU64,
    end: AtomicU64,
    factor_milli: AtomicU64,
    reasons: AtomicU64,
}

#[repr(C)]
struct ProcessSlot {
    /// 0: free. Low half: a pid. High half: [`LIVE`], or [`RECLAIMING`] by that pid.
    owner: AtomicU64,
    /// The owner's start time as `/proc/PID/stat` has it; 0 when not known yet.
    start_ticks: AtomicU64,
    uses: [ProcessUse; MAX_DEVICES],
}
const LIVE: u64 = 1 << 32;
const RECLAIMING: u64 = 2 << 32;

#[repr(C)]
struct ProcessUse {
    /// When each engine has done what this process queued. BOOTTIME ns.
    busy_until: [AtomicU64; ENGINES],
    /// Busy time of compute, and of both copy engines. Each word: number of the piece (high half), busy ns in it (low half).
    busy: [[AtomicU64; BUCKETS]; 2],
}

/// Why the shared file cannot be used.
#[derive(Debug)]
pub enum OpenError {
    Io(PathBuf, io::Error),
    /// The file holds something else, or another version's layout.
    Foreign(PathBuf),
    /// All slots belong to living processes.
    TooManyProcesses(PathBuf),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Foreign(path) => write!(
                f,
                "{}: not a simgpu device of this version (remove it, or set SIMGPU_SHM to another file)",
                path.display()
            ),
            Self::TooManyProcesses(path) => write!(
                f,
                "{}: {MAX_PROCESSES} processes use it already",
                path.display()
            ),
        }
    }
}

impl std::error::Error for OpenError {}

/// Where a piece of work lies in time. BOOTTIME ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub end: u64,
}

/// A process's share of a device, as NVML tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessUsage {
    pub pid: u32,
    pub memory_bytes: u64,
    /// Busy time of the compute engine within the window that was asked for.
    pub compute_nanos: u64,
    /// The same of the copy engines.
    pub copy_nanos: u64,
}

/// Clock and reasons at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottleState {
    /// How much longer kernels take, in thousandths; 1000 when nothing slows them.
    pub factor_milli: u64,
    /// NVML's mask; 0 when nothing slows them.
    pub reasons: u64,
}

/// The machine, as one process sees it. Dropping it gives everything back that its slot holds.
pub struct Machine {
    shared: &'static Shared,
    /// `None` for an onlooker (NVML).
    slot: Option<usize>,
    /// When dead peers were last looked for. BOOTTIME ns.
    last_sweep: AtomicU64,
    /// Devices, and pages of each, while no process has decided.
    undecided: (usize, usize),
}

/// How often a process that waits for others looks whether they live.
const SWEEP_EVERY_NANOS: u64 = 50_000_000;

impl Machine {
    /// Opens the file of `config`, making it when absent, and takes a slot for the calling process.
    ///
    /// # Errors
    /// [`OpenError`]. A full `/dev/shm` is an `Io` error here, never a SIGBUS later: the file is allocated before it is mapped.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let shared = map(&config.shm)?;
        adopt(&shared.device_count, config.devices as u32);
        for device in &shared.devices {
            adopt(&device.page_count, config.memory_pages as u32);
        }
        let mut machine = Self {
            shared,
            slot: None,
            last_sweep: AtomicU64::new(0),
            undecided: (config.devices, config.memory_pages),
        };
        machine.slot = machine.take_slot();
        if machine.slot.is_none() {
            return Err(OpenError::TooManyProcesses(config.shm.clone()));
        }
        Ok(machine)
    }

    /// Opens the file to look at it: takes no slot, so it may neither allocate nor queue, and decides nothing.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn observe(config: &Config) -> Result<Self, OpenError> {
        Ok(Self {
            shared: map(&config.shm)?,
            slot: None,
            last_sweep: AtomicU64::new(0),
            undecided: (config.devices, config.memory_pages),
        })
    }

    /// Number of devices, 1 to [`MAX_DEVICES`].
    #[must_use]
    pub fn device_count(&self) -> usize {
        match self.shared.device_count.load(Relaxed) as usize {
            0 => self.undecided.0,
            decided => decided.min(MAX_DEVICES),
        }
    }

    /// Memory of `device` in all.
    #[must_use]
    pub fn total_bytes(&self, device: usize) -> u64 {
        (self.page_count(device) * PAGE_BYTES) as u64
    }

    /// Memory of `device` that nobody holds, after what dead processes held was taken back.
    #[must_use]
    pub fn free_bytes(&self, device: usize) -> u64 {
        self.sweep(None);
        let free = self
            .pages(device)
            .iter()
            .filter(|page| page.load(Relaxed) == 0)
            .count();
        (free * PAGE_BYTES) as u64
    }

    fn page_count(&self, device: usize) -> usize {
        match self.shared.devices[device].page_count.load(Relaxed) as usize {
            0 => self.undecided.1,
            decided => decided.min(MAX_PAGES),
        }
    }

    fn pages(&self, device: usize) -> &[AtomicU16] {
        &self.shared.devices[device].pages[..self.page_count(device)]
    }

    /// The slot of the process, for calls that need one.
    fn own_slot(&self) -> usize {
        self.slot.expect("an onlooker queues and allocates nothing")
    }

    // ---- Engines ----

    /// Queues `duration` ns of work that may start at `ready` (BOOTTIME ns; in the past means now), behind all that the engine
    /// has. Compute takes longer while the device is throttled. About 100 ns; 20 µs more when it looks for dead peers.
    pub fn submit(&self, device: usize, engine: Engine, ready: u64, duration: u64) -> Span {
        let slot = self.own_slot();
        let own = &self.shared.processes[slot].uses[device];
        let word = &self.shared.devices[device].busy_until[engine as usize];
        let ready = ready.max(boot_ns());
        let mut busy_until = word.load(Acquire);
        if busy_until > ready.max(own.busy_until[engine as usize].load(Relaxed)) {
            // Someone else is ahead of us: if it is dead, it is not.
            let long_wait = busy_until - ready > SWEEP_EVERY_NANOS;
            let due = self.last_sweep.load(Relaxed) + SWEEP_EVERY_NANOS < ready;
            if long_wait || due {
                self.last_sweep.store(ready, Relaxed);
                self.sweep(Some(slot));
                busy_until = word.load(Acquire);
            }
        }
        let span = loop {
            let start = ready.max(busy_until);
            let length = match engine {
                Engine::Compute => {
                    duration * self.throttle(device, start).factor_milli.max(1000) / 1000
                }
                _ => duration,
            };
            let end = start + length;
            match word.compare_exchange_weak(busy_until, end, AcqRel, Acquire) {
                Ok(_) => break Span { start, end },
                Err(now) => busy_until = now,
            }
        };
        own.busy_until[engine as usize].store(span.end, Release);
        let kind = usize::from(engine != Engine::Compute);
        add_busy(&own.busy[kind], span);
        span
    }

    /// Busy time that process slots have on `device` within `[from, to)`, BOOTTIME ns, to the piece ([`BUCKET_NANOS`]): the
    /// living ones only, sorted by slot. Reads at most the last 6.4 s.
    #[must_use]
    pub fn usage(&self, device: usize, from: u64, to: u64) -> Vec<ProcessUsage> {
        self.sweep(self.slot);
        let mut held = [0u64; MAX_PROCESSES];
        for page in self.pages(device) {
            if let Some(slot) = usize::from(page.load(Relaxed)).checked_sub(1) {
                held[slot % MAX_PROCESSES] += PAGE_BYTES as u64;
            }
        }
        let processes = self.shared.processes.iter().zip(held);
        processes
            .filter_map(|(process, memory_bytes)| {
                let owner = process.owner.load(Acquire);
                (owner & !0xffff_ffff == LIVE).then(|| ProcessUsage {
                    pid: owner as u32,
                    memory_bytes,
                    compute_nanos: read_busy(&process.uses[device].busy[0], from, to),
                    copy_nanos: read_busy(&process.uses[device].busy[1], from, to),
                })
            })
            .collect()
    }

    // ---- Throttling ----

    /// Adds a window of throttling to `device`, BOOTTIME ns. Returns false when all places are taken by windows to come.
    pub fn add_throttle(&self, device: usize, window: Span, state: ThrottleState) -> bool {
        let now = boot_ns();
        for slot in &self.shared.devices[device].throttles {
            let (start, end) = (slot.start.load(Acquire), slot.end.load(Acquire));
            // `u64::MAX` marks a slot that is being written; a writer that dies there loses one place of eight.
            if (start == 0 || end < now)
                && start != u64::MAX
                && slot
                    .start
                    .compare_exchange(start, u64::MAX, AcqRel, Acquire)
                    .is_ok()
            {
                slot.end.store(window.end, Relaxed);
                slot.factor_milli.store(state.factor_milli, Relaxed);
                slot.reasons.store(state.reasons, Relaxed);
                slot.start.store(window.start.max(1), Release);
                return true;
            }
        }
        false
    }

    /// The throttling of `device` at `at`, BOOTTIME ns: the strongest factor of all windows, all their reasons.
    #[must_use]
    pub fn throttle(&self, device: usize, at: u64) -> ThrottleState {
        let mut state = ThrottleState {
            factor_milli: 1000,
            reasons: 0,
        };
        for slot in &self.shared.devices[device].throttles {
            let start = slot.start.load(Acquire);
            if start != 0 && start <= at && at < slot.end.load(Relaxed) {
                state.factor_milli = state.factor_milli.max(slot.factor_milli.load(Relaxed));
                state.reasons |= slot.reasons.load(Relaxed);
            }
        }
        state
    }

    // ---- Memory ----

    /// Takes `count` pages in a row; the first one's number, or `None` when there is no such row: out of memory, be it only by
    /// fragmentation. A few µs.
    pub fn take_run(&self, device: usize, count: usize) -> Option<usize> {
        self.find_run(device, count).or_else(|| {
            self.sweep(self.slot);
            self.find_run(device, count)
        })
    }

    fn find_run(&self, device: usize, count: usize) -> Option<usize> {
        let pages = self.pages(device);
        let mark = self.own_slot() as u16 + 1;
        if count == 0 || count > pages.len() {
            return None;
        }
        let mut first = 0;
        'search: while first + count <= pages.len() {
            for offset in (0..count).rev() {
                if pages[first + offset].load(Relaxed) != 0 {
                    first += offset + 1;
                    continue 'search;
                }
            }
            for offset in 0..count {
                let page = &pages[first + offset];
                if page.compare_exchange(0, mark, AcqRel, Relaxed).is_err() {
                    // Another process was quicker: give back what we have of this run.
                    self.give_back(device, first, offset);
                    first += offset + 1;
                    continue 'search;
                }
            }
            return Some(first);
        }
        None
    }

    /// Takes any `count` pages, in a row or not, as expandable segments do; `None` when there are fewer.
    pub fn take_any(&self, device: usize, count: usize) -> Option<Vec<usize>> {
        self.sweep(self.slot);
        let mark = self.own_slot() as u16 + 1;
        let mut taken = Vec::new();
        for (number, page) in self.pages(device).iter().enumerate() {
            if taken.len() == count {
                break;
            }
            if page.compare_exchange(0, mark, AcqRel, Relaxed).is_ok() {
                taken.push(number);
            }
        }
        if taken.len() == count {
            return Some(taken);
        }
        for number in taken {
            self.give_back(device, number, 1);
        }
        None
    }

    /// Gives back pages that this process holds.
    pub fn give_back(&self, device: usize, first: usize, count: usize) {
        for page in &self.pages(device)[first..first + count] {
            page.store(0, Release);
        }
    }

    // ---- Processes ----

    fn take_slot(&self) -> Option<usize> {
        let pid = std::process::id();
        let mine = LIVE | u64::from(pid);
        let claim = || {
            self.shared.processes.iter().position(|process| {
                process
                    .owner
                    .compare_exchange(0, mine, AcqRel, Relaxed)
                    .is_ok()
            })
        };
        let slot = claim().or_else(|| {
            self.sweep(None);
            claim()
        })?;
        let ticks = process_start_ticks(pid).unwrap_or(0);
        self.shared.processes[slot]
            .start_ticks
            .store(ticks, Release);
        Some(slot)
    }

    /// Takes back what dead processes held. Reads one file of `/proc` for each process but `except`: 10 to 20 µs each.
    fn sweep(&self, except: Option<usize>) {
        for (number, process) in self.shared.processes.iter().enumerate() {
            let owner = process.owner.load(Acquire);
            if owner == 0 || Some(number) == except || Some(number) == self.slot {
                continue;
            }
            let ticks = match owner & !0xffff_ffff {
                LIVE => process.start_ticks.load(Acquire),
                _ => 0,
            };
            if !is_alive(owner as u32, ticks) {
                self.reclaim(number, owner);
            }
        }
    }

    /// Frees slot `number`, whose `owner` is dead. If we die on the way, the next one does it again: every part may be repeated.
    fn reclaim(&self, number: usize, owner: u64) {
        let process = &self.shared.processes[number];
        let claim = RECLAIMING | u64::from(std::process::id());
        if process
            .owner
            .compare_exchange(owner, claim, AcqRel, Relaxed)
            .is_err()
        {
            return;
        }
        process.start_ticks.store(0, Relaxed);
        let mark = number as u16 + 1;
        for (index, device) in self.shared.devices.iter().enumerate() {
            for page in &device.pages {
                if page.load(Relaxed) == mark {
                    // Only we may free it, but a reclaimer before us may have died between two pages.
                    let _ = page.compare_exchange(mark, 0, AcqRel, Relaxed);
                }
            }
            for engine in 0..ENGINES {
                process.uses[index].busy_until[engine].store(0, Relaxed);
                let word = &device.busy_until[engine];
                let seen = word.load(Acquire);
                let others = self.shared.processes.iter();
                let rest = others
                    .map(|p| p.uses[index].busy_until[engine].load(Acquire))
                    .max();
                if let Some(rest) = rest.filter(|rest| *rest < seen) {
                    // A failure means that someone queued work meanwhile, behind the dead one's; the next sweep cannot undo that.
                    let _ = word.compare_exchange(seen, rest, AcqRel, Relaxed);
                }
            }
            for piece in process.uses[index].busy.iter().flatten() {
                piece.store(0, Relaxed);
            }
        }
        process.owner.store(0, Release);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.reclaim(slot, LIVE | u64::from(std::process::id()));
        }
    }
}

/// Sets a word that nobody has set yet.
fn adopt(word: &AtomicU32, value: u32) {
    // A failure means that another process decided before.
    let _ = word.compare_exchange(0, value, AcqRel, Acquire);
}

fn map(path: &Path) -> Result<&'static Shared, OpenError> {
    let fail = |error| OpenError::Io(path.to_owned(), error);
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
        .open(path)
        .map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    let size = size_of::<Shared>();
    if !meta.is_file() || (meta.len() != 0 && meta.len() != size as u64) {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    // SAFETY: a valid descriptor; posix_fallocate touches no memory of ours.
    let error = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, size as libc::off_t) };
    if error != 0 {
        return Err(fail(io::Error::from_raw_os_error(error)));
    }
    // SAFETY: a fresh shared mapping of `size` bytes of a file that has them; nothing else uses the addresses.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(fail(io::Error::last_os_error()));
    }
    // SAFETY: the mapping is page-aligned, has the struct's size, is never unmapped, and holds atomics only, for which every
    // pattern of bits is valid; other processes change it through atomics too.
    let shared = unsafe { &*address.cast::<Shared>() };
    match shared.magic.compare_exchange(0, MAGIC, AcqRel, Acquire) {
        Ok(_) | Err(MAGIC) => Ok(shared),
        Err(_) => Err(OpenError::Foreign(path.to_owned())),
    }
}

fn add_busy(pieces: &[AtomicU64; BUCKETS], span: Span) {
    let last_kept = span.start / BUCKET_NANOS + BUCKETS as u64 - 11;
    let mut from = span.start;
    while from < span.end && from / BUCKET_NANOS <= last_kept {
        let number = from / BUCKET_NANOS;
        let to = span.end.min((number + 1) * BUCKET_NANOS);
        let piece = &pieces[number as usize % BUCKETS];
        let tag = (number & 0xffff_ffff) << 32;
        // Only this process writes here, so a store would do but for its own threads.
        let add = |old: u64| {
            let base = if old & !0xffff_ffff == tag { old } else { tag };
            Some(base + (to - from))
        };
        let _ = piece.fetch_update(AcqRel, Acquire, add);
        from = to;
    }
}

fn read_busy(pieces: &[AtomicU64; BUCKETS], from: u64, to: u64) -> u64 {
    let first = from.div_ceil(BUCKET_NANOS);
    let end = (to / BUCKET_NANOS).min(first + BUCKETS as u64);
    (first..end)
        .map(|number| {
            let word = pieces[number as usize % BUCKETS].load(Acquire);
            if word >> 32 == number & 0xffff_ffff {
                word & 0xffff_ffff
            } else {
                0
            }
        })
        .sum()
}

pub(crate) fn effective_uid() -> u32 {
    // SAFETY: no arguments, no memory, cannot fail.
    unsafe { libc::geteuid() }
}

/// A process is alive when `/proc` has it, not as a zombie, with the start time that was noted (0: not noted, any will do).
fn is_alive(pid: u32, start_ticks: u64) -> bool {
    process_start_ticks(pid).is_some_and(|ticks| start_ticks == 0 || ticks == start_ticks)
}

/// Field 22 of `/proc/PID/stat` (proc(5)); `None` when there is no such process, or only its zombie.
fn process_start_ticks(pid: u32) -> Option<u64> {
    let mut text = [0u8; 1024];
    let mut file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let length = file.read(&mut text).ok()?;
    // The name in brackets may hold anything, so count from the last bracket: state is field 3.
    let text = &text[..length];
    let after = text.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = text[after..]
        .split(|byte| *byte == b' ')
        .filter(|f| !f.is_empty());
    let state = fields.next()?;
    if state == b"Z" || state == b"X" {
        return None;
    }
    std::str::from_utf8(fields.nth(18)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fresh(Config);

    impl Fresh {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("simgpu-machine-{name}-{}", std::process::id()));
            let _ = fs::remove_file(&path);
            let path = path.to_str().unwrap().to_owned();
            let config = Config::from_lookup(|v| match v {
                "SIMGPU_SHM" => Some(path.clone()),
                "SIMGPU_MEMORY_MIB" => Some("64".into()),
                "SIMGPU_DEVICES" => Some("2".into()),
                _ => None,
            });
            Self(config.unwrap())
        }
        fn open(&self) -> Machine {
            Machine::open(&self.0).unwrap()
        }
    }

    impl Drop for Fresh {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0.shm);
        }
    }

    const MS: u64 = 1_000_000;

    #[test]
    fn two_users_of_one_engine_follow_each_other() {
        let fresh = Fresh::new("contend");
        let (a, b) = (fresh.open(), fresh.open());
        let first = a.submit(0, Engine::Compute, 0, 3_600_000 * MS);
        let second = b.submit(0, Engine::Compute, 0, 10 * MS);
        assert_eq!(second.start, first.end);
        assert_eq!(second.end - second.start, 10 * MS);
    }

    #[test]
    fn engines_and_devices_work_at_the_same_time() {
        let fresh = Fresh::new("parallel");
        let a = fresh.open();
        let kernel = a.submit(0, Engine::Compute, 0, 3_600_000 * MS);
        for span in [
            a.submit(0, Engine::HostToDevice, 0, MS),
            a.submit(0, Engine::DeviceToHost, 0, MS),
            a.submit(1, Engine::Compute, 0, MS),
        ] {
            assert!(span.end < kernel.end);
        }
    }

    #[test]
    fn work_does_not_start_before_it_is_ready() {
        let fresh = Fresh::new("ready");
        let ready = boot_ns() + 50 * MS;
        let span = fresh.open().submit(0, Engine::Compute, ready, MS);
        assert_eq!((span.start, span.end), (ready, ready + MS));
    }

    #[test]
    fn a_killed_process_gives_back_its_memory_and_its_place_in_the_queue() {
        let fresh = Fresh::new("killed");
        let survivor = fresh.open();
        let all = survivor.free_bytes(0);
        // SAFETY: the child uses only the machine (no locks of other threads but the allocator's, which glibc handles), and ends
        // by a signal.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let machine = fresh.open();
            machine.take_run(0, 8);
            machine.submit(0, Engine::Compute, 0, 3600 * 1000 * MS);
            // SAFETY: plain system calls.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        let mut status = 0;
        // WNOWAIT: it stays a zombie, as under a parent that never reaps.
        // SAFETY: `info` is plain data for the kernel to fill.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(
                libc::P_PID,
                child as libc::id_t,
                &mut info,
                libc::WEXITED | libc::WNOWAIT,
            );
        }
        let held = survivor.pages(0).iter().filter(|p| p.load(Relaxed) != 0);
        assert_eq!(held.count(), 8, "the child took its pages");
        let before = boot_ns();
        let span = survivor.submit(0, Engine::Compute, 0, MS);
        assert!(
            span.end - before < 60_000 * MS,
            "an hour of work of the dead is in the way"
        );
        assert_eq!(survivor.free_bytes(0), all);
        assert_eq!(survivor.usage(0, 0, 1).len(), 1);
        // SAFETY: our own child, and a valid place for its status.
        unsafe { libc::waitpid(child, &mut status, 0) };
        assert!(libc::WIFSIGNALED(status));
    }

    #[test]
    fn memory_runs_out_by_amount_and_by_fragmentation() {
        let fresh = Fresh::new("memory");
        let machine = fresh.open();
        let runs: Vec<usize> = (0..8).map(|_| machine.take_run(0, 4).unwrap()).collect();
        assert_eq!(machine.free_bytes(0), 0);
        assert_eq!(machine.take_run(0, 1), None);
        for run in runs.iter().step_by(2) {
            machine.give_back(0, *run, 4);
        }
        assert_eq!(machine.free_bytes(0), 16 * PAGE_BYTES as u64);
        assert_eq!(
            machine.take_run(0, 5),
            None,
            "16 pages are free, but never 5 in a row"
        );
        assert_eq!(machine.take_any(0, 16).map(|pages| pages.len()), Some(16));
        assert_eq!(machine.take_any(0, 1), None);
    }

    #[test]
    fn closing_gives_everything_back() {
        let fresh = Fresh::new("close");
        let onlooker = Machine::observe(&fresh.0).unwrap();
        let machine = fresh.open();
        machine.take_run(1, 3);
        assert_eq!(
            onlooker.usage(1, 0, 1)[0].memory_bytes,
            3 * PAGE_BYTES as u64
        );
        drop(machine);
        assert_eq!(onlooker.usage(1, 0, 1), []);
        assert_eq!(onlooker.free_bytes(1), onlooker.total_bytes(1));
    }

    #[test]
    fn busy_time_is_told_per_process_and_by_window() {
        let fresh = Fresh::new("busy");
        let (a, b) = (fresh.open(), fresh.open());
        let start = (boot_ns() / BUCKET_NANOS + 2) * BUCKET_NANOS;
        a.submit(0, Engine::Compute, start, 150 * MS);
        b.submit(0, Engine::Compute, start, 100 * MS);
        let busy = |from: u64, to: u64| -> Vec<u64> {
            let usage = a.usage(0, start + from * BUCKET_NANOS, start + to * BUCKET_NANOS);
            usage.iter().map(|u| u.compute_nanos / MS).collect()
        };
        assert_eq!(busy(0, 1), [100, 0]);
        assert_eq!(busy(1, 2), [50, 50]);
        assert_eq!(busy(0, 4), [150, 100]);
    }

    #[test]
    fn throttling_stretches_kernels_in_its_window_only() {
        let fresh = Fresh::new("throttle");
        let machine = fresh.open();
        let start = boot_ns() + 1000 * MS;
        let window = Span {
            start,
            end: start + 100 * MS,
        };
        let state = ThrottleState {
            factor_milli: 2500,
            reasons: 0x40,
        };
        assert!(machine.add_throttle(0, window, state));
        let before = machine.submit(0, Engine::Compute, 0, MS);
        let inside = machine.submit(0, Engine::Compute, start, 4 * MS);
        let after = machine.submit(0, Engine::Compute, start + 100 * MS, MS);
        let lengths = [before, inside, after].map(|span| span.end - span.start);
        assert_eq!(lengths, [MS, 10 * MS, MS]);
        assert_eq!(machine.throttle(0, start), state);
        assert_eq!(machine.throttle(1, start).reasons, 0);
    }

    #[test]
    fn a_file_with_other_content_is_refused_and_left_alone() {
        let fresh = Fresh::new("foreign");
        fs::write(&fresh.0.shm, b"something dear").unwrap();
        assert!(matches!(
            Machine::open(&fresh.0),
            Err(OpenError::Foreign(_))
        ));
        assert_eq!(fs::read(&fresh.0.shm).unwrap(), b"something dear");
    }

    #[test]
    fn the_first_process_decides_the_size_for_all() {
        let fresh = Fresh::new("first");
        let _first = fresh.open();
        let mut other = fresh.0.clone();
        (other.devices, other.memory_pages) = (5, 100);
        let second = Machine::open(&other).unwrap();
        assert_eq!(second.device_count(), 2);
        assert_eq!(second.total_bytes(0), 64 << 20);
    }

    #[test]
    fn an_onlooker_decides_nothing() {
        let fresh = Fresh::new("onlooker");
        let mut other = fresh.0.clone();
        (other.devices, other.memory_pages) = (5, 100);
        let onlooker = Machine::observe(&other).unwrap();
        assert_eq!(onlooker.device_count(), 5);
        let _first = fresh.open();
        assert_eq!(onlooker.device_count(), 2);
        assert_eq!(onlooker.total_bytes(0), 64 << 20);
    }

    #[test]
    fn processes_beyond_the_last_slot_are_told_so() {
        let fresh = Fresh::new("slots");
        let all: Vec<Machine> = (0..MAX_PROCESSES).map(|_| fresh.open()).collect();
        assert!(matches!(
            Machine::open(&fresh.0),
            Err(OpenError::TooManyProcesses(_))
        ));
        drop(all);
        assert!(Machine::open(&fresh.0).is_ok());
    }
}
