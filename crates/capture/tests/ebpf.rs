//! Capture by eBPF against real processes: fixtures in C, a library made from the op table, and NVIDIA's own runtime.
//!
//! Needs what eBPF needs (root, or CAP_BPF and CAP_PERFMON), a C compiler and Python. A test that cannot run says
//! `skipped: why`; with `WARPTRACE_NO_SKIP` set it fails instead.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use warptrace_capture::ebpf::kernel::Kernel;
use warptrace_capture::ebpf::{AttachError, Ebpf, Options, StartError};
use warptrace_capture::{Batch, Source as _};
use warptrace_model::{
    BlockIo, Call, Device, Event, FileType, LossReason, OffCpu, ProcessEvent, Slice, Tid, Wake,
};
use warptrace_record::op::{OPS, Op, Slot, nccl_dtype_bytes, pack_dims};
use warptrace_record::{Record, Source as Layer};

/// Set for the tests that are run once more as if on a kernel of 5.15.
const AS_IF_OLD: &str = "WARPTRACE_TEST_OLD_KERNEL";

/// This kernel, or as much of it as one of 5.15 has.
fn kernel() -> Kernel {
    let mut kernel = Kernel::probe();
    if std::env::var_os(AS_IF_OLD).is_some() {
        kernel.release = "5.15.0".to_owned();
        // An OOM victim's task cannot be taken for a number, where it is none: that stays as it is.
        (kernel.uprobe_multi, kernel.switch_state) = (false, false);
        for later in ["block_io_start", "mm_vmscan_throttled"] {
            kernel.tracepoints.as_mut().map(|t| t.remove(later));
        }
    }
    kernel
}

// ---- the fixtures ----

fn skip(why: &str) {
    assert!(
        std::env::var_os("WARPTRACE_NO_SKIP").is_none(),
        "cannot run: {why}"
    );
    eprintln!("skipped: {why}");
}

/// A folder with the fixtures built, or why they are not.
fn fixtures() -> Result<&'static Path, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            // The run that makes do with an old kernel's means is a process beside this one: what one builds, the other's
            // processes must not lose.
            let old = std::env::var_os(AS_IF_OLD).is_some();
            let dir = if old { "ebpf-as-if-old" } else { "ebpf" };
            let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(dir);
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
            let make =
                |name: &str| std::fs::create_dir_all(dir.join(name)).map_err(|e| e.to_string());
            make("a")?;
            make("b")?;
            cc(
                &source.join("runtime.c"),
                &dir.join("a/libcudart.so.12"),
                &["-shared", "-fPIC"],
            )?;
            std::fs::copy(dir.join("a/libcudart.so.12"), dir.join("b/libcudart.so.12"))
                .map_err(|e| e.to_string())?;
            cc(
                &source.join("target.c"),
                &dir.join("target"),
                &["-pthread", "-ldl"],
            )?;
            Ok(dir)
        })
        .as_ref()
        .map(PathBuf::as_path)
        .map_err(Clone::clone)
}

fn cc(source: &Path, out: &Path, options: &[&str]) -> Result<(), String> {
    // Built beside and renamed: another test's process may hold the old one.
    let new = out.with_extension(format!("new{}", std::process::id()));
    let done = Command::new("cc")
        .args(["-O1", "-fno-omit-frame-pointer", "-o"])
        .arg(&new)
        .arg(source)
        .args(options)
        .output()
        .map_err(|e| format!("no C compiler: {e}"))?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into_owned());
    }
    std::fs::rename(&new, out).map_err(|e| e.to_string())
}

/// A fixture's process, killed when it is dropped.
struct Target {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    said: BTreeMap<String, i64>,
}

impl Target {
    fn start(dir: &Path, args: &[&str]) -> Target {
        let mut command = Command::new(dir.join("target"));
        command.arg(dir.join("a/libcudart.so.12")).args(args);
        Target::run(command)
    }

    fn run(mut command: Command) -> Target {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Target {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            said: BTreeMap::new(),
        }
    }

    /// Reads up to the line `word`, keeping the values on the way.
    fn hear(&mut self, word: &str) -> &mut Target {
        loop {
            let line = self.line();
            if line == word {
                return self;
            }
            let (name, value) = line
                .rsplit_once(' ')
                .unwrap_or_else(|| panic!("target said {line:?}"));
            let value = value
                .parse()
                .unwrap_or_else(|_| panic!("target said {line:?}"));
            self.said.insert(name.to_owned(), value);
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(
            self.output.read_line(&mut line).unwrap(),
            0,
            "target ended early"
        );
        line.trim_end().to_owned()
    }

    fn go(&mut self) -> &mut Target {
        self.tell("")
    }

    fn tell(&mut self, line: &str) -> &mut Target {
        writeln!(self.input, "{line}").unwrap();
        self.input.flush().unwrap();
        self
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn value(&self, name: &str) -> i64 {
        *self
            .said
            .get(name)
            .unwrap_or_else(|| panic!("target said no {name}"))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running capture and all that it gave.
struct Capture {
    ebpf: Ebpf,
    batch: Batch,
}

impl Capture {
    /// `None`, and said, where this machine cannot.
    fn start(options: &Options) -> Option<Capture> {
        let kernel = kernel();
        if let Some(refusal) = kernel.refusal() {
            skip(&refusal.to_string());
            return None;
        }
        Some(Capture {
            ebpf: Ebpf::start_on(kernel, options).unwrap(),
            batch: Batch::default(),
        })
    }

    fn of(pids: &[u32]) -> Option<Capture> {
        Capture::start(&Options {
            pids: Some(pids.to_vec()),
            ..Options::default()
        })
    }

    /// Polls until `enough`.
    #[track_caller]
    fn until(&mut self, what: &str, enough: impl Fn(&Capture) -> bool) {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            self.ebpf.poll(&mut self.batch).unwrap();
            if enough(self) {
                return;
            }
            assert!(
                Instant::now() < give_up,
                "no {what} in {:#?}, with {:?} lost",
                self.batch.records,
                self.batch.losses
            );
            self.ebpf.wait(Duration::from_millis(5));
        }
    }

    /// Stops, and takes what was left.
    fn finish(&mut self) {
        self.ebpf.stop();
        self.ebpf.poll(&mut self.batch).unwrap();
    }

    fn events(&self) -> impl Iterator<Item = Event> + '_ {
        self.batch.records.iter().filter_map(Event::from_record)
    }

    fn calls(&self, op: &str) -> Vec<Call> {
        self.events()
            .filter_map(|e| match e {
                Event::Call(c) if c.op.name() == op => Some(c),
                _ => None,
            })
            .collect()
    }

    fn off_cpu(&self, tid: u32) -> Vec<OffCpu> {
        self.events()
            .filter_map(|e| match e {
                Event::OffCpu(o) if o.thread.tid == Tid(tid) => Some(o),
                _ => None,
            })
            .collect()
    }

    fn slices(&self) -> Vec<Slice> {
        self.events()
            .filter_map(|e| match e {
                Event::Slice(s) => Some(s),
                _ => None,
            })
            .collect()
    }

    fn lives(&self) -> Vec<ProcessEvent> {
        self.events()
            .filter_map(|e| match e {
                Event::Process(p) => Some(p),
                _ => None,
            })
            .collect()
    }

    fn lost(&self, reason: LossReason) -> u64 {
        self.batch
            .losses
            .iter()
            .filter(|l| l.reason == reason)
            .map(|l| l.count)
            .sum()
    }

    /// Exact counts by name.
    fn counted(&self) -> BTreeMap<&'static str, u64> {
        let mut out = BTreeMap::new();
        for c in &self.batch.counts {
            *out.entry(c.key.op.name()).or_default() += c.durations.count();
        }
        out
    }
}

macro_rules! or_return {
    ($option:expr) => {
        match $option {
            Some(value) => value,
            None => return,
        }
    };
}

/// The fixtures' folder; `None`, and said, where they cannot be built.
fn ready() -> Option<&'static Path> {
    fixtures().map_err(|why| skip(&why)).ok()
}

