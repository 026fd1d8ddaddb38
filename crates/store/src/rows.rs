//! The tables: what a row of each is, and how the words of `model` become rows and come back.
//!
//! Everything is stored as it was said: 64-bit integers as `u64`, times as `boot_ns` (CLOCK_BOOTTIME) and `dur_ns`,
//! absence as null. A row that this version cannot read back (an op or a cause that came later) is `None`, one row lost.

use arrow::array::ArrayRef;
use arrow::datatypes::{Field, Fields};
use warptrace_model::{
    Annotation, Blame, BlockIo, BootNanos, Call, Category, Cause, Cpu, Device, Event, Evidence,
    FilePath, FileType, Finding, FindingId, FindingKind, Gap, GapCode, GpuSample, Incarnation,
    IoKind, Labels, Loss, NamedBy, OffCpu, OpCount, OpKey, Parts, Pid, Place, ProcessEvent,
    ProcessInfo, Reclaim, Retransmit, Sender, Severity, Slice, Stream, StreamScope, Stretch,
    SystemSample, Thread, ThreadName, Tid, Unit, UnitKey, UnitKind, UnitName, UnitSpan, Wake,
    Waker, Window,
};
use warptrace_record::{self as record, Kind, OpId, Record, Source};

use crate::column::{Cell, ColumnError, Row, find, rows};

/// How the rows of a table are ordered in a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// By `boot_ns`, equal ones as they came.
    Time,
    /// As they came: the last row about a thing is the valid one.
    Arrival,
}

pub(crate) trait Table: Row + 'static {
    const NAME: &'static str;
    const ORDER: Order;
}

macro_rules! tables {
    ($($row:ident $name:literal $order:ident;)*) => {
        $(impl Table for $row {
            const NAME: &'static str = $name;
            const ORDER: Order = Order::$order;
        })*

        /// The names of all tables.
        pub const TABLES: &[&str] = &[$($name),*];

        /// The columns of a table; `None` for a name that is none of [`TABLES`].
        pub fn table_schema(name: &str) -> Option<arrow::datatypes::SchemaRef> {
            match name {
                $($name => Some($row::schema()),)*
                _ => None,
            }
        }
    };
}

tables! {
    EventRow "events" Time;
    OffCpuRow "offcpu" Time;
    UnitRow "units" Time;
    AnnotationRow "annotations" Time;
    MemoryRow "memory" Time;
    RequestRow "requests" Time;
    OpsRow "ops" Time;
    SystemRow "system" Time;
    FindingRow "findings" Arrival;
    ProcessRow "processes" Arrival;
    ThreadRow "threads" Arrival;
    FileRow "files" Arrival;
    StackRow "stacks" Arrival;
    DropRow "drops" Arrival;
    GapRow "gaps" Arrival;
}

