//! Units: wait intervals, from the end of one draining wait of a thread to the end of the next.
//!
//! A unit goes through two stages. When its ending wait is seen it is *closed*: window, work set, key. A little later, when
//! records that straddle its end have come, it is *measured*: its time is taken apart, and what its process, its device and
//! other processes did meanwhile is put beside it. Judging it is [`crate::judge`]'s part.

pub(crate) mod named;
pub(crate) mod work;

use warptrace_model::record::{OpId, Wait};
use warptrace_model::{
    Category, Device, Parts, Pid, StreamScope, Thread, Tid, UnitKind, UnitName, Window,
};

use crate::partition::{self, About, Chain, Hint, Partition, Piece, add_hint};
use crate::thresholds::Rules;
use crate::world::{Activity, ProcessIx, World, throttled, window};
use work::{COPY_KINDS, WorkSet};

/// What units are compared within, with a process that is never another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) process: ProcessIx,
    pub(crate) device: Option<Device>,
    pub(crate) stream: StreamScope,
    pub(crate) kind: UnitKind,
    pub(crate) class: u16,
}

/// What is usual of a call that is a unit by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoneCall {
    /// Median duration of its op, ns, and from how many calls.
    pub(crate) median: u64,
    pub(crate) count: u64,
    pub(crate) category: Category,
}

/// A unit whose end was seen.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    pub(crate) key: Key,
    pub(crate) lead: Thread,
    pub(crate) window: Window,
    pub(crate) set: WorkSet,
    /// The op of the ending wait, or of a named unit's last.
    pub(crate) op: Option<OpId>,
    pub(crate) call: Option<LoneCall>,
    pub(crate) name: Option<UnitName>,
    /// A named unit that ended with work of it outstanding: the next ones' waits belong to it in part.
    pub(crate) provisional: bool,
}

/// What is set beside a unit's own time, to say why its wait for the device was long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DeviceFacts {
    pub(crate) launches: u64,
    pub(crate) bytes: [u64; COPY_KINDS],
    /// Another process and this one both had work on the device, ns.
    pub(crate) contention: u64,
    /// Allocator calls of other threads of the process, during the wait, ns.
    pub(crate) allocation: u64,
    /// What throttling took of the wait against the usual clock, ns; against the device's highest, ns.
    pub(crate) throttle: u64,
    pub(crate) throttle_of_max: u64,
}

/// A unit with its time taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) key: Key,
    pub(crate) lead: Thread,
    pub(crate) number: u64,
    pub(crate) window: Window,
    pub(crate) op: Option<OpId>,
    pub(crate) call: Option<LoneCall>,
    pub(crate) name: Option<UnitName>,
    pub(crate) provisional: bool,
    pub(crate) parts: Parts,
    /// Of `parts`: what no outstanding work of the device hid.
    pub(crate) bare: Parts,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) hints: Vec<Hint>,
    /// Work of the device was outstanding from here on.
    pub(crate) first_launch: u64,
    pub(crate) facts: DeviceFacts,
    /// Clock and usual clock under throttling, MHz.
    pub(crate) clock: Option<(u32, u32)>,
    pub(crate) incomplete: bool,
}

impl Measured {
    pub(crate) fn dur(&self) -> u64 {
        self.window.nanos()
    }
}

/// What a wait covers.
pub(crate) fn scope(wait: Wait, stream: warptrace_model::Stream) -> Option<StreamScope> {
    match wait {
        Wait::Stream if !stream.is_legacy() => Some(StreamScope::One(stream)),
        // A copy without a stream is one of the legacy stream.
        Wait::Stream | Wait::Device | Wait::Copy => Some(StreamScope::Many),
        Wait::Event | Wait::Maybe | Wait::Never => None,
    }
}

/// Why a closed unit is not measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeftOut {
    /// A stop, a freeze or a debugger was in it.
    Stopped,
    /// All of it was idle.
    Idle,
    /// Its process is gone, and with it its records.
    Gone,
    /// Capture was switched off in it.
    Paused,
}

/// What a measurement could not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Unknowns {
    pub(crate) spread: bool,
    pub(crate) uncovered: bool,
    pub(crate) disk_unseen: bool,
}

