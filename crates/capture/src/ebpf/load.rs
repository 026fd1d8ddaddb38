//! The programs of `bpf/`: loaded, with the settings that they read and the maps that they fill.

use std::io;
use std::sync::{Arc, Mutex, Once, PoisonError};

use libbpf_rs::{
    MapCore as _, Object, ObjectBuilder, OpenObject, PrintLevel, ProgramAttachType, RingBuffer,
    RingBufferBuilder,
};
use warptrace_model::{BootNanos, Gap, GapCode};
use warptrace_record::Record;

use super::kernel::{self, Kernel, ProbeKind, Version};
use super::layout::{self, Settings};
use super::{Inbox, Options, StartError};

#[cfg(target_arch = "x86_64")]
static OBJECT: &[u8] = include_bytes!("../../../../bpf/warptrace.x86_64.bpf.o");
#[cfg(target_arch = "aarch64")]
static OBJECT: &[u8] = include_bytes!("../../../../bpf/warptrace.aarch64.bpf.o");

/// Entries of the map of counts where all of it is taken at the start, 2.5 KiB each.
const FIXED_COUNTS: u32 = 2048;

/// Where a block request begins; and what is probed instead on kernels before 6.5, which do not tell it.
pub(super) const IO_START: &str = "block_io_start";
pub(super) const INSTEAD_OF_IO_START: [&str; 2] = ["block_bio_queue", "block_split"];

pub(super) fn stand_in_for_io_start(kernel: &Kernel) -> bool {
    let has = |name: &&str| kernel.has_tracepoint(name);
    !kernel.has_tracepoint(IO_START) && INSTEAD_OF_IO_START.iter().all(has)
}

pub(super) fn refused(what: &'static str, source: libbpf_rs::Error) -> StartError {
    StartError::Kernel {
        what,
        hint: "run with WARPTRACE_LOG=warptrace_capture=debug for the verifier's words",
        source,
    }
}

pub(super) fn log_libbpf() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        libbpf_rs::set_print(Some((PrintLevel::Debug, |level, text| {
            let text = text.trim_end();
            match level {
                PrintLevel::Warn => tracing::warn!(target: "warptrace_capture::libbpf", "{text}"),
                PrintLevel::Info | PrintLevel::Debug => {
                    tracing::debug!(target: "warptrace_capture::libbpf", "{text}");
                }
            }
        })));
    });
}

pub(super) fn load(
    kernel: &Kernel,
    options: &Options,
    now: BootNanos,
    gaps: &mut Vec<Gap>,
) -> Result<Object, StartError> {
    let mut open = ObjectBuilder::default()
        .open_memory(OBJECT)
        .map_err(|e| refused("object", e))?;
    for mut program in open.progs_mut() {
        let section = program.section().to_string_lossy().into_owned();
        let Some(tracepoint) = section.strip_prefix("tp_btf/") else {
            if section.ends_with("probe.multi") && kernel.probe_kind() == ProbeKind::PerfEvents {
                // The section's type of attachment is what old kernels do not know; none is that of a perf event.
                program.set_attach_type(ProgramAttachType::CgroupInetIngress);
            }
            continue;
        };
        if INSTEAD_OF_IO_START.contains(&tracepoint) {
            program.set_autoload(stand_in_for_io_start(kernel));
        } else if tracepoint == IO_START && stand_in_for_io_start(kernel) {
            program.set_autoload(false);
        } else if !kernel.has_tracepoint(tracepoint) {
            program.set_autoload(false);
            gaps.push(Gap {
                code: GapCode::ProbeMissing,
                detail: format!("this kernel has no tracepoint {tracepoint}"),
                count: 1,
            });
        }
    }
    let settings = Settings {
        ring_bytes: u64::from(options.ring_bytes),
        loaded_at: now.0,
        off_cpu_min: options.off_cpu_min_nanos,
        stack_min: options.stack_min_nanos,
        listed: options.pids.is_some(),
        all_block_io: options.all_block_io,
        pid_namespace: kernel.pid_namespace.unwrap_or(0),
        has: [
            (kernel.switch_state, layout::HAS_SWITCH_STATE),
            (kernel.victim_task, layout::HAS_VICTIM_TASK),
            (!stand_in_for_io_start(kernel), layout::HAS_IO_START),
        ]
        .into_iter()
        .filter_map(|(has, bit)| has.then_some(bit))
        .sum(),
    };
    let growing_maps = Version::parse(&kernel.release) >= kernel::GROWING_MAPS;
    configure(&mut open, &settings, options.ring_bytes, growing_maps)
        .map_err(|e| refused("settings", e))?;
    open.load().map_err(|e| refused("programs", e))
}

fn configure(
    open: &mut OpenObject,
    settings: &Settings,
    ring_bytes: u32,
    growing_maps: bool,
) -> Result<(), libbpf_rs::Error> {
    for mut map in open.maps_mut() {
        if map.name() == "ring" {
            map.set_max_entries(ring_bytes)?;
        } else if map.name() == "counts" && !growing_maps {
            map.set_map_flags(0)?;
            map.set_max_entries(FIXED_COUNTS)?;
        } else if map.name() == ".rodata.settings"
            && let Some(place) = map
                .initial_value_mut()
                .and_then(|v| v.get_mut(..Settings::BYTES))
        {
            place.copy_from_slice(&settings.encode());
        }
    }
    Ok(())
}

pub(super) fn open_ring(
    object: &Object,
    inbox: Arc<Mutex<Inbox>>,
) -> Result<RingBuffer<'static>, libbpf_rs::Error> {
    let map = object
        .maps()
        .find(|m| m.name() == "ring")
        .ok_or_else(|| libbpf_rs::Error::from(io::Error::from(io::ErrorKind::NotFound)))?;
    let mut builder = RingBufferBuilder::new();
    builder.add(&map, move |bytes| {
        let mut inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner);
        match Record::decode(bytes) {
            Ok(record) => inbox.records.push(record),
            Err(_) => inbox.malformed += 1,
        }
        0
    })?;
    builder.build()
}
