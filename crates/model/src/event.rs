//! What happened, typed. An event is a record with its slots named, or something that a poller saw.

use warptrace_record as record;
use warptrace_record::{Kind, OpId, Record, Source};

use crate::{
    Annotation, BootNanos, Cpu, Device, Incarnation, OpCount, Pid, Stream, Thread, Tid, Window,
};

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Call(Call),
    /// A call that had not returned when it was looked at; `dur` is its length so far.
    InFlight(Call),
    OffCpu(OffCpu),
    Slice(Slice),
    BlockIo(BlockIo),
    Reclaim(Reclaim),
    Stretch(Stretch),
    Retransmit(Retransmit),
    Process(ProcessEvent),
    ThreadName(ThreadName),
    ProcessInfo(Box<ProcessInfo>),
    FilePath(Box<FilePath>),
    Counts(Box<OpCount>),
    System(Box<SystemSample>),
    Gpu(Box<GpuSample>),
    Annotation(Box<Annotation>),
    Capture(CaptureSwitched),
    Lost(Loss),
}

/// Capture was switched on or off. What is not seen while it is off did not fail to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureSwitched {
    /// Calls that begin after this are recorded, or those before it were.
    pub at: BootNanos,
    pub on: bool,
}

/// A traced call that returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub thread: Thread,
    pub op: OpId,
    /// Entry.
    pub start: BootNanos,
    /// Entry to return, ns.
    pub dur: u64,
    pub device: Option<Device>,
    pub stream: Stream,
    pub ret: i32,
    pub flags: CallFlags,
    /// By the op table.
    pub arg0: u64,
    pub arg1: u64,
    /// User stack, 0 when none was taken.
    pub stack_id: u32,
    pub cpu: Cpu,
}

impl Call {
    pub fn window(&self) -> Window {
        Window::at(self.start, self.dur)
    }

    pub fn end(&self) -> BootNanos {
        self.start.plus(self.dur)
    }

    /// Bytes that the call moves or takes, where its op says so.
    pub fn bytes(&self) -> Option<u64> {
        match self.op.get().bytes {
            record::op::Bytes::Arg0 => Some(self.arg0),
            record::op::Bytes::None => None,
        }
    }

    /// `cudaMemcpyKind` of a copy: 0 host to host, 1 host to device, 2 device to host, 3 device to device, 4 by pointer.
    pub fn copy_kind(&self) -> Option<u8> {
        (self.op.get().class == record::Class::Copy).then_some((self.arg1 & 0xff) as u8)
    }
}

/// [`record::flag`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallFlags(pub u16);

impl CallFlags {
    pub const fn nested(self) -> bool {
        self.0 & record::flag::NESTED != 0
    }

    /// Nested in a call of another library than the CUDA runtime, so that it counts as work of its own.
    pub const fn nested_in_library(self) -> bool {
        self.0 & record::flag::NESTED_IN_LIBRARY != 0
    }

    pub const fn no_return(self) -> bool {
        self.0 & record::flag::NO_RETURN != 0
    }
}

/// A thread's time off the CPU, switch-out to switch-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffCpu {
    pub thread: Thread,
    /// Switch-out.
    pub start: BootNanos,
    pub dur: u64,
    /// Runnable ns, at the end of `dur` (all of it when preempted).
    pub runnable: u64,
    /// Of `runnable`: held back by a CPU quota.
    pub throttled: u64,
    pub preempted: bool,
    pub iowait: bool,
    pub uninterruptible: bool,
    /// Stopped, traced or frozen.
    pub stopped: bool,
    /// The sleep has a time limit of the caller's.
    pub timed: bool,
    pub poll_socket: bool,
    /// System call slept in; `None`: in none (a fault, or preempted in user code).
    pub syscall: Option<u16>,
    /// First argument's descriptor and its file type, where the call takes one.
    pub fd: Option<i32>,
    pub file: FileType,
    pub waker: Option<Waker>,
    /// The thread that ran on the CPU just before this one came back: not who held it all the time.
    pub last_occupant: Tid,
    /// The CPU it came back on.
    pub cpu: Cpu,
}