// ---- arguments ----

/// What a slot says of a call with these integer arguments, P(1) first, that returned `ret`. Memory is `read`.
fn slot(slot: Slot, args: &[u64], ret: i32, read: impl Fn(u64) -> u64) -> u64 {
    let p = |n: u8| args.get(usize::from(n) - 1).copied().unwrap_or(0);
    let low = |v: u64| v as u32;
    let high = |v: u64| (v >> 32) as u32;
    match slot {
        Slot::Zero => 0,
        Slot::Const(c) => u64::from(c),
        Slot::P(n) => p(n),
        Slot::Int(n) => u64::from(low(p(n))),
        Slot::Out(n) if ret == 0 => read(p(n)),
        Slot::Out(_) => 0,
        Slot::Mul(n) => p(n).wrapping_mul(p(n + 1)),
        Slot::Shl(n, k) => p(n) << k,
        Slot::NcclBytes(n) => p(n).wrapping_mul(nccl_dtype_bytes(low(p(n + 1)))),
        Slot::Dim3(n) => pack_dims(
            [low(p(n)), high(p(n)), low(p(n + 1))],
            [low(p(n + 2)), high(p(n + 2)), low(p(n + 3))],
        ),
        Slot::Dims(n) => pack_dims(
            [0, 1, 2].map(|i| low(p(n + i))),
            [3, 4, 5].map(|i| low(p(n + i))),
        ),
        Slot::ConfigDims(n) => {
            let words = [read(p(n)), read(p(n) + 8), read(p(n) + 16)];
            pack_dims(
                [low(words[0]), high(words[0]), low(words[1])],
                [high(words[1]), low(words[2]), high(words[2])],
            )
        }
        Slot::At(n, k) => read(p(n) + 8 * u64::from(k)),
        Slot::AtMul(n, k) => {
            read(p(n) + 8 * u64::from(k)).wrapping_mul(read(p(n) + 8 * u64::from(k) + 8))
        }
        Slot::Pair(n, k) => p(n) << 32 | u64::from(low(p(k))),
    }
}

/// Python with a library loaded, that calls what it is told.
fn python(library: &Path) -> Option<Target> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/calls.py");
    let found = Command::new("python3")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if !found.is_ok_and(|s| s.success()) {
        skip("no python3");
        return None;
    }
    let mut command = Command::new("python3");
    command.arg(script).arg(library);
    Some(Target::run(command))
}

/// What a made library writes where its outputs are to be.
const OUTPUT: u64 = 0x5eed;

/// Calls every symbol of `ops` that `has` likes, and compares the records with what the table says.
///
/// All arguments are addresses in a zeroed buffer of the target's, each another one, so that a library may follow them. A
/// call that succeeds is taken to have written [`OUTPUT`] to its outputs.
fn check_arguments(library: &Path, ops: impl Fn(&Op) -> bool, has: impl Fn(&str) -> bool) {
    let mut target = or_return!(python(library));
    let base: u64 = target.line().parse().unwrap();
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    let (mut want, mut memory) = (Vec::new(), BTreeMap::new());
    for op in OPS.iter().filter(|op| ops(op)) {
        for symbol in op.symbols.iter().filter(|s| has(s)) {
            let by_value = passes_id_by_value(op);
            let count = if by_value { 3 } else { u64::from(op.params) };
            let places = (0..count).map(|i| 256 * i);
            let mut words: Vec<String> = places.clone().map(|at| format!("@{at}")).collect();
            if by_value {
                words.insert(2, "id".to_owned());
            }
            target.tell(&format!("{symbol} {}", words.join(" ")));
            let ret: i32 = target.line().parse().unwrap();
            let args: Vec<u64> = places.map(|at| base + at).collect();
            for output in outputs(op).filter(|_| ret == 0) {
                memory.insert(args[usize::from(output) - 1], OUTPUT);
            }
            let says = |s| slot(s, &args, ret, |at| memory.get(&at).copied().unwrap_or(0));
            want.push(format!(
                "{} {:x} {:x} {:x} = {ret}",
                op.name,
                says(op.arg0),
                says(op.arg1),
                says(op.stream)
            ));
        }
    }
    assert!(want.len() > 30, "only {} functions were called", want.len());
    let calls = |c: &Capture| -> Vec<String> {
        c.events()
            .filter_map(|e| match e {
                Event::Call(c) => Some(format!(
                    "{} {:x} {:x} {:x} = {}",
                    c.op.name(),
                    c.arg0,
                    c.arg1,
                    c.stream.0,
                    c.ret
                )),
                _ => None,
            })
            .collect()
    };
    capture.until("last call", |c| calls(c).len() >= want.len());
    assert_eq!(calls(&capture), want);
    capture.finish();
    assert_eq!(
        capture.counted().values().sum::<u64>(),
        want.len() as u64,
        "every call is counted once"
    );
    assert_eq!(capture.lost(LossReason::RingFull), 0);
}

