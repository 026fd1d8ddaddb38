//! What the running kernel and our privileges allow: the one seam through which both are asked, so that a test can pretend.

use std::collections::BTreeSet;
use std::fmt;

use libbpf_rs::btf::{Btf, types};

/// First kernel with attach cookies of perf events; all else that the programs cannot do without is older.
pub const NEEDED: Version = Version(5, 15);

/// First kernel whose maps may take memory as they grow from any program without a warning in its log.
pub(super) const GROWING_MAPS: Version = Version(6, 1);

/// Major and minor number of a kernel release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// The numbers that a release (`6.8.0-45-generic`) begins with; 0.0 when it begins with none.
    pub fn parse(release: &str) -> Version {
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(|n| n.parse().unwrap_or(0));
        Version(numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Capabilities, as `capability.h` numbers them.
const CAPABILITIES: [(&str, u32); 3] =
    [("CAP_SYS_ADMIN", 21), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// What eBPF capture needs to know of the machine.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// `/proc/sys/kernel/osrelease`.
    pub release: String,
    /// Tracepoints in the kernel's type information, by name; `None` without it.
    pub tracepoints: Option<BTreeSet<String>>,
    /// Effective capabilities, bits.
    pub capabilities: u64,
    /// Inode of our pid namespace, in which processes are numbered; `None`: the machine's.
    pub pid_namespace: Option<u32>,
    /// Has uprobe-multi links (since 6.6): all probes of a library in two links. Without, each probe is a perf event.
    pub uprobe_multi: bool,
    /// `sched_switch` is given the state of who leaves (since 5.18).
    pub switch_state: bool,
    /// `mark_victim` is given the task (since 6.8).
    pub victim_task: bool,
}

/// How probes are placed in libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// Two links a library: placed in milliseconds, gone in one wait of 60 ms.
    UprobeMulti,
    /// Two events a function: on kernels where a single one takes 100 ms to go, a process of its own sees them off.
    PerfEvents,
}

impl ProbeKind {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            ProbeKind::UprobeMulti => "uprobe-multi links",
            ProbeKind::PerfEvents => "perf events",
        }
    }
}

/// Why eBPF capture is not possible here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "kernel {found} is older than {needed}, the first whose probes can be told apart (without eBPF: warptrace record -- CMD)"
    )]
    TooOld { found: String, needed: Version },
    #[error(
        "this kernel has no type information: /sys/kernel/btf/vmlinux is missing (it is built with CONFIG_DEBUG_INFO_BTF; without eBPF: warptrace record -- CMD)"
    )]
    NoBtf,
    #[error(
        "cannot load BPF programs: {missing} missing (run as root, or without any privilege: warptrace record -- CMD)"
    )]
    NotPermitted { missing: String },
}

impl Kernel {
    /// Asks the running kernel. Cost: reads its type information, 5 MB, in some 5 ms.
    pub fn probe() -> Kernel {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").ok();
        let types = Btf::from_path("/sys/kernel/btf/vmlinux").ok();
        let takes = |tracepoint: &str, count: usize| {
            types
                .as_ref()
                .and_then(|t| argument_count(t, tracepoint))
                .is_some_and(|n| n >= count)
        };
        Kernel {
            release: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            // Its structure: that of the links, in kernels that were built to have them.
            uprobe_multi: types.as_ref().is_some_and(|t| {
                t.type_by_name::<types::Struct<'_>>("bpf_uprobe_multi_link")
                    .is_some()
            }),
            switch_state: takes("sched_switch", 4),
            victim_task: takes("mark_victim", 2),
            tracepoints: bytes.map(|btf| tracepoints(&btf)),
            capabilities: effective_capabilities(&text("/proc/self/status")),
            pid_namespace: std::fs::read_link("/proc/self/ns/pid")
                .ok()
                .and_then(|link| pid_namespace(&link.to_string_lossy())),
        }
    }

    /// Why capture cannot work here; `None` when it can.
    pub fn refusal(&self) -> Option<Refusal> {
        if Version::parse(&self.release) < NEEDED {
            return Some(Refusal::TooOld {
                found: self.release.clone(),
                needed: NEEDED,
            });
        }
        if self.tracepoints.is_none() {
            return Some(Refusal::NoBtf);
        }
        let missing = self.missing_capabilities();
        if missing.is_empty() {
            return None;
        }
        Some(Refusal::NotPermitted {
            missing: match missing.as_slice() {
                [one] => format!("{one} is"),
                _ => format!("{} are", missing.join(" and ")),
            },
        })
    }

    /// The capabilities that we lack; none when we have CAP_SYS_ADMIN, which stands for both.
    pub fn missing_capabilities(&self) -> Vec<&'static str> {
        let has = |bit: u32| self.capabilities >> bit & 1 == 1;
        let [(_, admin), rest @ ..] = CAPABILITIES;
        if has(admin) {
            return Vec::new();
        }
        rest.iter()
            .filter(|(_, bit)| !has(*bit))
            .map(|(name, _)| *name)
            .collect()
    }

    /// How probes are placed here.
    pub fn probe_kind(&self) -> ProbeKind {
        if self.uprobe_multi {
            ProbeKind::UprobeMulti
        } else {
            ProbeKind::PerfEvents
        }
    }

    /// Whether the kernel has this tracepoint.
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.tracepoints
            .as_ref()
            .is_some_and(|all| all.contains(name))
    }
}

