//! Traces as text, and answers as text: so that a test is two strings.
//!
//! One event a line: who, begin, `+`length, what, then `name=value` in any order. Times are decimal with `ns`, `us`, `ms` or
//! `s`. Threads go by names that were declared; `#` begins a comment.
//!
//! ```text
//! process train 4711 job from-start     a process, its main thread `train`; parent=NAME
//! thread loader-3 4713 of train         another thread of it
//! at 2s                                 times that follow count from here
//! pause 5ms                              the same, 5 ms after where they counted from
//! train   1ms +5us   cudaLaunchKernel stream=1 device=0    any op of the table; arg0= arg1= bytes= kind= ret= nested, in-library
//! train   2ms +3ms   blocked on=futex by=loader-3 runnable=1ms cpu=1
//!                    on: futex poll read pread write nanosleep recv epoll fault io_uring; fd= file=regular|socket|pipe
//!                    iowait timed sockets stopped; wake=syscall|kernel|interrupt|other; throttled=
//! train   5ms +2ms   preempted cpu=1 throttled=1ms
//! cpu1    5ms +2ms   ran hog            who ran on a CPU while a traced thread waited for it
//! train   0ms +9ms   stretch running=4ms runnable=3ms throttled=0ms
//! train   1ms +1ms   reclaim pages=32
//! train   1ms +1ms   io bytes=4096 dev=254
//! gpu0    1s         sample clock=900 max=1980 throttle=4 busy=train:0.5,other:0.4
//! train   3s         exec | exit | oom-kill
//! net     1s         retransmit
//! train   1s         label step=41           an annotation; with +length a span; `all` for every process
//! lost    1s +5ms    train 12           records of a process (or `all`) are missing
//! train   0s +6s     in-flight cudaStreamSync
//! file train 7 data/shard.tar           a path of a descriptor
//! repeat 40 every 38.2ms … end          the lines between, again and again; times count from each begin, and after it from its end
//! ```

use std::collections::HashMap;
use std::fmt::Write as _;

use warptrace_model::record::OpId;
use warptrace_model::{
    Annotation, BlockIo, BootNanos, Call, CallFlags, Cause, Cpu, Device, Event, FilePath, FileType,
    Finding, GpuSample, Incarnation, IoKind, Labels, Loss, LossReason, OffCpu, Pid, ProcessEvent,
    ProcessInfo, Reclaim, Retransmit, Slice, Stream, Stretch, Thread, ThreadName, Tid, Wake, Waker,
    Window,
};

use crate::{Engine, Output, Rules};

/// Why a text is not a trace: its line, from 1, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceError {
    pub line: usize,
    pub what: String,
}

impl std::fmt::Display for TraceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for TraceError {}

/// The events of a trace, in the order of the text.
///
/// # Errors
/// [`TraceError`] at the first line that is not of the notation.
pub fn parse_trace(text: &str) -> Result<Vec<Event>, TraceError> {
    let lines: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .map(|(i, l)| (i + 1, l.split('#').next().unwrap_or("").trim()))
        .filter(|(_, l)| !l.is_empty())
        .collect();
    let mut p = Parser {
        threads: HashMap::new(),
        base: 0,
        events: Vec::new(),
    };
    p.block(&lines)?;
    Ok(p.events)
}

/// What an engine with `rules` concludes of a trace: its last word on each finding, and all its units.
///
/// # Panics
/// When `text` is no trace.
pub fn explain_trace(text: &str, rules: Rules) -> Output {
    let events = parse_trace(text).unwrap_or_else(|e| panic!("{e}"));
    explain_events(events, rules)
}

/// The same of events in any order.
pub fn explain_events(events: Vec<Event>, rules: Rules) -> Output {
    let mut engine = Engine::new(rules);
    for e in events {
        engine.push(e);
    }
    engine.finish(BootNanos(0));
    engine.drain()
}

struct Parser {
    threads: HashMap<String, Thread>,
    base: u64,
    events: Vec<Event>,
}

