//! A thread's time as a partition: every nanosecond of a window in exactly one category.
//!
//! With switch records a thread is running, runnable or blocked at each moment, and what it is inside (a traced call, or
//! its own code) decides the rest; what it was blocked for is in [`blocked`]. With stretches, which a thread writes about
//! itself, the amounts are known and not the moments: they are spread evenly. With neither, time in a traced call is the
//! call's, and time outside is unexplained: that a thread ran is not invented.
//!
//! Knows nothing of what is usual, nor of what the device did.

mod blocked;

use std::collections::VecDeque;

use warptrace_model::record::OpId;
use warptrace_model::{Category, Cpu, OffCpu, Parts, Pid, Stretch, Thread, Tid, Window};

use crate::thresholds::Rules;
use crate::world::{CallSpan, InCall, Process, World, window};

/// A part of a unit. `ns` is shorter than `end - start` when amounts were spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) ns: u64,
    pub(crate) category: Category,
}

/// Who or what a part is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum About {
    /// The thread itself.
    Own,
    /// Another thread ran on this CPU.
    Occupant(Thread, Cpu),
    /// A descriptor of the process, or nothing when it had none.
    File(Pid, Option<i32>),
    Op(OpId),
    /// A thread of the job that had to finish first, or another program.
    Waker(Thread),
    /// Another process on the device.
    Process(Pid),
}

/// Threads that waited for each other, from the lead thread on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Chain {
    tids: [Thread; 6],
    len: u8,
}

impl Chain {
    pub(crate) fn of(thread: Thread) -> Chain {
        let mut c = Chain::default();
        c.push(thread);
        c
    }

    fn push(&mut self, thread: Thread) {
        if let Some(slot) = self.tids.get_mut(usize::from(self.len)) {
            *slot = thread;
            self.len += 1;
        }
    }

    fn pop(&mut self) {
        self.len = self.len.saturating_sub(1);
    }

    pub(crate) fn threads(&self) -> &[Thread] {
        &self.tids[..usize::from(self.len)]
    }
}

/// What was found about one category in a unit, with the longest single case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) category: Category,
    pub(crate) about: About,
    /// The thread in whose time it was.
    pub(crate) chain: Chain,
    pub(crate) ns: u64,
    pub(crate) count: u64,
    pub(crate) longest: Window,
    /// Block requests that overlap, and for how long.
    pub(crate) requests: u64,
    pub(crate) request_nanos: u64,
}

/// Hints kept of one unit.
const HINTS: usize = 24;
/// Shorter cases say nothing, ns.
const HINT_MIN_NANOS: u64 = 10_000;

pub(crate) fn add_hint(hints: &mut Vec<Hint>, cap: usize, new: Hint) {
    let same = |h: &&mut Hint| h.category == new.category && h.about == new.about;
    if let Some(h) = hints.iter_mut().find(same) {
        h.ns += new.ns;
        h.count += new.count;
        h.requests += new.requests;
        h.request_nanos += new.request_nanos;
        if new.longest.nanos() > h.longest.nanos() {
            h.longest = new.longest;
            h.chain = new.chain;
        }
    } else if hints.len() < cap {
        hints.push(new);
    } else if let Some(smallest) = hints.iter_mut().min_by_key(|h| h.ns)
        && smallest.ns < new.ns
    {
        *smallest = new;
    }
}

/// A unit's time, taken apart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Partition {
    /// By time.
    pub(crate) pieces: Vec<Piece>,
    pub(crate) hints: Vec<Hint>,
    /// A stop or freeze was in it.
    pub(crate) stopped: bool,
    /// Neither switch records nor stretches covered some of it, ns.
    pub(crate) uncovered: u64,
    /// Stretches covered some of it: amounts without moments, and without names.
    pub(crate) spread: bool,
    /// The wait before the first call was idle up to here.
    pub(crate) idle_until: Option<u64>,
    /// Entry of the first traced call.
    pub(crate) first_call: Option<u64>,
    /// Records were lost in it.
    pub(crate) incomplete: bool,
    /// A disk wait, and no block I/O was recorded.
    pub(crate) disk_unseen: bool,
}

impl Partition {
    pub(crate) fn parts(&self) -> Parts {
        let mut parts = Parts::default();
        for p in &self.pieces {
            parts[p.category] += p.ns;
        }
        parts
    }

