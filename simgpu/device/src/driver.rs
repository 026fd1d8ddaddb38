//! What one process has on the machine: contexts, streams, events, allocations, modules, graphs. The CUDA driver without its ABI.
//!
//! Every call is a plain method under one lock of the caller; what takes time is *returned* as a [`Wait`], and the caller waits
//! after it has let the lock go. Handles are numbers that are never used twice, so a stale one is an error and not a crash.
//!
//! Stream order is CUDA's: work of a stream runs in the order in which it is queued; the legacy default stream waits for all
//! blocking streams of its context and they for it; streams made with `NON_BLOCKING` stay out of that.
//!
//! Memory: an address is a number that no host memory has. Allocations up to [`SHADOW_BYTES`] hold real bytes, so that what a
//! program writes it reads again (a loss value, a flag); larger ones hold nothing, and a copy from them leaves its target as it was.
//!
//! Graphs: what a capture sees is kept in the order of the calls; a launch runs it in that order, one node after another.

mod graph;
mod memory;
mod module;
mod stream;

use std::collections::{BTreeMap, VecDeque};

use crate::{
    Config, Engine, Machine, Status, SyncMode,
    machine::{PAGE_BYTES, Span, ThrottleState},
    wait::boot_ns,
};

/// Allocations up to this size hold real bytes.
pub const SHADOW_BYTES: u64 = 64 << 10;
/// Where device 0's memory begins; each device has 1 TiB of addresses. Linux gives no process memory there by itself.
const DEVICE_BASE: u64 = 0x2000_0000_0000;
const DEVICE_STRIDE: u64 = 1 << 40;
/// Where addresses for `cuMemAddressReserve` begin: 16 TiB, above all devices and below what Linux gives to programs.
const RESERVE_BASE: u64 = DEVICE_BASE + 16 * DEVICE_STRIDE;
const RESERVE_END: u64 = RESERVE_BASE + (16 << 40);
/// Handles look like pointers, but are none.
const FIRST_HANDLE: u64 = 0x6b57_0000_0000;
/// Allocations up to here share pages with others.
const SMALL_BYTES: u64 = 1 << 20;
/// What small allocations are rounded up to: the alignment that CUDA promises at least (256), doubled as real drivers do.
const SMALL_ALIGN: u64 = 512;
/// Per-thread default streams that a context remembers before it forgets idle ones.
const PER_THREAD_STREAMS: usize = 1024;

pub type Result<T> = std::result::Result<T, Status>;
pub type Handle = u64;

/// What the calling thread has to do once it holds no lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// Time to spend on the CPU, ns.
    pub spend: u64,
    /// BOOTTIME ns to wait for; 0 for none.
    pub until: u64,
    /// How to wait.
    pub mode: Option<SyncMode>,
}

impl Wait {
    /// Waits and spends.
    pub fn run(self) {
        crate::wait::spend(self.spend);
        if self.until > 0 {
            crate::wait::wait_until(self.until, self.mode.unwrap_or(SyncMode::Spin));
        }
    }
}

/// How a stream is named in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRef {
    Legacy,
    /// The default stream of the thread with this number; numbers must not be used again.
    PerThread(u64),
    Created(Handle),
}

/// Work for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    pub engine: Engine,
    /// ns at full clock.
    pub duration: u64,
    /// Whether it counts for the launch queue.
    pub launch: bool,
}

struct Context {
    device: usize,
    flags: u32,
    legacy: Handle,
    per_thread: BTreeMap<u64, Handle>,
    /// The last end of all work on blocking streams, and of all work. BOOTTIME ns.
    blocking_tail: u64,
    tail: u64,
    /// Ends of outstanding launches, oldest first.
    launches: VecDeque<u64>,
    /// References of a primary context; 1 for others.
    references: u32,
    primary: bool,
}

