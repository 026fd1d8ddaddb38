//! An inference server: requests arrive over a socket, each is a prefill and then one decode step for each of its tokens, decode
//! steps being shared by all requests that are under way (continuous batching).
//!
//! The client is another process ([`request_load`]) or a thread of the server's (`client`). A request on the wire is 12 bytes: id, tokens of the
//! prompt, tokens to give back, each a little-endian u32; its answer is the id.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{
    cuda::{DevicePointer, Handle, HostBuffer, Kernel, Result, Runtime, WorkloadError, io_error},
    host::{boot_ns, compute, next_random, pin_to},
    train::Step,
};

/// How requests arrive: one after another, the times between them exponentially distributed.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// The same seed gives the same requests.
    pub seed: u64,
    pub requests_per_sec: f64,
    pub prompt_tokens: (u32, u32),
    pub output_tokens: (u32, u32),
    /// No request arrives after this time.
    pub duration: Duration,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            requests_per_sec: 1.5,
            prompt_tokens: (256, 768),
            output_tokens: (8, 40),
            duration: Duration::from_secs(10),
        }
    }
}

/// How to serve. The default takes 10 to 31 ms for a prefill and 10 to 14 ms for a decode step, of up to 8 requests.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The runtime: a path, or a name that the dynamic loader searches for.
    pub runtime: PathBuf,
    pub device: i32,
    /// A Unix socket to listen on for one client, which serving ends with; without one, a thread of ours is the client.
    pub socket: Option<PathBuf>,
    /// What that thread sends.
    pub load: LoadOptions,
    /// Requests in a decode step, at most; others wait.
    pub max_batch: usize,
    /// Blocks of a prefill for each token of the prompt. simgpu takes 1 µs for one, unless set otherwise.
    pub prefill_blocks_per_token: u32,
    /// Blocks of a decode step, and for each of its requests on top.
    pub decode_blocks: u32,
    pub decode_blocks_per_request: u32,
    /// CPU time of the scheduler in each iteration.
    pub host_work: Duration,
    /// Binds the serving thread to this CPU.
    pub cpu: Option<usize>,
    /// Asks the runtime to block in waits instead of spinning.
    pub blocking_sync: bool,
    /// A fault: this decode step, and each so many after it, has ten times the blocks.
    pub slow_decode_every: Option<usize>,
    /// A fault that lasts: so long after the server began, decode steps have four times the blocks.
    pub slow_decode_after: Option<Duration>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            runtime: "libcudart.so.12".into(),
            device: 0,
            socket: None,
            load: LoadOptions::default(),
            max_batch: 8,
            prefill_blocks_per_token: 40,
            decode_blocks: 10_000,
            decode_blocks_per_request: 500,
            host_work: Duration::from_millis(1),
            cpu: None,
            blocking_sync: false,
            slow_decode_every: None,
            slow_decode_after: None,
        }
    }
}

/// One request that was served. Times are CLOCK_BOOTTIME, ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub id: u32,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    /// When the server read it.
    pub arrived_ns: u64,
    pub first_token_ns: u64,
    pub done_ns: u64,
}

/// What a server did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeSummary {
    pub pid: u32,
    /// In the order in which they were done.
    pub requests: Vec<Request>,
    pub prefills: Vec<Step>,
    pub decodes: Vec<Step>,
}

/// Serves until the client has gone and its requests are done.
///
/// # Errors
/// [`WorkloadError`]: no runtime, a call that failed, a socket that could not be made or read.
pub fn serve(options: &ServeOptions) -> std::result::Result<ServeSummary, WorkloadError> {
    let runtime = Runtime::open(&options.runtime)?;
    runtime.use_device(options.device, options.blocking_sync)?;
    let client = match &options.socket {
        Some(path) => accept(path)?,
        None => own_client(options.load.clone())?,
    };
    if let Some(cpu) = options.cpu {
        pin_to(cpu)?;
    }
    Server::new(options, &runtime, client)?.run()
}