/// Names of `btf_trace_NAME` types in the strings of BTF: every tracepoint has one.
fn tracepoints(btf: &[u8]) -> BTreeSet<String> {
    const PREFIX: &[u8] = b"btf_trace_";
    // struct btf_header: magic u16, version, flags, hdr_len u32, type_off, type_len, str_off, str_len.
    let word = |at: usize| {
        btf.get(at..at + 4)
            .and_then(|b| b.first_chunk())
            .map_or(0, |b| u32::from_le_bytes(*b) as usize)
    };
    let start = word(4).saturating_add(word(16));
    let strings = btf
        .get(start..start.saturating_add(word(20)).min(btf.len()))
        .unwrap_or_default();
    strings
        .split(|b| *b == 0)
        .filter_map(|s| s.strip_prefix(PREFIX))
        .map(|s| String::from_utf8_lossy(s).into_owned())
        .collect()
}

/// How many arguments a tracepoint gives; `None` when there is no such tracepoint. Its type takes one more, of the kernel's own.
fn argument_count(btf: &Btf<'_>, tracepoint: &str) -> Option<usize> {
    let named: types::Typedef<'_> = btf.type_by_name(&format!("btf_trace_{tracepoint}"))?;
    let pointer = types::Ptr::try_from(named.next_type()?).ok()?;
    let function = types::FuncProto::try_from(pointer.next_type()?).ok()?;
    function.len().checked_sub(1)
}

/// The inode in `pid:[4026532201]`, unless it is that of the machine's own (PROC_PID_INIT_INO of include/linux/proc_ns.h).
fn pid_namespace(link: &str) -> Option<u32> {
    const INITIAL: u32 = 0xefff_fffc;
    let inode = link
        .strip_prefix("pid:[")?
        .strip_suffix(']')?
        .parse()
        .ok()?;
    (inode != INITIAL).then_some(inode)
}

fn effective_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|v| u64::from_str_radix(v.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Kernel {
        Kernel {
            release: "6.8.0-45-generic".into(),
            tracepoints: Some(BTreeSet::new()),
            capabilities: 1 << 38 | 1 << 39,
            pid_namespace: None,
            uprobe_multi: true,
            switch_state: true,
            victim_task: true,
        }
    }

    #[test]
    fn a_kernel_that_is_new_enough_with_btf_and_capabilities_is_not_refused() {
        assert_eq!(good().refusal(), None);
        let admin = Kernel {
            capabilities: 1 << 21,
            ..good()
        };
        assert_eq!(admin.refusal(), None, "CAP_SYS_ADMIN holds the others");
    }

    #[test]
    fn each_refusal_names_what_is_missing_and_what_to_do() {
        let text = |k: Kernel| k.refusal().unwrap().to_string();
        let old = text(Kernel {
            release: "5.10.0-28-amd64".into(),
            ..good()
        });
        assert!(
            old.contains("5.10.0-28-amd64")
                && old.contains("5.15")
                && old.contains("warptrace record")
        );
        let blind = text(Kernel {
            tracepoints: None,
            ..good()
        });
        assert!(blind.contains("/sys/kernel/btf/vmlinux"));
        let weak = text(Kernel {
            capabilities: 1 << 38,
            ..good()
        });
        assert!(weak.contains("CAP_BPF is missing"), "{weak}");
        let none = text(Kernel {
            capabilities: 0,
            ..good()
        });
        assert!(
            none.contains("CAP_PERFMON and CAP_BPF are missing"),
            "{none}"
        );
    }

    #[test]
    fn a_kernel_without_multi_links_is_probed_by_perf_events() {
        assert_eq!(good().probe_kind(), ProbeKind::UprobeMulti);
        let older = Kernel {
            release: "5.15.0-91-generic".into(),
            uprobe_multi: false,
            switch_state: false,
            victim_task: false,
            ..good()
        };
        assert_eq!(older.refusal(), None);
        assert_eq!(older.probe_kind(), ProbeKind::PerfEvents);
    }

    #[test]
    fn what_this_kernels_tracepoints_are_given_agrees_with_its_age() {
        let here = Kernel::probe();
        if here.tracepoints.is_none() {
            eprintln!("skipped: no type information");
            return;
        }
        // Distributions bring newer things to older kernels, and never leave out what theirs has.
        let age = Version::parse(&here.release);
        assert!(here.uprobe_multi || age < Version(6, 6));
        assert!(here.switch_state || age < Version(5, 18));
        assert!(here.victim_task || age < Version(6, 8));
        let types = Btf::from_path("/sys/kernel/btf/vmlinux").unwrap();
        assert_eq!(argument_count(&types, "sched_wakeup"), Some(1));
        assert_eq!(argument_count(&types, "no_such_thing"), None);
    }

    #[test]
    fn the_machines_own_pid_namespace_is_none() {
        assert_eq!(pid_namespace("pid:[4026531836]"), None);
        assert_eq!(pid_namespace("pid:[4026532201]"), Some(4_026_532_201));
        assert_eq!(pid_namespace("nonsense"), None);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(Version::parse("6.10.1") > Version::parse("6.6"));
        assert_eq!(Version::parse("nonsense"), Version(0, 0));
    }

    #[test]
    fn tracepoints_are_found_by_their_types() {
        let strings = b"\0int\0btf_trace_sched_switch\0x\0btf_trace_\0";
        let mut btf = vec![0x9f, 0xeb, 1, 0];
        for word in [24u32, 0, 0, 0, strings.len() as u32] {
            btf.extend_from_slice(&word.to_le_bytes());
        }
        btf.extend_from_slice(strings);
        assert!(tracepoints(&btf).contains("sched_switch"));
        assert!(tracepoints(&btf[..30]).is_empty(), "a cut one has none");
    }
}