struct Stream {
    context: Handle,
    kind: StreamKind,
    flags: u32,
    priority: i32,
    /// The end of its last work. BOOTTIME ns.
    tail: u64,
    /// The graph that records what is queued.
    capture: Option<Handle>,
    /// Whether that capture began here.
    capture_origin: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum StreamKind {
    Legacy,
    Blocking,
    NonBlocking,
}

struct Event {
    context: Handle,
    flags: u32,
    recorded_at: Option<u64>,
    capture: Option<Handle>,
}

/// `CU_EVENT_BLOCKING_SYNC`, `CU_EVENT_DISABLE_TIMING`.
const EVENT_BLOCKING: u32 = 1;
const EVENT_NO_TIMING: u32 = 2;
/// `CU_STREAM_NON_BLOCKING`.
const STREAM_NON_BLOCKING: u32 = 1;

enum Backing {
    /// Pages in a row, of its own.
    Pages { first: usize, count: usize },
    /// A part of a shared page.
    Small { page: usize },
    /// Host memory that the ABI layer mapped.
    Managed,
}

struct Allocation {
    device: usize,
    bytes: u64,
    backing: Backing,
    shadow: Option<Box<[u8]>>,
}

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Device memory: device, start and size of its allocation.
    Device {
        device: usize,
        base: u64,
        bytes: u64,
    },
    /// Managed memory: the same; the bytes are ordinary host memory.
    Managed {
        device: usize,
        base: u64,
        bytes: u64,
    },
    /// Page-locked host memory.
    Pinned {
        base: u64,
        bytes: u64,
    },
    Pageable,
}

impl Place {
    /// The device that holds it.
    #[must_use]
    pub fn device(self) -> Option<usize> {
        match self {
            Self::Device { device, .. } | Self::Managed { device, .. } => Some(device),
            _ => None,
        }
    }
    /// Whether a copy engine can read and write it while the host goes on.
    #[must_use]
    pub fn is_pageable(self) -> bool {
        self == Self::Pageable
    }
}

struct Module {
    context: Handle,
}

/// A kernel.
struct Function {
    module: Handle,
    name: String,
    /// Whether it was launched before; until then lazy loading has to load it.
    loaded: bool,
}

/// The kernel that takes its duration as its only parameter: an unsigned 64-bit number of ns.
pub const SLEEP_KERNEL: &str = "simgpu_sleep_ns";

struct Graph {
    nodes: Vec<Work>,
}

/// Physical memory for `cuMemMap`.
struct Physical {
    device: usize,
    pages: Vec<usize>,
    /// The handle's own, one for each mapping.
    references: u32,
}

/// One process's driver.
pub struct Driver {
    machine: Machine,
    config: Config,
    next_handle: Handle,
    primary: BTreeMap<usize, Handle>,
    contexts: BTreeMap<Handle, Context>,
    streams: BTreeMap<Handle, Stream>,
    events: BTreeMap<Handle, Event>,
    allocations: BTreeMap<u64, Allocation>,
    /// Pinned host memory: address to bytes.
    pinned: BTreeMap<u64, u64>,
    /// Free parts of pages that small allocations share: (device, page) to offset to bytes.
    small: BTreeMap<(usize, usize), BTreeMap<u64, u64>>,
    /// Blocks that `free_async` gave back and the next synchronisation returns to the device: address to the stream's point.
    pool: BTreeMap<u64, u64>,
    modules: BTreeMap<Handle, Module>,
    functions: BTreeMap<Handle, Function>,
    graphs: BTreeMap<Handle, Graph>,
    executables: BTreeMap<Handle, Graph>,
    physical: BTreeMap<Handle, Physical>,
    /// Reserved addresses: start to bytes.
    reserved: BTreeMap<u64, u64>,
    /// Mapped ones: start to (bytes, physical memory).
    mapped: BTreeMap<u64, (u64, Handle)>,
    next_reserved: u64,
    throttle_pending: bool,
    cold_module_pending: bool,
    cold_launches_left: u32,
}

impl Driver {
    /// A process's first use of the machine.
    #[must_use]
    pub fn new(machine: Machine, config: Config) -> Self {
        Self {
            throttle_pending: !config.throttle.is_empty(),
            cold_module_pending: true,
            cold_launches_left: 4,
            machine,
            config,
            next_handle: FIRST_HANDLE,
            primary: BTreeMap::new(),
            contexts: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            allocations: BTreeMap::new(),
            pinned: BTreeMap::new(),
            small: BTreeMap::new(),
            pool: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            graphs: BTreeMap::new(),
            executables: BTreeMap::new(),
            physical: BTreeMap::new(),
            reserved: BTreeMap::new(),
            mapped: BTreeMap::new(),
            next_reserved: RESERVE_BASE,
        }
    }

