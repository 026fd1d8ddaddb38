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
/// Where addresses for `cuMemAddressReserve` begin: 64 TiB, above all devices.
const RESERVE_BASE: u64 = DEVICE_BASE + 16 * DEVICE_STRIDE;
const RESERVE_END: u64 = RESERVE_BASE + (64 << 40);
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

    // ---- Contexts ----

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

    // ---- Streams ----

    fn new_stream(
        &mut self,
        context: Handle,
        kind: StreamKind,
        flags: u32,
        priority: i32,
    ) -> Handle {
        let handle = self.handle();
        let stream = Stream {
            context,
            kind,
            flags,
            priority,
            tail: 0,
            capture: None,
            capture_origin: false,
        };
        self.streams.insert(handle, stream);
        handle
    }

    /// A new stream. `flags`: bit 0 `NON_BLOCKING`. Lower priorities are more urgent; they are kept, and change nothing.
    ///
    /// # Errors
    /// `InvalidContext`; `InvalidValue` for other flags.
    pub fn create_stream(&mut self, context: Handle, flags: u32, priority: i32) -> Result<Handle> {
        self.context(context)?;
        let kind = match flags {
            0 => StreamKind::Blocking,
            STREAM_NON_BLOCKING => StreamKind::NonBlocking,
            _ => return Err(Status::InvalidValue),
        };
        Ok(self.new_stream(context, kind, flags, priority.clamp(-5, 0)))
    }

    /// Ends a stream. Its work goes on.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn destroy_stream(&mut self, handle: Handle) -> Result<()> {
        match self.streams.get(&handle) {
            Some(stream) if stream.kind != StreamKind::Legacy => {
                self.streams.remove(&handle);
                Ok(())
            }
            _ => Err(Status::InvalidHandle),
        }
    }

    fn resolve(&mut self, context: Handle, stream: StreamRef) -> Result<Handle> {
        match stream {
            StreamRef::Created(handle) if self.streams.contains_key(&handle) => Ok(handle),
            StreamRef::Created(_) => Err(Status::InvalidHandle),
            StreamRef::Legacy => Ok(self
                .contexts
                .get(&context)
                .ok_or(Status::InvalidContext)?
                .legacy),
            StreamRef::PerThread(thread) => {
                let owner = self.contexts.get(&context).ok_or(Status::InvalidContext)?;
                if let Some(handle) = owner.per_thread.get(&thread) {
                    return Ok(*handle);
                }
                let handle = self.new_stream(context, StreamKind::Blocking, 0, 0);
                let owner = self
                    .contexts
                    .get_mut(&context)
                    .ok_or(Status::InvalidContext)?;
                if owner.per_thread.len() >= PER_THREAD_STREAMS {
                    // Threads come and go; an idle stream is as good as a new one.
                    let (streams, now) = (&mut self.streams, boot_ns());
                    owner.per_thread.retain(|_, old| {
                        let busy = streams
                            .get(old)
                            .is_some_and(|s| s.tail > now || s.capture.is_some());
                        if !busy {
                            streams.remove(old);
                        }
                        busy
                    });
                }
                owner.per_thread.insert(thread, handle);
                Ok(handle)
            }
        }
    }

    /// Queues work. Inside a capture it becomes a node instead, and the span is empty.
    ///
    /// The wait is for room in the launch queue: a context may have `launch_depth` launches outstanding.
    ///
    /// # Errors
    /// `InvalidContext`, `InvalidHandle`.
    pub fn enqueue(
        &mut self,
        context: Handle,
        stream: StreamRef,
        work: Work,
    ) -> Result<(Span, Wait)> {
        let handle = self.resolve(context, stream)?;
        if let Some(graph) = self.streams[&handle].capture {
            let graph = self.graphs.get_mut(&graph).ok_or(Status::Unknown)?;
            graph.nodes.push(work);
            return Ok((Span { start: 0, end: 0 }, Wait::default()));
        }
        let context = self.streams[&handle].context;
        let span = self.run(handle, work);
        let mut until = 0;
        if work.launch {
            let depth = self.config.launch_depth;
            let owner = self
                .contexts
                .get_mut(&context)
                .ok_or(Status::InvalidContext)?;
            owner.launches.push_back(span.end);
            if owner.launches.len() > depth {
                until = owner.launches.pop_front().unwrap_or(0);
            }
        }
        let wait = Wait {
            until,
            ..self.wait(context, until)
        };
        Ok((span, wait))
    }

    fn run(&mut self, handle: Handle, work: Work) -> Span {
        let ready = self.ready_at(handle);
        let device = self
            .streams
            .get(&handle)
            .and_then(|s| self.contexts.get(&s.context))
            .map_or(0, |c| c.device);
        let span = self
            .machine
            .submit(device, work.engine, ready, work.duration);
        self.set_tail(handle, span.end);
        span
    }

    /// When the next work of a stream may start, for all that its order says.
    fn ready_at(&self, handle: Handle) -> u64 {
        let stream = &self.streams[&handle];
        let context = &self.contexts[&stream.context];
        match stream.kind {
            StreamKind::Legacy => stream.tail.max(context.blocking_tail),
            StreamKind::Blocking => stream.tail.max(self.streams[&context.legacy].tail),
            StreamKind::NonBlocking => stream.tail,
        }
    }

    fn set_tail(&mut self, handle: Handle, end: u64) {
        let Some(stream) = self.streams.get_mut(&handle) else {
            return;
        };
        stream.tail = stream.tail.max(end);
        let Some(context) = self.contexts.get_mut(&stream.context) else {
            return;
        };
        context.tail = context.tail.max(end);
        if stream.kind != StreamKind::NonBlocking {
            context.blocking_tail = context.blocking_tail.max(end);
        }
    }

    /// Waits for all that was queued on a stream (for the legacy stream: on all blocking ones).
    ///
    /// # Errors
    /// `InvalidContext`, `InvalidHandle`; `CaptureUnsupported` while it captures.
    pub fn synchronize_stream(&mut self, context: Handle, stream: StreamRef) -> Result<Wait> {
        let until = self.stream_end(context, stream)?;
        self.trim_pool(until);
        Ok(self.wait(context, until))
    }

    /// Whether all that was queued on a stream is done.
    ///
    /// # Errors
    /// `NotReady` when it is not; else as [`Self::synchronize_stream`].
    pub fn query_stream(&mut self, context: Handle, stream: StreamRef) -> Result<()> {
        done_by(self.stream_end(context, stream)?)
    }

    fn stream_end(&mut self, context: Handle, stream: StreamRef) -> Result<u64> {
        let handle = self.resolve(context, stream)?;
        let known = &self.streams[&handle];
        if known.capture.is_some() {
            return Err(Status::CaptureUnsupported);
        }
        // An empty stream is done, whatever the legacy stream does: only work waits for it.
        Ok(match known.kind {
            StreamKind::Legacy => self.ready_at(handle),
            _ => known.tail,
        })
    }

    /// Flags, priority, context, and a number that no other stream of the process has.
    ///
    /// # Errors
    /// `InvalidContext`, `InvalidHandle`.
    pub fn stream_info(
        &mut self,
        context: Handle,
        stream: StreamRef,
    ) -> Result<(u32, i32, Handle, u64)> {
        let handle = self.resolve(context, stream)?;
        let known = &self.streams[&handle];
        Ok((
            known.flags,
            known.priority,
            known.context,
            (handle - FIRST_HANDLE) / 0x40,
        ))
    }

    // ---- Events ----

    /// A new event. `flags`: bit 0 blocking wait, bit 1 no timing.
    ///
    /// # Errors
    /// `InvalidContext`; `InvalidValue` for unknown flags.
    pub fn create_event(&mut self, context: Handle, flags: u32) -> Result<Handle> {
        self.context(context)?;
        if flags & !7 != 0 {
            return Err(Status::InvalidValue);
        }
        let handle = self.handle();
        let event = Event {
            context,
            flags,
            recorded_at: None,
            capture: None,
        };
        self.events.insert(handle, event);
        Ok(handle)
    }

    /// Ends an event.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn destroy_event(&mut self, event: Handle) -> Result<()> {
        self.events
            .remove(&event)
            .map(drop)
            .ok_or(Status::InvalidHandle)
    }

    /// Marks a stream's present end in an event.
    ///
    /// # Errors
    /// `InvalidHandle`, `InvalidContext`.
    pub fn record_event(
        &mut self,
        context: Handle,
        event: Handle,
        stream: StreamRef,
    ) -> Result<()> {
        let handle = self.resolve(context, stream)?;
        let at = self.ready_at(handle).max(boot_ns());
        let capture = self.streams[&handle].capture;
        let event = self.events.get_mut(&event).ok_or(Status::InvalidHandle)?;
        event.capture = capture;
        if capture.is_none() {
            event.recorded_at = Some(at);
        }
        Ok(())
    }

    /// Lets what a stream gets from now on wait for an event. In a capture, the stream joins the event's.
    ///
    /// # Errors
    /// `InvalidHandle`, `InvalidContext`.
    pub fn stream_wait_event(
        &mut self,
        context: Handle,
        stream: StreamRef,
        event: Handle,
    ) -> Result<()> {
        let handle = self.resolve(context, stream)?;
        let event = self.events.get(&event).ok_or(Status::InvalidHandle)?;
        let (at, capture) = (event.recorded_at, event.capture);
        if let Some(graph) = capture {
            if let Some(stream) = self.streams.get_mut(&handle) {
                stream.capture = Some(graph);
            }
        } else if let Some(at) = at {
            self.set_tail(handle, at);
        }
        Ok(())
    }

    /// Whether an event's work is done; one that was never recorded is.
    ///
    /// # Errors
    /// `NotReady`; `InvalidHandle`.
    pub fn query_event(&self, event: Handle) -> Result<()> {
        let event = self.events.get(&event).ok_or(Status::InvalidHandle)?;
        done_by(event.recorded_at.unwrap_or(0))
    }

    /// Waits for an event.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn synchronize_event(&mut self, event: Handle) -> Result<Wait> {
        let known = self.events.get(&event).ok_or(Status::InvalidHandle)?;
        let (context, blocking) = (known.context, known.flags & EVENT_BLOCKING != 0);
        let until = known.recorded_at.unwrap_or(0);
        self.trim_pool(until);
        let mut wait = self.wait(context, until);
        if blocking && self.config.sync.is_none() {
            wait.mode = Some(SyncMode::Block);
        }
        Ok(wait)
    }

    /// Milliseconds from one event to another.
    ///
    /// # Errors
    /// `InvalidHandle` when one is unknown, never recorded, or has no timing; `NotReady` when one is not done.
    pub fn elapsed_ms(&self, from: Handle, to: Handle) -> Result<f32> {
        let at = |handle| {
            let event: &Event = self.events.get(&handle).ok_or(Status::InvalidHandle)?;
            if event.flags & EVENT_NO_TIMING != 0 {
                return Err(Status::InvalidHandle);
            }
            event.recorded_at.ok_or(Status::InvalidHandle)
        };
        let (from, to) = (at(from)?, at(to)?);
        done_by(from.max(to))?;
        Ok((to as f64 - from as f64) as f32 / 1e6)
    }

    // ---- Modules and kernels ----

    /// A module from any image: what is in it is not looked at.
    ///
    /// # Errors
    /// `InvalidContext`.
    pub fn load_module(&mut self, context: Handle) -> Result<(Handle, Wait)> {
        self.context(context)?;
        let handle = self.handle();
        self.modules.insert(handle, Module { context });
        let cold = std::mem::take(&mut self.cold_module_pending);
        Ok((handle, self.cold(if cold { 20 } else { 0 })))
    }

    /// Ends a module and its functions.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn unload_module(&mut self, module: Handle) -> Result<()> {
        self.modules.remove(&module).ok_or(Status::InvalidHandle)?;
        self.functions
            .retain(|_, function| function.module != module);
        Ok(())
    }

    /// The function of this name in a module. Every name but the empty one is there.
    ///
    /// # Errors
    /// `InvalidHandle`, `NotFound`.
    pub fn function(&mut self, module: Handle, name: &str) -> Result<Handle> {
        if !self.modules.contains_key(&module) {
            return Err(Status::InvalidHandle);
        }
        if name.is_empty() {
            return Err(Status::NotFound);
        }
        let known = self
            .functions
            .iter()
            .find(|(_, f)| f.module == module && f.name == name);
        if let Some((handle, _)) = known {
            return Ok(*handle);
        }
        let handle = self.handle();
        let function = Function {
            module,
            name: name.to_owned(),
            loaded: false,
        };
        self.functions.insert(handle, function);
        Ok(handle)
    }

    /// A function's module and name.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn function_info(&self, function: Handle) -> Result<(Handle, &str)> {
        let function = self.functions.get(&function).ok_or(Status::InvalidHandle)?;
        Ok((function.module, &function.name))
    }

    /// The context that a module was loaded in.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn module_context(&self, module: Handle) -> Result<Handle> {
        let module = self.modules.get(&module).ok_or(Status::InvalidHandle)?;
        Ok(module.context)
    }

    /// Launches a kernel of `blocks` blocks. `sleep_nanos` is the parameter of [`SLEEP_KERNEL`], for that one.
    ///
    /// It takes `SIMGPU_KERNEL_NS + blocks × SIMGPU_NS_PER_BLOCK`; [`SLEEP_KERNEL`] takes what its parameter says.
    ///
    /// # Errors
    /// `InvalidHandle`, `InvalidContext`; `InvalidValue` for [`SLEEP_KERNEL`] without its parameter.
    pub fn launch(
        &mut self,
        context: Handle,
        stream: StreamRef,
        function: Handle,
        blocks: u64,
        sleep_nanos: impl FnOnce() -> Option<u64>,
    ) -> Result<Wait> {
        let known = self
            .functions
            .get_mut(&function)
            .ok_or(Status::InvalidHandle)?;
        let duration = if known.name == SLEEP_KERNEL {
            sleep_nanos().ok_or(Status::InvalidValue)?
        } else {
            let by_blocks = blocks.saturating_mul(self.config.nanos_per_block);
            self.config.kernel_nanos.saturating_add(by_blocks)
        };
        let first = !std::mem::replace(&mut known.loaded, true);
        let work = Work {
            engine: Engine::Compute,
            // A week: beyond it a sum of deadlines might overflow.
            duration: duration.min(7 * 24 * 3600 * 1_000_000_000),
            launch: true,
        };
        let mut wait = Wait::default();
        if first && self.cold_launches_left > 0 {
            self.cold_launches_left -= 1;
            wait = self.cold(5);
        }
        let (_, queue) = self.enqueue(context, stream, work)?;
        Ok(Wait {
            spend: wait.spend,
            ..queue
        })
    }

    // ---- Memory ----

    /// Allocates device memory for a context. The wait is the host time that it takes.
    ///
    /// # Errors
    /// `OutOfMemory`; `InvalidValue` for 0 bytes; `InvalidContext`.
    pub fn allocate(&mut self, context: Handle, bytes: u64) -> Result<(u64, Wait)> {
        let (device, _) = self.context(context)?;
        if bytes == 0 {
            return Err(Status::InvalidValue);
        }
        let first_try = self.allocate_on(device, bytes);
        if first_try != Err(Status::OutOfMemory) || self.pool.is_empty() {
            return first_try;
        }
        // What the pool kept is given back before an allocation fails.
        let last = self.pool.values().copied().max().unwrap_or(0);
        self.trim_pool(last);
        self.allocate_on(device, bytes)
    }

    fn allocate_on(&mut self, device: usize, bytes: u64) -> Result<(u64, Wait)> {
        let (address, backing, pages) = if bytes <= SMALL_BYTES {
            self.take_small(device, bytes.next_multiple_of(SMALL_ALIGN))?
        } else {
            let count = bytes.div_ceil(PAGE_BYTES as u64) as usize;
            let first = self
                .machine
                .take_run(device, count)
                .ok_or(Status::OutOfMemory)?;
            (
                page_address(device, first),
                Backing::Pages { first, count },
                count,
            )
        };
        let allocation = Allocation {
            device,
            bytes,
            backing,
            shadow: None,
        };
        self.allocations.insert(address, allocation);
        Ok((address, self.page_cost(pages)))
    }

    fn page_cost(&self, pages: usize) -> Wait {
        let spend = match pages {
            0 => 0,
            _ => self.config.malloc_nanos + self.config.malloc_nanos_per_page * pages as u64,
        };
        Wait {
            spend,
            ..Wait::default()
        }
    }

    fn take_small(&mut self, device: usize, bytes: u64) -> Result<(u64, Backing, usize)> {
        let fits = self.small.iter().find_map(|((on, page), parts)| {
            let part = parts.iter().find(|(_, size)| **size >= bytes);
            part.filter(|_| *on == device)
                .map(|(offset, size)| (*page, *offset, *size))
        });
        let (page, offset, size, new_pages) = match fits {
            Some((page, offset, size)) => (page, offset, size, 0),
            None => {
                let page = self
                    .machine
                    .take_run(device, 1)
                    .ok_or(Status::OutOfMemory)?;
                (page, 0, PAGE_BYTES as u64, 1)
            }
        };
        let parts = self.small.entry((device, page)).or_default();
        parts.remove(&offset);
        if size > bytes {
            parts.insert(offset + bytes, size - bytes);
        }
        Ok((
            page_address(device, page) + offset,
            Backing::Small { page },
            new_pages,
        ))
    }

    /// Frees device memory. As the real call, it waits for all work of the device's contexts first. Address 0 is nothing to free.
    ///
    /// # Errors
    /// `InvalidValue` for what is no allocation's start.
    pub fn free(&mut self, context: Handle, address: u64) -> Result<Wait> {
        if address == 0 {
            return Ok(Wait::default());
        }
        let allocation = self.allocations.get(&address).ok_or(Status::InvalidValue)?;
        if self.pool.contains_key(&address) {
            return Err(Status::InvalidValue);
        }
        let device = allocation.device;
        let contexts = self.contexts.values().filter(|c| c.device == device);
        let until = contexts.map(|c| c.tail).max().unwrap_or(0);
        let pages = self.release(address);
        let mut wait = self.wait(context, until);
        wait.spend = self.page_cost(pages).spend;
        Ok(wait)
    }

    /// Forgets an allocation; the number of pages that went back to the device.
    fn release(&mut self, address: u64) -> usize {
        let Some(allocation) = self.allocations.remove(&address) else {
            return 0;
        };
        self.pool.remove(&address);
        let device = allocation.device;
        match allocation.backing {
            Backing::Managed => 0,
            Backing::Pages { first, count } => {
                self.machine.give_back(device, first, count);
                count
            }
            Backing::Small { page } => {
                let Some(parts) = self.small.get_mut(&(device, page)) else {
                    return 0;
                };
                let mut offset = address - page_address(device, page);
                let mut size = allocation.bytes.next_multiple_of(SMALL_ALIGN);
                if let Some(after) = parts.remove(&(offset + size)) {
                    size += after;
                }
                if let Some((before, length)) = parts.range(..offset).next_back()
                    && before + length == offset
                {
                    (offset, size) = (*before, size + length);
                }
                parts.insert(offset, size);
                if size == PAGE_BYTES as u64 {
                    self.small.remove(&(device, page));
                    self.machine.give_back(device, page, 1);
                    return 1;
                }
                0
            }
        }
    }

    /// Allocates in stream order, from what [`Self::free_async`] left when a block of the same size is there.
    ///
    /// # Errors
    /// As [`Self::allocate`]; `InvalidHandle`.
    pub fn allocate_async(
        &mut self,
        context: Handle,
        bytes: u64,
        stream: StreamRef,
    ) -> Result<(u64, Wait)> {
        let handle = self.resolve(context, stream)?;
        let (device, _) = self.context(context)?;
        let kept = self.pool.iter().find(|(address, _)| {
            let block = self.allocations.get(address);
            block.is_some_and(|a| a.device == device && a.bytes == bytes)
        });
        if let Some((address, at)) = kept.map(|(a, at)| (*a, *at)) {
            self.pool.remove(&address);
            self.set_tail(handle, at);
            return Ok((address, Wait::default()));
        }
        self.allocate(context, bytes)
    }

    /// Gives memory back to the pool in stream order. It returns to the device at the next synchronisation that covers it.
    ///
    /// # Errors
    /// `InvalidValue` for what is no allocation's start; `InvalidHandle`.
    pub fn free_async(&mut self, context: Handle, address: u64, stream: StreamRef) -> Result<()> {
        let handle = self.resolve(context, stream)?;
        if !self.allocations.contains_key(&address) || self.pool.contains_key(&address) {
            return Err(Status::InvalidValue);
        }
        let at = self.ready_at(handle);
        self.pool.insert(address, at);
        Ok(())
    }

    fn trim_pool(&mut self, until: u64) {
        let done: Vec<u64> = self
            .pool
            .iter()
            .filter(|(_, at)| **at <= until)
            .map(|(a, _)| *a)
            .collect();
        for address in done {
            self.release(address);
        }
    }

    /// Notes host memory that the caller mapped as managed memory of a context's device.
    ///
    /// # Errors
    /// `InvalidContext`.
    pub fn add_managed(&mut self, context: Handle, address: u64, bytes: u64) -> Result<()> {
        let (device, _) = self.context(context)?;
        let allocation = Allocation {
            device,
            bytes,
            backing: Backing::Managed,
            shadow: None,
        };
        self.allocations.insert(address, allocation);
        Ok(())
    }

    /// Notes page-locked host memory.
    pub fn add_pinned(&mut self, address: u64, bytes: u64) {
        self.pinned.insert(address, bytes);
    }

    /// Forgets page-locked host memory; its size.
    ///
    /// # Errors
    /// `InvalidValue` for what is no start of it.
    pub fn remove_pinned(&mut self, address: u64) -> Result<u64> {
        self.pinned.remove(&address).ok_or(Status::InvalidValue)
    }

    /// Free and total bytes of a context's device.
    ///
    /// # Errors
    /// `InvalidContext`.
    pub fn memory_info(&self, context: Handle) -> Result<(u64, u64)> {
        let (device, _) = self.context(context)?;
        Ok((
            self.machine.free_bytes(device),
            self.machine.total_bytes(device),
        ))
    }

    /// What an address is.
    ///
    /// # Errors
    /// `InvalidValue` for an address of the device's range that nothing has.
    pub fn place(&self, address: u64) -> Result<Place> {
        let near = self.allocations.range(..=address).next_back();
        if let Some((base, allocation)) = near
            && address - base < allocation.bytes
        {
            let (device, base, bytes) = (allocation.device, *base, allocation.bytes);
            return Ok(match allocation.backing {
                Backing::Managed => Place::Managed {
                    device,
                    base,
                    bytes,
                },
                _ => Place::Device {
                    device,
                    base,
                    bytes,
                },
            });
        }
        if let Some((base, (bytes, handle))) = self.mapped.range(..=address).next_back()
            && address - base < *bytes
        {
            let device = self.physical.get(handle).map_or(0, |p| p.device);
            let (base, bytes) = (*base, *bytes);
            return Ok(Place::Device {
                device,
                base,
                bytes,
            });
        }
        if (DEVICE_BASE..RESERVE_END).contains(&address) {
            return Err(Status::InvalidValue);
        }
        Ok(match self.pinned.range(..=address).next_back() {
            Some((base, bytes)) if address - base < *bytes => Place::Pinned {
                base: *base,
                bytes: *bytes,
            },
            _ => Place::Pageable,
        })
    }

    /// The real bytes behind `[address, address + bytes)`, made on first use; `None` when the allocation is too large to have any.
    pub fn shadow(&mut self, address: u64, bytes: u64) -> Option<&mut [u8]> {
        let (base, allocation) = self.allocations.range_mut(..=address).next_back()?;
        let from = (address - base) as usize;
        let to = from.checked_add(bytes as usize)?;
        if matches!(allocation.backing, Backing::Managed)
            || allocation.bytes > SHADOW_BYTES
            || to as u64 > allocation.bytes
        {
            return None;
        }
        let size = allocation.bytes as usize;
        let shadow = allocation
            .shadow
            .get_or_insert_with(|| vec![0; size].into_boxed_slice());
        shadow.get_mut(from..to)
    }

    /// What a copy of `bytes` between two places is for the device; `None` when the device has no part in it.
    #[must_use]
    pub fn copy_work(&self, to: Place, from: Place, bytes: u64) -> Option<Work> {
        let pageable = to.is_pageable() || from.is_pageable();
        let on_host = |gbps| {
            if pageable {
                self.config.pageable_gbps
            } else {
                gbps
            }
        };
        let (engine, gbps) = match (to.device().is_some(), from.device().is_some()) {
            (true, true) => (Engine::Compute, self.config.d2d_gbps),
            (true, false) => (Engine::HostToDevice, on_host(self.config.h2d_gbps)),
            (false, true) => (Engine::DeviceToHost, on_host(self.config.d2h_gbps)),
            (false, false) => return None,
        };
        Some(self.transfer(engine, bytes, gbps))
    }

    /// What filling `bytes` of device memory is for the device.
    #[must_use]
    pub fn fill_work(&self, bytes: u64) -> Work {
        self.transfer(Engine::Compute, bytes, self.config.d2d_gbps)
    }

    fn transfer(&self, engine: Engine, bytes: u64, gbps: f64) -> Work {
        Work {
            engine,
            duration: self.config.copy_nanos + (bytes as f64 / gbps) as u64,
            launch: false,
        }
    }

    /// Waits until `span`, which a copy got, is over.
    #[must_use]
    pub fn wait_for(&self, context: Handle, span: Span) -> Wait {
        self.wait(context, span.end)
    }

    // ---- Graphs ----

    /// An empty graph.
    pub fn create_graph(&mut self) -> Handle {
        let handle = self.handle();
        self.graphs.insert(handle, Graph { nodes: Vec::new() });
        handle
    }

    /// From now on the stream records what it is given.
    ///
    /// # Errors
    /// `CaptureUnsupported` for the legacy stream or one that captures; `InvalidHandle`, `InvalidContext`.
    pub fn begin_capture(&mut self, context: Handle, stream: StreamRef) -> Result<()> {
        let handle = self.resolve(context, stream)?;
        let known = &self.streams[&handle];
        if known.kind == StreamKind::Legacy || known.capture.is_some() {
            return Err(Status::CaptureUnsupported);
        }
        let graph = self.create_graph();
        if let Some(stream) = self.streams.get_mut(&handle) {
            stream.capture = Some(graph);
            stream.capture_origin = true;
        }
        Ok(())
    }

    /// Ends a capture, for all streams that joined it; the graph.
    ///
    /// # Errors
    /// `CaptureUnmatched` when none began on this stream; `InvalidHandle`, `InvalidContext`.
    pub fn end_capture(&mut self, context: Handle, stream: StreamRef) -> Result<Handle> {
        let handle = self.resolve(context, stream)?;
        let known = &self.streams[&handle];
        let (Some(graph), true) = (known.capture, known.capture_origin) else {
            return Err(Status::CaptureUnmatched);
        };
        for stream in self.streams.values_mut() {
            if stream.capture == Some(graph) {
                (stream.capture, stream.capture_origin) = (None, false);
            }
        }
        for event in self.events.values_mut() {
            if event.capture == Some(graph) {
                event.capture = None;
            }
        }
        Ok(graph)
    }

    /// The graph that a stream records into.
    ///
    /// # Errors
    /// `InvalidHandle`, `InvalidContext`.
    pub fn capturing(&mut self, context: Handle, stream: StreamRef) -> Result<Option<Handle>> {
        let handle = self.resolve(context, stream)?;
        Ok(self.streams[&handle].capture)
    }

    /// Adds a kernel of `blocks` blocks to a graph.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn add_kernel_node(
        &mut self,
        graph: Handle,
        function: Handle,
        blocks: u64,
    ) -> Result<usize> {
        self.function_info(function)?;
        let duration = self.config.kernel_nanos + blocks * self.config.nanos_per_block;
        let graph = self.graphs.get_mut(&graph).ok_or(Status::InvalidHandle)?;
        graph.nodes.push(Work {
            engine: Engine::Compute,
            duration,
            launch: true,
        });
        Ok(graph.nodes.len())
    }

    /// Number of nodes of a graph.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn graph_nodes(&self, graph: Handle) -> Result<usize> {
        let graph = self.graphs.get(&graph).ok_or(Status::InvalidHandle)?;
        Ok(graph.nodes.len())
    }

    /// Ends a graph; what was instantiated from it stays.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn destroy_graph(&mut self, graph: Handle) -> Result<()> {
        self.graphs
            .remove(&graph)
            .map(drop)
            .ok_or(Status::InvalidHandle)
    }

    /// An executable copy of a graph. 1 µs of host time for each node.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn instantiate(&mut self, graph: Handle) -> Result<(Handle, Wait)> {
        let nodes = self
            .graphs
            .get(&graph)
            .ok_or(Status::InvalidHandle)?
            .nodes
            .clone();
        let wait = Wait {
            spend: 1_000 * nodes.len() as u64,
            ..Wait::default()
        };
        let handle = self.handle();
        self.executables.insert(handle, Graph { nodes });
        Ok((handle, wait))
    }

    /// Replaces what an executable graph runs by another graph of as many nodes.
    ///
    /// # Errors
    /// `InvalidHandle`; `InvalidValue` when the number of nodes differs.
    pub fn update_executable(&mut self, executable: Handle, graph: Handle) -> Result<()> {
        let nodes = self
            .graphs
            .get(&graph)
            .ok_or(Status::InvalidHandle)?
            .nodes
            .clone();
        let target = self
            .executables
            .get_mut(&executable)
            .ok_or(Status::InvalidHandle)?;
        if target.nodes.len() != nodes.len() {
            return Err(Status::InvalidValue);
        }
        target.nodes = nodes;
        Ok(())
    }

    /// Ends an executable graph.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn destroy_executable(&mut self, executable: Handle) -> Result<()> {
        self.executables
            .remove(&executable)
            .map(drop)
            .ok_or(Status::InvalidHandle)
    }

    /// Checks that an executable graph is there.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn check_executable(&self, executable: Handle) -> Result<()> {
        self.executables
            .get(&executable)
            .map(drop)
            .ok_or(Status::InvalidHandle)
    }

    /// Queues all nodes of an executable graph, one after another; as one launch for the launch queue.
    ///
    /// # Errors
    /// `InvalidHandle`, `InvalidContext`.
    pub fn launch_graph(
        &mut self,
        context: Handle,
        stream: StreamRef,
        executable: Handle,
    ) -> Result<Wait> {
        let nodes = &self
            .executables
            .get(&executable)
            .ok_or(Status::InvalidHandle)?
            .nodes;
        let nodes = nodes.clone();
        let mut wait = Wait::default();
        let last = nodes.len().saturating_sub(1);
        for (index, node) in nodes.into_iter().enumerate() {
            let work = Work {
                launch: index == last,
                ..node
            };
            let (_, queue) = self.enqueue(context, stream, work)?;
            wait = queue;
        }
        Ok(wait)
    }

    // ---- Virtual memory management ----

    /// Physical memory of `bytes`, a multiple of a page, in any pages.
    ///
    /// # Errors
    /// `InvalidValue`, `InvalidDevice`, `OutOfMemory`.
    pub fn create_physical(&mut self, device: usize, bytes: u64) -> Result<(Handle, Wait)> {
        self.check_device(device)?;
        if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(Status::InvalidValue);
        }
        let count = (bytes / PAGE_BYTES as u64) as usize;
        let pages = self
            .machine
            .take_any(device, count)
            .ok_or(Status::OutOfMemory)?;
        let handle = self.handle();
        let physical = Physical {
            device,
            pages,
            references: 1,
        };
        self.physical.insert(handle, physical);
        Ok((handle, self.page_cost(count)))
    }

    /// Lets a reference to physical memory go; the last one, mappings included, frees it.
    ///
    /// # Errors
    /// `InvalidValue`.
    pub fn release_physical(&mut self, handle: Handle) -> Result<()> {
        let physical = self.physical.get_mut(&handle).ok_or(Status::InvalidValue)?;
        physical.references -= 1;
        if physical.references == 0
            && let Some(physical) = self.physical.remove(&handle)
        {
            for page in physical.pages {
                self.machine.give_back(physical.device, page, 1);
            }
        }
        Ok(())
    }

    /// Reserves `bytes` of addresses, a multiple of a page.
    ///
    /// # Errors
    /// `InvalidValue`; `OutOfMemory` when 64 TiB have been reserved.
    pub fn reserve(&mut self, bytes: u64) -> Result<u64> {
        if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(Status::InvalidValue);
        }
        if bytes > RESERVE_END - self.next_reserved {
            return Err(Status::OutOfMemory);
        }
        let address = self.next_reserved;
        self.next_reserved += bytes;
        self.reserved.insert(address, bytes);
        Ok(address)
    }

    /// Gives reserved addresses back; nothing may be mapped there.
    ///
    /// # Errors
    /// `InvalidValue`.
    pub fn free_reserved(&mut self, address: u64, bytes: u64) -> Result<()> {
        let whole = self.reserved.get(&address) == Some(&bytes);
        let in_use = self.mapped.range(address..address + bytes).next().is_some();
        if !whole || in_use {
            return Err(Status::InvalidValue);
        }
        self.reserved.remove(&address);
        Ok(())
    }

    /// Maps all of some physical memory at a reserved address.
    ///
    /// # Errors
    /// `InvalidValue`.
    pub fn map(&mut self, address: u64, bytes: u64, handle: Handle) -> Result<()> {
        let inside = self.reserved.range(..=address).next_back();
        let inside =
            inside.is_some_and(|(base, size)| address - base + bytes <= *size && bytes > 0);
        let before = self.mapped.range(..address + bytes).next_back();
        let free = before.is_none_or(|(base, (size, _))| base + size <= address);
        let physical = self.physical.get_mut(&handle).ok_or(Status::InvalidValue)?;
        if !inside || !free || bytes != (physical.pages.len() * PAGE_BYTES) as u64 {
            return Err(Status::InvalidValue);
        }
        physical.references += 1;
        self.mapped.insert(address, (bytes, handle));
        Ok(())
    }

    /// Removes all mappings in a range of addresses, which must begin and end with one.
    ///
    /// # Errors
    /// `InvalidValue`.
    pub fn unmap(&mut self, address: u64, bytes: u64) -> Result<()> {
        let end = address.checked_add(bytes).ok_or(Status::InvalidValue)?;
        let inside: Vec<(u64, u64, Handle)> = self
            .mapped
            .range(address..end)
            .map(|(base, (size, handle))| (*base, *size, *handle))
            .collect();
        let starts = inside.first().is_some_and(|first| first.0 == address);
        let ends = inside.last().is_some_and(|last| last.0 + last.1 == end);
        if !starts || !ends {
            return Err(Status::InvalidValue);
        }
        for (base, _, handle) in inside {
            self.mapped.remove(&base);
            self.release_physical(handle)?;
        }
        Ok(())
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
