//! One call, as a row of `events` says it and as we do.

use warptrace_model::{BootNanos, Call, CallFlags, Cpu, Device, Stream, Thread};
use warptrace_record::op::Slot;
use warptrace_record::{OpId, Source};

/// Bytes of a sector, the unit of `arg0` of block requests.
pub(crate) const SECTOR: u64 = 512;
/// Socket calls, which we have no source for.
pub(crate) const SOURCE_NET: u8 = 7;

/// Ops of the host.
pub(crate) mod host {
    pub(crate) const SCHED_SWITCH: u16 = 1;
    pub(crate) const SCHED_WAKEUP: u16 = 2;
    pub(crate) const OOM_KILL: u16 = 4;
    pub(crate) const EXEC: u16 = 5;
    pub(crate) const EXIT: u16 = 6;
    pub(crate) const FORK: u16 = 7;

    /// What is no event of ours, for the report.
    pub(crate) fn other(op: u16) -> &'static str {
        match op {
            3 => "mm_page_alloc: page allocations are not kept one by one",
            10..=12 => "an event of Kubernetes: nothing of it is known but that it was",
            20 | 21 => "a sum over the whole machine (mm_page_alloc_summary, sched_switch_summary)",
            _ => "an op of the host that is not known",
        }
    }
}

/// `gpu_id`, arguments and handles of a row. The handles are columns that were added later, null in older files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Args {
    pub(crate) arg0: u64,
    pub(crate) arg1: u64,
    pub(crate) gpu_id: u32,
    pub(crate) device: Option<u16>,
    pub(crate) stream: Option<u64>,
    pub(crate) graph: Option<u64>,
    pub(crate) exec: Option<u64>,
    pub(crate) capture_mode: Option<u64>,
}

/// Whose, when and how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) thread: Thread,
    pub(crate) start: BootNanos,
    pub(crate) dur: u64,
    pub(crate) ret: i32,
    pub(crate) stack_id: u32,
}

/// The columns that hold the handles of a graph op: those that are our `arg0` and `arg1`.
#[derive(Clone, Copy)]
enum Handle {
    Graph,
    Exec,
    Mode,
    None,
}

/// By the op table's rows of source 8.
const fn handles(op: u16) -> (Handle, Handle) {
    match op {
        1 => (Handle::Mode, Handle::None),
        2 | 5 => (Handle::Graph, Handle::None),
        3 | 6 => (Handle::Exec, Handle::Graph),
        4 | 7 => (Handle::Exec, Handle::None),
        _ => (Handle::None, Handle::None),
    }
}

/// The call of a row.
pub(crate) fn call(op: OpId, head: Head, args: &Args) -> Call {
    let row = op.get();
    let mut stream = args.stream;
    let (arg0, arg1) = match (row.source, row.number) {
        (Source::Runtime, 3) => {
            stream = stream.or(Some(args.arg1));
            (args.arg0, 0)
        }
        (Source::Runtime, 5) => {
            stream = stream.or(Some(args.arg0));
            (0, 0)
        }
        // Of a failed allocation, where the address would have been written.
        (Source::Runtime, 1 | 8) | (Source::Driver, 5 | 6) if head.ret != 0 => (args.arg0, 0),
        // Its kind is found out by its pointers, as the op table says.
        (Source::Driver, 2 | 3) => (args.arg0, 4),
        (Source::Driver, 1) => (args.arg0, 0),
        (Source::Graph, number) => {
            let of = |handle| match handle {
                Handle::Graph => args.graph.unwrap_or(0),
                Handle::Exec => args.exec.unwrap_or(0),
                Handle::Mode => args.capture_mode.unwrap_or(0),
                Handle::None => 0,
            };
            let (first, second) = handles(number);
            (of(first), of(second))
        }
        _ => (args.arg0, args.arg1),
    };
    // Older agents write 0 whatever the device.
    let numbered = u16::try_from(args.gpu_id).ok().filter(|id| *id > 0);
    Call {
        thread: head.thread,
        op,
        start: head.start,
        dur: head.dur,
        device: args.device.or(numbered).map(Device),
        stream: Stream(stream.unwrap_or(0)),
        ret: head.ret,
        flags: CallFlags(0),
        arg0,
        arg1,
        stack_id: head.stack_id,
        cpu: Cpu(0),
    }
}

