//! A training loop: batches from a loader thread, a copy, forward and backward on two streams, an optimizer, a wait.

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc, Barrier, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    cuda::{DevicePointer, Handle, Kernel, Result, Runtime, WorkloadError, io_error},
    host::{boot_ns, compute, fault_in, pin_to},
    loader::{DataFiles, DiskReads, Loader},
};

/// How to train. The default is a healthy run of 10 s with steps of about 27 ms, 24 of them kernels.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The runtime: a path, or a name that the dynamic loader searches for.
    pub runtime: PathBuf,
    pub device: i32,
    /// Ends after so many steps.
    pub steps: Option<u64>,
    /// Ends with the first step that is over after this time; whichever of the two comes first, and one must be set.
    pub duration: Option<Duration>,
    /// Where the data files are made (4, each of one batch) and removed at the end; a folder in the temporary one by default.
    pub data_dir: Option<PathBuf>,
    /// Bytes of a batch: read from a file and copied to the device in each step. A multiple of 4096.
    pub batch_bytes: usize,
    pub reads: DiskReads,
    /// Layers; each is two kernels forward and two backward, so that a step launches 4 × this + 4.
    pub layers: u32,
    /// Blocks of each kernel. simgpu takes 1 µs for one, unless set otherwise.
    pub blocks: u32,
    /// CPU time that a step spends between its calls, half of it before the first one.
    pub host_work: Duration,
    /// Binds the main thread to this CPU; the loader stays free.
    pub cpu: Option<usize>,
    /// Asks the runtime to block in waits instead of spinning.
    pub blocking_sync: bool,
    pub faults: Faults,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            runtime: "libcudart.so.12".into(),
            device: 0,
            steps: None,
            duration: Some(Duration::from_secs(10)),
            data_dir: None,
            batch_bytes: 8 << 20,
            reads: DiskReads::default(),
            layers: 9,
            blocks: 600,
            host_work: Duration::from_millis(3),
            cpu: None,
            blocking_sync: false,
            faults: Faults::default(),
        }
    }
}

/// Steps at which a fault happens: every `every`th, from step `from` on. Steps count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Every {
    pub every: u64,
    pub from: u64,
}

impl Every {
    pub(crate) fn hits(self, step: u64) -> bool {
        step >= self.from && (step - self.from).is_multiple_of(self.every.max(1))
    }
}

/// What goes wrong. Nothing by default.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Batches lie in ordinary memory, so that a copy keeps the host.
    pub pageable_copies: bool,
    /// Each batch is copied so many times more; 0 for once.
    pub extra_copies: u32,
    pub allocator_storm: Option<AllocatorStorm>,
    pub lock_contention: Option<LockContention>,
    pub slow_loader: Option<SlowLoader>,
    pub host_pause: Option<HostPause>,
    pub page_faults: Option<PageFaults>,
    pub sleep: Option<Sleep>,
}

/// Big blocks allocated and freed again, one after another, before the launches of a step.
#[derive(Clone, Copy, Debug)]
pub struct AllocatorStorm {
    pub when: Every,
    /// Blocks of one storm.
    pub blocks: u32,
    pub block_bytes: usize,
}

/// Another thread of the job holds a lock that a step needs.
#[derive(Clone, Copy, Debug)]
pub struct LockContention {
    pub when: Every,
    pub hold: Duration,
    /// Whether the holder computes; else it sleeps.
    pub holder_computes: bool,
}

/// The loader reads its batch many times from the disk itself.
#[derive(Clone, Copy, Debug)]
pub struct SlowLoader {
    /// In batches, of which the loader is up to two ahead of the steps.
    pub when: Every,
    pub times: u32,
}

/// The main thread computes, as a garbage collector does.
#[derive(Clone, Copy, Debug)]
pub struct HostPause {
    pub when: Every,
    pub cpu: Duration,
}

/// The main thread reads a file through a cold mapping: a major fault a page.
#[derive(Clone, Copy, Debug)]
pub struct PageFaults {
    pub when: Every,
    /// At most a batch.
    pub bytes: usize,
}

/// The main thread sleeps.
#[derive(Clone, Copy, Debug)]
pub struct Sleep {
    pub when: Every,
    pub time: Duration,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// CLOCK_BOOTTIME, ns.
    pub start_ns: u64,
    pub duration_ns: u64,
}

/// A fault that was injected: the truth about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injected {
    pub kind: &'static str,
    /// The step (for the loader, the batch).
    pub step: u64,
    /// CLOCK_BOOTTIME, ns.
    pub start_ns: u64,
    pub end_ns: u64,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub pid: u32,
    pub steps: Vec<Step>,
    /// In the order of their starts.
    pub injected: Vec<Injected>,
}