rows! {
    /// A record's slots, as `warptrace_record` describes them for each kind; `flags` of process rows is [`FLAG_THREAD`] or 0.
    EventRow, EventColumns, EventReader {
        boot_ns: u64,
        dur_ns: u64,
        kind: u8,
        source: u8,
        op: u16,
        flags: u16,
        pid: u32,
        tid: u32,
        device: Option<u16>,
        stream: u64,
        ret: i32,
        arg0: u64,
        arg1: u64,
        stack_id: u32,
        cpu: u32,
    }

    /// Where a thread was when it did not run, as far as the backend could tell. `kind` is the record's: 2 off the CPU,
    /// 3 a slice of somebody else, 7 a stretch of a thread's own account.
    OffCpuRow, OffCpuColumns, OffCpuReader {
        boot_ns: u64,
        dur_ns: u64,
        kind: u8,
        pid: u32,
        tid: u32,
        cpu: Option<u32>,
        runnable_ns: u64,
        throttled_ns: u64,
        running_ns: u64,
        flags: u16,
        syscall: Option<u16>,
        fd: Option<i32>,
        file_type: u8,
        waker_pid: Option<u32>,
        waker_tid: Option<u32>,
        last_occupant: u32,
        major_faults: u32,
        minor_faults: u32,
    }

    UnitRow, UnitColumns, UnitReader {
        boot_ns: u64,
        dur_ns: u64,
        pid: u32,
        start_ticks: u64,
        tid: u32,
        device: Option<u16>,
        /// Null: the unit's wait covers more than one.
        stream: Option<u64>,
        kind: String,
        class: u16,
        /// Which label named it, and with what value; null for an inferred one.
        label: Option<String>,
        value: Option<String>,
        number: u64,
        launches: u64,
        slow: bool,
        incomplete: bool,
        run_queue_wait_ns: u64,
        cpu_quota_ns: u64,
        disk_wait_ns: u64,
        page_fault_ns: u64,
        reclaim_ns: u64,
        lock_wait_ns: u64,
        network_wait_ns: u64,
        sleep_ns: u64,
        allocator_ns: u64,
        copy_ns: u64,
        launch_ns: u64,
        launch_gap_ns: u64,
        device_wait_ns: u64,
        unexplained_ns: u64,
    }

    /// `boot_ns`: when it was said. The interval is null of an instant, the process of what holds for all, the sender of what
    /// was read from a file.
    AnnotationRow, AnnotationColumns, AnnotationReader {
        boot_ns: u64,
        pid: Option<u32>,
        start_ticks: Option<u64>,
        span_start_ns: Option<u64>,
        span_dur_ns: Option<u64>,
        labels: Vec<LabelRow>,
        sender_uid: Option<u32>,
        sender_gid: Option<u32>,
        sender_pid: Option<u32>,
    }

    LabelRow, LabelColumns, LabelReader {
        key: String,
        value: String,
    }

    /// One event of a memory collector. `version` is that of the form in which it was read, 0 for forms before there were
    /// versions; `pid` and `device_id` are -1 where they are not known or not applicable; `metadata` is JSON.
    MemoryRow, MemoryColumns, MemoryReader {
        boot_ns: u64,
        /// As the collector said it.
        unix_ns: u64,
        version: u8,
        session_id: String,
        event_type: String,
        collector: String,
        sampling_interval_ms: i64,
        pid: i64,
        host: String,
        job_id: Option<String>,
        rank: i64,
        local_rank: i64,
        world_size: i64,
        device_id: i64,
        allocator_allocated_bytes: Option<i64>,
        allocator_reserved_bytes: Option<i64>,
        allocator_active_bytes: Option<i64>,
        allocator_inactive_bytes: Option<i64>,
        allocator_change_bytes: Option<i64>,
        device_used_bytes: Option<i64>,
        device_free_bytes: Option<i64>,
        device_total_bytes: Option<i64>,
        context: Option<String>,
        metadata: String,
    }

    /// One request of a run log; `boot_ns` is when it was logged, 0 when the log does not say when.
    RequestRow, RequestColumns, RequestReader {
        boot_ns: u64,
        log: String,
        run: u32,
        start_unix_ns: Option<u64>,
        end_unix_ns: Option<u64>,
        since_start_ns: Option<u64>,
        latency_ns: Option<u64>,
        model: Option<String>,
        principal: Option<String>,
        request_id: Option<String>,
        prompt_tokens: Option<u64>,
        completion_tokens: Option<u64>,
        failed: bool,
        status: Option<u16>,
        code: Option<String>,
        message: Option<String>,
    }

    OpsRow, OpsColumns, OpsReader {
        boot_ns: u64,
        dur_ns: u64,
        pid: u32,
        device: Option<u16>,
        source: u8,
        op: u16,
        count: u64,
        total_ns: u64,
        buckets: Vec<BucketRow>,
    }

    BucketRow, BucketColumns, BucketReader {
        bucket: u16,
        count: u64,
    }

    /// The machine where `device` is null, else one GPU. `memory_total` is of whichever it is.
    SystemRow, SystemColumns, SystemReader {
        boot_ns: u64,
        device: Option<u16>,
        cpu: Option<f64>,
        steal: Option<f64>,
        memory_total: Option<u64>,
        memory_available: Option<u64>,
        swap_used: Option<u64>,
        load1: Option<f64>,
        load5: Option<f64>,
        major_faults: Option<f64>,
        pressure_cpu: Option<f64>,
        pressure_io: Option<f64>,
        pressure_memory: Option<f64>,
        uuid: Option<String>,
        sm_clock_mhz: Option<u32>,
        max_sm_clock_mhz: Option<u32>,
        throttle_reasons: Option<u64>,
        memory_used: Option<u64>,
        utilization: Option<f64>,
        processes: Vec<GpuProcessRow>,
    }

    GpuProcessRow, GpuProcessColumns, GpuProcessReader {
        pid: u32,
        utilization: Option<f64>,
        memory_used: Option<u64>,
    }

    FindingRow, FindingColumns, FindingReader {
        id: u64,
        kind: String,
        severity: String,
        cause: String,
        second: Option<String>,
        pid: u32,
        start_ticks: u64,
        device: Option<u16>,
        stream: Option<u64>,
        unit_kind: String,
        class: u16,
        op: Option<String>,
        tid: u32,
        comm: String,
        place_file: Option<String>,
        place_line: Option<u32>,
        place_function: Option<String>,
        place_op: Option<String>,
        boot_ns: u64,
        dur_ns: u64,
        first_unit: u64,
        last_unit: u64,
        slow_units: u64,
        worst_unit: u64,
        shifted: bool,
        baseline_ns: u64,
        baseline_units: u64,
        excess_ns: u64,
        blame: Vec<BlameRow>,
        evidence: Vec<EvidenceRow>,
    }

    BlameRow, BlameColumns, BlameReader {
        cause: String,
        ns: u64,
        lost_ns: u64,
        detail: String,
    }

    EvidenceRow, EvidenceColumns, EvidenceReader {
        what: String,
        pid: Option<u32>,
        tid: Option<u32>,
        comm: Option<String>,
        path: Option<String>,
        boot_ns: u64,
        dur_ns: u64,
    }

    /// `boot_ns` is the start of the process.
    ProcessRow, ProcessColumns, ProcessReader {
        pid: u32,
        start_ticks: u64,
        boot_ns: u64,
        parent_pid: u32,
        name: String,
        command: Vec<String>,
        from_start: bool,
        in_job: bool,
        uid: u32,
        cgroup: String,
        container_id: String,
        rank: Option<u32>,
        local_rank: Option<u32>,
        world_size: Option<u32>,
    }

    /// `boot_ns`: the latest moment known to the writer when the name was learned.
    ThreadRow, ThreadColumns, ThreadReader {
        boot_ns: u64,
        pid: u32,
        tid: u32,
        name: String,
    }

    /// `boot_ns`: the latest moment known to the writer when the path was learned.
    FileRow, FileColumns, FileReader {
        boot_ns: u64,
        pid: u32,
        fd: i32,
        path: String,
    }

    StackRow, StackColumns, StackReader {
        stack_id: u32,
        frames: Vec<FrameRow>,
    }

    FrameRow, FrameColumns, FrameReader {
        ip: u64,
        module: Option<String>,
        module_offset: Option<u64>,
        function: Option<String>,
        file: Option<String>,
        line: Option<u32>,
    }

    /// Times are null where it is not known when the records were lost.
    DropRow, DropColumns, DropReader {
        source: String,
        reason: String,
        count: u64,
        boot_ns: Option<u64>,
        dur_ns: Option<u64>,
        pid: Option<u32>,
    }

    GapRow, GapColumns, GapReader {
        code: String,
        detail: String,
        count: u64,
    }
}