/// Takes a closed unit apart. `scratch` is reused.
pub(crate) fn measure(
    world: &mut World,
    rules: &Rules,
    c: &Closed,
    scratch: &mut Partition,
) -> Result<(Measured, Unknowns), LeftOut> {
    if world.paused.is_in(c.window) {
        return Err(LeftOut::Paused);
    }
    partition::partition(world, rules, c.lead, c.window, scratch);
    if scratch.stopped {
        return Err(LeftOut::Stopped);
    }
    let mut w = c.window;
    let unseen = scratch.spread || scratch.uncovered > 0;
    let idle = match scratch.idle_until {
        Some(at) => Some(at),
        // Without wakers nobody can say what the thread waited for.
        None if rules.inference && unseen => scratch.first_call,
        None => None,
    };
    // What the job named is its own from begin to end.
    let idle = idle.filter(|_| c.name.is_none());
    if let Some(at) = idle
        && at > w.start.0
    {
        if at >= w.end.0 {
            return Err(LeftOut::Idle);
        }
        scratch.cut_before(at);
        scratch.hints.retain(|h| h.longest.end.0 > at);
        w.start.0 = at;
    }
    let first_launch = c
        .set
        .first_launch
        .map_or(w.end.0, |t| t.0.clamp(w.start.0, w.end.0));
    scratch.split_at(first_launch);

    let parts = scratch.parts();
    let mut bare = Parts::default();
    for p in &scratch.pieces {
        // A copy that is waited for, and an allocator call that drains the device, are not hidden behind work of it.
        let drains = matches!(p.category, Category::Copy | Category::Allocator);
        if p.start < first_launch || drains {
            bare[p.category] += p.ns;
        }
    }
    let Some(process) = world.processes.get_mut(&c.key.process) else {
        return Err(LeftOut::Gone);
    };
    let counted = process.next_number(c.key.device, c.key.stream, c.key.kind);
    let named = c.name.as_ref().and_then(|n| n.value.parse().ok());
    let number = named.unwrap_or(counted);
    let pid = process.pid;

    let busy = window(first_launch, w.end.0);
    let mut facts = DeviceFacts {
        launches: c.set.work.launches,
        bytes: c.set.work.bytes,
        ..DeviceFacts::default()
    };
    for (tid, call) in process.allocations.iter().rev() {
        if call.end <= busy.start {
            break;
        }
        if *tid != c.lead.tid {
            facts.allocation += call.overlap(&busy);
        }
    }
    facts.allocation = facts.allocation.min(parts[Category::DeviceWait]);
    let (contention, others) = contention(world, c.key, pid, busy);
    facts.contention = contention;
    for (other, ns, longest) in others {
        add_hint(
            &mut scratch.hints,
            usize::MAX,
            Hint {
                category: Category::DeviceWait,
                about: About::Process(other),
                chain: Chain::of(Thread {
                    pid: other,
                    tid: Tid(other.0),
                }),
                ns,
                count: 1,
                longest,
                requests: 0,
                request_nanos: 0,
            },
        );
    }
    let unknowns = Unknowns {
        spread: scratch.spread,
        uncovered: scratch.uncovered > 0,
        disk_unseen: scratch.disk_unseen,
    };
    let measured = Measured {
        key: c.key,
        lead: c.lead,
        number,
        window: w,
        op: c.op,
        call: c.call,
        name: c.name.clone(),
        provisional: c.provisional,
        parts,
        bare,
        pieces: scratch.pieces.clone(),
        hints: scratch.hints.clone(),
        first_launch,
        facts,
        clock: None,
        incomplete: scratch.incomplete,
    };
    Ok((measured, unknowns))
}

/// For how long others had work on the device within `busy`, by their calls; and who, for how long, the longest stretch.
fn contention(world: &World, key: Key, own: Pid, busy: Window) -> (u64, Vec<(Pid, u64, Window)>) {
    // Devices are told apart by ordinal: two processes that see other devices under one ordinal look as if they shared it.
    let (Some(device), true) = (key.device, busy.nanos() > 0) else {
        return (0, Vec::new());
    };
    let mut spans: Vec<Window> = Vec::new();
    let mut others = Vec::new();
    let mut add = |pid: Pid, a: &Activity| {
        let mut total = 0;
        let mut longest = window(busy.start.0, busy.start.0);
        let open = a.since.map(|s| window(s, busy.end.0.max(s)));
        for both in a
            .spans
            .iter()
            .rev()
            .take_while(|s| s.end > busy.start)
            .chain(open.iter())
            .filter_map(|s| s.intersect(&busy))
        {
            spans.push(both);
            total += both.nanos();
            if both.nanos() > longest.nanos() {
                longest = both;
            }
        }
        if total > 0 {
            others.push((pid, total, longest));
        }
    };
    for (ix, p) in &world.processes {
        if *ix != key.process && p.pid != own {
            for a in p.activity.iter().filter(|a| a.device == Some(device)) {
                add(p.pid, a);
            }
        }
    }
    others.sort_unstable_by_key(|(pid, ns, _)| (std::cmp::Reverse(*ns), *pid));
    (union(&mut spans), others)
}