    /// The machine below.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    fn handle(&mut self) -> Handle {
        // Like pointers to small objects: even, and apart.
        self.next_handle += 0x40;
        self.next_handle
    }

    /// The primary context of `device`, made by its first reference. The wait is what initialisation takes (cold start).
    ///
    /// # Errors
    /// `InvalidDevice`.
    pub fn retain_primary(&mut self, device: usize) -> Result<(Handle, Wait)> {
        if let Some(handle) = self.primary.get(&device).copied() {
            let context = self
                .contexts
                .get_mut(&handle)
                .ok_or(Status::InvalidContext)?;
            let first = context.references == 0;
            context.references += 1;
            let wait = if first {
                self.cold(60)
            } else {
                Wait::default()
            };
            return Ok((handle, wait));
        }
        let (handle, wait) = self.create_context(device, 0, true)?;
        self.primary.insert(device, handle);
        Ok((handle, wait))
    }

    /// Lets one reference of a primary context go. It stays usable for the next one.
    ///
    /// # Errors
    /// `InvalidContext` when there is no reference.
    pub fn release_primary(&mut self, device: usize) -> Result<()> {
        let handle = *self.primary.get(&device).ok_or(Status::InvalidContext)?;
        let context = self
            .contexts
            .get_mut(&handle)
            .ok_or(Status::InvalidContext)?;
        context.references = context
            .references
            .checked_sub(1)
            .ok_or(Status::InvalidContext)?;
        if context.references == 0 {
            self.clear_context(handle);
        }
        Ok(())
    }

    /// Flags and whether anyone holds the primary context of `device`.
    ///
    /// # Errors
    /// `InvalidDevice`.
    pub fn primary_state(&self, device: usize) -> Result<(u32, bool)> {
        self.check_device(device)?;
        let context = self.primary.get(&device).and_then(|h| self.contexts.get(h));
        Ok(context.map_or((0, false), |c| (c.flags, c.references > 0)))
    }

    /// Sets the flags of the primary context of `device`, made when absent without a reference.
    ///
    /// # Errors
    /// `InvalidDevice`.
    pub fn set_primary_flags(&mut self, device: usize, flags: u32) -> Result<()> {
        if !self.primary.contains_key(&device) {
            let (handle, _) = self.create_context(device, flags, true)?;
            self.primary.insert(device, handle);
            if let Some(context) = self.contexts.get_mut(&handle) {
                context.references = 0;
            }
            return Ok(());
        }
        let handle = self.primary[&device];
        self.set_context_flags(handle, flags)
    }

    /// Sets the scheduling flags of a context.
    ///
    /// # Errors
    /// `InvalidContext`.
    pub fn set_context_flags(&mut self, context: Handle, flags: u32) -> Result<()> {
        let context = self
            .contexts
            .get_mut(&context)
            .ok_or(Status::InvalidContext)?;
        context.flags = flags;
        Ok(())
    }

    /// Frees all that the context of `device` has, as `cuDevicePrimaryCtxReset` does.
    ///
    /// # Errors
    /// `InvalidDevice`.
    pub fn reset_primary(&mut self, device: usize) -> Result<()> {
        self.check_device(device)?;
        if let Some(handle) = self.primary.get(&device).copied() {
            self.clear_context(handle);
        }
        Ok(())
    }

    /// A context beside the primary one.
    ///
    /// # Errors
    /// `InvalidDevice`.
    pub fn create_own_context(&mut self, device: usize, flags: u32) -> Result<(Handle, Wait)> {
        self.create_context(device, flags, false)
    }

    fn create_context(
        &mut self,
        device: usize,
        flags: u32,
        primary: bool,
    ) -> Result<(Handle, Wait)> {
        self.check_device(device)?;
        self.start_throttle();
        let handle = self.handle();
        let legacy = self.new_stream(handle, StreamKind::Legacy, 0, 0);
        let context = Context {
            device,
            flags,
            legacy,
            per_thread: BTreeMap::new(),
            blocking_tail: 0,
            tail: 0,
            launches: VecDeque::new(),
            references: 1,
            primary,
        };
        self.contexts.insert(handle, context);
        Ok((handle, self.cold(60)))
    }

    /// Ends a context that [`Self::create_own_context`] made.
    ///
    /// # Errors
    /// `InvalidContext`, also for a primary one.
    pub fn destroy_context(&mut self, handle: Handle) -> Result<()> {
        let context = self.contexts.get(&handle).ok_or(Status::InvalidContext)?;
        if context.primary {
            return Err(Status::InvalidContext);
        }
        self.clear_context(handle);
        let context = self
            .contexts
            .remove(&handle)
            .ok_or(Status::InvalidContext)?;
        self.streams.remove(&context.legacy);
        Ok(())
    }

    fn clear_context(&mut self, handle: Handle) {
        let Some(context) = self.contexts.get_mut(&handle) else {
            return;
        };
        let (device, legacy) = (context.device, context.legacy);
        context.per_thread.clear();
        self.streams
            .retain(|id, stream| stream.context != handle || *id == legacy);
        self.events.retain(|_, event| event.context != handle);
        let alone = self
            .contexts
            .iter()
            .all(|(other, c)| *other == handle || c.device != device || c.references == 0);
        if alone {
            let addresses: Vec<u64> = self
                .allocations
                .iter()
                .filter(|(_, a)| a.device == device && !matches!(a.backing, Backing::Managed))
                .map(|(address, _)| *address)
                .collect();
            for address in addresses {
                self.release(address);
            }
        }
    }

    /// The device of a context, and its flags.
    ///
    /// # Errors
    /// `InvalidContext`.
    pub fn context(&self, handle: Handle) -> Result<(usize, u32)> {
        let context = self.contexts.get(&handle).ok_or(Status::InvalidContext)?;
        Ok((context.device, context.flags))
    }

    /// Waits for all work of a context, and gives what `free_async` left back to the device.
    ///
    /// # Errors
    /// `InvalidContext`; `CaptureUnsupported` while one of its streams captures.
    pub fn synchronize_context(&mut self, handle: Handle) -> Result<Wait> {
        let until = self
            .contexts
            .get(&handle)
            .ok_or(Status::InvalidContext)?
            .tail;
        if self
            .streams
            .values()
            .any(|s| s.context == handle && s.capture.is_some())
        {
            return Err(Status::CaptureUnsupported);
        }
        self.trim_pool(until);
        Ok(self.wait(handle, until))
    }

    fn wait(&self, context: Handle, until: u64) -> Wait {
        // CU_CTX_SCHED_SPIN 1, YIELD 2, BLOCKING_SYNC 4; AUTO 0 spins while there are no more contexts than CPUs, so: spins.
        let flags = self.contexts.get(&context).map_or(0, |c| c.flags);
        let by_flags = match flags & 7 {
            2 => SyncMode::Yield,
            4 => SyncMode::Block,
            _ => SyncMode::Spin,
        };
        Wait {
            spend: 0,
            until,
            mode: Some(self.config.sync.unwrap_or(by_flags)),
        }
    }

    fn check_device(&self, device: usize) -> Result<()> {
        if device < self.machine.device_count() {
            Ok(())
        } else {
            Err(Status::InvalidDevice)
        }
    }

    fn cold(&self, percent: u64) -> Wait {
        Wait {
            spend: self.config.cold_start_nanos * percent / 100,
            ..Wait::default()
        }
    }

    fn start_throttle(&mut self) {
        if !std::mem::take(&mut self.throttle_pending) {
            return;
        }
        let now = boot_ns();
        for window in &self.config.throttle {
            let at = |secs: f64| now + (secs * 1e9) as u64;
            let span = Span {
                start: at(window.start_secs),
                end: at(window.end_secs),
            };
            let state = ThrottleState {
                factor_milli: window.factor_milli,
                reasons: window.reasons,
            };
            for device in 0..self.machine.device_count() {
                // Without a free place the window is not there; eight of them at once is more than a schedule may hold.
                self.machine.add_throttle(device, span, state);
            }
        }
    }
}

fn page_address(device: usize, page: usize) -> u64 {
    DEVICE_BASE + device as u64 * DEVICE_STRIDE + (page * PAGE_BYTES) as u64
}

fn done_by(end: u64) -> Result<()> {
    if end <= boot_ns() {
        Ok(())
    } else {
        Err(Status::NotReady)
    }
}

#[cfg(test)]
mod tests;