/// Sends requests to a server that listens on `socket`, and returns how many were answered. The server must be there.
///
/// # Errors
/// [`WorkloadError::Io`] when it cannot connect, or the server goes away.
pub fn request_load(
    socket: &Path,
    options: &LoadOptions,
) -> std::result::Result<u64, WorkloadError> {
    let stream =
        UnixStream::connect(socket).map_err(io_error("cannot connect to the server's socket"))?;
    send_requests(stream, options)
}

fn accept(path: &Path) -> Result<UnixStream> {
    let listener =
        UnixListener::bind(path).map_err(io_error("cannot listen on the server's socket"))?;
    let accepted = listener.accept();
    let _ = fs::remove_file(path);
    Ok(accepted.map_err(io_error("no client came"))?.0)
}

fn own_client(load: LoadOptions) -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair().map_err(io_error("cannot make a socket"))?;
    thread::Builder::new()
        .name("client".into())
        // A failure there is the server's end of the socket closing, which the server reports.
        .spawn(move || send_requests(theirs, &load))
        .map_err(io_error("cannot start the client"))?;
    Ok(ours)
}

fn send_requests(mut stream: UnixStream, options: &LoadOptions) -> Result<u64> {
    let fail = || io_error("the server went away");
    let mut state = options.seed.max(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        state = next_random(state);
        state
    };
    let begin = Instant::now();
    let mut due = Duration::ZERO;
    for id in 0u32.. {
        // Inverse of the exponential distribution; the fraction is never 0.
        let fraction = ((random() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        due += Duration::from_secs_f64((-fraction.ln() / options.requests_per_sec).min(3600.0));
        if due >= options.duration {
            break;
        }
        thread::sleep(due.saturating_sub(begin.elapsed()));
        let mut within =
            |(low, high): (u32, u32)| low + (random() % u64::from(high.max(low) - low + 1)) as u32;
        let request = [
            id,
            within(options.prompt_tokens),
            within(options.output_tokens).max(1),
        ];
        stream
            .write_all(&request.map(u32::to_le_bytes).concat())
            .map_err(fail())?;
    }
    stream.shutdown(std::net::Shutdown::Write).map_err(fail())?;
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).map_err(fail())?;
    Ok(answers.len() as u64 / 4)
}

struct Active {
    request: Request,
    left: u32,
}

struct Server<'a> {
    began: Instant,
    options: &'a ServeOptions,
    runtime: &'a Runtime,
    client: UnixStream,
    /// Bytes of requests that are not whole yet.
    received: Vec<u8>,
    client_gone: bool,
    waiting: Vec<Request>,
    active: Vec<Active>,
    stream: Handle,
    done: Handle,
    tokens: DevicePointer,
    host_tokens: HostBuffer,
    summary: ServeSummary,
}

const LAUNCHES: u32 = 16;
/// Kernels of a prefill: engines launch those of each layer by themselves, and of a decode as graphs.
const PREFILL_LAUNCHES: u32 = 240;
/// Room for the tokens of a prompt and of a batch, bytes.
const TOKENS: usize = 1 << 20;

impl<'a> Server<'a> {
    fn new(options: &'a ServeOptions, runtime: &'a Runtime, client: UnixStream) -> Result<Self> {
        if options.max_batch == 0 || options.max_batch * 4 > TOKENS {
            return Err(WorkloadError::Option(
                "the batch is empty or has more than 262144 requests",
            ));
        }
        Ok(Self {
            began: Instant::now(),
            client,
            received: Vec::new(),
            client_gone: false,
            waiting: Vec::new(),
            active: Vec::new(),
            stream: runtime.stream()?,
            done: runtime.event()?,
            tokens: runtime.malloc(TOKENS)?,
            host_tokens: runtime.host_buffer(TOKENS, true)?,
            summary: ServeSummary {
                pid: std::process::id(),
                ..ServeSummary::default()
            },
            options,
            runtime,
        })
    }

    fn run(mut self) -> Result<ServeSummary> {
        loop {
            self.receive()?;
            if self.waiting.is_empty() && self.active.is_empty() {
                if self.client_gone {
                    break;
                }
                continue;
            }
            compute(self.options.host_work);
            let start_ns = boot_ns();
            let step = |end_ns: u64| Step {
                start_ns,
                duration_ns: end_ns - start_ns,
            };
            if !self.waiting.is_empty() && self.active.len() < self.options.max_batch {
                let request = self.waiting.remove(0);
                let end = self.prefill(request)?;
                self.summary.prefills.push(step(end));
            } else {
                let end = self.decode()?;
                self.summary.decodes.push(step(end));
            }
        }
        self.runtime.synchronize_device()?;
        self.runtime.free(self.tokens)?;
        Ok(self.summary)
    }