/// The arguments of a call's row.
pub(crate) fn args(call: &Call) -> Args {
    let op = call.op.get();
    let mut args = Args {
        arg0: call.arg0,
        arg1: call.arg1,
        gpu_id: call.device.map_or(0, |d| u32::from(d.0)),
        device: call.device.map(|d| d.0),
        stream: (op.stream != Slot::Zero).then_some(call.stream.0),
        ..Args::default()
    };
    match (op.source, op.number) {
        (Source::Runtime, 3) => args.arg1 = call.stream.0,
        (Source::Runtime, 5) => (args.arg0, args.arg1) = (call.stream.0, 0),
        (Source::Driver, 1..=3) => args.arg1 = 0,
        (Source::Graph, number) => {
            let (first, second) = handles(number);
            for (handle, value) in [(first, call.arg0), (second, call.arg1)] {
                match handle {
                    Handle::Graph => args.graph = Some(value),
                    Handle::Exec => args.exec = Some(value),
                    Handle::Mode => args.capture_mode = Some(value),
                    Handle::None => {}
                }
            }
            (args.arg0, args.arg1) = (0, 0);
        }
        _ => {}
    }
    args
}

/// Whether a row's `arg0` is added up in the table of sums: bytes, or sectors.
pub(crate) fn sums_arg0(source: u8, op: u16) -> bool {
    matches!(
        (source, op),
        (1, 1 | 4 | 7 | 8) | (4, 2 | 3 | 5 | 6) | (5, _)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(op: &str) -> Call {
        let op = OpId::by_name(op).unwrap();
        let row = op.get();
        let has = |slot: Slot, value| if slot == Slot::Zero { 0 } else { value };
        Call {
            thread: Thread::new(10, 11),
            op,
            start: BootNanos(5_000),
            dur: 70,
            device: Some(Device(0)),
            stream: Stream(has(row.stream, u64::MAX - 9)),
            ret: 0,
            flags: CallFlags(0),
            arg0: has(row.arg0, u64::MAX - 1),
            arg1: has(row.arg1, 3),
            stack_id: 4,
            cpu: Cpu(0),
        }
    }

    fn head(c: &Call) -> Head {
        Head {
            thread: c.thread,
            start: c.start,
            dur: c.dur,
            ret: c.ret,
            stack_id: c.stack_id,
        }
    }

    #[test]
    fn every_op_goes_there_and_back_but_for_what_a_row_cannot_say() {
        for index in 0.. {
            let Some(op) = OpId::from_index(index) else {
                break;
            };
            let mut c = sample(op.name());
            // The grid of a launch has no column; the kind of these copies is a constant.
            match (op.get().source, op.get().number) {
                (Source::Runtime, 3) | (Source::Driver, 1) => c.arg1 = 0,
                (Source::Driver, 2 | 3) => c.arg1 = 4,
                _ => {}
            }
            assert_eq!(call(op, head(&c), &args(&c)), c, "{}", op.name());
        }
    }

    #[test]
    fn the_stream_of_an_older_file_is_where_that_file_has_it() {
        let old = Args {
            arg0: 0x40,
            arg1: 0x7f00,
            ..Args::default()
        };
        for (op, stream, arg0, arg1) in [
            ("cudaLaunchKernel", 0x7f00, 0x40, 0),
            ("cudaStreamSync", 0x40, 0, 0),
            ("cudaMemcpy", 0, 0x40, 0x7f00),
            ("cuLaunchKernel", 0, 0x40, 0),
            ("cuMemcpy", 0, 0x40, 4),
            ("graphLaunch", 0, 0, 0),
        ] {
            let c = call(OpId::by_name(op).unwrap(), head(&sample(op)), &old);
            assert_eq!((c.stream.0, c.arg0, c.arg1), (stream, arg0, arg1), "{op}");
            assert_eq!(c.device, None, "{op}: 0 is what is written for any device");
        }
    }
}
