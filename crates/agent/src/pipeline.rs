//! Threads and channels of one recording.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tracing::warn;
use warptrace_api::Live;
use warptrace_capture::engines::EngineWatch;
use warptrace_capture::pollers::GpuPoller;
use warptrace_capture::symbols::{ResolvedStack, Symbols};
use warptrace_capture::{Batch, Source, clock};
use warptrace_engine::{Engine, Inference, InferenceSettings, Rules, SettingsError};
use warptrace_model::{BootNanos, ClockAnchor, Event, Gap, Loss, LossReason};
use warptrace_store::{Frame, SessionWriter, Stack, StoreError};

use crate::annotate::{AnnotationReceiver, AnnotationSocket};
use crate::feeders::{capture, sample};
use crate::health::Health;
use crate::live::LiveState;
use crate::memory::MemoryRecords;
use crate::outgoing::{NewOutgoing, Out, Outgoing};
use crate::places::Places;
use crate::rollover::{Keeper, Rollover};
use crate::said::Annotations;
use crate::servers::Servers;
use crate::symbols;
use crate::thinning::Thinning;

/// Batches between the capture thread and the pipeline: two thirds of a second of them.
const QUEUE_BATCHES: usize = 64;
/// The pipeline's longest sleep, so that units are judged and flushed though nothing happens.
const TICK: Duration = Duration::from_millis(100);
/// How often the clocks are compared again (NTP moves one of them).
const ANCHOR_EVERY_NANOS: u64 = 60_000_000_000;

/// What to record, and how.
pub struct Config {
    pub rules: Rules,
    /// Shown in the live view ("python train.py (pid 4711)").
    pub target: String,
    /// Between two samples of the machine and the devices.
    pub sample_every: Duration,
    /// The device poller, when there is one.
    pub gpu: Option<GpuPoller>,
    /// Receives every event as it is stored; batches that it has no room for are left out, and counted.
    pub tap: Option<SyncSender<Vec<Event>>>,
    /// Facts known before the recording began (no NVML, a probe that could not be attached).
    pub gaps: Vec<Gap>,
    /// Looks user stacks up; without it they are stored as addresses.
    pub symbols: Option<Symbols>,
    /// Where the job's own words come in.
    pub annotations: Option<(AnnotationSocket, AnnotationReceiver)>,
    /// How to follow the steps of inference servers; the recording's first anchor is added.
    pub inference: Option<InferenceSettings>,
    /// Inference servers that are found and asked.
    pub engines: Option<EngineWatch>,
    /// Where what is concluded goes, besides the session.
    pub outgoing: Option<Outgoing>,
    /// Whether single events of healthy steps are left out of the session, but for one in `sample_one_in` of
    /// [`InferenceSettings`]; needs `inference`.
    pub thin_out: bool,
    /// When it goes on in a new session, and what is kept of old ones. Without it there is one session.
    pub rollover: Option<Rollover>,
}

