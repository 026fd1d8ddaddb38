//! Made-up events, and sessions on a disk in memory.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::Path;
use std::sync::Arc;

use warptrace_model::inference::*;
use warptrace_model::record::OpId;
use warptrace_model::record::op::OPS;
use warptrace_model::*;
use warptrace_store::fs::{Fs, MemFs};
use warptrace_store::{DataDir, Limits, Session, SessionMeta, SessionWriter, StoreError};

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const START: u64 = 1_000 * SECOND;

/// A stream of numbers that look random and are the same each time (SplitMix64, Steele et al. 2014).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 0
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Numbers) -> T) -> Option<T> {
        self.flag().then(|| make(self))
    }

    fn fraction(&mut self) -> f64 {
        self.below(1_000) as f64 / 1_000.0
    }

    fn word(&mut self) -> String {
        let words = ["python", "loader-3", "", "wt-hog", "naïve ✓", "kworker/1:2"];
        words[self.below(words.len() as u64) as usize].to_owned()
    }
}

/// Event `i` of the stream `seed`, which begins about 100 µs after event `i - 1`, of any kind that has a moment.
pub(crate) fn event(seed: u64, i: u64) -> Event {
    let n = &mut Numbers(seed ^ i.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let start = BootNanos(START + i * 100_000 + n.below(300_000));
    let dur = match n.below(20) {
        0 => n.below(5 * SECOND),
        _ => n.below(400_000),
    };
    let pid = 100 + n.below(3) as u32;
    let thread = Thread::new(pid, pid + 1 + n.below(4) as u32);
    let cpu = Cpu(n.below(8) as u32);
    let op = OpId::from_index(n.below(OPS.len() as u64) as usize).unwrap();
    let window = Window::at(start, dur);
    match n.below(15) {
        kind @ 0..=3 => {
            let call = Call {
                thread,
                op,
                start,
                dur,
                device: n.maybe(|n| Device(n.below(8) as u16)),
                stream: Stream(n.next()),
                ret: n.next() as i32,
                flags: CallFlags(n.below(8) as u16),
                arg0: n.next(),
                arg1: u64::MAX - n.below(3),
                stack_id: n.below(9) as u32,
                cpu,
            };
            if kind == 0 {
                Event::InFlight(call)
            } else {
                Event::Call(call)
            }
        }
        4..=5 => {
            let runnable = n.below(dur + 1);
            Event::OffCpu(OffCpu {
                thread,
                start,
                dur,
                runnable,
                throttled: n.below(runnable + 1),
                preempted: n.flag(),
                iowait: n.flag(),
                uninterruptible: n.flag(),
                stopped: n.flag(),
                timed: n.flag(),
                poll_socket: n.flag(),
                syscall: n.maybe(|n| n.below(400) as u16),
                fd: n.maybe(|n| n.below(1 << 20) as i32),
                file: [FileType::None, FileType::Regular, FileType::Anonymous][n.below(3) as usize],
                waker: n.maybe(|n| Waker {
                    thread: Thread::new(n.below(1 << 22) as u32, 1 + n.below(1 << 22) as u32),
                    by: [Wake::Syscall, Wake::Kernel, Wake::Interrupt, Wake::Other]
                        [n.below(4) as usize],
                }),
                last_occupant: Tid(n.below(5000) as u32),
                cpu,
            })
        }
        6 => Event::Slice(Slice {
            thread,
            start,
            dur,
            cpu,
        }),
        7 => Event::BlockIo(BlockIo {
            thread,
            start,
            dur,
            kind: [IoKind::Read, IoKind::Write, IoKind::Discard, IoKind::Flush]
                [n.below(4) as usize],
            bytes: n.below(1 << 30),
            sector: n.next(),
            dev: n.next() as u32,
            inode: n.next(),
            error: -(n.below(40) as i32),
        }),
        8 => Event::Reclaim(Reclaim {
            thread,
            start,
            dur,
            cgroup: n.flag(),
            pages: n.below(10_000),
        }),
        9 => Event::Stretch(Stretch {
            thread,
            start,
            dur,
            running: dur / 2,
            runnable: dur / 4,
            throttled: dur / 8,
            major_faults: n.below(1 << 17) as u32,
            minor_faults: n.below(1 << 17) as u32,
        }),
        10 => Event::Retransmit(Retransmit {
            at: start,
            address: n.next() as u32,
            peer_address: n.next() as u32,
            port: n.next() as u16,
            peer_port: n.next() as u16,
        }),
        11 => Event::Process(match n.below(6) {
            0 => ProcessEvent::Born {
                at: start,
                parent: thread,
                child: Pid(n.below(1 << 22) as u32),
            },
            1 => ProcessEvent::ThreadBorn {
                at: start,
                parent: thread,
                child: Tid(1_000 + n.below(1 << 22) as u32),
            },
            2 => ProcessEvent::Exec {
                at: start,
                pid: thread.pid,
                start_ticks: n.next(),
            },
            3 => ProcessEvent::Exit {
                at: start,
                pid: thread.pid,
                status: n.next() as i32,
            },
            4 => ProcessEvent::ThreadExit { at: start, thread },
            _ => ProcessEvent::OomKill {
                at: start,
                victim: thread.pid,
            },
        }),
        12 => {
            let mut durations = Histogram::default();
            for _ in 0..n.below(5) {
                durations.record(n.next() >> n.below(64));
            }
            Event::Counts(Box::new(OpCount {
                key: OpKey {
                    pid: thread.pid,
                    device: n.maybe(|n| Device(n.below(2) as u16)),
                    op,
                },
                window,
                total: n.next() >> 8,
                durations,
            }))
        }
        13 => {
            let mut labels = Labels::default();
            for i in 0..n.below(4) {
                let value = format!("{} é\"", n.next());
                labels.insert(&format!("key.{i}"), &value).unwrap();
            }
            Event::Annotation(Box::new(Annotation {
                at: start,
                span: n.maybe(|n| Window::at(BootNanos(start.0 - n.below(start.0 + 1)), dur)),
                scope: n.maybe(|n| Incarnation {
                    pid: thread.pid,
                    start_ticks: n.next(),
                }),
                labels,
                sender: n.maybe(|n| Sender {
                    uid: n.next() as u32,
                    gid: n.next() as u32,
                    pid: n.next() as u32,
                }),
            }))
        }
        _ if n.flag() => Event::System(Box::new(SystemSample {
            at: start,
            cpu: n.maybe(Numbers::fraction),
            steal: n.maybe(Numbers::fraction),
            memory_total: n.next(),
            memory_available: n.next(),
            swap_used: n.next(),
            load1: n.fraction(),
            load5: n.fraction(),
            major_faults: n.maybe(Numbers::fraction),
            pressure_cpu: n.maybe(Numbers::fraction),
            pressure_io: n.maybe(Numbers::fraction),
            pressure_memory: n.maybe(Numbers::fraction),
        })),
        _ => Event::Gpu(Box::new(GpuSample {
            at: start,
            device: n.below(8) as u16,
            uuid: n.word(),
            sm_clock_mhz: n.maybe(|n| n.below(3_000) as u32),
            max_sm_clock_mhz: n.maybe(|n| n.below(3_000) as u32),
            throttle_reasons: n.maybe(Numbers::next),
            memory_used: n.maybe(Numbers::next),
            memory_total: n.maybe(Numbers::next),
            memory_free: n.maybe(Numbers::next),
            temperature_celsius: n.maybe(|n| n.below(120) as u32),
            power_milliwatts: n.maybe(|n| n.below(900_000) as u32),
            name: n.word(),
            utilization: n.maybe(Numbers::fraction),
            processes: (0..n.below(3))
                .map(|k| {
                    (
                        Pid(k as u32),
                        n.maybe(Numbers::fraction),
                        n.maybe(Numbers::next),
                    )
                })
                .collect(),
        })),
    }
}

pub(crate) fn events(seed: u64, range: std::ops::Range<u64>) -> Vec<Event> {
    range.map(|i| event(seed, i)).collect()
}

pub(crate) fn key(n: &mut Numbers) -> UnitKey {
    UnitKey {
        process: Incarnation {
            pid: Pid(100 + n.below(2) as u32),
            start_ticks: n.next(),
        },
        device: n.maybe(|n| Device(n.below(8) as u16)),
        stream: if n.flag() {
            StreamScope::Many
        } else {
            StreamScope::One(Stream(n.next()))
        },
        kind: UnitKind::ALL[n.below(4) as usize],
        class: n.next() as u16,
    }
}

pub(crate) fn unit(seed: u64, i: u64) -> Unit {
    let n = &mut Numbers(seed ^ i);
    let mut parts = Parts::default();
    for part in &mut parts.0 {
        *part = n.below(1 << 40);
    }
    Unit {
        key: key(n),
        lead: Tid(n.below(1 << 22) as u32),
        name: i.is_multiple_of(3).then(|| warptrace_model::UnitName {
            label: warptrace_model::NamedBy::Step,
            value: i.to_string().into(),
        }),
        number: i,
        start: BootNanos(START + i * 50_000_000),
        dur: parts.total(),
        parts,
        launches: n.next(),
        slow: n.flag(),
        incomplete: n.flag(),
    }
}

pub(crate) fn outlier(seed: u64) -> Outlier {
    let n = &mut Numbers(seed);
    let bits = |n: &mut Numbers| u128::from(n.next()) << 64 | u128::from(n.next());
    Outlier {
        id: EventId(bits(n)),
        span: SpanContext {
            trace: bits(n),
            span: n.next(),
        },
        key: WorkloadKey {
            cgroup: n.maybe(|n| CgroupHash(n.next())),
            process: Incarnation {
                pid: Pid(n.below(1 << 22) as u32),
                start_ticks: n.next(),
            },
            stream: Stream(n.next()),
            phase: n.maybe(|n| [Phase::Prefill, Phase::Decode][n.below(2) as usize]),
            device: n.maybe(|n| Device(n.below(8) as u16)),
            fingerprint: n.next(),
        },
        at: BootNanos(START + SECOND + n.below(SECOND)),
        step_nanos: n.below(SECOND),
        p95_nanos: n.next(),
        mean_nanos: n.next(),
        bucket: [OutlierBucket::X1_5, OutlierBucket::X3][n.below(2) as usize],
        tid: Tid(n.below(1 << 22) as u32),
        op: OpId::from_index(n.below(OPS.len() as u64) as usize).unwrap(),
        launches: n.next(),
        copied_bytes: n.next(),
        memory_calls: n.below(1 << 32) as u32,
        throttle_reasons: n.next(),
        min_sm_clock_mhz: n.maybe(|n| n.below(3_000) as u32),
        kv_ages_millis: (0..n.below(4)).map(|_| n.next()).collect(),
        first_in_minute: n.flag(),
    }
}

pub(crate) fn finding(seed: u64, id: u64) -> Finding {
    let n = &mut Numbers(seed);
    let op = |n: &mut Numbers| {
        n.maybe(|n| OpId::from_index(n.below(OPS.len() as u64) as usize).unwrap())
    };
    let blame = |n: &mut Numbers, cause| Blame {
        cause,
        ns: n.next() >> 8,
        lost_ns: n.next() >> 8,
        detail: n.word(),
    };
    Finding {
        id: FindingId(id),
        kind: FindingKind::Incident,
        severity: [Severity::Low, Severity::Critical][n.below(2) as usize],
        cause: Cause::ALL[n.below(21) as usize],
        second: n.maybe(|n| Cause::ALL[n.below(21) as usize]),
        key: key(n),
        op: op(n),
        tid: Tid(n.below(1 << 22) as u32),
        comm: n.word(),
        place: n.maybe(|n| Place {
            file: Some("train.py".into()),
            line: n.maybe(|n| n.below(1000) as u32),
            function: n.maybe(Numbers::word),
            op: op(n),
        }),
        window: Window::at(BootNanos(START + n.below(SECOND)), n.below(SECOND)),
        units: UnitSpan {
            first: n.next(),
            last: n.next(),
            slow: n.next(),
            worst: n.next(),
        },
        shifted: n.flag(),
        baseline_ns: n.next(),
        baseline_units: n.next(),
        excess_ns: n.next(),
        blame: vec![blame(n, Cause::RunQueueWait), blame(n, Cause::Unexplained)],
        evidence: (0..n.below(3))
            .map(|_| Evidence {
                what: n.word(),
                pid: n.maybe(|n| n.below(9) as u32),
                tid: n.maybe(|n| n.below(9) as u32),
                comm: n.maybe(Numbers::word),
                path: n.maybe(Numbers::word),
                start: BootNanos(n.next()),
                dur: n.next(),
            })
            .collect(),
    }
}

pub(crate) fn process(seed: u64, pid: u32) -> ProcessInfo {
    let n = &mut Numbers(seed);
    ProcessInfo {
        incarnation: Incarnation {
            pid: Pid(pid),
            start_ticks: 7,
        },
        parent: Pid(1),
        name: n.word(),
        command: (0..n.below(4)).map(|_| n.word()).collect(),
        start: BootNanos(n.next()),
        from_start: n.flag(),
        in_job: n.flag(),
        uid: n.next() as u32,
        cgroup: n.word(),
        container_id: n.word(),
        rank: n.maybe(|n| n.below(8) as u32),
        local_rank: n.maybe(|n| n.below(8) as u32),
        world_size: n.maybe(|n| n.below(8) as u32),
    }
}

/// A session that began when the made-up events do.
pub(crate) fn meta(id: &str) -> SessionMeta {
    let mut meta = SessionMeta::new(ClockAnchor {
        boot: BootNanos(START),
        unix: UnixNanos(1_795_000_000 * SECOND),
    });
    meta.id = id.to_owned();
    meta
}

pub(crate) const SMALL: Limits = Limits {
    seal_bytes: 20_000,
    seal_age: 600 * SECOND,
    event_bytes: None,
};

pub(crate) fn create(fs: &MemFs, id: &str, limits: Limits) -> Result<SessionWriter, StoreError> {
    SessionWriter::with_limits(
        Arc::new(fs.clone()),
        &DataDir::at("/data"),
        meta(id),
        limits,
    )
}

pub(crate) fn open(fs: &MemFs, id: &str) -> Result<Session, StoreError> {
    let fs: Arc<dyn Fs> = Arc::new(fs.clone());
    Session::open(fs, &Path::new("/data/sessions").join(id))
}

/// All events of a session that have a moment, in the order in which they are given.
pub(crate) fn read_events(session: &Session, window: Option<Window>) -> Vec<Event> {
    let mut stream = session.events(window).unwrap();
    let mut all = Vec::new();
    while stream.next_batch(&mut all) {}
    all.retain(|e| {
        !matches!(
            e,
            Event::Lost(_) | Event::ThreadName(_) | Event::ProcessInfo(_) | Event::FilePath(_)
        )
    });
    all
}

/// In an order that depends on nothing but what they are.
pub(crate) fn sorted(events: &[Event]) -> Vec<String> {
    let mut texts: Vec<String> = events.iter().map(|e| format!("{e:?}")).collect();
    texts.sort();
    texts
}

/// Says that a test did not run, and why, where the runner of all tests counts such.
pub(crate) fn skip(test: &str, why: &str) {
    eprintln!("skipped: {why}");
    let skipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/skipped");
    let written = std::fs::create_dir_all(&skipped)
        .and_then(|()| std::fs::write(skipped.join(format!("{test}.txt")), why));
    written.expect("target is writable");
}

/// An event of a memory collector, with what the columns can hold at its ends.
pub(crate) fn memory_event(i: u64) -> MemoryEvent {
    use warptrace_formats::memory::{Upgrade, open_json};
    let some = |set: bool, value: String| if set { value } else { "null".to_owned() };
    let record = format!(
        r#"{{"schema_version": {version}, "session_id": "s", "timestamp_ns": {time}, "event_type": "sample",
            "collector": "stormlog.cuda_tracker", "sampling_interval_ms": 100, "pid": {pid}, "host": "node", "job_id": {job},
            "rank": 0, "local_rank": 0, "world_size": 2, "device_id": {device},
            "allocator_allocated_bytes": {max}, "allocator_reserved_bytes": {i}, "allocator_active_bytes": {active},
            "allocator_inactive_bytes": null, "allocator_change_bytes": {min}, "device_used_bytes": {i},
            "device_free_bytes": null, "device_total_bytes": {total}, "context": {context},
            "metadata": {{"backend": "cuda \ud83d\ude80 \"quoted\"", "huge": 99999999999999999999, "i": {i}}}}}"#,
        version = [3, 4, 2][(i % 3) as usize],
        time = 1_700_000_000_000_000_000 + i * 1_000,
        pid = i as i64 - 1,
        job = some(i > 2, format!("\"job-{i}\"")),
        device = i % 3,
        max = i64::MAX,
        min = i64::MIN,
        active = some(i.is_multiple_of(2), i.to_string()),
        total = i + 1,
        context = some(i > 3, "\"step\"".to_owned()),
    );
    // The second version has no session id.
    let record = match i % 3 {
        2 => record.replace(r#""session_id": "s", "#, ""),
        _ => record,
    };
    let value = open_json::parse(record.as_bytes()).unwrap();
    Upgrade::default().event(value).unwrap()
}

pub(crate) fn request(i: u64) -> Request {
    let text = |t: &str| Some(format!("{t}{i}").into_boxed_str());
    Request {
        run: i as u32,
        start: (i > 2).then_some(UnixNanos(1_700_000_000_000_000_000)),
        end: (i > 1).then_some(UnixNanos(1_700_000_000_000_000_000 + i)),
        since_start_nanos: Some(i),
        latency_nanos: (i > 2).then_some(u64::MAX),
        model: text("model"),
        principal: None,
        request_id: text("req-"),
        prompt_tokens: Some(u64::MAX),
        completion_tokens: None,
        outcome: if i.is_multiple_of(5) {
            RequestOutcome::Failed {
                status: Some(503),
                code: text("overloaded"),
                message: None,
            }
        } else {
            RequestOutcome::Served
        },
    }
}
