//! Rows of what was recorded: events, time off the CPU, counts, samples.

use warptrace_model::{
    BlockIo, BootNanos, Call, Cpu, Device, Event, FileType, GpuSample, IoKind, OffCpu, OpCount,
    OpKey, Pid, ProcessEvent, Reclaim, Retransmit, Slice, Stretch, SystemSample, Thread, Tid, Wake,
    Waker, Window,
};
use warptrace_record::{self as record, Kind, OpId, Record, Source};

use super::{BucketRow, EventRow, FLAG_THREAD, GpuProcessRow, OffCpuRow, OpsRow, SystemRow};

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
            weight: None,
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

    /// It stands for `weight` events.
    pub(crate) fn of(mut self, weight: Option<u32>) -> EventRow {
        self.weight = weight;
        self
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
            weight: None,
        }
    }

    /// It stands for `weight` events.
    pub(crate) fn of(mut self, weight: Option<u32>) -> OffCpuRow {
        self.weight = weight;
        self
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
            name: None,
            memory_free: None,
            temperature_celsius: None,
            power_milliwatts: None,
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
            name: Some(s.name.clone()).filter(|name| !name.is_empty()),
            memory_free: s.memory_free,
            temperature_celsius: s.temperature_celsius,
            power_milliwatts: s.power_milliwatts,
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
                name: self.name.unwrap_or_default(),
                sm_clock_mhz: self.sm_clock_mhz,
                max_sm_clock_mhz: self.max_sm_clock_mhz,
                throttle_reasons: self.throttle_reasons,
                memory_used: self.memory_used,
                memory_total: self.memory_total,
                memory_free: self.memory_free,
                temperature_celsius: self.temperature_celsius,
                power_milliwatts: self.power_milliwatts,
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

#[cfg(test)]
mod tests {
    use super::*;

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