/// A user stack, innermost frame first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// What the events of the session call it; never 0.
    pub id: u32,
    pub frames: Vec<Frame>,
}

/// One frame, resolved as far as it could be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// Return address, 0 for a frame of an interpreter.
    pub ip: u64,
    /// File that is mapped there.
    pub module: Option<String>,
    /// Of `ip`, from where the first byte of the file was mapped. Null in older sessions.
    pub module_offset: Option<u64>,
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
}

/// [`Loss`] as it is read back: names of who and why may be those of a later version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLoss {
    pub source: String,
    /// [`LossReason::name`].
    pub reason: String,
    pub count: u64,
    pub window: Option<Window>,
    pub pid: Option<Pid>,
}

/// In `flags` of a process row: a thread began or ended, not its process. Readers need no other column to tell them apart.
pub const FLAG_THREAD: u16 = 1;

impl EventRow {
    fn at(kind: Kind, source: Source, start: BootNanos, dur: u64, thread: Thread) -> EventRow {
        EventRow {
            boot_ns: start.0,
            dur_ns: dur,
            kind: kind as u8,
            source: source as u8,
            op: 0,
            flags: 0,
            pid: thread.pid.0,
            tid: thread.tid.0,
            device: None,
            stream: 0,
            ret: 0,
            arg0: 0,
            arg1: 0,
            stack_id: 0,
            cpu: 0,
        }
    }

    pub(crate) fn call(kind: Kind, c: &Call) -> EventRow {
        let op = c.op.get();
        EventRow {
            op: op.number,
            flags: c.flags.0,
            device: c.device.map(|d| d.0),
            stream: c.stream.0,
            ret: c.ret,
            arg0: c.arg0,
            arg1: c.arg1,
            stack_id: c.stack_id,
            cpu: c.cpu.0,
            ..EventRow::at(kind, op.source, c.start, c.dur, c.thread)
        }
    }

    pub(crate) fn block_io(e: &BlockIo) -> EventRow {
        EventRow {
            op: match e.kind {
                IoKind::Read => 0,
                IoKind::Write => 1,
                IoKind::Discard => 2,
                IoKind::Flush => 3,
            },
            ret: e.error,
            stack_id: e.dev,
            arg0: e.bytes,
            arg1: e.sector,
            stream: e.inode,
            ..EventRow::at(Kind::BlockIo, Source::Io, e.start, e.dur, e.thread)
        }
    }

    pub(crate) fn reclaim(e: &Reclaim) -> EventRow {
        EventRow {
            flags: if e.cgroup { record::reclaim::CGROUP } else { 0 },
            arg0: e.pages,
            ..EventRow::at(Kind::Reclaim, Source::Host, e.start, e.dur, e.thread)
        }
    }

    pub(crate) fn retransmit(e: &Retransmit) -> EventRow {
        EventRow {
            arg0: u64::from(e.address) << 32 | u64::from(e.peer_address),
            arg1: u64::from(e.port) << 16 | u64::from(e.peer_port),
            ..EventRow::at(Kind::Retransmit, Source::Tcp, e.at, 0, Thread::default())
        }
    }

