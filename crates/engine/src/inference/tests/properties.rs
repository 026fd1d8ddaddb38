//! What must hold whatever comes.

use proptest::prelude::*;
use warptrace_model::record::OpId;
use warptrace_model::{
    Call, CallFlags, CaptureSwitched, Cpu, Device, GpuSample, Loss, OffCpu, Slice, Stream, Thread,
    Tid,
};

use super::*;

/// A server whose steps are of these lengths, ms, in a session of its own.
fn server(pid: u32, steps: &[(u64, u8)]) -> String {
    let mut s = format!("process p{pid} {pid} job\n");
    let mut now = 10;
    for (wait, launches) in steps {
        let _ = writeln!(
            s,
            "at {now}ms\nrepeat {launches} every 10us\np{pid} 0ms +5us cudaLaunchKernel stream=16 arg0={launches}\nend
             p{pid} 1ms +5us cudaEventRecord stream=16 arg0=0xe\np{pid} 2ms +{wait}ms {}",
            if launches % 2 == 0 { "cudaStreamSync stream=16" } else { "cudaEventSync arg0=0xe" }
        );
        now += wait + 6;
    }
    s
}

fn steps() -> impl Strategy<Value = Vec<(u64, u8)>> {
    let wait = prop_oneof![9 => 10u64..14, 1 => 15u64..90];
    prop::collection::vec((wait, prop_oneof![4 => 4u8..6, 1 => 250u8..252]), 60..160)
}

fn any_settings() -> impl Strategy<Value = InferenceSettings> {
    (any::<bool>(), any::<bool>(), any::<bool>(), 5u32..40).prop_map(|(phases, key, kv, warmup)| {
        InferenceSettings {
            phases: phases.then(PhaseRules::default),
            fingerprint_key: key,
            kv_lineage: kv.then(KvLineage::default),
            warmup_steps: warmup,
            ..InferenceSettings::default()
        }
    })
}

/// Everything that comes out, when events come in batches that are cut so.
fn in_batches(events: &[Event], cuts: &[usize], settings: &InferenceSettings) -> (String, String) {
    let inference = Inference::new(settings.clone()).unwrap();
    let mut e = Engine::with_inference(Rules::default(), inference);
    let mut all = InferenceOutput::default();
    let mut from = 0;
    for cut in cuts
        .iter()
        .map(|c| c % (events.len() + 1))
        .chain([events.len()])
    {
        for event in events.get(from..cut).unwrap_or(&[]) {
            e.push(event.clone());
        }
        from = from.max(cut);
        // Of what is to come nothing ends earlier.
        let rest = events[from..].iter().filter_map(Event::end).min();
        if let Some(next) = rest {
            e.advance(BootNanos(next.0 + 999_999_999));
        }
        let out = e.drain().inference;
        all.outliers.extend(out.outliers);
        all.shifts.extend(out.shifts);
        all.degradations.extend(out.degradations);
        all.straggles.extend(out.straggles);
    }
    e.finish(BootNanos(0));
    let out = e.drain().inference;
    all.outliers.extend(out.outliers);
    all.shifts.extend(out.shifts);
    all.degradations.extend(out.degradations);
    all.straggles.extend(out.straggles);
    let state = e.inference().unwrap().state();
    (format!("{all:?}"), format!("{state:?}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_replay_gives_the_same_to_the_byte_in_batches_of_any_size(
        a in steps(), b in steps(), settings in any_settings(),
        mut cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut events = parse_trace(&(server(11, &a) + &server(12, &b))).unwrap();
        events.sort_by_key(Event::end);
        let once = in_batches(&events, &[], &settings);
        prop_assert_eq!(&in_batches(&events, &[], &settings), &once);
        cuts.iter_mut().for_each(|c| *c %= events.len());
        cuts.sort_unstable();
        prop_assert_eq!(&in_batches(&events, &cuts, &settings), &once);
    }

    #[test]
    fn counts_add_up(a in steps(), b in steps(), settings in any_settings()) {
        let mut i = follow_with(settings.clone(), &(server(11, &a) + &server(12, &b)));
        let (s, out) = (i.state(), i.drain());
        let sum = |of: fn(&WorkloadState) -> u64| s.workloads.iter().map(of).sum::<u64>();
        prop_assert_eq!(s.steps, sum(|w| w.steps));
        prop_assert_eq!(s.steps, sum(|w| w.all.count()));
        if settings.phases.is_some() {
            prop_assert_eq!(s.steps, s.phases.iter().sum::<u64>());
        }
        prop_assert_eq!(s.steps, sum(|w| w.healthy.count() + w.outliers.iter().sum::<u64>() + w.paused_steps));
        prop_assert_eq!(s.outliers.iter().sum::<u64>(), out.outliers.len() as u64);
        for (n, bucket) in s.outliers.iter().zip(0usize..) {
            prop_assert_eq!(*n, s.workloads.iter().map(|w| w.outliers[bucket]).sum::<u64>());
        }
        // Each wait but the first of a stream is one step, whatever it waits for.
        prop_assert_eq!(s.steps + s.left_out.first, (a.len() + b.len()) as u64);
        for o in &out.outliers {
            let ratio = o.step_nanos as f64 / o.p95_nanos as f64;
            prop_assert!(ratio >= 1.5);
            prop_assert_eq!(o.bucket, if ratio >= 3.0 {
                OutlierBucket::X3
            } else if ratio >= 2.0 {
                OutlierBucket::X2
            } else {
                OutlierBucket::X1_5
            });
            prop_assert_eq!(o.window().nanos(), o.step_nanos);
        }
        let mut ids: Vec<_> = out.outliers.iter().map(|o| o.id).collect();
        ids.sort_unstable();
        ids.dedup();
        prop_assert_eq!(ids.len(), out.outliers.len());
    }
}

fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0u64..5_000_000_000,
        1 => Just(u64::MAX),
        1 => Just(u64::MAX - 1),
        1 => any::<u64>(),
    ]
}

