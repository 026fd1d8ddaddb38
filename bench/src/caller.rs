//! A process that calls simgpu's runtime at a rate that it is told: this program again.
#![expect(unsafe_code, reason = "calls functions of a library by their address")]

use std::ffi::{CString, c_char, c_void};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::time::{ClockId, clock_gettime};

/// The process that is traced: this program again, whose `main` calls [`serve`] when its first argument is `--call`. Each millisecond
/// it launches a kernel of a microsecond, records an event as often as the rate needs, and waits for the stream.
pub struct Caller {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// What of its memory is code of simgpu.
    code: Vec<(u64, usize)>,
}

pub struct Load {
    /// Calls a second.
    pub rate: f64,
    /// Of one core.
    pub share: f64,
}

impl Caller {
    /// Starts it, at rest, in `folder`.
    ///
    /// # Errors
    /// It did not begin.
    pub fn start(simgpu: &Path, folder: &Path) -> anyhow::Result<Caller> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--call")
            .arg(simgpu.join("libcudart.so.12"))
            .env("LD_LIBRARY_PATH", simgpu)
            .env("SIMGPU_SHM", folder.join("device"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().context("its input is a pipe")?;
        let answers = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let mut caller = Caller {
            child,
            orders,
            answers,
            code: Vec::new(),
        };
        ensure!(caller.answer()? == "ready", "the caller did not begin");
        for line in std::fs::read_to_string(format!("/proc/{}/maps", caller.id()))?.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [range, mode, .., path] = words[..]
                && mode.contains('x')
                && Path::new(path).starts_with(simgpu)
                && let Some((from, to)) = range.split_once('-')
            {
                let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
                caller.code.push((from, (to - from) as usize));
            }
        }
        ensure!(
            caller.code.len() >= 2,
            "the runtime and the driver are not mapped"
        );
        Ok(caller)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// simgpu's code as the caller would run it, breakpoints and all.
    ///
    /// # Errors
    /// It has ended.
    pub fn code(&self) -> anyhow::Result<Vec<u8>> {
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.id()))?;
        let mut all = Vec::new();
        for &(from, len) in &self.code {
            let at = all.len();
            all.resize(at + len, 0);
            memory.read_exact_at(&mut all[at..], from)?;
        }
        Ok(all)
    }

    /// From now on, so many calls a second.
    ///
    /// # Errors
    /// It has ended.
    pub fn rate(&mut self, rate: u64) -> anyhow::Result<()> {
        writeln!(self.orders, "{rate}")?;
        ensure!(self.answer()? == "ok", "the caller did not understand");
        Ok(())
    }

    /// Calls made so far, and CPU time taken, ns.
    ///
    /// # Errors
    /// It has ended.
    pub fn report(&mut self) -> anyhow::Result<(u64, u64)> {
        writeln!(self.orders, "report")?;
        let answer = self.answer()?;
        let (calls, nanos) = answer.split_once(' ').context("two numbers")?;
        Ok((calls.parse()?, nanos.parse()?))
    }

    /// Its load in the next `window`.
    ///
    /// # Errors
    /// It has ended.
    pub fn load(&mut self, window: Duration) -> anyhow::Result<Load> {
        let ((calls, cpu), began) = (self.report()?, Instant::now());
        std::thread::sleep(window);
        let (calls_now, cpu_now) = self.report()?;
        let seconds = began.elapsed().as_secs_f64();
        Ok(Load {
            rate: (calls_now - calls) as f64 / seconds,
            share: (cpu_now - cpu) as f64 / 1e9 / seconds,
        })
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(
            self.answers.read_line(&mut line)? > 0,
            "the caller has ended"
        );
        Ok(line.trim().to_owned())
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls asked for in a second, and made so far.
static RATE: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);

/// The caller: takes orders from its input, and ends with it.
///
/// # Errors
/// No such library, or a call that failed.
pub fn serve(library: &str) -> anyhow::Result<()> {
    let cuda = Cuda::open(library)?;
    let main = std::thread::current();
    std::thread::spawn(move || {
        for order in std::io::stdin().lines().map_while(Result::ok) {
            match order.parse() {
                Ok(rate) => {
                    RATE.store(rate, Ordering::Relaxed);
                    main.unpark();
                    println!("ok");
                }
                Err(_) => {
                    let t = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
                        .expect("every Linux has this clock");
                    let nanos = t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64;
                    println!("{} {nanos}", CALLS.load(Ordering::Relaxed));
                }
            }
        }
        std::process::exit(0);
    });
    println!("ready");
    let tick = Duration::from_millis(1);
    let mut next = Instant::now();
    loop {
        let calls = RATE.load(Ordering::Relaxed) / 1_000;
        if calls < 2 {
            std::thread::park();
            next = Instant::now();
            continue;
        }
        cuda.launch()?;
        for _ in 2..calls {
            cuda.record_event()?;
        }
        cuda.synchronize()?;
        CALLS.fetch_add(calls, Ordering::Relaxed);
        next += tick;
        match next.checked_duration_since(Instant::now()) {
            Some(left) => std::thread::sleep(left),
            // Others had the CPU: what was missed is made up for, but not more than a tenth of a second of it.
            None => next = next.max(Instant::now() - 100 * tick),
        }
    }
}