    /// Cuts off everything before `at`.
    pub(crate) fn cut_before(&mut self, at: u64) {
        self.pieces.retain_mut(|p| {
            if p.start < at && p.end > at {
                p.ns = share(p.ns, p.end - at, p.end - p.start);
                p.start = at;
            }
            p.start >= at
        });
        fill(&mut self.pieces, at);
    }

    /// Splits the piece that lies over `at`, so that none does.
    pub(crate) fn split_at(&mut self, at: u64) {
        let mut i = 0;
        while i < self.pieces.len() {
            let p = self.pieces[i];
            if p.start < at && at < p.end {
                let before = share(p.ns, at - p.start, p.end - p.start);
                self.pieces[i].end = at;
                self.pieces[i].ns = before;
                self.pieces.insert(
                    i + 1,
                    Piece {
                        start: at,
                        ns: p.ns - before,
                        ..p
                    },
                );
                i += 1;
            }
            i += 1;
        }
        self.pieces.sort_by_key(|p| p.start >= at);
    }
}

/// After spread pieces were cut, rounding may have lost a nanosecond: give it back to the first piece's neighbours.
fn fill(pieces: &mut [Piece], start: u64) {
    let Some(end) = pieces.iter().map(|p| p.end).max() else {
        return;
    };
    let (have, want) = (pieces.iter().map(|p| p.ns).sum::<u64>(), end - start);
    if let Some(p) = pieces.first_mut() {
        if have < want {
            p.ns += want - have;
        } else {
            p.ns = p.ns.saturating_sub(have - want);
        }
    }
}

/// `part` of `whole`, of `ns`, rounded down.
pub(crate) fn share(ns: u64, part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    u64::try_from(u128::from(ns) * u128::from(part) / u128::from(whole)).unwrap_or(u64::MAX)
}

/// Where the time of `lead` went in `w`. The pieces' `ns` add up to the length of `w`, exactly.
///
/// `out` is emptied first. Cost: linear in the records of the window, of the lead thread and of those that woke it.
pub(crate) fn partition(
    world: &World,
    rules: &Rules,
    lead: Thread,
    w: Window,
    out: &mut Partition,
) {
    out.pieces.clear();
    out.hints.clear();
    *out = Partition {
        pieces: std::mem::take(&mut out.pieces),
        hints: std::mem::take(&mut out.hints),
        ..Partition::default()
    };
    let floor = w.end.0.saturating_sub(rules.follow_reach_nanos);
    let mut walk = Walk {
        world,
        rules,
        out,
        chain: Chain::of(lead),
        floor,
        leading: None,
        idle: 0,
    };
    walk.thread(lead, w.start.0, w.end.0, 0);
    if let Some(lost) = world.threads.get(&lead).map(|t| t.lost_before)
        && lost > w.start.0
    {
        unexplain(out, window(w.start.0, lost.min(w.end.0)));
    }
    for (loss, pid) in &world.losses {
        if pid.is_none_or(|p| p == lead.pid)
            && let Some(both) = loss.intersect(&w)
        {
            unexplain(out, both);
        }
    }
    debug_assert_eq!(out.pieces.iter().map(|p| p.ns).sum::<u64>(), w.nanos());
}

/// Records were lost in `w`: whatever else is known of it, it is unexplained.
fn unexplain(out: &mut Partition, w: Window) {
    out.incomplete = true;
    out.split_at(w.start.0);
    out.split_at(w.end.0);
    for p in &mut out.pieces {
        if p.start >= w.start.0 && p.end <= w.end.0 {
            p.category = Category::Unexplained;
        }
    }
    out.hints.retain(|h| h.longest.overlap(&w) == 0);
}