    pub(crate) fn process(e: &ProcessEvent) -> EventRow {
        use record::process as op;
        let row = |at, thread| EventRow::at(Kind::Process, Source::Host, at, 0, thread);
        match *e {
            ProcessEvent::Born { at, parent, child } => EventRow {
                op: op::FORK,
                arg0: child.0.into(),
                arg1: child.0.into(),
                ..row(at, parent)
            },
            ProcessEvent::ThreadBorn { at, parent, child } => EventRow {
                op: op::FORK,
                flags: FLAG_THREAD,
                arg0: parent.pid.0.into(),
                arg1: child.0.into(),
                ..row(at, parent)
            },
            ProcessEvent::Exec {
                at,
                pid,
                start_ticks,
            } => EventRow {
                op: op::EXEC,
                arg1: start_ticks,
                ..row(at, Thread::new(pid.0, pid.0))
            },
            ProcessEvent::Exit { at, pid, status } => EventRow {
                op: op::EXIT,
                ret: status,
                ..row(at, Thread::new(pid.0, pid.0))
            },
            ProcessEvent::ThreadExit { at, thread } => EventRow {
                op: op::EXIT,
                flags: FLAG_THREAD,
                ..row(at, thread)
            },
            ProcessEvent::OomKill { at, victim } => EventRow {
                op: op::OOM_KILL,
                ..row(at, Thread::new(victim.0, victim.0))
            },
        }
    }

    pub(crate) fn event(self) -> Option<Event> {
        Event::from_record(&Record {
            kind: self.kind,
            source: self.source,
            op: self.op,
            flags: self.flags,
            device: self.device.unwrap_or(record::DEVICE_UNKNOWN),
            ts: self.boot_ns,
            dur: self.dur_ns,
            pid: self.pid,
            tid: self.tid,
            ret: self.ret,
            stack_id: self.stack_id,
            seq: 0,
            cpu: self.cpu,
            arg0: self.arg0,
            arg1: self.arg1,
            stream: self.stream,
        })
    }
}

impl OffCpuRow {
    fn at(kind: Kind, start: BootNanos, dur: u64, thread: Thread) -> OffCpuRow {
        OffCpuRow {
            boot_ns: start.0,
            dur_ns: dur,
            kind: kind as u8,
            pid: thread.pid.0,
            tid: thread.tid.0,
            cpu: None,
            runnable_ns: 0,
            throttled_ns: 0,
            running_ns: 0,
            flags: 0,
            syscall: None,
            fd: None,
            file_type: 0,
            waker_pid: None,
            waker_tid: None,
            last_occupant: 0,
            major_faults: 0,
            minor_faults: 0,
        }
    }

    pub(crate) fn off_cpu(e: &OffCpu) -> OffCpuRow {
        use record::offcpu as f;
        let mut flags = 0;
        for (set, bit) in [
            (e.preempted, f::PREEMPTED),
            (e.iowait, f::IOWAIT),
            (e.uninterruptible, f::UNINTERRUPTIBLE),
            (e.stopped, f::STOPPED),
            (e.timed, f::TIMED),
            (e.poll_socket, f::POLL_SOCKET),
        ] {
            flags |= if set { bit } else { 0 };
        }
        flags |= match e.waker.map(|w| w.by) {
            Some(Wake::Syscall) => f::WAKER_SYSCALL,
            Some(Wake::Kernel) => f::WAKER_KERNEL,
            Some(Wake::Interrupt) => f::WAKER_INTERRUPT,
            Some(Wake::Other) | None => 0,
        };
        OffCpuRow {
            cpu: Some(e.cpu.0),
            runnable_ns: e.runnable,
            throttled_ns: e.throttled,
            flags,
            syscall: e.syscall,
            fd: e.fd,
            file_type: file_type_mode(e.file),
            waker_pid: e.waker.map(|w| w.thread.pid.0),
            waker_tid: e.waker.map(|w| w.thread.tid.0),
            last_occupant: e.last_occupant.0,
            ..OffCpuRow::at(Kind::OffCpu, e.start, e.dur, e.thread)
        }
    }

    pub(crate) fn slice(e: &Slice) -> OffCpuRow {
        OffCpuRow {
            cpu: Some(e.cpu.0),
            ..OffCpuRow::at(Kind::Slice, e.start, e.dur, e.thread)
        }
    }

    pub(crate) fn stretch(e: &Stretch) -> OffCpuRow {
        OffCpuRow {
            runnable_ns: e.runnable,
            throttled_ns: e.throttled,
            running_ns: e.running,
            major_faults: e.major_faults,
            minor_faults: e.minor_faults,
            ..OffCpuRow::at(Kind::Stretch, e.start, e.dur, e.thread)
        }
    }