fn small() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0u64..4, 1 => Just(u64::MAX), 1 => any::<u64>()]
}

prop_compose! {
    fn any_call()(
        op in any::<prop::sample::Index>(), who in (0u32..3, 0u32..3), start in edge(), dur in edge(),
        device in prop::option::of(0u16..2), stream in small(), ret in prop_oneof![4 => Just(0), 1 => Just(600), 1 => any::<i32>()],
        flags in 0u16..8, arg0 in small(), arg1 in small(),
    ) -> Event {
        let ops = warptrace_model::record::op::OPS.len();
        Event::Call(Call {
            thread: Thread::new(who.0, who.1),
            op: OpId::from_index(op.index(ops)).unwrap(),
            start: BootNanos(start),
            dur,
            device: device.map(Device),
            stream: Stream(stream),
            ret,
            flags: CallFlags(flags),
            arg0,
            arg1,
            stack_id: 0,
            cpu: Cpu(0),
        })
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let thread = (0u32..3, 0u32..3).prop_map(|(p, t)| Thread::new(p, t));
    prop_oneof![
        20 => any_call(),
        2 => (thread.clone(), edge(), edge(), any::<bool>(), any::<bool>()).prop_map(|(thread, start, dur, preempted, stopped)| {
            Event::OffCpu(OffCpu {
                thread, start: BootNanos(start), dur, runnable: dur / 2, throttled: 0, preempted, iowait: false,
                uninterruptible: false, stopped, timed: false, poll_socket: false, syscall: (!preempted).then_some(7),
                fd: None, file: Default::default(), waker: None, last_occupant: Tid(0), cpu: Cpu(0),
            })
        }),
        1 => (thread, edge(), edge()).prop_map(|(thread, start, dur)| {
            Event::Slice(Slice { thread, start: BootNanos(start), dur, cpu: Cpu(0) })
        }),
        1 => (edge(), 0u16..3, any::<u64>()).prop_map(|(at, device, reasons)| {
            Event::Gpu(Box::new(GpuSample { at: BootNanos(at), device, throttle_reasons: Some(reasons), ..GpuSample::default() }))
        }),
        1 => (edge(), any::<bool>()).prop_map(|(at, on)| Event::Capture(CaptureSwitched { at: BootNanos(at), on })),
        1 => (edge(), edge(), prop::option::of(0u32..3)).prop_map(|(at, dur, pid)| {
            Event::Lost(Loss { source: "test", reason: LossReason::RingFull, count: 1,
                window: Some(Window::at(BootNanos(at), dur)), pid: pid.map(Pid) })
        }),
        1 => (edge(), 0u32..3).prop_map(|(at, pid)| {
            Event::Process(ProcessEvent::Exit { at: BootNanos(at), pid: Pid(pid), status: 0 })
        }),
        1 => (edge(), 0u32..3).prop_map(|(at, pid)| {
            Event::Process(ProcessEvent::Born { at: BootNanos(at), parent: Thread::new(1, 1), child: Pid(pid) })
        }),
        1 => (edge(), 0u32..3, 0u64..3).prop_map(|(at, pid, start_ticks)| {
            Event::ProcessInfo(Box::new(ProcessInfo {
                incarnation: Incarnation { pid: Pid(pid), start_ticks },
                start: BootNanos(at),
                cgroup: "/x".into(),
                ..ProcessInfo::default()
            }))
        }),
    ]
}

proptest! {
    #[test]
    fn no_event_and_no_time_makes_it_panic(
        events in prop::collection::vec((edge(), any_event()), 0..300), settings in any_settings(),
    ) {
        let mut i = Inference::new(settings).unwrap();
        for (at, e) in &events {
            // Times go back and forth, and events lie about theirs.
            i.take(BootNanos(*at), e);
            i.admit(e);
            if at % 7 == 0 {
                i.found(Pid(1), Severity::High, BootNanos(*at));
            }
        }
        i.advance(BootNanos(u64::MAX));
        let s = i.state();
        prop_assert_eq!(s.admitted + s.shed, events.len() as u64);
    }
}

#[test]
fn a_flood_of_processes_and_streams_and_threads_stays_within_its_bounds() {
    let mut i = Inference::new(InferenceSettings {
        fingerprint_key: true,
        kv_lineage: Some(KvLineage::default()),
        ..InferenceSettings::default()
    })
    .unwrap();
    let op = |name| OpId::by_name(name).unwrap();
    let [launch, record, sync, wait, malloc] = [
        "cudaLaunchKernel",
        "cudaEventRecord",
        "cudaEventSync",
        "cudaStreamSync",
        "cudaMalloc",
    ]
    .map(op);
    let mut now = 0;
    for n in 0..200_000u64 {
        for (op, arg0, arg1) in [
            (launch, n, 0),
            (record, n, 0),
            (sync, n, 0),
            (wait, 0, 0),
            (malloc, 4_096, n + 1),
        ] {
            now += 1_000;
            let call = Event::Call(Call {
                thread: Thread::new((n % 3_000) as u32, (n % 100_000) as u32),
                op,
                start: BootNanos(now),
                dur: 500,
                device: None,
                stream: Stream(n % 5_000 + 16),
                ret: 0,
                flags: CallFlags(0),
                arg0,
                arg1,
                stack_id: 0,
                cpu: Cpu(0),
            });
            i.take(BootNanos(now + 500), &call);
        }
    }
    let caps = i.settings.caps;
    assert!(i.workloads.len() <= caps.workloads);
    assert!(i.processes.len() <= caps.processes);
    assert!(i.known.len() <= KNOWN);
    let allocations: usize = i.processes.iter().map(|(_, p)| p.lineage.len()).sum();
    assert!(allocations <= caps.allocations);
    assert!(i.outliers.len() <= caps.outliers);
    assert!(i.state().evicted > 190_000, "{}", i.state().evicted);
    // One process alone: its own tables are bounded too.
    for n in 0..100_000u64 {
        now += 1_000;
        let call = Event::Call(Call {
            thread: Thread::new(1, n as u32),
            op: malloc,
            start: BootNanos(now),
            dur: 500,
            device: None,
            stream: Stream(n),
            ret: 0,
            flags: CallFlags(0),
            arg0: 4_096,
            arg1: n + 1,
            stack_id: 0,
            cpu: Cpu(0),
        });
        i.take(BootNanos(now + 500), &call);
    }
    assert!(i.processes.get(&Pid(1)).unwrap().lineage.len() <= 8_192);
}