impl Summary {
    /// Writes one JSON object and a line feed. Times are numbers, in ns.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write_json(&self, to: &mut impl Write) -> io::Result<()> {
        write!(to, r#"{{"pid":{},"steps":["#, self.pid)?;
        for (index, step) in self.steps.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let Step {
                start_ns,
                duration_ns,
            } = step;
            write!(
                to,
                r#"{comma}{{"start_ns":{start_ns},"duration_ns":{duration_ns}}}"#
            )?;
        }
        write!(to, r#"],"injected":["#)?;
        for (index, fault) in self.injected.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let Injected {
                kind,
                step,
                start_ns,
                end_ns,
            } = fault;
            write!(
                to,
                r#"{comma}{{"kind":"{kind}","step":{step},"start_ns":{start_ns},"end_ns":{end_ns}}}"#
            )?;
        }
        writeln!(to, "]}}")
    }
}

/// Trains until the options say stop.
///
/// The calling thread is the main one; a thread `loader-0` reads the data, and with lock contention a thread `lock-holder`.
///
/// # Errors
/// [`WorkloadError`]: no runtime, a call that failed, a file that could not be made or read.
pub fn train(options: &TrainOptions) -> std::result::Result<Summary, WorkloadError> {
    if options.steps.is_none() && options.duration.is_none() {
        return Err(WorkloadError::Option(
            "neither a number of steps nor a duration is set",
        ));
    }
    if options.batch_bytes == 0 || !options.batch_bytes.is_multiple_of(4096) {
        return Err(WorkloadError::Option(
            "the batch size is not a multiple of 4096 bytes",
        ));
    }
    let default_dir = || std::env::temp_dir().join(format!("simgpu-train-{}", std::process::id()));
    let folder = options.data_dir.clone().unwrap_or_else(default_dir);
    let files = DataFiles::create(&folder, options.batch_bytes)?;
    let runtime = Runtime::open(&options.runtime)?;
    runtime.use_device(options.device, options.blocking_sync)?;
    let mut training = Training::new(options, &runtime, &files)?;
    if let Some(cpu) = options.cpu {
        pin_to(cpu)?;
    }
    let begin = boot_ns();
    let mut summary = Summary {
        pid: std::process::id(),
        ..Summary::default()
    };
    for number in 0..options.steps.unwrap_or(u64::MAX) {
        let start_ns = boot_ns();
        training.step(number, &mut summary.injected)?;
        let end_ns = boot_ns();
        summary.steps.push(Step {
            start_ns,
            duration_ns: end_ns - start_ns,
        });
        if options
            .duration
            .is_some_and(|limit| end_ns - begin >= limit.as_nanos() as u64)
        {
            break;
        }
    }
    summary.injected.extend(training.finish()?);
    summary.injected.sort_by_key(|fault| fault.start_ns);
    Ok(summary)
}

struct Training<'a> {
    options: &'a TrainOptions,
    runtime: &'a Runtime,
    loader: Loader,
    holder: Option<LockHolder>,
    cold_file: Option<File>,
    forward: Handle,
    backward: Handle,
    forward_done: Handle,
    backward_done: Handle,
    batch: DevicePointer,
    gradients: DevicePointer,
    loss: DevicePointer,
    loss_on_host: crate::cuda::HostBuffer,
}

/// Bytes of the gradients that a step clears.
const GRADIENTS: usize = 64 << 20;

impl<'a> Training<'a> {
    fn new(options: &'a TrainOptions, runtime: &'a Runtime, files: &DataFiles) -> Result<Self> {
        let faults = &options.faults;
        let buffers = (0..3)
            .map(|_| runtime.host_buffer(options.batch_bytes, !faults.pageable_copies))
            .collect::<Result<Vec<_>>>()?;
        let cold_file = match faults.page_faults {
            // The last file, through a descriptor of its own: dropping its cache costs the loader a read, no more.
            Some(_) => {
                Some(File::open(files.path(3)).map_err(io_error("cannot open a data file"))?)
            }
            None => None,
        };
        Ok(Self {
            loader: Loader::start(files, buffers, options.reads, faults.slow_loader)?,
            holder: faults.lock_contention.map(LockHolder::start).transpose()?,
            cold_file,
            forward: runtime.stream()?,
            backward: runtime.stream()?,
            forward_done: runtime.event()?,
            backward_done: runtime.event()?,
            batch: runtime.malloc(options.batch_bytes)?,
            gradients: runtime.malloc(GRADIENTS)?,
            loss: runtime.malloc(4)?,
            loss_on_host: runtime.host_buffer(4096, true)?,
            options,
            runtime,
        })
    }