    pub(crate) fn event(self) -> Option<Event> {
        use record::offcpu as f;
        let thread = Thread::new(self.pid, self.tid);
        let start = BootNanos(self.boot_ns);
        let dur = self.dur_ns;
        let set = |bit| self.flags & bit != 0;
        Some(match self.kind {
            k if k == Kind::OffCpu as u8 => Event::OffCpu(OffCpu {
                thread,
                start,
                dur,
                runnable: self.runnable_ns,
                throttled: self.throttled_ns,
                preempted: set(f::PREEMPTED),
                iowait: set(f::IOWAIT),
                uninterruptible: set(f::UNINTERRUPTIBLE),
                stopped: set(f::STOPPED),
                timed: set(f::TIMED),
                poll_socket: set(f::POLL_SOCKET),
                syscall: self.syscall,
                fd: self.fd,
                file: FileType::from_mode(self.file_type.into()),
                waker: self.waker_tid.map(|tid| Waker {
                    thread: Thread::new(self.waker_pid.unwrap_or(0), tid),
                    by: if set(f::WAKER_INTERRUPT) {
                        Wake::Interrupt
                    } else if set(f::WAKER_KERNEL) {
                        Wake::Kernel
                    } else if set(f::WAKER_SYSCALL) {
                        Wake::Syscall
                    } else {
                        Wake::Other
                    },
                }),
                last_occupant: Tid(self.last_occupant),
                cpu: Cpu(self.cpu?),
            }),
            k if k == Kind::Slice as u8 => Event::Slice(Slice {
                thread,
                start,
                dur,
                cpu: Cpu(self.cpu?),
            }),
            k if k == Kind::Stretch as u8 => Event::Stretch(Stretch {
                thread,
                start,
                dur,
                running: self.running_ns,
                runnable: self.runnable_ns,
                throttled: self.throttled_ns,
                major_faults: self.major_faults,
                minor_faults: self.minor_faults,
            }),
            _ => return None,
        })
    }
}

/// The inverse of [`FileType::from_mode`].
fn file_type_mode(file: FileType) -> u8 {
    match file {
        FileType::None => 0,
        FileType::Pipe => 0o1,
        FileType::CharDevice => 0o2,
        FileType::Directory => 0o4,
        FileType::BlockDevice => 0o6,
        FileType::Regular => 0o10,
        FileType::Socket => 0o14,
        FileType::Anonymous => 0xff,
    }
}

fn stream_of(scope: StreamScope) -> Option<u64> {
    match scope {
        StreamScope::One(stream) => Some(stream.0),
        StreamScope::Many => None,
    }
}

fn scope_of(stream: Option<u64>) -> StreamScope {
    stream.map_or(StreamScope::Many, |s| StreamScope::One(Stream(s)))
}

impl From<&Unit> for UnitRow {
    fn from(u: &Unit) -> UnitRow {
        let p = &u.parts;
        UnitRow {
            boot_ns: u.start.0,
            dur_ns: u.dur,
            pid: u.key.process.pid.0,
            start_ticks: u.key.process.start_ticks,
            tid: u.lead.0,
            device: u.key.device.map(|d| d.0),
            stream: stream_of(u.key.stream),
            kind: u.key.kind.name().to_owned(),
            class: u.key.class,
            label: u.name.as_ref().map(|n| n.label.label().to_owned()),
            value: u.name.as_ref().map(|n| n.value.to_string()),
            number: u.number,
            launches: u.launches,
            slow: u.slow,
            incomplete: u.incomplete,
            run_queue_wait_ns: p[Category::RunQueueWait],
            cpu_quota_ns: p[Category::CpuQuota],
            disk_wait_ns: p[Category::DiskWait],
            page_fault_ns: p[Category::PageFault],
            reclaim_ns: p[Category::Reclaim],
            lock_wait_ns: p[Category::LockWait],
            network_wait_ns: p[Category::NetworkWait],
            sleep_ns: p[Category::Sleep],
            allocator_ns: p[Category::Allocator],
            copy_ns: p[Category::Copy],
            launch_ns: p[Category::Launch],
            launch_gap_ns: p[Category::LaunchGap],
            device_wait_ns: p[Category::DeviceWait],
            unexplained_ns: p[Category::Unexplained],
        }
    }
}

impl UnitRow {
    pub(crate) fn unit(self) -> Option<Unit> {
        let mut parts = Parts::default();
        let label = self.label.as_deref().and_then(NamedBy::by_label);
        let name = label.zip(self.value).map(|(label, value)| UnitName {
            label,
            value: value.into(),
        });
        for (category, ns) in [
            (Category::RunQueueWait, self.run_queue_wait_ns),
            (Category::CpuQuota, self.cpu_quota_ns),
            (Category::DiskWait, self.disk_wait_ns),
            (Category::PageFault, self.page_fault_ns),
            (Category::Reclaim, self.reclaim_ns),
            (Category::LockWait, self.lock_wait_ns),
            (Category::NetworkWait, self.network_wait_ns),
            (Category::Sleep, self.sleep_ns),
            (Category::Allocator, self.allocator_ns),
            (Category::Copy, self.copy_ns),
            (Category::Launch, self.launch_ns),
            (Category::LaunchGap, self.launch_gap_ns),
            (Category::DeviceWait, self.device_wait_ns),
            (Category::Unexplained, self.unexplained_ns),
        ] {
            parts[category] = ns;
        }
        Some(Unit {
            key: UnitKey {
                process: Incarnation {
                    pid: Pid(self.pid),
                    start_ticks: self.start_ticks,
                },
                device: self.device.map(Device),
                stream: scope_of(self.stream),
                kind: UnitKind::by_name(&self.kind)?,
                class: self.class,
            },
            name,
            lead: Tid(self.tid),
            number: self.number,
            start: BootNanos(self.boot_ns),
            dur: self.dur_ns,
            parts,
            launches: self.launches,
            slow: self.slow,
            incomplete: self.incomplete,
        })
    }
}