    /// Takes the requests that are there; sleeps for the first one when there is nothing else to do.
    fn receive(&mut self) -> Result<()> {
        let fail = || io_error("cannot read from the client");
        let idle = self.waiting.is_empty() && self.active.is_empty();
        if self.client_gone {
            return Ok(());
        }
        self.client.set_nonblocking(!idle).map_err(fail())?;
        let mut bytes = [0; 1200];
        match self.client.read(&mut bytes) {
            Ok(0) => self.client_gone = true,
            Ok(count) => self.received.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fail()(error)),
        }
        let whole = self.received.len() / 12 * 12;
        for message in self.received[..whole].chunks_exact(12) {
            let field = |at: usize| {
                let bytes = message[at..at + 4].try_into().unwrap_or_default();
                u32::from_le_bytes(bytes)
            };
            self.waiting.push(Request {
                id: field(0),
                // What the buffer has room for, whatever a client asks.
                prompt_tokens: field(4).clamp(1, TOKENS as u32 / 4),
                output_tokens: field(8).max(1),
                arrived_ns: boot_ns(),
                first_token_ns: 0,
                done_ns: 0,
            });
        }
        self.received.drain(..whole);
        Ok(())
    }

    fn prefill(&mut self, mut request: Request) -> Result<u64> {
        let bytes = request.prompt_tokens as usize * 4;
        let prompt = &self.host_tokens.as_slice()[..bytes];
        self.runtime
            .copy_to_device(self.tokens, prompt, self.stream)?;
        let blocks = request.prompt_tokens * self.options.prefill_blocks_per_token;
        for _ in 0..PREFILL_LAUNCHES {
            let blocks = (blocks / PREFILL_LAUNCHES).max(1);
            self.runtime.launch(Kernel::Prefill, blocks, self.stream)?;
        }
        // As engines that wait on events and not on streams.
        self.runtime.record(self.done, self.stream)?;
        self.runtime.synchronize_event(self.done)?;
        request.first_token_ns = boot_ns();
        let active = Active {
            left: request.output_tokens - 1,
            request,
        };
        if active.left == 0 {
            self.finish(active)?;
        } else {
            self.active.push(active);
        }
        Ok(boot_ns())
    }

    fn decode(&mut self) -> Result<u64> {
        let options = self.options;
        let batch = self.active.len() as u32;
        let mut blocks = options.decode_blocks + batch * options.decode_blocks_per_request;
        let step = self.summary.decodes.len() + 1;
        if options
            .slow_decode_every
            .is_some_and(|every| step.is_multiple_of(every.max(1)))
        {
            blocks *= 10;
        }
        if options
            .slow_decode_after
            .is_some_and(|after| self.began.elapsed() >= after)
        {
            blocks *= 4;
        }
        for _ in 0..LAUNCHES {
            self.runtime
                .launch(Kernel::Decode, (blocks / LAUNCHES).max(1), self.stream)?;
        }
        let tokens = &mut self.host_tokens.as_mut_slice()[..batch as usize * 4];
        self.runtime
            .copy_to_host(tokens, self.tokens, self.stream)?;
        self.runtime.synchronize(self.stream)?;
        for active in &mut self.active {
            active.left -= 1;
        }
        let (done, going): (Vec<Active>, Vec<Active>) = std::mem::take(&mut self.active)
            .into_iter()
            .partition(|a| a.left == 0);
        self.active = going;
        for active in done {
            self.finish(active)?;
        }
        Ok(boot_ns())
    }

    fn finish(&mut self, active: Active) -> Result<()> {
        let mut request = active.request;
        request.done_ns = boot_ns();
        self.summary.requests.push(request);
        match self.client.write_all(&request.id.to_le_bytes()) {
            // A client that went without its answers has asked for nothing more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.client_gone = true;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other.map_err(io_error("cannot answer the client")),
        }
    }
}