fn passes_id_by_value(op: &Op) -> bool {
    matches!(op.name, "ncclCommInitRank" | "ncclCommInitRankConfig")
}

/// Parameters that are outputs.
fn outputs(op: &Op) -> impl Iterator<Item = u8> {
    [op.arg0, op.arg1, op.stream]
        .into_iter()
        .filter_map(|s| match s {
            Slot::Out(n) => Some(n),
            _ => None,
        })
}

/// NVIDIA's own runtime, from PyPI.
fn real_runtime() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../cuda-wheel");
    let library = dir.join("nvidia/cuda_runtime/lib/libcudart.so.12");
    if !library.exists() {
        let got = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--target"])
            .arg(&dir)
            .arg("nvidia-cuda-runtime-cu12")
            .output();
        if !got.is_ok_and(|o| o.status.success()) || !library.exists() {
            skip("nvidia-cuda-runtime-cu12 could not be installed");
            return None;
        }
    }
    Some(library.canonicalize().unwrap())
}

#[test]
fn every_function_of_the_real_runtime_is_recorded_with_its_arguments() {
    let library = or_return!(real_runtime());
    let bytes = std::fs::read(&library).unwrap();
    let exports = |symbol: &str| {
        let name = format!("\0{symbol}\0");
        bytes.windows(name.len()).any(|w| w == name.as_bytes())
    };
    let of_runtime = |op: &Op| matches!(op.source, Layer::Runtime | Layer::Graph);
    check_arguments(&library, of_runtime, exports);
}

#[test]
fn every_function_of_the_driver_and_of_nccl_is_recorded_with_its_arguments_and_outputs() {
    let dir = or_return!(ready());
    let of_these = |op: &Op| matches!(op.source, Layer::Driver | Layer::Nccl);
    let mut text = String::from("struct id { char bytes[128]; };\ntypedef unsigned long u;\n");
    for op in OPS.iter().filter(|op| of_these(op)) {
        for symbol in op.symbols {
            let params = if passes_id_by_value(op) {
                "u p1, u p2, struct id id, u p3".to_owned()
            } else {
                let each: Vec<String> = (1..=op.params).map(|n| format!("u p{n}")).collect();
                each.join(", ")
            };
            let body: String = outputs(op)
                .map(|n| format!("*(u *)p{n} = {OUTPUT}; "))
                .collect();
            let _ = writeln!(text, "int {symbol}({params}) {{ {body}return 0; }}");
        }
    }
    let (source, library) = (dir.join("driver.c"), dir.join("libcuda.so.1"));
    std::fs::write(&source, text).unwrap();
    or_return!(
        cc(&source, &library, &["-shared", "-fPIC"])
            .map_err(|why| skip(&why))
            .ok()
    );
    check_arguments(&library, of_these, |_| true);
}

// ---- calls ----

#[test]
fn a_call_inside_a_call_is_told_apart_and_not_counted_again() {
    let mut target = Target::start(or_return!(ready()), &["nested"]);
    target.hear("ready");
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("done");
    capture.until("outer call", |c| !c.calls("cudaDeviceSync").is_empty());
    capture.finish();
    let [outer] = capture.calls("cudaDeviceSync")[..] else {
        panic!("{:#?}", capture.batch.records)
    };
    let [inner] = capture.calls("cudaStreamSync")[..] else {
        panic!("the inner call slept 300 us, so it has a record of its own")
    };
    assert!(!outer.flags.nested());
    assert!(inner.flags.nested() && !inner.flags.nested_in_library());
    assert_eq!(
        inner.window().intersect(&outer.window()),
        Some(inner.window())
    );
    // The short one has a record only if it was held up, and is then nested too.
    assert!(capture.calls("cudaMalloc").iter().all(|c| c.flags.nested()));
    assert_eq!(capture.counted(), BTreeMap::from([("cudaDeviceSync", 1)]));
}

#[test]
fn a_call_that_was_left_by_longjmp_does_not_hide_the_next() {
    let mut target = Target::start(or_return!(ready()), &["longjmp"]);
    target.hear("ready");
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("done");
    capture.until("call after it", |c| !c.calls("cudaMalloc").is_empty());
    capture.finish();
    let [after] = capture.calls("cudaMalloc")[..] else {
        panic!("{:#?}", capture.batch.records)
    };
    assert!(!after.flags.nested(), "nothing is open around it");
    assert!(
        capture
            .calls("cudaDeviceSync")
            .iter()
            .all(|c| c.flags.no_return())
    );
    assert_eq!(capture.counted(), BTreeMap::from([("cudaMalloc", 1)]));
}

#[test]
fn a_forked_child_is_followed_and_its_end_is_told() {
    let mut target = Target::start(or_return!(ready()), &["fork"]);
    target.hear("ready");
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("done");
    let child = target.value("child") as u32;
    let ended = |c: &Capture| {
        c.lives().iter().find_map(|l| match l {
            ProcessEvent::Exit { pid, status, .. } if pid.0 == child => Some(*status),
            _ => None,
        })
    };
    capture.until("end of the child", |c| ended(c).is_some());
    assert_eq!(ended(&capture), Some(3 << 8));
    let by: Vec<u32> = capture
        .calls("cudaMalloc")
        .iter()
        .map(|c| c.thread.pid.0)
        .collect();
    assert_eq!(by, [target.pid(), child]);
    assert!(capture.lives().iter().any(
        |l| matches!(l, ProcessEvent::Born { parent, child: c, .. } if parent.pid.0 == target.pid() && c.0 == child)
    ));
}