/// What follows a line's first words.
struct Words<'a> {
    named: Vec<(&'a str, &'a str)>,
    bare: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn new(words: &[&'a str]) -> Words<'a> {
        let mut w = Words {
            named: Vec::new(),
            bare: Vec::new(),
        };
        for word in words {
            match word.split_once('=') {
                Some(pair) => w.named.push(pair),
                None => w.bare.push(word),
            }
        }
        w
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.named.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }

    fn has(&self, word: &str) -> bool {
        self.bare.contains(&word)
    }

    fn number(&self, name: &str, default: u64) -> Result<u64, String> {
        self.get(name).map_or(Ok(default), parse_number)
    }

    fn time(&self, name: &str) -> Result<u64, String> {
        self.get(name).map_or(Ok(0), parse_time)
    }
}

fn parse_number(s: &str) -> Result<u64, String> {
    match s.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => s.parse(),
    }
    .map_err(|_| format!("{s:?} is no number"))
}

/// A time as the notation has it, ns.
fn parse_time(s: &str) -> Result<u64, String> {
    let digits = s
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(s.len());
    let (number, unit) = s.split_at(digits);
    let per: u64 = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return Err(format!("{s:?} is no time (needs ns, us, ms or s)")),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let bad = |_| format!("{s:?} is no time");
    let mut ns = whole.parse::<u64>().map_err(bad)? * per;
    let mut place = per;
    for d in fraction.chars() {
        place /= 10;
        ns += u64::from(d.to_digit(10).ok_or_else(|| format!("{s:?} is no time"))?) * place;
    }
    Ok(ns)
}

impl Parser {
    fn block(&mut self, lines: &[(usize, &str)]) -> Result<(), TraceError> {
        let mut i = 0;
        while let Some((number, line)) = lines.get(i) {
            let error = |what: String| TraceError {
                line: *number,
                what,
            };
            let words: Vec<&str> = line.split_whitespace().collect();
            if words[0] == "repeat" {
                let (times, every) = match words[..] {
                    ["repeat", n, "every", t] => (
                        parse_number(n).map_err(error)?,
                        parse_time(t).map_err(error)?,
                    ),
                    _ => return Err(error("repeat N every TIME".to_owned())),
                };
                let mut depth = 1;
                let mut end = i + 1;
                while depth > 0 {
                    match lines
                        .get(end)
                        .map(|(_, l)| l.split_whitespace().next().unwrap_or(""))
                    {
                        Some("repeat") => depth += 1,
                        Some("end") => depth -= 1,
                        Some(_) => {}
                        None => return Err(error("repeat without end".to_owned())),
                    }
                    end += 1;
                }
                let body = &lines[i + 1..end - 1];
                for _ in 0..times {
                    let base = self.base;
                    self.block(body)?;
                    self.base = base + every;
                }
                i = end;
                continue;
            }
            self.line(&words).map_err(error)?;
            i += 1;
        }
        Ok(())
    }

    fn thread(&self, name: &str) -> Result<Thread, String> {
        self.threads
            .get(name)
            .copied()
            .ok_or_else(|| format!("no thread {name:?} was declared"))
    }

