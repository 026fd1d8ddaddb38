//! The outlier socket: what the inference engine concludes, told to whoever connects, as it is concluded.
//!
//! ```text
//!  pipeline ──► bounded queue ──► wt-outliers ──► a bounded queue for each consumer ──► its connection
//! ```
//!
//! The shapes are [`warptrace_formats::outlier_stream`]'s. Any number of consumers gets every message from its connection on; nothing is
//! said again for those that come later. The pipeline waits for nobody, and no consumer for another: who does not read loses what does
//! not fit its queue, which is counted.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tracing::{info, warn};
use warptrace_formats::outlier_stream::Message;

use crate::annotate::SocketError;
use crate::annotate::place::{Bound, Open};

/// Consumers at once; more are closed at once.
const MAX_CONSUMERS: usize = 64;
/// Messages that wait for the thread, and for each consumer.
const MAX_WAITING: usize = 4096;
/// How long a consumer may take for what is left at the end, ms.
const PATIENCE_MILLIS: u16 = 500;

const WAKE: u64 = 0;
const LISTENER: u64 = 1;

type Line = Arc<[u8]>;

/// What became of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutlierCounts {
    /// Written to a consumer whole: a message to two consumers is two.
    pub sent: u64,
    /// Nobody listened.
    pub no_consumer: u64,
    /// A queue was full: the thread's, or a consumer's that does not read.
    pub queue_full: u64,
    /// No JSON can say it (a share that is no number).
    pub unwritable: u64,
    /// Connections that found too many others.
    pub refused: u64,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    consumers: AtomicUsize,
    sent: AtomicU64,
    no_consumer: AtomicU64,
    queue_full: AtomicU64,
    unwritable: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Line>,
    closed: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listening socket. Dropping it says what is left, and stops it.
#[derive(Debug)]
pub struct OutlierSocket {
    shared: Arc<Shared>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl OutlierSocket {
    /// Takes the place `path`, in a folder that is ours alone, and listens. To the machine's recorder every user may connect: what is said
    /// names processes, and nothing of what they compute.
    ///
    /// # Errors
    /// [`SocketError`]: the place could not be taken, or the machine gives no thread.
    pub fn start(path: &Path) -> Result<OutlierSocket, SocketError> {
        let open = Open::usual();
        let mut place = Bound::new(path, open, true)?;
        place.end_turn();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(|e| SocketError::Thread(e.into()))?;
        let (wake, shared) = (Arc::new(wake), Arc::new(Shared::default()));
        let server = Server::new(place, Arc::clone(&wake), Arc::clone(&shared));
        let server = server.map_err(SocketError::Thread)?;
        let thread = Builder::new()
            .name("wt-outliers".to_owned())
            .spawn(move || server.run())
            .map_err(SocketError::Thread)?;
        info!(path = ?path, "outliers are told here");
        Ok(OutlierSocket {
            shared,
            wake,
            thread: Some(thread),
            path: path.to_owned(),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells a message to all consumers. Never waits.
    pub fn tell(&self, message: &Message) {
        let shared = &self.shared;
        let add = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
        if shared.consumers.load(Ordering::Relaxed) == 0 {
            add(&shared.no_consumer);
            return;
        }
        let mut line = Vec::new();
        if message.encode(&mut line).is_err() {
            add(&shared.unwritable);
            return;
        }
        let mut queue = shared.queue();
        if queue.lines.len() >= MAX_WAITING {
            add(&shared.queue_full);
            return;
        }
        queue.lines.push_back(line.into());
        drop(queue);
        self.ring();
    }

    /// How many listen.
    pub fn consumers(&self) -> usize {
        self.shared.consumers.load(Ordering::Relaxed)
    }

    pub fn counts(&self) -> OutlierCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        OutlierCounts {
            sent: read(&self.shared.sent),
            no_consumer: read(&self.shared.no_consumer),
            queue_full: read(&self.shared.queue_full),
            unwritable: read(&self.shared.unwritable),
            refused: read(&self.shared.refused),
        }
    }

    fn ring(&self) {
        if let Err(e) = self.wake.write(1) {
            warn!(error = %e, "the outlier socket's thread cannot be woken");
        }
    }
}

impl Drop for OutlierSocket {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.shared.queue().closed = true;
        self.ring();
        if thread.join().is_err() {
            warn!("the outlier socket's thread panicked");
        }
    }
}

struct Server {
    epoll: Epoll,
    place: Bound,
    wake: Arc<EventFd>,
    shared: Arc<Shared>,
    consumers: HashMap<u64, Consumer>,
    next: u64,
}

struct Consumer {
    stream: UnixStream,
    waiting: VecDeque<Line>,
    /// Bytes of the first that were written.
    written: usize,
    /// We are told when it can take more.
    is_full: bool,
}

/// The connection is over.
struct Over;

impl Consumer {
    /// Writes what it takes now, and counts what is whole.
    fn write(&mut self, sent: &AtomicU64) -> Result<(), Over> {
        while let Some(line) = self.waiting.front() {
            match self.stream.write(&line[self.written..]) {
                Ok(0) => return Err(Over),
                Ok(n) => self.written += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Err(Over),
            }
            if self.written == line.len() {
                self.written = 0;
                self.waiting.pop_front();
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Consumers have nothing to say; what they say all the same is not kept.
    fn listen(&mut self) -> Result<(), Over> {
        let mut ignored = [0; 512];
        loop {
            match self.stream.read(&mut ignored) {
                Ok(0) => return Err(Over),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Over),
            }
        }
    }
}

impl Server {
    fn new(place: Bound, wake: Arc<EventFd>, shared: Arc<Shared>) -> io::Result<Server> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
        epoll.add(&place.listener, event)?;
        Ok(Server {
            epoll,
            place,
            wake,
            shared,
            consumers: HashMap::new(),
            next: LISTENER + 1,
        })
    }

    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let n = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(n) => n,
                Err(Errno::EINTR) => continue,
                Err(e) => {
                    warn!(error = %e, "the outlier socket ended");
                    return;
                }
            };
            for event in &events[..n] {
                match event.data() {
                    WAKE => {
                        let _ = self.wake.read();
                        if self.spread() {
                            return self.finish();
                        }
                    }
                    LISTENER => self.accept(),
                    key => self.serve(key, event.events()),
                }
            }
        }
    }