#[test]
fn a_thread_that_existed_before_is_traced_and_its_waker_is_named() {
    let mut target = Target::start(or_return!(ready()), &["thread"]);
    target.hear("ready");
    let thread = target.value("thread") as u32;
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    // It sleeps since before we came; woken, it has its call recorded all the same.
    target.go().hear("done");
    capture.until("both calls", |c| c.calls("cudaMalloc").len() == 2);
    let mut by: Vec<u32> = capture
        .calls("cudaMalloc")
        .iter()
        .map(|c| c.thread.tid.0)
        .collect();
    by.sort_unstable();
    let mut want = vec![target.pid(), thread];
    want.sort_unstable();
    assert_eq!(by, want);
}

#[test]
fn a_thread_that_reads_a_pipe_is_woken_by_the_one_that_writes() {
    let dir = or_return!(ready());
    // Watched before it has threads, so that the switch-out is seen.
    let mut target = Target::run({
        let mut c = Command::new("sh");
        c.args(["-c", "read x; exec \"$0\" \"$1\" thread"])
            .arg(dir.join("target"))
            .arg(dir.join("a/libcudart.so.12"));
        c
    });
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("ready");
    let thread = target.value("thread") as u32;
    // It is asleep once it has said its number and the state says so.
    while !std::fs::read_to_string(format!("/proc/{}/task/{thread}/syscall", target.pid()))
        .is_ok_and(|s| s.starts_with("0 "))
    {
        std::thread::yield_now();
    }
    target.go().hear("done");
    let on_pipe = |c: &Capture| {
        c.off_cpu(thread)
            .into_iter()
            .find(|o| o.file == FileType::Pipe && o.syscall == Some(libc::SYS_read as u16))
    };
    capture.until("sleep on the pipe", |c| on_pipe(c).is_some());
    let sleep = on_pipe(&capture).unwrap();
    let waker = sleep.waker.unwrap();
    assert_eq!(
        (waker.thread.pid.0, waker.thread.tid.0),
        (target.pid(), target.pid())
    );
    assert_eq!(waker.by, Wake::Syscall);
    assert!(!sleep.preempted && !sleep.iowait && sleep.fd.is_some_and(|fd| fd > 2));
    assert!(
        capture
            .lives()
            .iter()
            .any(|l| matches!(l, ProcessEvent::Exec { pid, .. } if pid.0 == target.pid())),
        "the shell became the target"
    );
}

#[test]
fn by_what_a_kernel_of_5_15_has_the_same_is_recorded() {
    let names = [
        "a_call_inside_a_call_is_told_apart_and_not_counted_again",
        "a_call_that_was_left_by_longjmp_does_not_hide_the_next",
        "a_long_wait_comes_with_its_stack",
        "a_second_copy_of_the_library_is_probed_when_it_is_loaded",
        "a_stopped_capture_leaves_its_probes_to_a_process_that_is_not_waited_for",
        "a_thread_that_reads_past_the_cache_waits_for_its_own_requests",
        "a_timer_that_wakes_a_thread_does_not_make_the_hog_its_waker",
        "counts_stay_exact_when_the_ring_is_full",
        "every_function_of_the_driver_and_of_nccl_is_recorded_with_its_arguments_and_outputs",
        "every_function_of_the_real_runtime_is_recorded_with_its_arguments",
        "waiting_for_a_cpu_agrees_with_the_kernel_and_names_the_hog",
    ];
    if kernel().refusal().is_some() {
        return skip("eBPF is refused");
    }
    // One at a time: one of them looks at all of its process's descriptors.
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--test-threads", "1", "--exact"])
        .args(names)
        .env(AS_IF_OLD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let why = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}\n{why}");
    let passed = format!("test result: ok. {} passed", names.len());
    assert!(said.contains(&passed), "{said}");
    // What cannot run here cannot run there.
    eprint!("{why}");
}

#[test]
fn a_stopped_capture_leaves_its_probes_to_a_process_that_is_not_waited_for() {
    if std::env::var_os(AS_IF_OLD).is_none() {
        // It is run by the one above, alone in its process.
        return;
    }
    let mut target = Target::start(or_return!(ready()), &["calls", "10"]);
    target.hear("ready");
    let kernel = kernel();
    let options = Options {
        pids: Some(vec![target.pid()]),
        ..Options::default()
    };
    let mut capture = Capture {
        ebpf: Ebpf::start_on(kernel, &options).unwrap(),
        batch: Batch::default(),
    };
    let events = || descriptors("anon_inode:[perf_event]") + descriptors("anon_inode:bpf_link");
    assert!(events() > 20, "{} descriptors", events());
    target.go().hear("done");
    capture.finish();
    assert_eq!(capture.calls("cudaMalloc").len(), 10);
    assert_eq!(events(), 0, "all of them are another's");
    let children = std::fs::read_to_string("/proc/thread-self/children");
    let who = target.pid().to_string();
    let children = children.unwrap_or_default();
    assert!(
        children.split_whitespace().all(|pid| pid == who),
        "whoever has them is no child of ours: {children}"
    );
}

/// How many descriptors of this process lead to `what`.
fn descriptors(what: &str) -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|e| std::fs::read_link(e.ok()?.path()).ok())
        .filter(|to| to.to_str() == Some(what))
        .count()
}

