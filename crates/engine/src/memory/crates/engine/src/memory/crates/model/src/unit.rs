//! Units: intervals that somebody waits for, and where their time went.

use crate::{BootNanos, Device, Incarnation, Stream, Tid, Window};

/// Where a nanosecond of a unit's lead thread went. Each falls in exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Category {
    /// Ready to run, and another thread had the CPU.
    RunQueueWait,
    /// Ready to run, held back by its cgroup's CPU quota.
    CpuQuota,
    DiskWait,
    PageFault,
    Reclaim,
    LockWait,
    NetworkWait,
    Sleep,
    /// In allocator calls, running or blocked.
    Allocator,
    /// A copy's own part.
    Copy,
    /// Running in launches and other short calls.
    Launch,
    /// Running outside traced calls: the host was busy with something else than feeding the device.
    LaunchGap,
    DeviceWait,
    Unexplained,
}

impl Category {
    pub const COUNT: usize = 14;

    pub const ALL: [Category; Category::COUNT] = [
        Category::RunQueueWait,
        Category::CpuQuota,
        Category::DiskWait,
        Category::PageFault,
        Category::Reclaim,
        Category::LockWait,
        Category::NetworkWait,
        Category::Sleep,
        Category::Allocator,
        Category::Copy,
        Category::Launch,
        Category::LaunchGap,
        Category::DeviceWait,
        Category::Unexplained,
    ];

    /// As in JSON and in the columns of the table `units`.
    pub const fn name(self) -> &'static str {
        match self {
            Category::RunQueueWait => "run_queue_wait",
            Category::CpuQuota => "cpu_quota",
            Category::DiskWait => "disk_wait",
            Category::PageFault => "page_fault",
            Category::Reclaim => "reclaim",
            Category::LockWait => "lock_wait",
            Category::NetworkWait => "network_wait",
            Category::Sleep => "sleep",
            Category::Allocator => "allocator",
            Category::Copy => "copy",
            Category::Launch => "launch",
            Category::LaunchGap => "launch_gap",
            Category::DeviceWait => "device_wait",
            Category::Unexplained => "unexplained",
        }
    }
}

/// Nanoseconds by [`Category`], in the order of [`Category::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts(pub [u64; Category::COUNT]);

impl Parts {
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The parts that are not zero.
    pub fn iter(&self) -> impl Iterator<Item = (Category, u64)> + '_ {
        Category::ALL
            .into_iter()
            .map(|c| (c, self[c]))
            .filter(|(_, ns)| *ns > 0)
    }
}

impl std::ops::Index<Category> for Parts {
    type Output = u64;

    fn index(&self, c: Category) -> &u64 {
        &self.0[c as usize]
    }
}

impl std::ops::IndexMut<Category> for Parts {
    fn index_mut(&mut self, c: Category) -> &mut u64 {
        &mut self.0[c as usize]
    }
}

/// What sort of interval a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnitKind {
    /// From the end of one draining wait to the end of the next, inferred from the calls.
    WaitInterval,
    /// A span or annotation of the job.
    Named,
    /// A single call outside any unit.
    Call,
    /// The process's start, up to where it became ordinary.
    ColdStart,
}

impl UnitKind {
    pub const ALL: [UnitKind; 4] = [
        UnitKind::WaitInterval,
        UnitKind::Named,
        UnitKind::Call,
        UnitKind::ColdStart,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            UnitKind::WaitInterval => "wait_interval",
            UnitKind::Named => "named",
            UnitKind::Call => "call",
            UnitKind::ColdStart => "cold_start",
        }
    }

    pub fn by_name(name: &str) -> Option<UnitKind> {
        UnitKind::ALL.into_iter().find(|k| k.name() == name)
    }
}

/// The streams that a unit's wait covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StreamScope {
    One(Stream),
    Many,
}

/// What units are compared within.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitKey {
    pub process: Incarnation,
    pub device: Option<Device>,
    pub stream: StreamScope,
    pub kind: UnitKind,
    /// Work class: launches and graph nodes of the work set on a scale of ratio 1.25; [`UnitKey::OTHER`] for rare ones. Of
    /// named units: [`UnitKey::CLASS_OF_STEPS`] or [`UnitKey::class_of_requests`].
    pub class: u16,
}

impl UnitKey {
    /// The class of units whose own class is too rare to have a baseline.
    pub const OTHER: u16 = u16::MAX;

    /// Steps are compared with all steps.
    pub const CLASS_OF_STEPS: u16 = 0;

    /// Requests are compared with those of about as many tokens: `size` is their class on the scale of ratio 1.25, below
    /// 1000.
    pub const fn class_of_requests(size: u16) -> u16 {
        1_000 + size
    }
}

/// One finished unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub key: UnitKey,
    /// What the job calls it, when it has named it.
    pub name: Option<UnitName>,
    /// The thread that waited.
    pub lead: Tid,
    /// Counts the units of (process, device, stream, kind), from 0; of a named one whose value is a number, that number.
    pub number: u64,
    pub start: BootNanos,
    pub dur: u64,
    /// Adds up to `dur`.
    pub parts: Parts,
    /// Launches and graph nodes in its work set.
    pub launches: u64,
    /// Judged slow against its baseline.
    pub slow: bool,
    /// Records were lost in it, or came too late.
    pub incomplete: bool,
}

/// The label that made a unit: `step` = `41`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitName {
    pub label: NamedBy,
    pub value: Box<str>,
}

/// The labels that name units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamedBy {
    /// A step of training. As an instant it lasts until the process names another one.
    Step,
    /// A request that is served: a span. Requests overlap, and share what the device does.
    Request,
}

impl NamedBy {
    pub const ALL: [NamedBy; 2] = [NamedBy::Step, NamedBy::Request];

    /// The label's key.
    pub const fn label(self) -> &'static str {
        match self {
            NamedBy::Step => "step",
            NamedBy::Request => "request_id",
        }
    }

    pub fn by_label(label: &str) -> Option<NamedBy> {
        NamedBy::ALL.into_iter().find(|n| n.label() == label)
    }
}

impl Unit {
    pub fn window(&self) -> Window {
        Window::at(self.start, self.dur)
    }
}

/// The usual unit of a key: means over all its units, cold start left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub key: UnitKey,
    pub units: u64,
    /// Sum of `parts`, ns.
    pub mean: u64,
    /// Mean of each category, ns, rounded down.
    pub parts: Parts,
}
