//! Where in the job's code a finding's waits were: the calls of its thread and op within its window that came with a stack,
//! and of these stacks the one that was waited in longest. Where none of them was long enough to have one, all the thread's
//! other waits in this op say it, if they are in one place.
//!
//! A finding may come before its stack is looked up: then it is told once more. All of it is bounded: the oldest seconds
//! and stacks are forgotten first.

use std::collections::{BTreeMap, HashMap};

use warptrace_capture::symbols::ResolvedStack;
use warptrace_model::record::OpId;
use warptrace_model::{BootNanos, Call, Finding, Place, Thread};

const SECOND: u64 = 1_000_000_000;
/// Of (second, thread, op, stack).
const MAX_WAITS: usize = 1 << 16;
/// Stacks whose place is remembered.
const MAX_PLACES: usize = 1 << 13;
/// Findings that wait for a stack.
const MAX_WAITING: usize = 256;

#[derive(Default)]
pub(crate) struct Places {
    /// Nanoseconds waited, by the second in which the wait ended.
    waits: BTreeMap<u64, HashMap<(Thread, OpId, u32), u64>>,
    count: usize,
    /// By stack; `None`: looked up, and no code of the job's own in it.
    known: BTreeMap<u32, Option<Spot>>,
    waiting: Vec<(u32, Finding)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Spot {
    file: Option<String>,
    line: Option<u32>,
    function: Option<String>,
}

impl Places {
    pub(crate) fn call(&mut self, call: &Call) {
        if call.stack_id == 0 {
            return;
        }
        let second = call.end().0 / SECOND;
        let waited = self
            .waits
            .entry(second)
            .or_default()
            .entry((call.thread, call.op, call.stack_id))
            .or_insert_with(|| {
                self.count += 1;
                0
            });
        *waited += call.dur;
        while self.count > MAX_WAITS {
            let Some((_, gone)) = self.waits.pop_first() else {
                break;
            };
            self.count -= gone.len();
        }
    }

    /// Takes in where a stack leads; gives the findings that waited for it.
    pub(crate) fn resolved(&mut self, stack: &ResolvedStack) -> Vec<Finding> {
        let spot = stack.own_frame().map(|frame| Spot {
            // Without debug information the module stands for the file: with the offset in it when there is no name either.
            file: frame.file.clone().or_else(|| {
                let module = frame.module_name()?;
                Some(match (&frame.function, frame.module_offset) {
                    (None, Some(offset)) => format!("{module}+{offset:#x}"),
                    _ => module.to_owned(),
                })
            }),
            line: frame.line,
            function: frame.function.clone(),
        });
        if self.known.len() >= MAX_PLACES {
            self.known.pop_first();
        }
        self.known.insert(stack.id, spot);
        let (ready, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(id, _)| *id == stack.id);
        self.waiting = waiting;
        let mut findings: Vec<Finding> = ready.into_iter().map(|(_, f)| f).collect();
        findings.retain_mut(|f| self.fill(f, stack.id));
        findings
    }

    /// Adds the code to a finding's place, now or when its stack is known.
    pub(crate) fn find(&mut self, finding: &mut Finding) {
        self.waiting.retain(|(_, f)| f.id != finding.id);
        let Some(stack) = self.stack_of(finding) else {
            return;
        };
        if self.known.contains_key(&stack) {
            self.fill(finding, stack);
        } else {
            if self.waiting.len() >= MAX_WAITING {
                self.waiting.remove(0);
            }
            self.waiting.push((stack, finding.clone()));
        }
    }

    fn fill(&self, finding: &mut Finding, stack: u32) -> bool {
        let Some(Some(spot)) = self.known.get(&stack) else {
            return false;
        };
        let Spot {
            file,
            line,
            function,
        } = spot.clone();
        finding.place = Some(Place {
            file,
            line,
            function,
            op: finding.op,
        });
        true
    }