    fn line(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            ["process", name, pid, rest @ ..] => self.process(name, pid, &Words::new(rest)),
            ["thread", name, tid, "of", process] => {
                let t = Thread {
                    pid: self.thread(process)?.pid,
                    tid: Tid(parse_number(tid)? as u32),
                };
                self.name(name, t);
                Ok(())
            }
            ["at", time] => {
                self.base = parse_time(time)?;
                Ok(())
            }
            ["pause", time] => {
                self.base += parse_time(time)?;
                Ok(())
            }
            ["file", process, fd, path] => {
                self.events.push(Event::FilePath(Box::new(FilePath {
                    pid: self.thread(process)?.pid,
                    fd: parse_number(fd)? as i32,
                    path: (*path).to_owned(),
                })));
                Ok(())
            }
            [who, start, rest @ ..] => {
                let start = BootNanos(self.base + parse_time(start)?);
                let (dur, rest) = match rest {
                    [d, rest @ ..] if d.starts_with('+') => (parse_time(&d[1..])?, rest),
                    _ => (0, rest),
                };
                let [what, rest @ ..] = rest else {
                    return Err("nothing happens in this line".to_owned());
                };
                let e = self.event(who, start, dur, what, &Words::new(rest))?;
                self.events.push(e);
                Ok(())
            }
            _ => Err("not a line of the notation".to_owned()),
        }
    }

    fn name(&mut self, name: &str, t: Thread) {
        self.threads.insert(name.to_owned(), t);
        self.events.push(Event::ThreadName(ThreadName {
            thread: t,
            name: name.into(),
        }));
    }

    fn process(&mut self, name: &str, pid: &str, w: &Words<'_>) -> Result<(), String> {
        let pid = parse_number(pid)? as u32;
        self.name(name, Thread::new(pid, pid));
        if w.has("silent") {
            return Ok(());
        }
        self.events.push(Event::ProcessInfo(Box::new(ProcessInfo {
            incarnation: Incarnation {
                pid: Pid(pid),
                start_ticks: w.number("ticks", 7)?,
            },
            parent: w
                .get("parent")
                .map_or(Ok(Pid(1)), |p| self.thread(p).map(|t| t.pid))?,
            name: name.to_owned(),
            start: BootNanos(self.base),
            from_start: w.has("from-start"),
            in_job: w.has("job"),
            ..ProcessInfo::default()
        })));
        Ok(())
    }

    fn event(
        &self,
        who: &str,
        start: BootNanos,
        dur: u64,
        what: &str,
        w: &Words<'_>,
    ) -> Result<Event, String> {
        if let Some(cpu) = who.strip_prefix("cpu").and_then(|n| n.parse().ok()) {
            let [name] = w.bare[..] else {
                return Err("cpuN … ran WHO".to_owned());
            };
            let thread = if name == "idle" {
                Thread::default()
            } else {
                self.thread(name)?
            };
            return Ok(Event::Slice(Slice {
                thread,
                start,
                dur,
                cpu: Cpu(cpu),
            }));
        }
        if let Some(device) = who.strip_prefix("gpu").and_then(|n| n.parse().ok()) {
            return self.sample(device, start, w);
        }
        if who == "net" {
            return Ok(Event::Retransmit(Retransmit {
                at: start,
                address: 1,
                peer_address: 2,
                port: 3,
                peer_port: 4,
            }));
        }
        if who == "lost" {
            let count = w.bare.first().map_or(Ok(1), |n| parse_number(n))?;
            return Ok(Event::Lost(Loss {
                source: "test",
                reason: LossReason::RingFull,
                count,
                window: Some(Window::at(start, dur)),
                pid: if what == "all" {
                    None
                } else {
                    Some(self.thread(what)?.pid)
                },
            }));
        }
        if what == "label" {
            let mut labels = Labels::default();
            for (key, value) in &w.named {
                labels
                    .insert(key, value)
                    .map_err(|e| format!("label {key}: {}", e.name()))?;
            }
            let scope = match who {
                "all" => None,
                who => Some(Incarnation {
                    pid: self.thread(who)?.pid,
                    start_ticks: 0,
                }),
            };
            return Ok(Event::Annotation(Box::new(Annotation {
                at: start.plus(dur),
                span: (dur > 0).then(|| Window::at(start, dur)),
                scope,
                labels,
                sender: None,
            })));
        }
        let thread = self.thread(who)?;
        Ok(match what {
            "blocked" | "preempted" => self.off_cpu(thread, start, dur, what == "preempted", w)?,
            "stretch" => Event::Stretch(Stretch {
                thread,
                start,
                dur,
                running: w.time("running")?,
                runnable: w.time("runnable")?,
                throttled: w.time("throttled")?,
                major_faults: 0,
                minor_faults: 0,
            }),
            "reclaim" => Event::Reclaim(Reclaim {
                thread,
                start,
                dur,
                cgroup: w.has("cgroup"),
                pages: w.number("pages", 1)?,
            }),
            "io" => Event::BlockIo(BlockIo {
                thread,
                start,
                dur,
                kind: IoKind::Read,
                bytes: w.number("bytes", 4096)?,
                sector: w.number("sector", 0)?,
                dev: w.number("dev", 254 << 20)? as u32,
                inode: 0,
                error: 0,
            }),
            "exec" => Event::Process(ProcessEvent::Exec {
                at: start,
                pid: thread.pid,
                start_ticks: w.number("ticks", 7)?,
            }),
            "exit" => Event::Process(ProcessEvent::Exit {
                at: start,
                pid: thread.pid,
                status: 0,
            }),
            "oom-kill" => Event::Process(ProcessEvent::OomKill {
                at: start,
                victim: thread.pid,
            }),
            "in-flight" => {
                let op = w.bare.first().copied().unwrap_or("");
                Event::InFlight(call(thread, op, start, dur, w)?)
            }
            op => Event::Call(call(thread, op, start, dur, w)?),
        })
    }

    fn sample(&self, device: u16, at: BootNanos, w: &Words<'_>) -> Result<Event, String> {
        let mut processes = Vec::new();
        for one in w.get("busy").into_iter().flat_map(|b| b.split(',')) {
            let (name, used) = one.split_once(':').ok_or("busy=NAME:FRACTION")?;
            let used: f64 = used
                .parse()
                .map_err(|_| format!("{used:?} is no fraction"))?;
            processes.push((self.thread(name)?.pid, Some(used), None));
        }
        let clock = |name| {
            w.get(name)
                .map(parse_number)
                .transpose()
                .map(|n| n.map(|n| n as u32))
        };
        Ok(Event::Gpu(Box::new(GpuSample {
            at,
            device,
            sm_clock_mhz: clock("clock")?,
            max_sm_clock_mhz: clock("max")?,
            throttle_reasons: w.get("throttle").map(parse_number).transpose()?,
            processes,
            ..GpuSample::default()
        })))
    }

    fn off_cpu(
        &self,
        thread: Thread,
        start: BootNanos,
        dur: u64,
        preempted: bool,
        w: &Words<'_>,
    ) -> Result<Event, String> {
        let on = w.get("on");
        let syscall = match on {
            None if preempted => None,
            None => return Err("blocked needs on=".to_owned()),
            Some("fault") => None,
            Some("read") => Some(0),
            Some("write") => Some(1),
            Some("poll") => Some(7),
            Some("pread") => Some(17),
            Some("nanosleep") => Some(230),
            Some("recv") => Some(45),
            Some("futex") => Some(202),
            Some("epoll") => Some(232),
            Some("io_uring") => Some(426),
            Some(other) => return Err(format!("on={other} is not known")),
        };
        let by = match w.get("wake") {
            None | Some("syscall") => Wake::Syscall,
            Some("kernel") => Wake::Kernel,
            Some("interrupt") => Wake::Interrupt,
            Some("other") => Wake::Other,
            Some(other) => return Err(format!("wake={other} is not known")),
        };
        Ok(Event::OffCpu(OffCpu {
            thread,
            start,
            dur,
            runnable: if preempted { dur } else { w.time("runnable")? },
            throttled: w.time("throttled")?,
            preempted,
            iowait: w.has("iowait"),
            uninterruptible: w.has("iowait"),
            stopped: w.has("stopped"),
            timed: w.has("timed"),
            poll_socket: w.has("sockets"),
            syscall,
            fd: w.get("fd").map(parse_number).transpose()?.map(|n| n as i32),
            file: match w.get("file") {
                Some("regular") => FileType::Regular,
                Some("socket") => FileType::Socket,
                Some("pipe") => FileType::Pipe,
                _ => FileType::None,
            },
            waker: match w.get("by") {
                Some(name) => Some(Waker {
                    thread: self.thread(name)?,
                    by,
                }),
                None => None,
            },
            last_occupant: Tid(0),
            cpu: Cpu(w.number("cpu", 0)? as u32),
        }))
    }
}