#[test]
fn in_a_pid_namespace_processes_have_its_numbers() {
    // The same tests, where this process is the first of a namespace.
    let names = [
        "a_forked_child_is_followed_and_its_end_is_told",
        "a_program_that_starts_later_is_traced_and_known_from_its_start",
        "waiting_for_a_cpu_agrees_with_the_kernel_and_names_the_hog",
    ];
    if Kernel::probe().refusal().is_some() {
        return skip("eBPF is refused");
    }
    let ran = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .arg("--exact")
        .args(names)
        .output();
    let Ok(ran) = ran else {
        return skip("no unshare");
    };
    let said = String::from_utf8_lossy(&ran.stdout);
    if said.is_empty() {
        return skip(&String::from_utf8_lossy(&ran.stderr));
    }
    assert!(ran.status.success() && said.contains("3 passed"), "{said}");
}

#[test]
fn a_program_that_starts_later_is_traced_and_known_from_its_start() {
    let dir = or_return!(ready());
    let mut capture = or_return!(Capture::start(&Options::default()));
    let mut target = Target::start(dir, &["calls", "3"]);
    target.hear("ready").go().hear("done");
    let pid = target.pid();
    let of = move |c: &Capture| {
        c.calls("cudaMalloc")
            .iter()
            .filter(|c| c.thread.pid.0 == pid)
            .count()
    };
    // The library may be mapped milliseconds before it is probed: the next program finds it probed.
    capture.ebpf.poll(&mut capture.batch).unwrap();
    let mut second = Target::start(dir, &["calls", "3"]);
    second.hear("ready").go().hear("done");
    let pid2 = second.pid();
    let of2 = move |c: &Capture| {
        c.calls("cudaMalloc")
            .iter()
            .filter(|c| c.thread.pid.0 == pid2)
            .count()
    };
    capture.until("calls of the second", |c| of2(c) == 3);
    assert!(of(&capture) <= 3);
    let info = capture
        .batch
        .processes
        .iter()
        .rfind(|p| p.incarnation.pid.0 == pid2)
        .unwrap();
    assert!(info.from_start && info.in_job);
    assert_eq!(info.name, "target");
    assert_eq!(info.command.get(2).map(String::as_str), Some("calls"));
    let device = capture
        .calls("cudaMalloc")
        .iter()
        .find(|c| c.thread.pid.0 == pid2)
        .unwrap()
        .device;
    assert_eq!(
        device,
        Some(Device(0)),
        "seen from its start, and it chose no other"
    );
}

#[test]
fn a_second_copy_of_the_library_is_probed_when_it_is_loaded() {
    let dir = or_return!(ready());
    let second = dir.join("b/libcudart.so.12");
    let mut target = Target::start(dir, &["copy", &second.to_string_lossy()]);
    target.hear("ready");
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("loaded");
    capture.ebpf.poll(&mut capture.batch).unwrap();
    target.go().hear("done");
    capture.until("call by each copy", |c| c.calls("cudaMalloc").len() == 2);
    let device = capture.calls("cudaMalloc")[0].device;
    assert_eq!(device, None, "it ran before, and may have chosen any");
    // The same file by another name has its probes already.
    let link = dir.join("libcudart-link.so");
    let _ = std::fs::remove_file(&link);
    std::fs::hard_link(&second, &link).unwrap();
    assert_eq!(capture.ebpf.attach_library(&link).unwrap(), 0);
}

#[test]
fn a_program_that_links_the_driver_alone_is_traced() {
    let dir = or_return!(ready());
    std::fs::create_dir_all(dir.join("driver")).unwrap();
    let (library, program) = (dir.join("driver/libcuda.so.1"), dir.join("driver/program"));
    let (lib_c, main_c) = (dir.join("driver/lib.c"), dir.join("driver/main.c"));
    std::fs::write(
        &lib_c,
        "int cuInit(unsigned f) { return 0; }\nint cuCtxSynchronize(void) { return 700; }\n",
    )
    .unwrap();
    std::fs::write(
        &main_c,
        "#include <stdio.h>\nint cuInit(unsigned); int cuCtxSynchronize(void);\n\
         int main(void) { getchar(); cuInit(0); cuCtxSynchronize(); puts(\"done\"); fflush(stdout); getchar(); }\n",
    )
    .unwrap();
    let folder = dir.join("driver").to_string_lossy().into_owned();
    let built = cc(
        &lib_c,
        &library,
        &["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"],
    )
    .and_then(|()| {
        cc(
            &main_c,
            &program,
            &[
                &format!("-L{folder}"),
                "-l:libcuda.so.1",
                &format!("-Wl,-rpath,{folder}"),
            ],
        )
    });
    or_return!(built.map_err(|why| skip(&why)).ok());
    let mut target = Target::run(Command::new(&program));
    let mut capture = or_return!(Capture::start(&Options {
        pids: Some(vec![target.pid()]),
        libraries: vec![library],
        ..Options::default()
    }));
    target.go().hear("done");
    capture.until("call", |c| !c.calls("cuCtxSynchronize").is_empty());
    assert_eq!(capture.calls("cuCtxSynchronize")[0].ret, 700);
    assert_eq!(capture.calls("cuInit").len(), 1);
}

#[test]
fn the_current_device_follows_the_calls_that_succeed() {
    let dir = or_return!(ready());
    let mut target = Target::start(dir, &["devices"]);
    target.hear("ready");
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("done");
    capture.until("last call", |c| !c.calls("cudaFree").is_empty());
    let devices: Vec<_> = capture
        .calls("cudaMalloc")
        .iter()
        .map(|c| c.device)
        .collect();
    assert_eq!(
        devices,
        [None, Some(Device(3)), Some(Device(3))],
        "9 was refused"
    );
    let malloc = capture.calls("cudaMalloc")[0];
    assert_eq!((malloc.arg0, malloc.arg1), (1, 0xd000_0001));
    assert_eq!(capture.calls("cudaFree")[0].ret, 1);
}

#[test]
fn a_call_that_has_not_returned_is_seen_while_it_hangs() {
    let mut target = Target::start(or_return!(ready()), &["inside"]);
    target.hear("ready");
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("inside");
    let open = capture.ebpf.in_flight();
    let [call] = open.as_slice() else {
        panic!("{open:?}")
    };
    assert_eq!((call.pid, call.tid), (target.pid(), target.pid()));
    assert_eq!(call.call_op().map(|op| op.name()), Some("cudaDeviceSync"));
    assert!(matches!(Event::from_record(call), Some(Event::InFlight(_))));
    target.go().hear("done");
    assert_eq!(capture.ebpf.in_flight(), []);
}