/// Why a recording did not end well. What was stored is there.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("a thread of the recorder panicked: {0}")]
    Panicked(&'static str),
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    #[error("inference servers cannot be followed by these settings")]
    Settings(#[from] SettingsError),
}

/// A finished recording.
#[derive(Debug)]
pub struct Finished {
    /// Records taken in.
    pub records: u64,
    /// The last state, with every drop: a full disk cannot hold the drops that it caused.
    pub live: Live,
    /// The folder of the session, of the last one if there were several.
    pub session: PathBuf,
    /// Whether the session was ended in good order. When not, it can be read up to its last flush.
    pub sealed: Result<(), StoreError>,
}

/// What of a running recording changes.
#[derive(Debug, Default)]
pub struct Reload {
    /// Other ways out. What waits in those that are given up goes on being sent for a while, beside the recording.
    pub outgoing: Option<NewOutgoing>,
    /// When the next session begins, and what is kept.
    pub rollover: Option<Rollover>,
}

/// A running recording.
pub struct Recording {
    stop: Arc<AtomicBool>,
    live: Arc<Mutex<Live>>,
    health: Arc<Health>,
    reload: Arc<Mutex<Option<Reload>>>,
    records: Arc<AtomicU64>,
    capture: JoinHandle<()>,
    sampler: JoinHandle<()>,
    symbols: Option<JoinHandle<()>>,
    pipeline: JoinHandle<(PathBuf, Result<(), StoreError>)>,
}

/// What the pipeline is given by the other threads.
pub(crate) enum Message {
    Batch(&'static str, Box<Batch>),
    Sampled(Vec<Event>),
    Resolved(ResolvedStack),
    Unresolved(Gap),
}

impl Recording {
    /// Starts the threads. The sources are attached already; `writer` is an empty session.
    ///
    /// # Errors
    /// [`AgentError::Thread`] when the machine gives no more threads; [`AgentError::Settings`].
    pub fn start(
        config: Config,
        sources: Vec<Box<dyn Source>>,
        mut writer: SessionWriter,
    ) -> Result<Recording, AgentError> {
        let Config {
            rules,
            target,
            sample_every,
            gpu,
            tap,
            gaps,
            symbols,
            annotations,
            inference,
            engines,
            outgoing,
            thin_out,
            rollover,
        } = config;
        let stop = Arc::new(AtomicBool::new(false));
        let live = Arc::new(Mutex::new(Live::default()));
        let records = Arc::new(AtomicU64::new(0));
        let reload = Arc::new(Mutex::new(None));
        let drained = Arc::new(AtomicU64::new(0));
        let (sender, receiver) = sync_channel(QUEUE_BATCHES);

        let state = LiveState::new(
            target,
            writer.meta().id.clone(),
            sources.iter().map(|s| s.name()).collect(),
        );
        let meta = writer.meta();
        let interval_ms = u64::try_from(sample_every.as_millis()).unwrap_or(u64::MAX);
        let memory = MemoryRecords::new(&meta.id, &meta.host, interval_ms);
        let (now, anchor) = (clock::boot_now(), clock::anchor());
        let health = Arc::new(Health::new(now));
        let keeper = match rollover {
            Some(rollover) => {
                writer.describe(|meta| *meta = meta.clone().rolling());
                Some(Keeper::start(rollover, now).map_err(AgentError::Thread)?)
            }
            None => None,
        };
        let thinned = inference.as_ref().filter(|_| thin_out);
        let one_in = thinned.map(|settings| settings.sample_one_in);
        writer.describe(|meta| meta.sample_one_in = one_in);
        let pipeline = Pipeline {
            thinning: one_in.map(|_| Thinning::default()),
            engine: match inference {
                Some(settings) => {
                    // The one that the session has: so a replay gives the same ids.
                    let first = writer.meta().clock.first().copied().unwrap_or(anchor);
                    let inference = Inference::new(settings.with_clock(first))?;
                    let rules = Rules {
                        inference: true,
                        ..rules
                    };
                    Engine::with_inference(rules, inference)
                }
                None => Engine::new(rules),
            },
            servers: engines.map(Servers::new),
            out: outgoing.map(|outgoing| Out::new(outgoing, now, anchor, &health)),
            reload: Arc::clone(&reload),
            health: Arc::clone(&health),
            drained: Arc::clone(&drained),
            clock: anchor,
            keeper,
            writer,
            tap,
            state,
            places: Places::default(),
            memory,
            annotations: annotations.map(Annotations::new),
            live: Arc::clone(&live),
            records: Arc::clone(&records),
            scratch: Vec::new(),
            gaps,
            malformed: 0,
            anchored: now,
            published: BootNanos(0),
        };
        let thread = |name: &str| Builder::new().name(name.to_owned());
        let pipeline = thread("wt-pipeline")
            .spawn(move || pipeline.run(receiver))
            .map_err(AgentError::Thread)?;
        let (symbols, stacks) = match symbols {
            Some(symbols) => {
                let (offer, stacks) = sync_channel(symbols::QUEUE_STACKS);
                let (stop, sender) = (Arc::clone(&stop), sender.clone());
                let tell = move |said| {
                    let message = match said {
                        Ok(stack) => Message::Resolved(stack),
                        Err(gap) => Message::Unresolved(gap),
                    };
                    // Nobody is there to hear it any more: then nobody asks, either.
                    let _ = sender.send(message);
                };
                let thread = thread("wt-symbols")
                    .spawn(move || symbols::run(symbols, &stacks, &stop, tell))
                    .map_err(AgentError::Thread)?;
                (Some(thread), Some(offer))
            }
            None => (None, None),
        };
        let capture = {
            let (stop, sender) = (Arc::clone(&stop), sender.clone());
            thread("wt-capture")
                .spawn(move || capture(sources, &stop, &drained, &sender, stacks.as_ref()))
                .map_err(AgentError::Thread)?
        };
        let sampler = {
            let stop = Arc::clone(&stop);
            thread("wt-sampler")
                .spawn(move || sample(gpu, sample_every, &stop, &sender))
                .map_err(AgentError::Thread)?
        };
        Ok(Recording {
            stop,
            live,
            health,
            reload,
            records,
            capture,
            sampler,
            symbols,
            pipeline,
        })
    }

    /// The state of a moment ago.
    pub fn live(&self) -> Live {
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether it does its work.
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Goes on in another way from the pipeline's next turn on.
    pub fn reload(&self, reload: Reload) {
        *self.reload.lock().unwrap_or_else(PoisonError::into_inner) = Some(reload);
    }

    /// Whether a thread ended by itself: nothing more will be recorded.
    pub fn ended(&self) -> bool {
        self.pipeline.is_finished() || self.capture.is_finished()
    }

    /// Detaches the sources, takes in what they still had, judges it, and seals the session.
    ///
    /// # Errors
    /// [`AgentError::Panicked`]; what had been flushed can be read.
    pub fn stop(self) -> Result<Finished, AgentError> {
        self.stop.store(true, Ordering::Release);
        self.capture.thread().unpark();
        self.sampler.thread().unpark();
        let capture = self
            .capture
            .join()
            .map_err(|_| AgentError::Panicked("wt-capture"));
        let sampler = self
            .sampler
            .join()
            .map_err(|_| AgentError::Panicked("wt-sampler"));
        let symbols = self
            .symbols
            .map_or(Ok(()), JoinHandle::join)
            .map_err(|_| AgentError::Panicked("wt-symbols"));
        let (session, sealed) = self
            .pipeline
            .join()
            .map_err(|_| AgentError::Panicked("wt-pipeline"))?;
        capture?;
        sampler?;
        symbols?;
        let live = self
            .live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Ok(Finished {
            records: self.records.load(Ordering::Relaxed),
            live,
            session,
            sealed,
        })
    }
}

struct Pipeline {
    engine: Engine,
    thinning: Option<Thinning>,
    servers: Option<Servers>,
    out: Option<Out>,
    reload: Arc<Mutex<Option<Reload>>>,
    health: Arc<Health>,
    /// All that the sources saw before it is in the channel, boot clock.
    drained: Arc<AtomicU64>,
    clock: ClockAnchor,
    keeper: Option<Keeper>,
    writer: SessionWriter,
    tap: Option<SyncSender<Vec<Event>>>,
    state: LiveState,
    places: Places,
    memory: MemoryRecords,
    annotations: Option<Annotations>,
    live: Arc<Mutex<Live>>,
    records: Arc<AtomicU64>,
    scratch: Vec<Event>,
    /// Known before the recording began: they hold for each session of it.
    gaps: Vec<Gap>,
    malformed: u64,
    anchored: BootNanos,
    published: BootNanos,
}

impl Pipeline {
    fn run(mut self, receiver: Receiver<Message>) -> (PathBuf, Result<(), StoreError>) {
        self.writer.anchor(self.clock);
        let gaps = self.gaps.clone();
        self.not_known(&gaps);
        loop {
            // Asked for before the channel is emptied: a capture thread that waits for a CPU makes nothing late.
            let drained = BootNanos(self.drained.load(Ordering::Acquire));
            match receiver.recv_timeout(TICK) {
                Ok(message) => {
                    self.take(message);
                    // What has piled up is one piece of work.
                    while let Ok(more) = receiver.try_recv() {
                        self.take(more);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.hear();
            self.ask();
            let now = clock::boot_now();
            self.engine.advance(drained);
            self.settle(now);
            if now.since(self.anchored) >= ANCHOR_EVERY_NANOS {
                self.anchored = now;
                self.clock = clock::anchor();
                self.writer.anchor(self.clock);
            }
            self.reload(now);
            if let Some(out) = &mut self.out {
                out.tick(now, &self.engine, self.servers.as_mut(), self.clock);
            }
            if let Some(thinning) = &mut self.thinning
                && let Some(inference) = self.engine.inference_mut()
            {
                thinning.store(now, inference, &mut self.writer);
            }
            self.writer.tick(now);
            self.roll(now);
            self.health.turn(now, self.writer.failing());
            if now.since(self.published) >= 200_000_000 {
                self.published = now;
                self.publish(now);
            }
        }
        let sealing = self.keeper.take().map(Keeper::stop);
        if let Some(annotations) = &mut self.annotations {
            annotations.stop();
        }
        self.hear();
        let now = clock::boot_now();
        self.engine.finish(now);
        self.settle(now);
        if let Some(thinning) = self.thinning.take()
            && let Some(inference) = self.engine.inference_mut()
        {
            thinning.finish(inference, &mut self.writer);
        }
        let out = self.out.take();
        let closing =
            out.map(|out| out.finish(now, &self.engine, self.servers.as_mut(), self.clock));
        self.writer.anchor(clock::anchor());
        let held = self.writer.flush_now();
        if held > 0 {
            self.state.losses(&[Loss {
                source: "store",
                reason: LossReason::StoreFailed,
                count: held,
                window: None,
                pid: None,
            }]);
        }
        self.publish(now);
        let session = self.writer.path().to_owned();
        let sealed = self.writer.seal();
        if let Some(Ok(closing)) = closing {
            let _ = closing.join();
        }
        if let Some(sealing) = sealing {
            sealing.wait();
        }
        (session, sealed)
    }

    /// Goes on in a new session when it is time to.
    fn roll(&mut self, now: BootNanos) {
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        let Some(next) = keeper.next(&mut self.writer, now) else {
            return;
        };
        let losses = self.writer.losses();
        let old = std::mem::replace(&mut self.writer, next);
        keeper.retire(old);
        self.lost(&losses);
        self.writer.gaps(&self.gaps);
        let id = &self.writer.meta().id;
        self.state.session(id);
        self.memory.session(id);
    }

    /// Takes up what changes, when something does.
    fn reload(&mut self, now: BootNanos) {
        let reload = &self.reload;
        let Some(reload) = reload.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        match (&mut self.keeper, reload.rollover) {
            (Some(keeper), Some(rollover)) => keeper.reload(rollover),
            (None, Some(rollover)) => match Keeper::start(rollover, now) {
                Ok(keeper) => {
                    self.writer.describe(|meta| *meta = meta.clone().rolling());
                    self.keeper = Some(keeper);
                }
                Err(e) => warn!(error = %e, "sessions are kept as they were"),
            },
            (_, None) => {}
        }
        let Some(next) = reload.outgoing else {
            return;
        };
        match &mut self.out {
            Some(out) => out.reload(next, &self.health),
            None => self.out = Some(Out::new(next.outgoing, now, self.clock, &self.health)),
        }
    }

    fn take(&mut self, message: Message) {
        let mut events = std::mem::take(&mut self.scratch);
        match message {
            Message::Sampled(sampled) => events.extend(sampled),
            Message::Resolved(stack) => {
                let findings = self.places.resolved(&stack);
                self.writer.resolved_stacks(&[stored(stack)]);
                self.writer.findings(&findings);
                self.state.findings(findings);
            }
            Message::Unresolved(gap) => {
                self.not_known(&[gap]);
            }
            Message::Batch(source, batch) => {
                let Batch {
                    records,
                    counts,
                    names,
                    processes,
                    paths,
                    losses,
                    gaps,
                    stacks,
                    switched,
                } = *batch;
                self.records
                    .fetch_add(records.len() as u64, Ordering::Relaxed);
                events.extend(
                    processes
                        .into_iter()
                        .map(|p| Event::ProcessInfo(Box::new(p))),
                );
                events.extend(names.into_iter().map(Event::ThreadName));
                events.extend(paths.into_iter().map(|p| Event::FilePath(Box::new(p))));
                events.extend(losses.into_iter().map(Event::Lost));
                events.extend(switched.into_iter().map(Event::Capture));
                let before = events.len();
                let given = records.len();
                events.extend(records.iter().filter_map(Event::from_record));
                let malformed = (given - (events.len() - before)) as u64;
                if malformed > 0 {
                    self.malformed += malformed;
                    events.push(Event::Lost(Loss {
                        source,
                        reason: LossReason::Malformed,
                        count: malformed,
                        window: None,
                        pid: None,
                    }));
                }
                events.extend(counts.into_iter().map(|c| Event::Counts(Box::new(c))));
                self.not_known(&gaps);
                for stack in &stacks {
                    self.writer.stacks(&[(stack.id, stack.addresses.clone())]);
                }
            }
        }
        self.spread(events);
    }

    /// Takes what the job has said of itself since the last time, and what of that was lost.
    fn hear(&mut self) {
        let Some(annotations) = &mut self.annotations else {
            return;
        };
        let mut events = std::mem::take(&mut self.scratch);
        annotations.hear(&mut events);
        let gaps = annotations.gaps();
        self.not_known(&gaps);
        self.spread(events);
    }

    /// Stores what inference servers said of themselves since the last time.
    fn ask(&mut self) {
        let Some(servers) = &mut self.servers else {
            return;
        };
        for said in servers.hear() {
            let readings = &said.readings;
            self.writer
                .serving(said.at, said.process, said.engine, readings);
        }
        if let Some(loss) = servers.left_out() {
            self.writer.events(&[Event::Lost(loss)]);
            self.lost(&[loss]);
        }
    }

    /// Gives events to all that want them.
    fn spread(&mut self, mut events: Vec<Event>) {
        let now = clock::boot_now();
        match &mut self.thinning {
            Some(thinning) => thinning.take(now, &events),
            None => self.writer.events(&events),
        }
        self.state.events(&events);
        if let Some(out) = &mut self.out {
            out.events(&events, self.clock);
        }
        if let Some(tap) = &self.tap
            && let Err(TrySendError::Full(missed)) = tap.try_send(events.clone())
        {
            let loss = Loss {
                source: "json",
                reason: LossReason::QueueFull,
                count: missed.len() as u64,
                window: None,
                pid: None,
            };
            self.lost(&[loss]);
        }
        for mut event in events.drain(..) {
            match &mut event {
                Event::Call(call) => self.places.call(call),
                Event::ProcessInfo(p) => self.memory.process(p),
                // A moment that is still to come would wait for it in the engine's memory.
                Event::Annotation(a) => a.at = a.at.min(now),
                _ => {}
            }
            self.engine.push(event);
        }
        self.scratch = events;
    }

    /// Stores what the engine concluded, and what it and the store lost.
    fn settle(&mut self, now: BootNanos) {
        let mut output = self.engine.drain();
        if let Some(servers) = &mut self.servers {
            servers.explain(&mut output.findings);
            let slow = output.inference.outliers.iter();
            servers.meet(slow.map(|outlier| outlier.key.process));
        }
        // After the evidence is whole: a finding whose place is resolved later is stored again as it is here.
        for finding in &mut output.findings {
            self.places.find(finding);
        }
        if let Some(out) = &mut self.out {
            let servers = self.servers.as_ref();
            out.tell(
                &output.inference,
                &output.findings,
                servers,
                now,
                self.clock,
            );
        }
        self.writer.units(&output.units);
        self.writer.outliers(&output.inference.outliers);
        for sample in &output.memory {
            let anchor = self.writer.meta().clock.last().copied();
            for event in anchor.iter().flat_map(|a| self.memory.records(sample, a)) {
                self.writer.memory(&event);
            }
        }
        self.writer.findings(&output.findings);
        self.not_known(&output.gaps);
        self.state.findings(output.findings);
        let mut losses = output.losses;
        losses.extend(self.writer.losses());
        let events: Vec<Event> = losses.iter().copied().map(Event::Lost).collect();
        self.writer.events(&events);
        if let Some(out) = &mut self.out {
            out.settled(&output.units, self.writer.bytes());
        }
        self.lost(&losses);
    }

    fn not_known(&mut self, gaps: &[Gap]) {
        self.writer.gaps(gaps);
        self.state.gaps(gaps);
        if let Some(out) = &mut self.out {
            out.gaps(gaps);
        }
    }

    fn lost(&mut self, losses: &[Loss]) {
        self.state.losses(losses);
        if let Some(out) = &mut self.out {
            out.losses(losses);
        }
    }

    fn publish(&mut self, now: BootNanos) {
        let mut live = self.state.snapshot(now, &self.engine);
        live.records = self.records.load(Ordering::Relaxed);
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = live;
    }
}

fn stored(stack: ResolvedStack) -> Stack {
    let frames = stack.frames.into_iter().map(|f| Frame {
        ip: f.ip,
        module: f.module,
        module_offset: f.module_offset,
        function: f.function,
        file: f.file,
        line: f.line,
    });
    Stack {
        id: stack.id,
        frames: frames.collect(),
    }
}