    fn accept(&mut self) {
        loop {
            let stream = match self.place.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    warn!(error = %e, "a consumer of outliers could not be taken");
                    // Out of descriptors it stays readable: not at full speed.
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    return;
                }
            };
            if self.consumers.len() >= MAX_CONSUMERS || stream.set_nonblocking(true).is_err() {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let key = self.next;
            self.next += 1;
            let added = self
                .epoll
                .add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key));
            if let Err(e) = added {
                warn!(error = %e, "a consumer of outliers could not be taken");
                continue;
            }
            let consumer = Consumer {
                stream,
                waiting: VecDeque::new(),
                written: 0,
                is_full: false,
            };
            self.consumers.insert(key, consumer);
            self.count();
        }
    }

    fn count(&self) {
        let consumers = self.consumers.len();
        self.shared.consumers.store(consumers, Ordering::Relaxed);
    }

    /// Gives what was told to all; whether it was the last.
    fn spread(&mut self) -> bool {
        let (lines, closed) = {
            let mut queue = self.shared.queue();
            (std::mem::take(&mut queue.lines), queue.closed)
        };
        let keys: Vec<u64> = self.consumers.keys().copied().collect();
        for key in keys {
            if let Some(consumer) = self.consumers.get_mut(&key) {
                let room = MAX_WAITING.saturating_sub(consumer.waiting.len());
                consumer.waiting.extend(lines.iter().take(room).cloned());
                let over = lines.len().saturating_sub(room) as u64;
                self.shared.queue_full.fetch_add(over, Ordering::Relaxed);
            }
            self.write(key);
        }
        closed
    }

    fn serve(&mut self, key: u64, events: EpollFlags) {
        let Some(consumer) = self.consumers.get_mut(&key) else {
            return;
        };
        let gone = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        if events.intersects(gone) || consumer.listen().is_err() {
            self.remove(key);
        } else {
            self.write(key);
        }
    }

    fn write(&mut self, key: u64) {
        let Some(consumer) = self.consumers.get_mut(&key) else {
            return;
        };
        if consumer.write(&self.shared.sent).is_err() {
            return self.remove(key);
        }
        let is_full = !consumer.waiting.is_empty();
        if is_full != consumer.is_full {
            let mut interest = EpollFlags::EPOLLIN;
            interest.set(EpollFlags::EPOLLOUT, is_full);
            let mut event = EpollEvent::new(interest, key);
            if self.epoll.modify(&consumer.stream, &mut event).is_err() {
                return self.remove(key);
            }
            consumer.is_full = is_full;
        }
    }

    fn remove(&mut self, key: u64) {
        if let Some(consumer) = self.consumers.remove(&key) {
            let _ = self.epoll.delete(&consumer.stream);
        }
        self.count();
    }

    /// What is left, to those who take it soon.
    fn finish(mut self) {
        let end = std::time::Instant::now()
            + std::time::Duration::from_millis(u64::from(PATIENCE_MILLIS));
        let mut events = [EpollEvent::empty(); 32];
        while self.consumers.values().any(|c| !c.waiting.is_empty()) {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return;
            }
            let wait = EpollTimeout::from(left.as_millis().max(1) as u16);
            match self.epoll.wait(&mut events, wait) {
                Ok(n) => {
                    for event in &events[..n] {
                        if event.data() > LISTENER {
                            self.serve(event.data(), event.events());
                        }
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::time::Instant;

    use warptrace_formats::outlier_stream::InferenceOutlier;

    use super::*;

    /// So long anything may take on a machine that has other work.
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

    fn message(pid: u32) -> Message {
        let outlier = InferenceOutlier {
            pid,
            bucket: "3x".to_owned(),
            ..InferenceOutlier::default()
        };
        Message::from(outlier)
    }

    fn listening() -> (tempfile::TempDir, OutlierSocket) {
        let folder = tempfile::tempdir().unwrap();
        let socket = OutlierSocket::start(&folder.path().join("told/o.sock")).unwrap();
        (folder, socket)
    }

    /// A consumer that the thread knows.
    fn consumer(socket: &OutlierSocket) -> UnixStream {
        let before = socket.shared.consumers.load(Ordering::Relaxed);
        let stream = UnixStream::connect(socket.path()).unwrap();
        wait(|| socket.shared.consumers.load(Ordering::Relaxed) > before);
        stream
    }

    fn wait(until: impl Fn() -> bool) {
        let began = Instant::now();
        while !until() {
            assert!(began.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
    }

    fn pids(stream: UnixStream) -> Vec<u32> {
        let lines = BufReader::new(stream).split(b'\n').map(Result::unwrap);
        let pid = |line: Vec<u8>| match Message::decode(&line).unwrap() {
            Some(Message::InferenceOutlier(outlier)) => outlier.pid,
            other => panic!("{other:?}"),
        };
        lines.map(pid).collect()
    }

    #[test]
    fn every_consumer_gets_every_message_from_its_connection_on_and_the_rest_at_the_end() {
        let (_folder, socket) = listening();
        let first = consumer(&socket);
        socket.tell(&message(1));
        wait(|| socket.counts().sent == 1);
        let second = consumer(&socket);
        for pid in 2..=500 {
            socket.tell(&message(pid));
        }
        std::thread::scope(|threads| {
            let first = threads.spawn(|| pids(first));
            let second = threads.spawn(|| pids(second));
            wait(|| socket.counts().sent == 1 + 2 * 499);
            socket.tell(&message(501));
            drop(socket);
            assert_eq!(first.join().unwrap(), (1..=501).collect::<Vec<_>>());
            assert_eq!(second.join().unwrap(), (2..=501).collect::<Vec<_>>());
        });
    }

    #[test]
    fn a_consumer_that_does_not_read_loses_by_count_and_holds_nobody_up() {
        let (_folder, socket) = listening();
        let (silent, reading) = (consumer(&socket), consumer(&socket));
        let told = 20_000;
        let mut reading = BufReader::new(reading);
        let mut line = String::new();
        for pid in 1..=told {
            socket.tell(&message(pid));
            line.clear();
            reading.read_line(&mut line).unwrap();
            assert!(line.contains(&format!("\"pid\":{pid},")), "{line}");
        }
        let counts = socket.counts();
        assert!(counts.queue_full > 0, "{counts:?}");
        let waiting = u64::from(told) * 2 - counts.sent - counts.queue_full;
        assert!(waiting <= MAX_WAITING as u64, "{counts:?}");
        drop((silent, reading));
        wait(|| socket.shared.consumers.load(Ordering::Relaxed) == 0);
        socket.tell(&message(1));
        assert_eq!(socket.counts().no_consumer, 1);
    }

    #[test]
    fn more_consumers_than_there_may_be_are_closed_at_once_and_counted() {
        let (_folder, socket) = listening();
        let kept: Vec<UnixStream> = (0..MAX_CONSUMERS).map(|_| consumer(&socket)).collect();
        let mut over = UnixStream::connect(socket.path()).unwrap();
        let mut nothing = Vec::new();
        over.read_to_end(&mut nothing).unwrap();
        assert!(nothing.is_empty());
        assert_eq!(socket.counts().refused, 1);
        drop(kept);
        wait(|| socket.shared.consumers.load(Ordering::Relaxed) == 0);
        let again = consumer(&socket);
        socket.tell(&message(7));
        drop(socket);
        assert_eq!(pids(again), [7]);
    }
}