impl From<&Annotation> for AnnotationRow {
    fn from(a: &Annotation) -> AnnotationRow {
        AnnotationRow {
            boot_ns: a.at.0,
            pid: a.scope.map(|s| s.pid.0),
            start_ticks: a.scope.map(|s| s.start_ticks),
            span_start_ns: a.span.map(|s| s.start.0),
            span_dur_ns: a.span.map(|s| s.nanos()),
            labels: a
                .labels
                .iter()
                .map(|(key, value)| LabelRow {
                    key: key.to_owned(),
                    value: value.to_owned(),
                })
                .collect(),
            sender_uid: a.sender.map(|s| s.uid),
            sender_gid: a.sender.map(|s| s.gid),
            sender_pid: a.sender.map(|s| s.pid),
        }
    }
}

impl AnnotationRow {
    pub(crate) fn annotation(self) -> Option<Annotation> {
        let mut labels = Labels::default();
        for l in &self.labels {
            labels.insert(&l.key, &l.value).ok()?;
        }
        let window = |(start, dur)| Window::at(BootNanos(start), dur);
        Some(Annotation {
            at: BootNanos(self.boot_ns),
            span: self.span_start_ns.zip(self.span_dur_ns).map(window),
            scope: self.pid.map(|pid| Incarnation {
                pid: Pid(pid),
                start_ticks: self.start_ticks.unwrap_or(0),
            }),
            labels,
            sender: self.sender_uid.map(|uid| Sender {
                uid,
                gid: self.sender_gid.unwrap_or(0),
                pid: self.sender_pid.unwrap_or(0),
            }),
        })
    }
}

impl From<&OpCount> for OpsRow {
    fn from(c: &OpCount) -> OpsRow {
        let op = c.key.op.get();
        OpsRow {
            boot_ns: c.window.start.0,
            dur_ns: c.window.nanos(),
            pid: c.key.pid.0,
            device: c.key.device.map(|d| d.0),
            source: op.source as u8,
            op: op.number,
            count: c.durations.count(),
            total_ns: c.total,
            buckets: c
                .durations
                .buckets()
                .map(|(bucket, count)| BucketRow {
                    bucket: bucket as u16,
                    count,
                })
                .collect(),
        }
    }
}

impl OpsRow {
    pub(crate) fn count(self) -> Option<OpCount> {
        let mut durations = warptrace_model::Histogram::default();
        for b in &self.buckets {
            durations.add(b.bucket.into(), b.count);
        }
        Some(OpCount {
            key: OpKey {
                pid: Pid(self.pid),
                device: self.device.map(Device),
                op: OpId::find(Source::from_u8(self.source)?, self.op)?,
            },
            window: Window::at(BootNanos(self.boot_ns), self.dur_ns),
            total: self.total_ns,
            durations,
        })
    }
}

impl SystemRow {
    fn empty(at: BootNanos) -> SystemRow {
        SystemRow {
            boot_ns: at.0,
            device: None,
            cpu: None,
            steal: None,
            memory_total: None,
            memory_available: None,
            swap_used: None,
            load1: None,
            load5: None,
            major_faults: None,
            pressure_cpu: None,
            pressure_io: None,
            pressure_memory: None,
            uuid: None,
            sm_clock_mhz: None,
            max_sm_clock_mhz: None,
            throttle_reasons: None,
            memory_used: None,
            utilization: None,
            processes: Vec::new(),
        }
    }

    pub(crate) fn machine(s: &SystemSample) -> SystemRow {
        SystemRow {
            cpu: s.cpu,
            steal: s.steal,
            memory_total: Some(s.memory_total),
            memory_available: Some(s.memory_available),
            swap_used: Some(s.swap_used),
            // An imported sample may lack them: absent is null, not a number that is none.
            load1: Some(s.load1).filter(|x| x.is_finite()),
            load5: Some(s.load5).filter(|x| x.is_finite()),
            major_faults: s.major_faults,
            pressure_cpu: s.pressure_cpu,
            pressure_io: s.pressure_io,
            pressure_memory: s.pressure_memory,
            ..SystemRow::empty(s.at)
        }
    }

    pub(crate) fn gpu(s: &GpuSample) -> SystemRow {
        SystemRow {
            device: Some(s.device),
            uuid: Some(s.uuid.clone()),
            sm_clock_mhz: s.sm_clock_mhz,
            max_sm_clock_mhz: s.max_sm_clock_mhz,
            throttle_reasons: s.throttle_reasons,
            memory_used: s.memory_used,
            memory_total: s.memory_total,
            utilization: s.utilization,
            processes: s
                .processes
                .iter()
                .map(|(pid, utilization, memory_used)| GpuProcessRow {
                    pid: pid.0,
                    utilization: *utilization,
                    memory_used: *memory_used,
                })
                .collect(),
            ..SystemRow::empty(s.at)
        }
    }