/// Nanoseconds that at least one of `spans` covers.
fn union(spans: &mut [Window]) -> u64 {
    spans.sort_unstable_by_key(|w| (w.start, w.end));
    let (mut sum, mut upto) = (0, 0);
    for w in spans {
        sum += w.end.0.saturating_sub(w.start.0.max(upto));
        upto = upto.max(w.end.0);
    }
    sum
}

/// Adds what the device's samples say of a unit: others' share of it, and throttling.
pub(crate) fn sampled(world: &World, rules: &Rules, m: &mut Measured) {
    let Some(device) = m.key.device else { return };
    // NVML's index and the CUDA ordinal are taken for one; `CUDA_VISIBLE_DEVICES` may part them.
    let (Some(gpu), Some(process)) = (
        world.gpus.get(&device.0),
        world.processes.get(&m.key.process),
    ) else {
        return;
    };
    let reach = rules.sample_reach_nanos;
    let near = window(
        m.window.start.0.saturating_sub(reach),
        m.window.end.0 + reach,
    );
    let wait = m.parts[Category::DeviceWait];
    let clock = gpu
        .samples
        .iter()
        .filter(|s| near.contains(s.at) && throttled(s))
        .filter_map(|s| Some((s.sm_clock_mhz?, s.max_sm_clock_mhz)))
        .min();
    if let Some((clock, max)) = clock {
        let usual = gpu.usual_clock();
        let taken =
            |of: u32| partition::share(wait, u64::from(of.saturating_sub(clock)), u64::from(of));
        if let Some(usual) = usual.or(max) {
            m.facts.throttle = taken(usual);
            m.clock = Some((clock, usual));
        }
        m.facts.throttle_of_max = max.or(usual).map_or(0, taken);
    }
    let busy = window(m.first_launch, m.window.end.0);
    // Shares are believed only when the poller's pids are ours, which is so when it names this process.
    let known = gpu
        .samples
        .iter()
        .any(|s| s.processes.iter().any(|(p, ..)| *p == process.pid));
    if !known {
        return;
    }
    let mut total = 0;
    let mut by_process: Vec<(Pid, u64, Window)> = Vec::new();
    for (before, s) in gpu.samples.iter().zip(gpu.samples.iter().skip(1)) {
        let Some(both) = window(before.at.0, s.at.0.max(before.at.0)).intersect(&busy) else {
            continue;
        };
        let mut others = 0.0;
        for (pid, used, _) in &s.processes {
            let used = used.unwrap_or(0.0).clamp(0.0, 1.0);
            if *pid != process.pid && used > 0.0 {
                others += used;
                let ns = (both.nanos() as f64 * used) as u64;
                match by_process.iter_mut().find(|(p, ..)| p == pid) {
                    Some((_, sum, _)) => *sum += ns,
                    None => by_process.push((*pid, ns, both)),
                }
            }
        }
        total += (both.nanos() as f64 * f64::min(others, 1.0)) as u64;
    }
    if total > m.facts.contention {
        m.facts.contention = total;
        m.hints.retain(|h| {
            !(h.category == Category::DeviceWait && matches!(h.about, About::Process(_)))
        });
        for (pid, ns, longest) in by_process {
            add_hint(
                &mut m.hints,
                usize::MAX,
                Hint {
                    category: Category::DeviceWait,
                    about: About::Process(pid),
                    chain: Chain::of(Thread {
                        pid,
                        tid: Tid(pid.0),
                    }),
                    ns,
                    count: 1,
                    longest,
                    requests: 0,
                    request_nanos: 0,
                },
            );
        }
    }
}
