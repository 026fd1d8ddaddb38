//! `bpf/ops.h`: what the kernel programs must know of the record crate, written from it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use warptrace_record::op::{OPS, Slot, nccl_dtype_bytes};
use warptrace_record::{
    self as record, Kind, Op, Source, flag, histogram, offcpu, process, reclaim,
};

/// What a call that succeeds says about the current device of its thread; numbers are the kernel programs' own.
const EFFECTS: &[(&str, &[&str])] = &[
    ("SET_DEVICE", &["cudaSetDevice"]),
    (
        "CONTEXT_MADE",
        &["cuCtxCreate", "cuCtxCreate_v3", "cuCtxCreate_v4"],
    ),
    ("CONTEXT_KNOWN", &["cuDevicePrimaryCtxRetain"]),
    ("CONTEXT_SET", &["cuCtxSetCurrent"]),
    ("CONTEXT_PUSHED", &["cuCtxPushCurrent"]),
    ("CONTEXT_POPPED", &["cuCtxPopCurrent"]),
];

fn effect(op: &Op) -> usize {
    EFFECTS
        .iter()
        .position(|(_, ops)| ops.contains(&op.name))
        .map_or(0, |i| i + 1)
}

/// The header's text.
pub(crate) fn header() -> String {
    let mut out = String::from(
        "/* SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause */\n\
         /* Written by `cargo xtask ops` from the record crate; do not edit. */\n\
         #ifndef WARPTRACE_OPS_H\n#define WARPTRACE_OPS_H\n\n",
    );
    let mut define = |name: &str, value: u64| {
        let _ = writeln!(out, "#define {name} {value:#x}");
    };
    for (name, kind) in [
        ("CALL", Kind::Call),
        ("OFF_CPU", Kind::OffCpu),
        ("SLICE", Kind::Slice),
        ("BLOCK_IO", Kind::BlockIo),
        ("RECLAIM", Kind::Reclaim),
        ("PROCESS", Kind::Process),
        ("RETRANSMIT", Kind::Retransmit),
    ] {
        define(&format!("KIND_{name}"), kind as u64);
    }
    for (name, source) in [
        ("RUNTIME", Source::Runtime),
        ("HOST", Source::Host),
        ("DRIVER", Source::Driver),
        ("IO", Source::Io),
        ("TCP", Source::Tcp),
        ("GRAPH", Source::Graph),
        ("NCCL", Source::Nccl),
    ] {
        define(&format!("SOURCE_{name}"), source as u64);
    }
    for (name, bit) in [
        ("FLAG_NESTED", flag::NESTED),
        ("FLAG_NESTED_IN_LIBRARY", flag::NESTED_IN_LIBRARY),
        ("FLAG_NO_RETURN", flag::NO_RETURN),
        ("OFFCPU_PREEMPTED", offcpu::PREEMPTED),
        ("OFFCPU_IOWAIT", offcpu::IOWAIT),
        ("OFFCPU_WAKER_INTERRUPT", offcpu::WAKER_INTERRUPT),
        ("OFFCPU_WAKER_SYSCALL", offcpu::WAKER_SYSCALL),
        ("OFFCPU_WAKER_KERNEL", offcpu::WAKER_KERNEL),
        ("OFFCPU_WAKER_SENT", offcpu::WAKER_SENT),
        ("OFFCPU_UNINTERRUPTIBLE", offcpu::UNINTERRUPTIBLE),
        ("OFFCPU_STOPPED", offcpu::STOPPED),
        ("OFFCPU_TIMED", offcpu::TIMED),
        ("OFFCPU_POLL_SOCKET", offcpu::POLL_SOCKET),
        ("RECLAIM_CGROUP", reclaim::CGROUP),
        ("RECLAIM_THROTTLED", reclaim::THROTTLED),
        ("RECLAIM_COMPACTION", reclaim::COMPACTION),
        ("PROCESS_FORK", process::FORK),
        ("PROCESS_EXEC", process::EXEC),
        ("PROCESS_EXIT", process::EXIT),
        ("PROCESS_OOM_KILL", process::OOM_KILL),
        ("PROCESS_SEEN", process::SEEN),
        ("PROCESS_NAME", process::NAME),
        ("DEVICE_UNKNOWN", record::DEVICE_UNKNOWN),
        ("NO_SYSCALL", record::NO_SYSCALL),
    ] {
        define(name, u64::from(bit));
    }
    for (name, slot) in [
        ("ZERO", Slot::Zero),
        ("CONST", Slot::Const(0)),
        ("P", Slot::P(0)),
        ("INT", Slot::Int(0)),
        ("OUT", Slot::Out(0)),
        ("MUL", Slot::Mul(0)),
        ("SHL", Slot::Shl(0, 0)),
        ("NCCL_BYTES", Slot::NcclBytes(0)),
        ("DIM3", Slot::Dim3(0)),
        ("DIMS", Slot::Dims(0)),
        ("CONFIG_DIMS", Slot::ConfigDims(0)),
        ("AT", Slot::At(0, 0)),
        ("AT_MUL", Slot::AtMul(0, 0)),
        ("PAIR", Slot::Pair(0, 0)),
    ] {
        define(&format!("SLOT_{name}"), u64::from(slot.encode()));
    }
    for (i, (name, _)) in EFFECTS.iter().enumerate() {
        define(&format!("EFFECT_{name}"), i as u64 + 1);
    }
    define("NESTED_MIN_NANOS", record::NESTED_MIN_NANOS);
    define("BUCKETS", histogram::BUCKETS as u64);
    define("STACK_DEPTH", 64);
    define("OPS", OPS.len() as u64);
    define("NCCL_TYPES", 16);

    out.push_str(
        "\nstruct record {\n\t__u8 kind, source;\n\t__u16 op, flags, device;\n\t__u64 ts, dur;\n\
         \t__u32 pid, tid;\n\t__s32 ret;\n\t__u32 stack_id, seq, cpu;\n\t__u64 arg0, arg1, stream;\n};\n\n\
         struct op {\n\t__u8 source, wait, effect, pad;\n\t__u16 number;\n};\n\n\
         const __u8 nccl_type_bytes[NCCL_TYPES] = {",
    );
    for dtype in 0..16 {
        let _ = write!(
            out,
            "{}{}",
            if dtype == 0 { "" } else { ", " },
            nccl_dtype_bytes(dtype)
        );
    }
    out.push_str("};\n\nconst struct op ops[OPS] = {\n");
    for op in OPS {
        let _ = writeln!(
            out,
            "\t{{{}, {}, {}, 0, {}}}, /* {} */",
            op.source as u8,
            op.wait as u8,
            effect(op),
            op.number,
            op.name
        );
    }
    out.push_str("};\n\n#endif\n");
    out
}

pub(crate) fn write(root: &Path) -> anyhow::Result<()> {
    let path = root.join("bpf/ops.h");
    let text = header();
    if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::write(&path, text).with_context(|| format!("cannot write {path:?}"))
}

pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let path = root.join("bpf/ops.h");
    let committed =
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}"))?;
    if committed != header() {
        bail!("bpf/ops.h is not what the op table says: run `cargo xtask bpf`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_header_is_what_the_op_table_says() {
        check(&crate::root()).unwrap();
    }

    #[test]
    fn every_op_with_an_effect_is_in_the_table() {
        for (_, names) in EFFECTS {
            for name in *names {
                assert!(OPS.iter().any(|op| op.name == *name), "{name} is no op");
            }
        }
    }
}