    fn step(&mut self, number: u64, injected: &mut Vec<Injected>) -> Result<()> {
        let (runtime, options) = (self.runtime, self.options);
        let batch = self.loader.next()?;
        compute(options.host_work / 2);
        self.inject(number, injected)?;
        for _ in 0..=options.faults.extra_copies {
            runtime.copy_to_device(self.batch, batch.as_slice(), self.forward)?;
        }
        runtime.zero(self.gradients, GRADIENTS, self.backward)?;

        let launches = 4 * options.layers + 4;
        let between = options.host_work / 2 / launches;
        let launch = |kernel, stream| {
            compute(between);
            runtime.launch(kernel, options.blocks, stream)
        };
        launch(Kernel::Embedding, self.forward)?;
        for _ in 0..options.layers {
            launch(Kernel::AttentionForward, self.forward)?;
            launch(Kernel::MlpForward, self.forward)?;
        }
        launch(Kernel::LossForward, self.forward)?;
        runtime.record(self.forward_done, self.forward)?;
        runtime.wait_for(self.backward, self.forward_done)?;
        for _ in 0..options.layers {
            launch(Kernel::MlpBackward, self.backward)?;
            launch(Kernel::AttentionBackward, self.backward)?;
        }
        runtime.record(self.backward_done, self.backward)?;
        runtime.wait_for(self.forward, self.backward_done)?;
        launch(Kernel::Optimizer, self.forward)?;
        launch(Kernel::Optimizer, self.forward)?;
        let loss = &mut self.loss_on_host.as_mut_slice()[..4];
        runtime.copy_to_host(loss, self.loss, self.forward)?;
        runtime.synchronize(self.forward)?;
        self.loader.give_back(batch);
        Ok(())
    }

    fn inject(&self, step: u64, injected: &mut Vec<Injected>) -> Result<()> {
        let faults = &self.options.faults;
        let mut note = |kind, start_ns| {
            injected.push(Injected {
                kind,
                step,
                start_ns,
                end_ns: boot_ns(),
            });
        };
        if let Some(storm) = faults.allocator_storm.filter(|f| f.when.hits(step)) {
            let start = boot_ns();
            for _ in 0..storm.blocks {
                let block = self.runtime.malloc(storm.block_bytes)?;
                self.runtime.free(block)?;
            }
            note("allocator_storm", start);
        }
        if let (Some(contention), Some(holder)) = (faults.lock_contention, &self.holder)
            && contention.when.hits(step)
        {
            let start = boot_ns();
            holder.contend();
            note("lock_contention", start);
        }
        if let Some(pause) = faults.host_pause.filter(|f| f.when.hits(step)) {
            let start = boot_ns();
            compute(pause.cpu);
            note("host_pause", start);
        }
        if let (Some(cold), Some(file)) = (faults.page_faults, &self.cold_file)
            && cold.when.hits(step)
        {
            let start = boot_ns();
            fault_in(file, cold.bytes)?;
            note("page_faults", start);
        }
        if let Some(sleep) = faults.sleep.filter(|f| f.when.hits(step)) {
            let start = boot_ns();
            thread::sleep(sleep.time);
            note("sleep", start);
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<Injected>> {
        self.runtime.synchronize_device()?;
        let injected = self.loader.stop();
        for pointer in [self.batch, self.gradients, self.loss] {
            self.runtime.free(pointer)?;
        }
        Ok(injected)
    }
}

/// A thread that takes a lock when asked to, and holds it for a while.
struct LockHolder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    lock: Mutex<()>,
    /// Meets twice for each contention: to begin, and when the lock is held.
    meet: Barrier,
    end: AtomicBool,
}

impl LockHolder {
    fn start(contention: LockContention) -> Result<Self> {
        let shared = Arc::new(Shared {
            lock: Mutex::new(()),
            meet: Barrier::new(2),
            end: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        let work = move || {
            loop {
                theirs.meet.wait();
                if theirs.end.load(Relaxed) {
                    return;
                }
                let held = theirs.lock.lock().unwrap_or_else(PoisonError::into_inner);
                theirs.meet.wait();
                if contention.holder_computes {
                    compute(contention.hold);
                } else {
                    thread::sleep(contention.hold);
                }
                drop(held);
            }
        };
        let thread = thread::Builder::new()
            .name("lock-holder".into())
            .spawn(work)
            .map_err(io_error("cannot start the lock's holder"))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Lets the other thread take the lock, then wants it.
    fn contend(&self) {
        self.shared.meet.wait();
        self.shared.meet.wait();
        drop(
            self.shared
                .lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

impl Drop for LockHolder {
    fn drop(&mut self) {
        self.shared.end.store(true, Relaxed);
        self.shared.meet.wait();
        if let Some(thread) = self.thread.take() {
            // It cannot panic; and at the end of a run nothing could be done about it.
            let _ = thread.join();
        }
    }
}