impl OffCpu {
    pub fn window(&self) -> Window {
        Window::at(self.start, self.dur)
    }

    /// The part in which the thread waited for something: switch-out to wake-up.
    pub fn blocked(&self) -> Window {
        Window::at(self.start, self.dur.saturating_sub(self.runnable))
    }

    /// The part in which it waited for a CPU.
    pub fn waiting_for_cpu(&self) -> Window {
        let runnable = self.runnable.min(self.dur);
        Window::at(self.start.plus(self.dur - runnable), runnable)
    }
}

/// Who woke a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waker {
    pub thread: Thread,
    pub by: Wake,
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Out of a system call of its own (or a send that a receiver waited for): it acted.
    Syscall,
    /// A kernel thread.
    Kernel,
    /// An interrupt: the thread is a bystander.
    Interrupt,
    /// Running user code, in no system call; seen when a page that both wait for comes in.
    Other,
}

/// Type of the file that a thread slept on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FileType {
    #[default]
    None,
    Pipe,
    CharDevice,
    Directory,
    BlockDevice,
    Regular,
    Socket,
    /// eventfd, epoll, timerfd, io_uring and the like.
    Anonymous,
}

impl FileType {
    /// From `S_IFMT >> 12`; anonymous inodes have no type bits, and 0 is none.
    pub const fn from_mode(mode: u16) -> FileType {
        match mode {
            0o1 => FileType::Pipe,
            0o2 => FileType::CharDevice,
            0o4 => FileType::Directory,
            0o6 => FileType::BlockDevice,
            0o10 => FileType::Regular,
            0o14 => FileType::Socket,
            0xff => FileType::Anonymous,
            _ => FileType::None,
        }
    }
}

/// Somebody ran on a CPU while a traced thread waited for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Tid 0: the idle task.
    pub thread: Thread,
    pub start: BootNanos,
    pub dur: u64,
    pub cpu: Cpu,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoKind {
    Read,
    Write,
    Discard,
    Flush,
}

/// A block request, from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockIo {
    /// Who submitted it; a kernel thread when written back later.
    pub thread: Thread,
    pub start: BootNanos,
    pub dur: u64,
    pub kind: IoKind,
    pub bytes: u64,
    pub sector: u64,
    /// `dev_t` of the kernel: major in the upper 12 bits, minor in the lower 20.
    pub dev: u32,
    /// Inode of the file, 0 when it was not known.
    pub inode: u64,
    pub error: i32,
}

/// Reclaim or compaction that a thread did, or was held back by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reclaim {
    pub thread: Thread,
    pub start: BootNanos,
    pub dur: u64,
    /// For its memory cgroup's limit, not the machine's shortage.
    pub cgroup: bool,
    pub pages: u64,
}

/// How a thread's time was spent over a stretch, as it saw itself (preload). Stretches of one thread follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub thread: Thread,
    pub start: BootNanos,
    pub dur: u64,
    pub running: u64,
    pub runnable: u64,
    /// Of `runnable`: held back by a CPU quota, as far as it could be told.
    pub throttled: u64,
    pub major_faults: u32,
    pub minor_faults: u32,
}

/// A TCP segment was sent again. Whose, is told by its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retransmit {
    pub at: BootNanos,
    pub address: u32,
    pub peer_address: u32,
    pub port: u16,
    pub peer_port: u16,
}

/// The life of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEvent {
    Born {
        at: BootNanos,
        parent: Thread,
        child: Pid,
    },
    ThreadBorn {
        at: BootNanos,
        parent: Thread,
        child: Tid,
    },
    Exec {
        at: BootNanos,
        pid: Pid,
        start_ticks: u64,
    },
    /// `status` as `wait` gives it.
    Exit {
        at: BootNanos,
        pid: Pid,
        status: i32,
    },
    ThreadExit {
        at: BootNanos,
        thread: Thread,
    },
    OomKill {
        at: BootNanos,
        victim: Pid,
    },
}

/// The name of a thread, whenever it is learned or changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadName {
    pub thread: Thread,
    pub name: Box<str>,
}