#[test]
fn a_long_wait_comes_with_its_stack() {
    let mut target = Target::start(or_return!(ready()), &["nested"]);
    target.hear("ready");
    let mut capture = or_return!(Capture::start(&Options {
        pids: Some(vec![target.pid()]),
        stack_min_nanos: 1,
        ..Options::default()
    }));
    target.go().hear("done");
    capture.until("outer call", |c| !c.calls("cudaDeviceSync").is_empty());
    let id = capture.calls("cudaDeviceSync")[0].stack_id;
    let stacks = &capture.batch.stacks;
    let stack = stacks.iter().find(|s| s.id == id).expect("its stack");
    assert_eq!(stack.pid, target.pid());
    let addresses = &stack.addresses;
    // It returned into the program's main function.
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", target.pid())).unwrap();
    let line = maps.lines().find(|l| {
        let (from, to) = l.split(' ').next().unwrap().split_once('-').unwrap();
        let at = |s| u64::from_str_radix(s, 16).unwrap();
        (at(from)..at(to)).contains(&addresses[0])
    });
    assert!(
        line.is_some_and(|l| l.ends_with("/target")),
        "{addresses:x?}\n{maps}"
    );
}

#[test]
fn counts_stay_exact_when_the_ring_is_full() {
    let mut target = Target::start(or_return!(ready()), &["calls", "5000"]);
    target.hear("ready");
    let mut capture = or_return!(Capture::start(&Options {
        pids: Some(vec![target.pid()]),
        ring_bytes: 4096,
        ..Options::default()
    }));
    target.go().hear("done");
    capture.finish();
    let records = capture.calls("cudaMalloc").len();
    assert!(records < 100, "a ring of 4 KiB held {records}");
    assert_eq!(capture.counted(), BTreeMap::from([("cudaMalloc", 5000)]));
    let lost = capture.lost(LossReason::RingFull);
    assert!(
        lost >= 5000 - records as u64,
        "{lost} were lost of {records} that came"
    );
}

// ---- off the CPU ----

#[test]
fn waiting_for_a_cpu_agrees_with_the_kernel_and_names_the_hog() {
    let dir = or_return!(ready());
    let mut hog = Target::start(dir, &["hog"]);
    hog.hear("ready");
    let mut target = Target::start(dir, &["contended"]);
    target.hear("ready");
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("done");
    capture.until("mark at the end", |c| c.calls("cudaSetDevice").len() == 2);
    let [from, to] = capture.calls("cudaSetDevice")[..] else {
        unreachable!()
    };
    let waits: Vec<_> = capture
        .off_cpu(target.pid())
        .into_iter()
        .map(|o| o.waiting_for_cpu())
        .filter(|w| w.start >= from.start && w.end <= to.end())
        .collect();
    let waited: u64 = waits.iter().map(|w| w.nanos()).sum();
    let kernel = (target.value("after") - target.value("before")) as u64;
    assert!(kernel > 50_000_000, "the hog took nothing: {kernel} ns");
    assert!(
        waited.abs_diff(kernel) * 50 <= kernel,
        "{waited} ns by switches, {kernel} ns by schedstat"
    );
    // Who ran on the CPU meanwhile, over each wait.
    let mut held: BTreeMap<u32, u64> = BTreeMap::new();
    for slice in capture.slices().iter().filter(|s| s.cpu.0 == 0) {
        let ran = warptrace_model::Window::at(slice.start, slice.dur);
        *held.entry(slice.thread.tid.0).or_default() +=
            waits.iter().map(|w| w.overlap(&ran)).sum::<u64>();
    }
    let known: u64 = held.values().sum();
    assert!(
        known.abs_diff(waited) * 50 <= waited,
        "{known} ns of {waited} are explained"
    );
    // Others may have been busy too; on a machine of our own it is nearly all.
    let hogged = held.get(&hog.pid()).copied().unwrap_or(0);
    assert!(
        hogged * 10 >= waited,
        "the hog held {hogged} of {waited} ns: {held:?}"
    );
    let named = |c: &Capture| {
        c.batch
            .names
            .iter()
            .any(|n| n.thread.tid.0 == hog.pid() && &*n.name == "test-hog")
    };
    assert!(named(&capture), "{:?}", capture.batch.names);
    let info = capture
        .batch
        .processes
        .iter()
        .find(|p| p.incarnation.pid.0 == hog.pid())
        .unwrap();
    assert!(!info.in_job);
}

#[test]
fn a_thread_that_reads_past_the_cache_waits_for_its_own_requests() {
    let dir = or_return!(ready());
    let file = dir.join("data");
    std::fs::write(&file, vec![7; 16 << 20]).unwrap();
    std::fs::File::open(&file).unwrap().sync_all().unwrap();
    let mut target = Target::start(dir, &["disk", &file.to_string_lossy()]);
    target.hear("ready");
    let fd = target.value("fd") as i32;
    if fd < 0 {
        return skip("the file system has no O_DIRECT");
    }
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("done");
    let pid = target.pid();
    let requests = move |c: &Capture| -> Vec<BlockIo> {
        c.events()
            .filter_map(|e| match e {
                Event::BlockIo(io) if io.thread.pid.0 == pid => Some(io),
                _ => None,
            })
            .collect()
    };
    capture.until("16 MiB of requests", |c| {
        requests(c).iter().map(|r| r.bytes).sum::<u64>() >= 16 << 20
    });
    let wait = capture
        .off_cpu(pid)
        .into_iter()
        .find(|o| o.iowait)
        .expect("some read had to wait");
    assert_eq!(wait.syscall, Some(libc::SYS_pread64 as u16));
    assert_eq!((wait.fd, wait.file), (Some(fd), FileType::Regular));
    let path = capture
        .batch
        .paths
        .iter()
        .find(|p| p.pid.0 == pid && p.fd == fd)
        .unwrap();
    assert_eq!(Path::new(&path.path), file.canonicalize().unwrap());
    assert!(
        requests(&capture)
            .iter()
            .all(|r| r.error == 0 && r.dev != 0 && r.dur > 0)
    );
}