    pub(crate) fn event(self) -> Event {
        let at = BootNanos(self.boot_ns);
        match self.device {
            None => Event::System(Box::new(SystemSample {
                at,
                cpu: self.cpu,
                steal: self.steal,
                memory_total: self.memory_total.unwrap_or(0),
                memory_available: self.memory_available.unwrap_or(0),
                swap_used: self.swap_used.unwrap_or(0),
                load1: self.load1.unwrap_or(0.0),
                load5: self.load5.unwrap_or(0.0),
                major_faults: self.major_faults,
                pressure_cpu: self.pressure_cpu,
                pressure_io: self.pressure_io,
                pressure_memory: self.pressure_memory,
            })),
            Some(device) => Event::Gpu(Box::new(GpuSample {
                at,
                device,
                uuid: self.uuid.unwrap_or_default(),
                sm_clock_mhz: self.sm_clock_mhz,
                max_sm_clock_mhz: self.max_sm_clock_mhz,
                throttle_reasons: self.throttle_reasons,
                memory_used: self.memory_used,
                memory_total: self.memory_total,
                utilization: self.utilization,
                processes: self
                    .processes
                    .into_iter()
                    .map(|p| (Pid(p.pid), p.utilization, p.memory_used))
                    .collect(),
            })),
        }
    }
}

impl From<&Finding> for FindingRow {
    fn from(f: &Finding) -> FindingRow {
        let name = |op: OpId| op.name().to_owned();
        let place = f.place.clone();
        let place = place.unwrap_or(Place {
            file: None,
            line: None,
            function: None,
            op: None,
        });
        FindingRow {
            id: f.id.0,
            kind: f.kind.name().to_owned(),
            severity: f.severity.name().to_owned(),
            cause: f.cause.name().to_owned(),
            second: f.second.map(|c| c.name().to_owned()),
            pid: f.key.process.pid.0,
            start_ticks: f.key.process.start_ticks,
            device: f.key.device.map(|d| d.0),
            stream: stream_of(f.key.stream),
            unit_kind: f.key.kind.name().to_owned(),
            class: f.key.class,
            op: f.op.map(name),
            tid: f.tid.0,
            comm: f.comm.clone(),
            place_file: place.file,
            place_line: place.line,
            place_function: place.function,
            place_op: place.op.map(name),
            boot_ns: f.window.start.0,
            dur_ns: f.window.nanos(),
            first_unit: f.units.first,
            last_unit: f.units.last,
            slow_units: f.units.slow,
            worst_unit: f.units.worst,
            shifted: f.shifted,
            baseline_ns: f.baseline_ns,
            baseline_units: f.baseline_units,
            excess_ns: f.excess_ns,
            blame: f
                .blame
                .iter()
                .map(|b| BlameRow {
                    cause: b.cause.name().to_owned(),
                    ns: b.ns,
                    lost_ns: b.lost_ns,
                    detail: b.detail.clone(),
                })
                .collect(),
            evidence: f
                .evidence
                .iter()
                .map(|e| EvidenceRow {
                    what: e.what.clone(),
                    pid: e.pid,
                    tid: e.tid,
                    comm: e.comm.clone(),
                    path: e.path.clone(),
                    boot_ns: e.start.0,
                    dur_ns: e.dur,
                })
                .collect(),
        }
    }
}

impl FindingRow {
    pub(crate) fn finding(self) -> Option<Finding> {
        // A name is absent, or known; an unknown one is no finding that this version could tell.
        let op = |name: Option<String>| match name {
            None => Some(None),
            Some(name) => OpId::by_name(&name).map(Some),
        };
        let second = match self.second {
            None => None,
            Some(name) => Some(Cause::by_name(&name)?),
        };
        let place = Place {
            file: self.place_file,
            line: self.place_line,
            function: self.place_function,
            op: op(self.place_op)?,
        };
        let nowhere = place.file.is_none()
            && place.line.is_none()
            && place.function.is_none()
            && place.op.is_none();
        Some(Finding {
            id: FindingId(self.id),
            kind: FindingKind::by_name(&self.kind)?,
            severity: Severity::by_name(&self.severity)?,
            cause: Cause::by_name(&self.cause)?,
            second,
            key: UnitKey {
                process: Incarnation {
                    pid: Pid(self.pid),
                    start_ticks: self.start_ticks,
                },
                device: self.device.map(Device),
                stream: scope_of(self.stream),
                kind: UnitKind::by_name(&self.unit_kind)?,
                class: self.class,
            },
            op: op(self.op)?,
            tid: Tid(self.tid),
            comm: self.comm,
            place: (!nowhere).then_some(place),
            window: Window::at(BootNanos(self.boot_ns), self.dur_ns),
            units: UnitSpan {
                first: self.first_unit,
                last: self.last_unit,
                slow: self.slow_units,
                worst: self.worst_unit,
            },
            shifted: self.shifted,
            baseline_ns: self.baseline_ns,
            baseline_units: self.baseline_units,
            excess_ns: self.excess_ns,
            blame: self
                .blame
                .into_iter()
                .map(|b| {
                    Some(Blame {
                        cause: Cause::by_name(&b.cause)?,
                        ns: b.ns,
                        lost_ns: b.lost_ns,
                        detail: b.detail,
                    })
                })
                .collect::<Option<_>>()?,
            evidence: self
                .evidence
                .into_iter()
                .map(|e| Evidence {
                    what: e.what,
                    pid: e.pid,
                    tid: e.tid,
                    comm: e.comm,
                    path: e.path,
                    start: BootNanos(e.boot_ns),
                    dur: e.dur_ns,
                })
                .collect(),
        })
    }
}