/// What is constant for a process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessInfo {
    pub incarnation: Incarnation,
    pub parent: Pid,
    /// Name of the main thread.
    pub name: String,
    /// Arguments, as they were at exec.
    pub command: Vec<String>,
    pub start: BootNanos,
    /// Its start was recorded: no call of it can have been missed before.
    pub from_start: bool,
    /// It belongs to the job that is watched; else it is only known because it was in the way.
    pub in_job: bool,
    pub uid: u32,
    /// Path in the v2 hierarchy, or of the v1 cpu controller.
    pub cgroup: String,
    /// 64 hex digits, empty outside containers.
    pub container_id: String,
    /// `RANK`, `LOCAL_RANK` and `WORLD_SIZE` of its environment.
    pub rank: Option<u32>,
    pub local_rank: Option<u32>,
    pub world_size: Option<u32>,
}

/// What a descriptor of a process was, when a thread waited for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePath {
    pub pid: Pid,
    pub fd: i32,
    pub path: String,
}

/// The machine, sampled.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SystemSample {
    pub at: BootNanos,
    /// Busy fraction of all CPUs since the last sample, 0..1; `None` in the first sample.
    pub cpu: Option<f64>,
    /// Of that, taken by the hypervisor, 0..1.
    pub steal: Option<f64>,
    pub memory_total: u64,
    pub memory_available: u64,
    pub swap_used: u64,
    pub load1: f64,
    pub load5: f64,
    /// Major faults a second since the last sample.
    pub major_faults: Option<f64>,
    /// Fraction of the last 10 s in which some task was held back, 0..1 (`/proc/pressure`), when the kernel has it.
    pub pressure_cpu: Option<f64>,
    pub pressure_io: Option<f64>,
    pub pressure_memory: Option<f64>,
}

/// One device, sampled.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GpuSample {
    pub at: BootNanos,
    /// NVML's index.
    pub device: u16,
    pub uuid: String,
    /// As NVML has it: `NVIDIA H100 80GB HBM3`; empty when it is not known.
    pub name: String,
    pub sm_clock_mhz: Option<u32>,
    pub max_sm_clock_mhz: Option<u32>,
    /// Throttle (clock event) reasons, NVML's bits.
    pub throttle_reasons: Option<u64>,
    /// Bytes in use on the device, by all processes.
    pub memory_used: Option<u64>,
    pub memory_total: Option<u64>,
    /// What can be allocated; with what is in use less than all, since the driver keeps some.
    pub memory_free: Option<u64>,
    pub temperature_celsius: Option<u32>,
    pub power_milliwatts: Option<u32>,
    /// Busy fraction, 0..1.
    pub utilization: Option<f64>,
    /// Each process's share of the device since the last sample, 0..1, and its bytes.
    pub processes: Vec<(Pid, Option<f64>, Option<u64>)>,
}

/// Records that are missing, and how many: silence must mean that nothing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Who lost them: `ebpf`, `preload`, `agent`, `store`.
    pub source: &'static str,
    pub reason: LossReason,
    pub count: u64,
    /// From the last record before to the first one after, where that is known.
    pub window: Option<Window>,
    /// Whose records, where that is known; else anybody's.
    pub pid: Option<Pid>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LossReason {
    RingFull,
    MapFull,
    /// Shed to keep the cost bounded.
    RateLimited,
    QueueFull,
    /// Overwritten before they were read.
    Overwritten,
    /// Later than the merge window: stored, not explained.
    Late,
    Malformed,
    /// The disk refused.
    StoreFailed,
    /// No memory for a ring in /dev/shm.
    NoRing,
    /// A table of bounded size gave something up.
    Evicted,
    /// A call whose return was never seen.
    NoReturn,
    /// The kernel reached a BPF program from within itself, and did not run it again. What it would have seen may have been of no
    /// interest.
    Skipped,
}