    fn stack_of(&self, finding: &Finding) -> Option<u32> {
        let op = finding.op?;
        let thread = Thread {
            pid: finding.key.process.pid,
            tid: finding.tid,
        };
        let second = |at: BootNanos| at.0 / SECOND;
        let sum = |seconds: std::ops::RangeInclusive<u64>| {
            let mut waited: BTreeMap<u32, u64> = BTreeMap::new();
            for ((of, by, stack), ns) in self.waits.range(seconds).flat_map(|(_, w)| w) {
                if (*of, *by) == (thread, op) {
                    *waited.entry(*stack).or_default() += ns;
                }
            }
            waited
        };
        let within = sum(second(finding.window.start)..=second(finding.window.end));
        let longest = within
            .into_iter()
            .max_by_key(|(stack, ns)| (*ns, std::cmp::Reverse(*stack)));
        if let Some((stack, _)) = longest {
            return Some(stack);
        }
        let mut ever = sum(0..=u64::MAX).into_keys();
        let first = ever.next()?;
        let spot = self.known.get(&first)?.as_ref()?;
        ever.all(|stack| matches!(self.known.get(&stack), Some(Some(s)) if s == spot))
            .then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use warptrace_capture::symbols::Frame;
    use warptrace_model::{
        CallFlags, Cause, Cpu, FindingId, FindingKind, Incarnation, Pid, Severity, Stream,
        StreamScope, Tid, UnitKey, UnitKind, UnitSpan, Window,
    };

    use super::*;

    fn op(name: &str) -> OpId {
        OpId::by_name(name).unwrap()
    }

    fn call(tid: u32, name: &str, second: u64, dur: u64, stack_id: u32) -> Call {
        Call {
            thread: Thread::new(7, tid),
            op: op(name),
            start: BootNanos(second * SECOND),
            dur,
            device: None,
            stream: Stream(0),
            ret: 0,
            flags: CallFlags(0),
            arg0: 0,
            arg1: 0,
            stack_id,
            cpu: Cpu(0),
        }
    }

    fn finding(from: u64, to: u64) -> Finding {
        let op = op("cudaDeviceSync");
        Finding {
            id: FindingId(from),
            kind: FindingKind::Incident,
            severity: Severity::High,
            cause: Cause::RunQueueWait,
            second: None,
            key: UnitKey {
                process: Incarnation {
                    pid: Pid(7),
                    start_ticks: 1,
                },
                device: None,
                stream: StreamScope::Many,
                kind: UnitKind::WaitInterval,
                class: 1,
            },
            op: Some(op),
            tid: Tid(70),
            comm: "train".into(),
            place: Some(Place {
                file: None,
                line: None,
                function: None,
                op: Some(op),
            }),
            window: Window {
                start: BootNanos(from * SECOND),
                end: BootNanos(to * SECOND + SECOND / 2),
            },
            units: UnitSpan {
                first: 0,
                last: 0,
                slow: 1,
                worst: 0,
            },
            shifted: false,
            baseline_ns: 1,
            baseline_units: 1,
            excess_ns: 1,
            blame: Vec::new(),
            evidence: Vec::new(),
        }
    }

    fn resolved(id: u32, function: Option<&str>, file: Option<&str>) -> ResolvedStack {
        ResolvedStack {
            id,
            frames: vec![Frame {
                ip: 0x1234,
                module: Some("/opt/train".into()),
                module_offset: Some(0x234),
                function: function.map(Into::into),
                file: file.map(Into::into),
                line: file.map(|_| 3),
            }],
        }
    }

    fn shown(finding: &Finding) -> String {
        let p = finding.place.clone().unwrap();
        format!("{:?} {:?} {:?}", p.file, p.line, p.function)
    }

    #[test]
    fn the_place_is_that_of_the_longest_waits_of_its_thread_and_op_in_its_window() {
        let mut places = Places::default();
        for c in [
            call(70, "cudaDeviceSync", 5, 10, 1),
            call(70, "cudaDeviceSync", 5, 30, 2),
            call(70, "cudaDeviceSync", 6, 10, 1),
            call(70, "cudaDeviceSync", 20, 1000, 3),
            call(70, "cudaStreamSync", 5, 1000, 4),
            call(71, "cudaDeviceSync", 5, 1000, 5),
        ] {
            places.call(&c);
        }
        for id in 1..=5 {
            places.resolved(&resolved(id, Some(&format!("f{id}")), Some("a.c")));
        }
        let place = |from, to| {
            let mut f = finding(from, to);
            places_of(&places, &mut f);
            shown(&f)
        };
        assert_eq!(place(5, 6), r#"Some("a.c") Some(3) Some("f2")"#);
        assert_eq!(place(6, 6), r#"Some("a.c") Some(3) Some("f1")"#);
        assert_eq!(place(20, 30), r#"Some("a.c") Some(3) Some("f3")"#);
        assert_eq!(
            place(40, 50),
            "None None None",
            "no wait of it had a stack, and others were in several places"
        );
    }

    #[test]
    fn waits_too_short_for_a_stack_are_where_all_others_of_the_thread_are() {
        let mut places = Places::default();
        places.call(&call(70, "cudaDeviceSync", 5, 10, 1));
        places.call(&call(70, "cudaDeviceSync", 6, 10, 2));
        let mut f = finding(40, 50);
        places_of(&places, &mut f);
        assert_eq!(shown(&f), "None None None", "nothing is known yet");
        places.resolved(&resolved(1, Some("f"), Some("a.c")));
        places.resolved(&resolved(2, Some("f"), Some("a.c")));
        places_of(&places, &mut f);
        assert_eq!(shown(&f), r#"Some("a.c") Some(3) Some("f")"#);
    }

    fn places_of(places: &Places, f: &mut Finding) {
        if let Some(stack) = places.stack_of(f) {
            places.fill(f, stack);
        }
    }

    #[test]
    fn a_finding_that_came_before_its_stack_was_known_is_told_again() {
        let mut places = Places::default();
        places.call(&call(70, "cudaDeviceSync", 5, 10, 1));
        let mut f = finding(5, 5);
        places.find(&mut f);
        assert_eq!(shown(&f), "None None None");
        assert!(places.resolved(&resolved(9, Some("g"), None)).is_empty());
        // An update replaces it.
        f.excess_ns = 2;
        places.find(&mut f);
        let again = places.resolved(&resolved(1, Some("f"), None));
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].excess_ns, 2);
        assert_eq!(shown(&again[0]), r#"Some("train") None Some("f")"#);
        assert!(places.resolved(&resolved(1, Some("f"), None)).is_empty());
    }

    #[test]
    fn without_any_symbol_the_module_and_the_offset_in_it_are_the_place() {
        let mut places = Places::default();
        places.call(&call(70, "cudaDeviceSync", 5, 10, 1));
        places.resolved(&resolved(1, None, None));
        let mut f = finding(5, 5);
        places.find(&mut f);
        assert_eq!(shown(&f), r#"Some("train+0x234") None None"#);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut places = Places::default();
        for n in 0..2 * MAX_WAITS as u32 {
            places.call(&call(70, "cudaDeviceSync", u64::from(n / 1000), 1, n + 1));
        }
        assert!(places.count <= MAX_WAITS);
        assert_eq!(
            places.count,
            places.waits.values().map(HashMap::len).sum::<usize>()
        );
        for id in 1..=2 * MAX_PLACES as u32 {
            places.resolved(&resolved(id, None, None));
        }
        assert_eq!(places.known.len(), MAX_PLACES);
    }
}