/// As `dim3` of CUDA.
#[repr(C)]
#[derive(Clone, Copy)]
struct Dim3(u32, u32, u32);

const ONE: Dim3 = Dim3(1, 1, 1);

type Launch = extern "C" fn(*const c_void, Dim3, Dim3, *mut *mut c_void, usize, usize) -> i32;
type Register = extern "C" fn(
    *mut *mut c_void,
    *const c_void,
    *const c_char,
    *const c_char,
    i32,
    *mut c_void,
    *mut c_void,
    *mut c_void,
    *mut c_void,
    *mut i32,
);

/// What a compiler would have put in for a kernel: an image and the address that stands for it.
static IMAGE: [u8; 16] = *b"a kernel's image";
static KERNEL: u8 = 0;

/// The runtime's functions that the caller needs, with one stream and one event.
struct Cuda {
    launch: Launch,
    record: extern "C" fn(usize, usize) -> i32,
    synchronize: extern "C" fn(usize) -> i32,
    stream: usize,
    event: usize,
}

impl Cuda {
    fn open(library: &str) -> anyhow::Result<Cuda> {
        let name = CString::new(library)?;
        // SAFETY: a valid string; the library is simgpu's runtime.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        ensure!(!handle.is_null(), "cannot load {library:?}");
        let (mut stream, mut event) = (0, 0);
        let none = std::ptr::null_mut;
        // SAFETY: C functions of these types, by the CUDA runtime's reference; the creators write one handle. Registering is as
        // the CUDA compiler's code does it: an image and an address that live for ever, a C string, null for what is not used.
        unsafe {
            type Create = extern "C" fn(*mut usize, u32) -> i32;
            let make: Create = function(handle, "cudaStreamCreateWithFlags")?;
            ensure!(make(&mut stream, 1) == 0, "no stream");
            let make: Create = function(handle, "cudaEventCreateWithFlags")?;
            ensure!(make(&mut event, 2) == 0, "no event");
            let begin: extern "C" fn(*const c_void) -> *mut *mut c_void =
                function(handle, "__cudaRegisterFatBinary")?;
            let register: Register = function(handle, "__cudaRegisterFunction")?;
            let end: extern "C" fn(*mut *mut c_void) =
                function(handle, "__cudaRegisterFatBinaryEnd")?;
            let binary = begin(IMAGE.as_ptr().cast());
            let (stub, name) = ((&raw const KERNEL).cast(), c"kernel".as_ptr());
            let unused = std::ptr::null_mut();
            register(
                binary,
                stub,
                name,
                name,
                -1,
                none(),
                none(),
                none(),
                none(),
                unused,
            );
            end(binary);
            Ok(Cuda {
                launch: function(handle, "cudaLaunchKernel")?,
                record: function(handle, "cudaEventRecord")?,
                synchronize: function(handle, "cudaStreamSynchronize")?,
                stream,
                event,
            })
        }
    }

    fn launch(&self) -> anyhow::Result<()> {
        let stub = (&raw const KERNEL).cast();
        let code = (self.launch)(stub, ONE, ONE, std::ptr::null_mut(), 0, self.stream);
        ensure!(code == 0, "cudaLaunchKernel returned {code}");
        Ok(())
    }

    fn record_event(&self) -> anyhow::Result<()> {
        let code = (self.record)(self.event, self.stream);
        ensure!(code == 0, "cudaEventRecord returned {code}");
        Ok(())
    }

    fn synchronize(&self) -> anyhow::Result<()> {
        let code = (self.synchronize)(self.stream);
        ensure!(code == 0, "cudaStreamSynchronize returned {code}");
        Ok(())
    }
}

/// # Safety
/// `F` is the type of the C function `name`.
unsafe fn function<F: Copy>(handle: *mut c_void, name: &str) -> anyhow::Result<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    let text = CString::new(name)?;
    // SAFETY: an open handle and a valid string.
    let address = unsafe { libc::dlsym(handle, text.as_ptr()) };
    ensure!(!address.is_null(), "no symbol {name}");
    // SAFETY: an address of such a function, by the contract above.
    Ok(unsafe { std::mem::transmute_copy(&address) })
}