impl LossReason {
    pub const ALL: [LossReason; 12] = [
        LossReason::RingFull,
        LossReason::MapFull,
        LossReason::RateLimited,
        LossReason::QueueFull,
        LossReason::Overwritten,
        LossReason::Late,
        LossReason::Malformed,
        LossReason::StoreFailed,
        LossReason::NoRing,
        LossReason::Evicted,
        LossReason::NoReturn,
        LossReason::Skipped,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            LossReason::RingFull => "ring_full",
            LossReason::MapFull => "map_full",
            LossReason::RateLimited => "rate_limited",
            LossReason::QueueFull => "queue_full",
            LossReason::Overwritten => "overwritten",
            LossReason::Late => "late",
            LossReason::Malformed => "malformed",
            LossReason::StoreFailed => "store_failed",
            LossReason::NoRing => "no_ring",
            LossReason::Evicted => "evicted",
            LossReason::NoReturn => "no_return",
            LossReason::Skipped => "skipped",
        }
    }

    pub fn by_name(name: &str) -> Option<LossReason> {
        LossReason::ALL.into_iter().find(|r| r.name() == name)
    }
}

impl Event {
    /// The event that a decoded record says, or `None` for one whose op or kind means nothing to this version.
    pub fn from_record(r: &Record) -> Option<Event> {
        let thread = Thread::new(r.pid, r.tid);
        let start = BootNanos(r.ts);
        let set = |bit: u16| r.flags & bit != 0;
        Some(match r.kind()? {
            kind @ (Kind::Call | Kind::InFlight) => {
                let call = Call {
                    thread,
                    op: OpId::find(Source::from_u8(r.source)?, r.op)?,
                    start,
                    dur: r.dur,
                    device: Device::from_record(r.device),
                    stream: Stream(r.stream),
                    ret: r.ret,
                    flags: CallFlags(r.flags),
                    arg0: r.arg0,
                    arg1: r.arg1,
                    stack_id: r.stack_id,
                    cpu: Cpu(r.cpu),
                };
                if kind == Kind::Call {
                    Event::Call(call)
                } else {
                    Event::InFlight(call)
                }
            }
            Kind::OffCpu => {
                use record::offcpu as f;
                let waker = Thread::new((r.stream >> 32) as u32, r.stack_id);
                Event::OffCpu(OffCpu {
                    thread,
                    start,
                    dur: r.dur,
                    runnable: r.arg0.min(r.dur),
                    throttled: r.arg1.min(r.arg0).min(r.dur),
                    preempted: set(f::PREEMPTED),
                    iowait: set(f::IOWAIT),
                    uninterruptible: set(f::UNINTERRUPTIBLE),
                    stopped: set(f::STOPPED),
                    timed: set(f::TIMED),
                    poll_socket: set(f::POLL_SOCKET),
                    syscall: (r.op != record::NO_SYSCALL).then_some(r.op),
                    fd: (r.ret >= 0).then_some(r.ret),
                    file: FileType::from_mode(r.device),
                    waker: (waker.tid.0 != 0).then(|| Waker {
                        thread: waker,
                        by: if set(f::WAKER_SENT) {
                            Wake::Syscall
                        } else if set(f::WAKER_INTERRUPT) {
                            Wake::Interrupt
                        } else if set(f::WAKER_KERNEL) {
                            Wake::Kernel
                        } else if set(f::WAKER_SYSCALL) {
                            Wake::Syscall
                        } else {
                            Wake::Other
                        },
                    }),
                    last_occupant: Tid(r.stream as u32),
                    cpu: Cpu(r.cpu),
                })
            }
            Kind::Slice => Event::Slice(Slice {
                thread,
                start,
                dur: r.dur,
                cpu: Cpu(r.cpu),
            }),
            Kind::BlockIo => Event::BlockIo(BlockIo {
                thread,
                start,
                dur: r.dur,
                kind: match r.op {
                    0 => IoKind::Read,
                    1 => IoKind::Write,
                    2 => IoKind::Discard,
                    _ => IoKind::Flush,
                },
                bytes: r.arg0,
                sector: r.arg1,
                dev: r.stack_id,
                inode: r.stream,
                error: r.ret,
            }),
            Kind::Reclaim => Event::Reclaim(Reclaim {
                thread,
                start,
                dur: r.dur,
                cgroup: set(record::reclaim::CGROUP),
                pages: r.arg0,
            }),
            Kind::Stretch => {
                let runnable = r.arg1.min(r.dur);
                Event::Stretch(Stretch {
                    thread,
                    start,
                    dur: r.dur,
                    running: r.arg0.min(r.dur - runnable),
                    runnable,
                    throttled: ((r.stream >> 32) * 1_000).min(runnable),
                    major_faults: (r.stream >> 16 & 0xffff) as u32,
                    minor_faults: (r.stream & 0xffff) as u32,
                })
            }
            Kind::Retransmit => Event::Retransmit(Retransmit {
                at: start,
                address: (r.arg0 >> 32) as u32,
                peer_address: r.arg0 as u32,
                port: (r.arg1 >> 16) as u16,
                peer_port: r.arg1 as u16,
            }),
            Kind::Process => Event::Process(match r.op {
                record::process::FORK if r.arg0 == r.arg1 => ProcessEvent::Born {
                    at: start,
                    parent: thread,
                    child: Pid(r.arg0 as u32),
                },
                record::process::FORK => ProcessEvent::ThreadBorn {
                    at: start,
                    parent: thread,
                    child: Tid(r.arg1 as u32),
                },
                record::process::EXEC => ProcessEvent::Exec {
                    at: start,
                    pid: Pid(r.pid),
                    start_ticks: r.arg1,
                },
                record::process::EXIT if r.pid == r.tid => ProcessEvent::Exit {
                    at: start,
                    pid: Pid(r.pid),
                    status: r.ret,
                },
                record::process::EXIT => ProcessEvent::ThreadExit { at: start, thread },
                record::process::OOM_KILL => ProcessEvent::OomKill {
                    at: start,
                    victim: Pid(r.pid),
                },
                _ => return None,
            }),
        })
    }