#[test]
fn a_timer_that_wakes_a_thread_does_not_make_the_hog_its_waker() {
    let dir = or_return!(ready());
    let mut hog = Target::start(dir, &["hog"]);
    hog.hear("ready");
    let mut target = Target::start(dir, &["sleep"]);
    target.hear("ready");
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("done");
    capture.until("call after it", |c| !c.calls("cudaMalloc").is_empty());
    let sleeps: Vec<OffCpu> = capture
        .off_cpu(target.pid())
        .into_iter()
        .filter(|o| o.syscall == Some(libc::SYS_clock_nanosleep as u16) && !o.preempted)
        .collect();
    // Of fifty: one that is preempted on its way to sleep, which a busy machine does, is told as that.
    assert!(sleeps.len() >= 30, "only {} sleeps", sleeps.len());
    for sleep in sleeps {
        assert!(sleep.timed && !sleep.poll_socket && sleep.fd.is_none());
        assert!(
            sleep.waker.is_none_or(|w| matches!(w.by, Wake::Interrupt)),
            "{:?} acted",
            sleep.waker
        );
        assert!(
            sleep.blocked().nanos() >= 3_000_000,
            "the timer was set to 3 ms"
        );
    }
}

#[test]
fn a_thread_that_waits_for_a_socket_is_woken_by_the_sender() {
    let dir = or_return!(ready());
    let mut target = Target::start(dir, &["socket"]);
    target.hear("ready");
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("done");
    capture.until("last call", |c| c.calls("cudaMalloc").len() == 2);
    let sender = target.value("sender") as u32;
    let sleeps: Vec<OffCpu> = capture
        .off_cpu(target.pid())
        .into_iter()
        .filter(|o| !o.preempted && o.syscall.is_some())
        .collect();
    let by_sender = |o: &&OffCpu| {
        o.waker
            .is_some_and(|w| w.thread.tid.0 == sender && w.by == Wake::Syscall)
    };
    let received = sleeps
        .iter()
        .filter(by_sender)
        .find(|o| o.syscall == Some(libc::SYS_recvfrom as u16))
        .unwrap_or_else(|| panic!("{sleeps:#?}"));
    assert_eq!(received.file, FileType::Socket);
    let polls: Vec<_> = sleeps
        .iter()
        .filter(by_sender)
        .filter(|o| o.poll_socket)
        .collect();
    assert_eq!(polls.len(), 2, "poll and epoll: {sleeps:#?}");
    assert!(polls.iter().all(|o| !o.timed));
    assert!(
        polls
            .iter()
            .any(|o| o.file == FileType::Anonymous && o.fd.is_some()),
        "the epoll's own descriptor"
    );
    assert!(
        sleeps.iter().any(|o| o.timed && !o.poll_socket),
        "a poll of nothing that timed out: {sleeps:#?}"
    );
}

#[test]
fn a_segment_that_is_sent_again_names_its_ports() {
    // Nobody accepts and the queue is full, so that the third connection's first segment is dropped and sent again.
    const FULL_QUEUE: &str = "\
import socket, sys
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(0)
print(l.getsockname()[1], flush=True)
held = []
for _ in range(3):
    s = socket.socket(); s.setblocking(False); held.append(s)
    try: s.connect(l.getsockname())
    except BlockingIOError: pass
sys.stdin.readline()";
    let mut capture = or_return!(Capture::of(&[std::process::id()]));
    let mut command = Command::new("python3");
    command.args(["-c", FULL_QUEUE]);
    let mut target = Target::run(command);
    let port: u16 = target.line().parse().unwrap();
    let sent_again = |c: &Capture| {
        c.events().find_map(|e| match e {
            Event::Retransmit(r) if r.peer_port == port => Some(r),
            _ => None,
        })
    };
    capture.until("retransmit", |c| sent_again(c).is_some());
    let again = sent_again(&capture).unwrap();
    let loopback = u32::from(std::net::Ipv4Addr::LOCALHOST);
    assert_eq!((again.address, again.peer_address), (loopback, loopback));
    assert_ne!(again.port, 0);
}

/// A control group of one controller, removed when it is dropped: v2 if that has the controller, else v1.
struct Group(PathBuf);

impl Group {
    /// `limits`: (file and value of v2), (files and values of v1).
    fn new(controller: &str, v2: (&str, &str), v1: &[(&str, &str)]) -> Result<Group, String> {
        let name = format!("warptrace-test-{}", std::process::id());
        let unified = Path::new("/sys/fs/cgroup/cgroup.subtree_control");
        let has_v2 = std::fs::read_to_string(unified)
            .is_ok_and(|c| c.split_whitespace().any(|c| c == controller));
        let (parent, limits) = if has_v2 {
            (PathBuf::from("/sys/fs/cgroup"), vec![v2])
        } else {
            (Path::new("/sys/fs/cgroup").join(controller), v1.to_vec())
        };
        let dir = parent.join(name);
        std::fs::create_dir(&dir).map_err(|e| format!("no cgroup {dir:?}: {e}"))?;
        let group = Group(dir);
        for (file, value) in limits {
            let path = group.0.join(file);
            std::fs::write(&path, value).map_err(|e| format!("cannot write {path:?}: {e}"))?;
        }
        Ok(group)
    }

    fn add(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes have ended, but may still be leaving.
        for _ in 0..1000 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::yield_now();
        }
    }
}

