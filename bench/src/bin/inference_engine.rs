//! What following the steps of inference servers costs, on top of the engine without it.
//!
//! `cargo run --release -p warptrace-bench --bin inference_engine -- [STEPS [SERVERS…]]` (20,000 steps of each of 8 servers, and
//! 2,000 of each of 200, unless said). CPU time of the one thread that runs it. The events: a decode of 60 launches, two
//! copies and a wait for the stream, every tenth a prefill of 240 launches that waits for an event, every thousandth five times
//! as long; the feeding thread sleeps on a socket before each prefill. Times are given for [`Inference`] alone on events in
//! order, for the engine without and with it, and for the sampler alone.

use anyhow::{Context as _, ensure};
use nix::time::{ClockId, clock_gettime};
use warptrace_engine::{Engine, Inference, InferenceSettings, Rules};
use warptrace_model::record::OpId;
use warptrace_model::{
    BootNanos, Call, CallFlags, Cpu, Device, Event, FileType, OffCpu, Stream, Thread, Tid,
};

const MS: u64 = 1_000_000;

fn main() -> anyhow::Result<()> {
    let usage = "usage: inference_engine [STEPS [SERVERS…]]";
    let numbers: Vec<u64> = std::env::args()
        .skip(1)
        .map(|n| n.replace(['_', ','], "").parse())
        .collect::<Result<_, _>>()
        .context(usage)?;
    let runs = match numbers[..] {
        [] => vec![(20_000, 8), (2_000, 200)],
        [steps] => vec![(steps, 8)],
        [steps, ref servers @ ..] => servers.iter().map(|s| (steps, *s)).collect(),
    };
    println!(
        "| servers | events | inference alone | engine | engine with it | sampler | outliers |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (steps, servers) in runs {
        run(steps, servers)?;
    }
    Ok(())
}

fn run(steps: u64, servers: u64) -> anyhow::Result<()> {
    let events = events(steps, servers)?;
    let per_event = |nanos: u64| nanos as f64 / events.len() as f64;

    let mut alone = Inference::new(InferenceSettings::default())?;
    let began = cpu_nanos()?;
    for e in &events {
        alone.take(e.end().unwrap_or_default(), e);
    }
    let inference = per_event(cpu_nanos()? - began);
    let outliers = alone.drain().outliers.len();
    ensure!(outliers > 0, "no outlier was found");

    let began = cpu_nanos()?;
    let mut kept = 0u64;
    for e in &events {
        kept += u64::from(alone.admit(e) != warptrace_engine::Admission::Shed);
    }
    let sampler = per_event(cpu_nanos()? - began);
    ensure!(kept > 0, "the sampler kept nothing");

    let without = engine(Engine::new(Rules::default()), &events)?;
    let inference_too = Inference::new(InferenceSettings::default())?;
    let with = engine(
        Engine::with_inference(Rules::default(), inference_too),
        &events,
    )?;
    println!(
        "| {servers} | {} | {inference:.0} ns | {:.0} ns | {:.0} ns, {:.2} × | {sampler:.1} ns | {outliers} |",
        events.len(),
        per_event(without),
        per_event(with),
        with as f64 / without as f64,
    );
    Ok(())
}

/// CPU time that an engine takes for `events`, which come as the agent gives them: in batches of 10 ms.
fn engine(mut engine: Engine, events: &[Event]) -> anyhow::Result<u64> {
    let began = cpu_nanos()?;
    let mut next = 0;
    for e in events {
        let at = e.end().unwrap_or_default();
        if at.0 >= next {
            engine.advance(at);
            engine.drain();
            next = at.0 + 10 * MS;
        }
        engine.push(e.clone());
    }
    Ok(cpu_nanos()? - began)
}

fn events(steps: u64, servers: u64) -> anyhow::Result<Vec<Event>> {
    let op = |name: &str| OpId::by_name(name).with_context(|| format!("no op {name}"));
    let (launch, copy) = (op("cudaLaunchKernel")?, op("cudaMemcpyAsync")?);
    let (record, event_sync) = (op("cudaEventRecord")?, op("cudaEventSync")?);
    let stream_sync = op("cudaStreamSync")?;
    let mut events = Vec::new();
    for server in 0..servers {
        let thread = Thread::new(server as u32 + 10, server as u32 + 10);
        let mut now = 1_000 * MS + server * 37_000;
        let mut call = |op: OpId, now: u64, dur: u64, arg0: u64, arg1: u64| {
            events.push(Event::Call(Call {
                thread,
                op,
                start: BootNanos(now),
                dur,
                device: Some(Device((server % 8) as u16)),
                stream: Stream(16),
                ret: 0,
                flags: CallFlags(0),
                arg0,
                arg1,
                stack_id: 0,
                cpu: Cpu(0),
            }));
        };
        let mut sleeps = Vec::new();
        for step in 0..steps {
            let prefill = step % 10 == 0;
            if prefill {
                sleeps.push((now, 2 * MS));
                now += 3 * MS;
            }
            let long = if step % 1_000 == 999 { 5 } else { 1 };
            call(copy, now, 8_000, 4_096, 1);
            for n in 0..if prefill { 240 } else { 60 } {
                now += 12_000;
                call(launch, now, 5_000, 0x1000 + n, 0);
            }
            now += 12_000;
            if prefill {
                call(record, now, 2_000, 0xe, 0);
                call(event_sync, now + 4_000, 20 * MS, 0xe, 0);
                now += 21 * MS;
            } else {
                call(copy, now, 8_000, 64, 2);
                call(stream_sync, now + 9_000, 9 * MS * long, 0, 0);
                now += 10 * MS * long;
            }
        }
        events.extend(sleeps.into_iter().map(|(start, dur)| {
            Event::OffCpu(OffCpu {
                thread,
                start: BootNanos(start),
                dur,
                runnable: 0,
                throttled: 0,
                preempted: false,
                iowait: false,
                uninterruptible: false,
                stopped: false,
                timed: false,
                poll_socket: true,
                syscall: Some(232),
                fd: None,
                file: FileType::Socket,
                waker: None,
                last_occupant: Tid(0),
                cpu: Cpu(0),
            })
        }));
    }
    events.sort_by_key(Event::end);
    Ok(events)
}

fn cpu_nanos() -> anyhow::Result<u64> {
    let t = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