/// What a thread did at a moment.
#[derive(Clone, Copy)]
enum State<'a> {
    Running,
    Blocked(&'a OffCpu),
    Runnable(&'a OffCpu),
    Spread(&'a Stretch),
    Unknown,
}

struct Walk<'a> {
    world: &'a World,
    rules: &'a Rules,
    out: &'a mut Partition,
    chain: Chain,
    /// Records of other threads before this are not used.
    floor: u64,
    /// Of the lead thread's wait before its first call: from where on, and until where.
    leading: Option<(u64, u64)>,
    idle: u64,
}

/// Calls of a thread in a window, innermost, one after the other.
struct Calls {
    list: Vec<CallSpan>,
    at: usize,
    /// What is left of the copy's own part of the call at `at`.
    own: u64,
}

impl Calls {
    fn new(calls: &VecDeque<CallSpan>, a: u64, b: u64) -> Calls {
        let mut list: Vec<CallSpan> = Vec::new();
        let first = calls.partition_point(|c| c.end <= a);
        for c in calls.range(first..) {
            if c.start >= b {
                break;
            }
            if list.last().is_none_or(|l| l.end <= c.start) {
                list.push(*c);
                continue;
            }
            // It began before calls that ended before it: they are inside.
            let inner = list.split_off(list.partition_point(|l| l.start < c.start));
            let mut from = c.start.max(list.last().map_or(0, |l| l.end));
            for i in inner {
                if from < i.start {
                    list.push(CallSpan {
                        start: from,
                        end: i.start,
                        ..*c
                    });
                }
                list.push(i);
                from = i.end;
            }
            if from < c.end {
                list.push(CallSpan { start: from, ..*c });
            }
        }
        let own = list.first().map_or(0, |c| c.own);
        Calls { list, at: 0, own }
    }

    /// The call that `t` is in, if any, and where that ends or the next one begins.
    fn at(&mut self, t: u64) -> (Option<CallSpan>, u64) {
        while let Some(c) = self.list.get(self.at) {
            if t < c.end {
                return if t < c.start {
                    (None, c.start)
                } else {
                    (Some(*c), c.end)
                };
            }
            self.at += 1;
            self.own = self.list.get(self.at).map_or(0, |c| c.own);
        }
        (None, u64::MAX)
    }
}

impl Walk<'_> {
    /// Adds the pieces of `thread` in `a..b`.
    fn thread(&mut self, thread: Thread, a: u64, b: u64, depth: usize) {
        let world = self.world;
        let Some(line) = world.threads.get(&thread) else {
            // A thread of a process with switch records that has none of its own was on a CPU all the time.
            let ran = world
                .find_process(thread.pid)
                .is_some_and(|p| p.has_switches);
            let c = if ran {
                Category::LaunchGap
            } else {
                Category::Unexplained
            };
            self.piece(a, b, b - a, c);
            if ran {
                self.hint(Category::LaunchGap, About::Own, window(a, b));
            }
            return;
        };
        let from = self.out.pieces.len();
        let process = world.processes.get(&line.process);
        let mut calls = Calls::new(&line.calls, a, b);
        if depth == 0 {
            self.out.first_call = calls.list.first().map(|c| c.start.max(a));
            self.leading = Some((a, self.out.first_call.unwrap_or(b)));
        }
        let mut at = a;
        if process.is_some_and(|p| p.has_switches) {
            let first = line.off_cpu.partition_point(|o| o.window().end.0 <= a);
            for o in line.off_cpu.range(first..) {
                if o.start.0 >= b {
                    break;
                }
                let (wake, end) = (o.blocked().end.0, o.window().end.0);
                at = self.state(
                    State::Running,
                    at,
                    o.start.0.min(b),
                    thread,
                    &mut calls,
                    depth,
                );
                at = self.state(
                    State::Blocked(o),
                    at,
                    wake.min(b),
                    thread,
                    &mut calls,
                    depth,
                );
                at = self.state(
                    State::Runnable(o),
                    at,
                    end.min(b),
                    thread,
                    &mut calls,
                    depth,
                );
            }
            self.state(State::Running, at, b, thread, &mut calls, depth);
        } else {
            if process.is_some_and(|p| p.has_stretches) {
                let first = line.stretches.partition_point(|s| s.start.0 + s.dur <= a);
                for s in line.stretches.range(first..) {
                    if s.start.0 >= b {
                        break;
                    }
                    at = self.state(
                        State::Unknown,
                        at,
                        s.start.0.min(b),
                        thread,
                        &mut calls,
                        depth,
                    );
                    at = self.state(
                        State::Spread(s),
                        at,
                        (s.start.0 + s.dur).min(b),
                        thread,
                        &mut calls,
                        depth,
                    );
                }
            }
            self.state(State::Unknown, at, b, thread, &mut calls, depth);
        }
        if !line.reclaims.is_empty() {
            self.reclaim(&line.reclaims, from, a, b);
        }
    }

    /// Adds the pieces of one state, call by call. Returns where it came to.
    fn state(
        &mut self,
        state: State<'_>,
        a: u64,
        b: u64,
        thread: Thread,
        calls: &mut Calls,
        depth: usize,
    ) -> u64 {
        let mut at = a;
        while at < b {
            let (call, next) = calls.at(at);
            let end = next.min(b);
            match state {
                State::Running => self.running(call, at, end, &mut calls.own, depth),
                State::Blocked(o) => self.blocked(o, call, at, end, &mut calls.own, thread, depth),
                State::Runnable(o) => self.runnable(o, at, end),
                State::Spread(s) => self.spread(s, call, at, end, &mut calls.own),
                State::Unknown => match call {
                    Some(c) => self.in_call(c, at, end, end - at, &mut calls.own),
                    None => {
                        self.out.uncovered += end - at;
                        self.piece(at, end, end - at, Category::Unexplained);
                    }
                },
            }
            at = end;
        }
        at.max(a)
    }

    fn running(&mut self, call: Option<CallSpan>, a: u64, b: u64, own: &mut u64, depth: usize) {
        match call {
            Some(c) => self.in_call(c, a, b, b - a, own),
            None => {
                self.piece(a, b, b - a, Category::LaunchGap);
                if depth > 0 || b - a >= 10 * HINT_MIN_NANOS {
                    self.hint(Category::LaunchGap, About::Own, window(a, b));
                }
            }
        }
    }

    /// Time in a call, running or blocked: `ns` of it between `a` and `b`.
    fn in_call(&mut self, c: CallSpan, a: u64, b: u64, ns: u64, own: &mut u64) {
        let category = match c.how {
            InCall::Wait => Category::DeviceWait,
            InCall::Allocator => Category::Allocator,
            InCall::Short => Category::Launch,
            InCall::Copy => {
                let copy = ns.min(*own);
                *own -= copy;
                let middle = if ns == b - a { a + copy } else { b };
                if copy > 0 {
                    self.piece(a, middle, copy, Category::Copy);
                    self.hint(Category::Copy, About::Op(c.op), window(a, middle));
                }
                if copy < ns {
                    let from = if ns == b - a { middle } else { a };
                    self.piece(from, b, ns - copy, Category::DeviceWait);
                }
                return;
            }
        };
        self.piece(a, b, ns, category);
        let worth = match category {
            Category::Allocator => HINT_MIN_NANOS,
            Category::DeviceWait => 100 * HINT_MIN_NANOS,
            _ => 10 * HINT_MIN_NANOS,
        };
        if ns >= worth {
            self.hint(category, About::Op(c.op), window(a, b));
        }
    }

    fn runnable(&mut self, o: &OffCpu, a: u64, b: u64) {
        // The throttled part has no place of its own in the record; it comes first here, since a quota holds a thread
        // back before others can.
        let quota_end = (o.waiting_for_cpu().start.0 + o.throttled).clamp(a, b);
        if a < quota_end {
            self.piece(a, quota_end, quota_end - a, Category::CpuQuota);
            self.hint(Category::CpuQuota, About::Own, window(a, quota_end));
        }
        if quota_end < b {
            self.piece(quota_end, b, b - quota_end, Category::RunQueueWait);
            let w = window(quota_end, b);
            if b - quota_end >= HINT_MIN_NANOS && quota_end >= self.floor {
                for (who, both) in self.world.occupants(o.cpu, w) {
                    self.hint(Category::RunQueueWait, About::Occupant(who, o.cpu), both);
                }
            }
        }
    }

    fn spread(&mut self, s: &Stretch, call: Option<CallSpan>, a: u64, b: u64, own: &mut u64) {
        self.out.spread = true;
        let len = b - a;
        // What had passed of an amount at a moment, rounded down: differences of it add up over the stretch.
        let passed = |amount: u64, t: u64| share(amount, t - s.start.0, s.dur);
        let part = |amount: u64| passed(amount, b) - passed(amount, a);
        let runnable = part(s.runnable).min(len);
        let throttled = part(s.throttled).min(runnable);
        let running = (part(s.runnable + s.running).saturating_sub(runnable)).min(len - runnable);
        let blocked = len - runnable - running;
        if throttled > 0 {
            self.piece(a, b, throttled, Category::CpuQuota);
        }
        if runnable > throttled {
            self.piece(a, b, runnable - throttled, Category::RunQueueWait);
        }
        match call {
            Some(c) if c.how != InCall::Short => {
                if running + blocked > 0 {
                    self.in_call(c, a, b, running + blocked, own);
                }
            }
            Some(c) => {
                if running > 0 {
                    self.in_call(c, a, b, running, own);
                }
                if blocked > 0 {
                    self.piece(a, b, blocked, Category::Unexplained);
                }
            }
            None => {
                if running > 0 {
                    self.piece(a, b, running, Category::LaunchGap);
                }
                if blocked > 0 {
                    self.piece(a, b, blocked, Category::Unexplained);
                }
            }
        }
    }

    /// Reclaim takes the whole of its intervals, but what was runnable.
    fn reclaim(&mut self, reclaims: &VecDeque<Window>, from: usize, a: u64, b: u64) {
        let first = reclaims.partition_point(|r| r.end.0 <= a);
        for r in reclaims.range(first..) {
            let Some(both) = r.intersect(&window(a, b)) else {
                continue;
            };
            let tail = self.out.pieces.split_off(from);
            for p in tail {
                let cut = |x: u64, y: u64, category| Piece {
                    start: x,
                    end: y,
                    ns: share(p.ns, y - p.start, p.end - p.start)
                        - share(p.ns, x - p.start, p.end - p.start),
                    category,
                };
                let (x, y) = (
                    both.start.0.clamp(p.start, p.end),
                    both.end.0.clamp(p.start, p.end),
                );
                let waits = matches!(p.category, Category::RunQueueWait | Category::CpuQuota);
                if x >= y || waits {
                    self.out.pieces.push(p);
                    continue;
                }
                let cuts = [
                    (p.start, x, p.category),
                    (x, y, Category::Reclaim),
                    (y, p.end, p.category),
                ];
                for (x, y, c) in cuts {
                    if x < y {
                        self.out.pieces.push(cut(x, y, c));
                    }
                }
            }
            self.hint(Category::Reclaim, About::Own, both);
        }
    }

    fn piece(&mut self, start: u64, end: u64, ns: u64, category: Category) {
        if end <= start {
            return;
        }
        let whole = ns == end - start;
        if let Some(last) = self.out.pieces.last_mut()
            && last.category == category
            && last.end == start
            && whole
            && last.ns == last.end - last.start
        {
            last.end = end;
            last.ns += ns;
            return;
        }
        self.out.pieces.push(Piece {
            start,
            end,
            ns,
            category,
        });
    }

    fn hint(&mut self, category: Category, about: About, longest: Window) {
        if longest.nanos() >= HINT_MIN_NANOS {
            let chain = self.chain;
            let (requests, request_nanos) = if category == Category::DiskWait {
                self.requests(chain.threads().last().copied().unwrap_or_default(), longest)
            } else {
                (0, 0)
            };
            add_hint(
                &mut self.out.hints,
                HINTS,
                Hint {
                    category,
                    about,
                    chain,
                    ns: longest.nanos(),
                    count: 1,
                    longest,
                    requests,
                    request_nanos,
                },
            );
        }
    }

    /// Block requests of a thread's process, or of nobody (written back by the kernel), that overlap `w`.
    fn requests(&self, thread: Thread, w: Window) -> (u64, u64) {
        let mut n = 0;
        let mut nanos = 0;
        for e in self.world.io.iter().rev() {
            let request = Window::at(e.start, e.dur);
            if request.end.0 <= w.start.0 {
                break;
            }
            if e.thread.pid == thread.pid && request.overlap(&w) > 0 {
                n += 1;
                nanos += request.overlap(&w);
            }
        }
        (n, nanos)
    }

    fn process_of(&self, thread: Thread) -> Option<&Process> {
        self.world.find_process(thread.pid)
    }
}

/// Tid of nobody.
pub(crate) const NOBODY: Tid = Tid(0);