#[test]
fn time_held_back_by_a_quota_is_told_from_competition() {
    const PERIOD_NANOS: u64 = 100_000_000;
    let dir = or_return!(ready());
    let limits = Group::new(
        "cpu",
        ("cpu.max", "10000 100000"),
        &[
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "10000"),
        ],
    );
    let group = or_return!(limits.map_err(|why| skip(&why)).ok());
    let mut target = Target::start(dir, &["spin"]);
    target.hear("ready");
    // The group's books are one for each CPU: on one alone, they and a thread's own time are the same.
    let pinned = Command::new("taskset")
        .args(["--pid", "--cpu-list", "0", &target.pid().to_string()])
        .output();
    assert!(
        pinned.is_ok_and(|out| out.status.success()),
        "util-linux's taskset pins it"
    );
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    // Only now: what its start was held back would be in the group's books and not in ours.
    group.add(target.pid());
    target.go().hear("done");
    capture.until("mark at the end", |c| c.calls("cudaSetDevice").len() == 2);
    let stat = std::fs::read_to_string(group.0.join("cpu.stat")).unwrap();
    let field = |name: &str| {
        let line = stat.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    let kernel = field("throttled_time ")
        .or_else(|| field("throttled_usec ").map(|us| us * 1000))
        .unwrap();
    assert!(
        kernel > 5 * PERIOD_NANOS,
        "0.2 s of work at 10 % is held back for most of 2 s: {stat}"
    );
    // It may have been held back once more between its mark and its last word: that record comes after the mark's. And a group whose
    // last thread goes to sleep with the quota spent is held back until its period ends, when nobody waits for it: of that, at most
    // a period, only the group's books know.
    let by_switches = |c: &Capture| -> u64 {
        let off_cpu = c.off_cpu(target.pid());
        off_cpu.iter().map(|o| o.throttled).sum()
    };
    capture.until("all that the group was held back", |c| {
        by_switches(c) * 51 / 50 + PERIOD_NANOS >= kernel
    });
    let throttled = by_switches(&capture);
    assert!(
        throttled * 49 / 50 <= kernel,
        "{throttled} ns by switches, {kernel} ns by the group"
    );
    drop(target);
}

#[test]
fn reclaim_for_a_memory_limit_is_recorded_where_it_ran() {
    let dir = or_return!(ready());
    let limits = Group::new(
        "memory",
        ("memory.max", "33554432"),
        &[("memory.limit_in_bytes", "33554432")],
    );
    let group = or_return!(limits.map_err(|why| skip(&why)).ok());
    let file = dir.join("written");
    let mut target = Target::start(dir, &["write", &file.to_string_lossy()]);
    target.hear("ready");
    group.add(target.pid());
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("done");
    capture.until("mark at the end", |c| c.calls("cudaSetDevice").len() == 2);
    let [from, to] = capture.calls("cudaSetDevice")[..] else {
        unreachable!()
    };
    let reclaims: Vec<_> = capture
        .events()
        .filter_map(|e| match e {
            Event::Reclaim(r) if r.cgroup && r.thread.tid.0 == target.pid() => Some(r),
            _ => None,
        })
        .collect();
    assert!(
        reclaims.iter().map(|r| r.pages).sum::<u64>() > 1000,
        "{reclaims:?}"
    );
    assert!(
        reclaims
            .iter()
            .all(|r| r.start >= from.start && r.start <= to.end())
    );
    drop(target);
}

// ---- refusals ----

#[test]
fn what_cannot_be_started_or_probed_is_named() {
    let dir = or_return!(ready());
    let refused = Kernel {
        capabilities: 0,
        ..Kernel::probe()
    };
    let error = Ebpf::start_on(refused, &Options::default())
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("warptrace record"), "{error}");
    let mut capture = or_return!(Capture::of(&[std::process::id()]));
    let start = |options| Ebpf::start(&options).map(|_| ()).unwrap_err();
    assert!(matches!(
        start(Options {
            pids: Some(vec![u32::MAX]),
            ..Options::default()
        }),
        StartError::NoProcess(u32::MAX)
    ));
    assert!(matches!(
        start(Options {
            ring_bytes: 5000,
            ..Options::default()
        }),
        StartError::RingSize(5000)
    ));
    let text = dir.join("libcudart-text.so");
    std::fs::write(&text, "not a library").unwrap();
    assert!(matches!(
        capture.ebpf.attach_library(&text),
        Err(AttachError::Unreadable { .. })
    ));
    assert!(matches!(
        capture.ebpf.attach_library(Path::new("/proc/self/exe")),
        Err(AttachError::NothingToTrace { .. } | AttachError::Unreadable { .. })
    ));
}

#[test]
fn a_library_without_section_headers_is_probed_like_any_other() {
    let dir = or_return!(ready());
    let mut bytes = std::fs::read(dir.join("a/libcudart.so.12")).unwrap();
    bytes[40..48].fill(0); // e_shoff
    bytes[58..64].fill(0); // e_shentsize, e_shnum, e_shstrndx
    std::fs::create_dir_all(dir.join("stripped")).unwrap();
    let path = dir.join("stripped/libcudart.so.12");
    std::fs::write(&path, bytes).unwrap();
    let mut capture = or_return!(Capture::of(&[std::process::id()]));
    assert_eq!(capture.ebpf.attach_library(&path).unwrap(), 5);
    assert_eq!(
        capture.ebpf.attach_library(&path).unwrap(),
        0,
        "once a file"
    );
}

#[test]
fn records_come_numbered_by_their_cpu_without_a_gap() {
    let mut target = Target::start(or_return!(ready()), &["calls", "2000"]);
    target.hear("ready");
    let mut capture = or_return!(Capture::of(&[target.pid()]));
    target.go().hear("done");
    capture.until("calls", |c| c.calls("cudaMalloc").len() == 2000);
    let mut by_cpu: BTreeMap<u32, Vec<&Record>> = BTreeMap::new();
    for r in &capture.batch.records {
        by_cpu.entry(r.cpu).or_default().push(r);
    }
    // Names and first sights take a number too, and are no records any more: at most a few.
    for (cpu, records) in by_cpu {
        let (first, last) = (records[0].seq, records[records.len() - 1].seq);
        let missing = (last - first) as usize + 1 - records.len();
        assert!(
            missing <= capture.batch.names.len() + 1,
            "{missing} missing on cpu {cpu}"
        );
    }
}
