//! Ids. A process is its pid *and* its start time, since pids come again.

use core::fmt;

/// A process, as the recorder's pid namespace numbers it (the kernel's tgid).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Pid(pub u32);

/// A thread (the kernel's pid).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Tid(pub u32);

/// A thread of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Thread {
    pub pid: Pid,
    pub tid: Tid,
}

impl Thread {
    pub const fn new(pid: u32, tid: u32) -> Thread {
        Thread {
            pid: Pid(pid),
            tid: Tid(tid),
        }
    }
}

/// One life of a pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Incarnation {
    pub pid: Pid,
    /// Clock ticks since boot at which the process started, as field 22 of `/proc/PID/stat`; 0 when it was not learned.
    pub start_ticks: u64,
}

/// A CUDA device, by its ordinal in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device(pub u16);

impl Device {
    /// The device of a record, unless the producer did not know it.
    pub const fn from_record(device: u16) -> Option<Device> {
        if device == warptrace_record::DEVICE_UNKNOWN {
            None
        } else {
            Some(Device(device))
        }
    }
}

/// A stream handle of a process. 0 and 1 are the legacy default stream, 2 the per-thread one (CUDA 12 `cudaStreamLegacy`,
/// `cudaStreamPerThread`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Stream(pub u64);

impl Stream {
    /// A stream on which a wait covers all blocking streams of the context.
    pub const fn is_legacy(self) -> bool {
        self.0 <= 1
    }
}

/// A CPU of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cpu(pub u32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