fn call(
    thread: Thread,
    op: &str,
    start: BootNanos,
    dur: u64,
    w: &Words<'_>,
) -> Result<Call, String> {
    use warptrace_model::record::flag;
    let op = OpId::by_name(op).ok_or_else(|| format!("no op {op:?}"))?;
    let mut flags = 0;
    if w.has("nested") {
        flags |= flag::NESTED;
    }
    if w.has("in-library") {
        flags |= flag::NESTED | flag::NESTED_IN_LIBRARY;
    }
    Ok(Call {
        thread,
        op,
        start,
        dur,
        device: match w.get("device") {
            Some("none") => None,
            _ => Some(Device(w.number("device", 0)? as u16)),
        },
        stream: Stream(w.number("stream", 0)?),
        ret: w
            .get("ret")
            .map_or(Ok(0), |r| r.parse().map_err(|_| format!("ret={r}")))?,
        flags: CallFlags(flags),
        arg0: w.number(
            if w.get("bytes").is_some() {
                "bytes"
            } else {
                "arg0"
            },
            0,
        )?,
        arg1: w.number(
            if w.get("kind").is_some() {
                "kind"
            } else {
                "arg1"
            },
            0,
        )?,
        stack_id: 0,
        cpu: Cpu(0),
    })
}

/// A duration in ms, exact to the microsecond, shorter when it can be.
fn ms(ns: u64) -> String {
    let text = format!("{:.3}", ns as f64 / 1e6);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A finding as text: one line, then one line a cause, then its evidence. Ids are left out, times are in ms.
pub fn render_finding(f: &Finding) -> String {
    let mut s = format!("{} {} {}", f.severity.name(), f.kind.name(), f.cause.name());
    if let Some(second) = f.second {
        let _ = write!(s, " then {}", second.name());
    }
    if f.shifted {
        s.push_str(" shifted");
    }
    let op = f.op.map_or("-", |o| o.name());
    let _ = writeln!(
        s,
        ": {} in {op}, {}..{} ms, units {}..{} slow {} worst {}, usual {} ms of {}, excess {} ms",
        f.comm,
        ms(f.window.start.0),
        ms(f.window.end.0),
        f.units.first,
        f.units.last,
        f.units.slow,
        f.units.worst,
        ms(f.baseline_ns),
        f.baseline_units,
        ms(f.excess_ns),
    );
    for b in &f.blame {
        if b.cause == Cause::Unexplained && b.ns == 0 && f.excess_ns > 0 {
            continue;
        }
        let _ = writeln!(
            s,
            "  {} {} ms, lost {} ms: {}",
            b.cause.name(),
            ms(b.ns),
            ms(b.lost_ns),
            b.detail
        );
    }
    for e in &f.evidence {
        let _ = writeln!(
            s,
            "  - {} {} at {} ms for {} ms {}",
            e.comm.as_deref().unwrap_or("?"),
            e.what,
            ms(e.start.0),
            ms(e.dur),
            e.path.as_deref().unwrap_or("")
        );
    }
    s
}

/// All findings, gaps and losses as text.
pub fn render(out: &Output) -> String {
    let mut s: String = out.findings.iter().map(render_finding).collect();
    for g in &out.gaps {
        let _ = writeln!(s, "gap {} {}: {}", g.code.name(), g.count, g.detail);
    }
    for l in &out.losses {
        let _ = writeln!(s, "loss {} {}", l.reason.name(), l.count);
    }
    let text: Vec<&str> = s.lines().map(str::trim_end).collect();
    text.join("\n") + if s.is_empty() { "" } else { "\n" }
}