impl From<&ProcessInfo> for ProcessRow {
    fn from(p: &ProcessInfo) -> ProcessRow {
        ProcessRow {
            pid: p.incarnation.pid.0,
            start_ticks: p.incarnation.start_ticks,
            boot_ns: p.start.0,
            parent_pid: p.parent.0,
            name: p.name.clone(),
            command: p.command.clone(),
            from_start: p.from_start,
            in_job: p.in_job,
            uid: p.uid,
            cgroup: p.cgroup.clone(),
            container_id: p.container_id.clone(),
            rank: p.rank,
            local_rank: p.local_rank,
            world_size: p.world_size,
        }
    }
}

impl ProcessRow {
    pub(crate) fn info(self) -> ProcessInfo {
        ProcessInfo {
            incarnation: Incarnation {
                pid: Pid(self.pid),
                start_ticks: self.start_ticks,
            },
            parent: Pid(self.parent_pid),
            name: self.name,
            command: self.command,
            start: BootNanos(self.boot_ns),
            from_start: self.from_start,
            in_job: self.in_job,
            uid: self.uid,
            cgroup: self.cgroup,
            container_id: self.container_id,
            rank: self.rank,
            local_rank: self.local_rank,
            world_size: self.world_size,
        }
    }
}

impl ThreadRow {
    pub(crate) fn new(t: &ThreadName, learned: BootNanos) -> ThreadRow {
        ThreadRow {
            boot_ns: learned.0,
            pid: t.thread.pid.0,
            tid: t.thread.tid.0,
            name: t.name.to_string(),
        }
    }

    pub(crate) fn name(self) -> ThreadName {
        ThreadName {
            thread: Thread::new(self.pid, self.tid),
            name: self.name.into(),
        }
    }
}

impl FileRow {
    pub(crate) fn new(f: &FilePath, learned: BootNanos) -> FileRow {
        FileRow {
            boot_ns: learned.0,
            pid: f.pid.0,
            fd: f.fd,
            path: f.path.clone(),
        }
    }

    pub(crate) fn path(self) -> FilePath {
        FilePath {
            pid: Pid(self.pid),
            fd: self.fd,
            path: self.path,
        }
    }
}

impl From<&Stack> for StackRow {
    fn from(s: &Stack) -> StackRow {
        StackRow {
            stack_id: s.id,
            frames: s
                .frames
                .iter()
                .map(|f| FrameRow {
                    ip: f.ip,
                    module: f.module.clone(),
                    module_offset: f.module_offset,
                    function: f.function.clone(),
                    file: f.file.clone(),
                    line: f.line,
                })
                .collect(),
        }
    }
}

impl StackRow {
    pub(crate) fn stack(self) -> Stack {
        Stack {
            id: self.stack_id,
            frames: self
                .frames
                .into_iter()
                .map(|f| Frame {
                    ip: f.ip,
                    module: f.module,
                    module_offset: f.module_offset,
                    function: f.function,
                    file: f.file,
                    line: f.line,
                })
                .collect(),
        }
    }
}

impl From<&Loss> for DropRow {
    fn from(l: &Loss) -> DropRow {
        DropRow {
            source: l.source.to_owned(),
            reason: l.reason.name().to_owned(),
            count: l.count,
            boot_ns: l.window.map(|w| w.start.0),
            dur_ns: l.window.map(|w| w.nanos()),
            pid: l.pid.map(|p| p.0),
        }
    }
}

impl DropRow {
    pub(crate) fn loss(self) -> StoredLoss {
        StoredLoss {
            source: self.source,
            reason: self.reason,
            count: self.count,
            window: self
                .boot_ns
                .map(|at| Window::at(BootNanos(at), self.dur_ns.unwrap_or(0))),
            pid: self.pid.map(Pid),
        }
    }
}

impl From<&Gap> for GapRow {
    fn from(g: &Gap) -> GapRow {
        GapRow {
            code: g.code.name().to_owned(),
            detail: g.detail.clone(),
            count: g.count,
        }
    }
}

impl GapRow {
    pub(crate) fn gap(self) -> Option<Gap> {
        Some(Gap {
            code: GapCode::by_name(&self.code)?,
            detail: self.detail,
            count: self.count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_units_has_a_column_for_each_category() {
        for category in Category::ALL {
            let column = format!("{}_ns", category.name());
            let schema = table_schema("units").unwrap();
            assert!(schema.field_with_name(&column).is_ok(), "no {column}");
        }
    }

    #[test]
    fn a_file_type_comes_back_from_its_mode() {
        for file in [
            FileType::None,
            FileType::Pipe,
            FileType::CharDevice,
            FileType::Directory,
            FileType::BlockDevice,
            FileType::Regular,
            FileType::Socket,
            FileType::Anonymous,
        ] {
            assert_eq!(FileType::from_mode(file_type_mode(file).into()), file);
        }
    }
}