    /// When it was over; what merges and windows go by. `None` for what has no moment (names, paths).
    pub fn end(&self) -> Option<BootNanos> {
        Some(match self {
            Event::Call(c) => c.end(),
            Event::InFlight(c) => c.end(),
            Event::OffCpu(e) => e.start.plus(e.dur),
            Event::Slice(e) => e.start.plus(e.dur),
            Event::BlockIo(e) => e.start.plus(e.dur),
            Event::Reclaim(e) => e.start.plus(e.dur),
            Event::Stretch(e) => e.start.plus(e.dur),
            Event::Retransmit(e) => e.at,
            Event::Process(e) => match *e {
                ProcessEvent::Born { at, .. }
                | ProcessEvent::ThreadBorn { at, .. }
                | ProcessEvent::Exec { at, .. }
                | ProcessEvent::Exit { at, .. }
                | ProcessEvent::ThreadExit { at, .. }
                | ProcessEvent::OomKill { at, .. } => at,
            },
            Event::System(e) => e.at,
            Event::Gpu(e) => e.at,
            Event::Annotation(e) => e.at,
            Event::Capture(e) => e.at,
            Event::Lost(e) => e.window?.end,
            Event::Counts(e) => e.window.end,
            Event::ThreadName(_) | Event::ProcessInfo(_) | Event::FilePath(_) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_off_cpu_record_never_waits_longer_than_it_lasted() {
        let mut r = Record::new(Kind::OffCpu, 100, 50, 1, 2);
        r.op = record::NO_SYSCALL;
        r.ret = -1;
        r.arg0 = 80;
        r.arg1 = 90;
        let Some(Event::OffCpu(e)) = Event::from_record(&r) else {
            panic!("not an off-CPU event")
        };
        assert_eq!((e.runnable, e.throttled), (50, 50));
        assert_eq!((e.syscall, e.fd, e.waker), (None, None, None));
        assert_eq!(e.blocked().nanos(), 0);
        assert_eq!(e.waiting_for_cpu(), Window::at(BootNanos(100), 50));
    }

    #[test]
    fn a_call_of_an_unknown_op_is_no_event() {
        let mut r = Record::new(Kind::Call, 0, 0, 1, 1);
        (r.source, r.op) = (1, 999);
        assert_eq!(Event::from_record(&r), None);
        r.source = 77;
        assert_eq!(Event::from_record(&r), None);
    }
}
