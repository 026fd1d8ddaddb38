//! The capture socket: jobs that switch recording on for a while.
//!
//! Whoever asks holds until it lets go, its connection ends, or its process is gone (a forked child may have the connection, too).
//! While anybody holds, recording is on. One thread answers all of them; it waits for nobody, and what it keeps of a
//! connection is a line. It does not know how recording is switched.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tracing::{info, warn};
use warptrace_formats::annotation::{CaptureAnswer, CaptureRequest, MAX_CAPTURE_LINE_BYTES};

use super::peers::{Found, Peers};
use super::place::{Bound, Open, SocketError};

/// Connections at once; more are closed at once.
const MAX_CONNECTIONS: usize = 1024;
/// How often the processes of those who hold are looked for.
const LOOK_EVERY_MILLIS: u16 = 500;
/// Levels of parents that are looked at to find whose child a process is.
const MAX_PARENTS: usize = 64;

const WAKE: u64 = 0;
const LISTENER: u64 = 1;

/// What jobs may switch.
pub enum Capture {
    /// Recording is on in any case: of these processes and their children, or of all.
    Always(Option<Vec<u32>>),
    /// Recording is on while anybody holds; this switches it. Only our own user and the superuser may.
    Switched(Box<dyn FnMut(bool) -> io::Result<()> + Send>),
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Capture::Always(pids) => f.debug_tuple("Always").field(pids).finish(),
            Capture::Switched(_) => f.write_str("Switched"),
        }
    }
}

/// A listening capture socket. Dropping it stops it, and leaves recording as it is.
#[derive(Debug)]
pub struct CaptureSocket {
    thread: Option<JoinHandle<()>>,
    wake: Arc<EventFd>,
    path: PathBuf,
}

impl CaptureSocket {
    /// Takes the place `path`, and answers.
    ///
    /// # Errors
    /// [`SocketError`]: the place could not be taken, or the machine gives no thread.
    pub fn start(path: &Path, capture: Capture) -> Result<CaptureSocket, SocketError> {
        let open = Open::usual();
        let mut place = Bound::new(path, open, true)?;
        place.end_turn();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(|e| SocketError::Thread(e.into()))?;
        let wake = Arc::new(wake);
        let server = Server::new(place, &wake, capture).map_err(SocketError::Thread)?;
        let thread = Builder::new()
            .name("wt-switch".to_owned())
            .spawn(move || server.run())
            .map_err(SocketError::Thread)?;
        info!(path = ?path, "jobs may ask to be recorded");
        Ok(CaptureSocket {
            thread: Some(thread),
            wake,
            path: path.to_owned(),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for CaptureSocket {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if let Err(e) = self.wake.write(1) {
            warn!(error = %e, "the capture socket cannot be stopped");
            return;
        }
        if thread.join().is_err() {
            warn!("the capture socket's thread panicked");
        }
    }
}

struct Server {
    epoll: Epoll,
    place: Bound,
    capture: Capture,
    our_uid: u32,
    peers: Peers,
    connections: HashMap<u64, Connection>,
    next: u64,
    holders: usize,
}

struct Connection {
    stream: UnixStream,
    uid: u32,
    /// The process that connected, where it can be looked up.
    process: Option<Found>,
    holds: bool,
    line: Vec<u8>,
}

/// The connection is over.
struct Over;

impl Server {
    fn new(place: Bound, wake: &EventFd, capture: Capture) -> io::Result<Server> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
        epoll.add(&place.listener, event)?;
        Ok(Server {
            epoll,
            place,
            capture,
            our_uid: nix::unistd::geteuid().as_raw(),
            peers: Peers::new(),
            connections: HashMap::new(),
            next: LISTENER + 1,
            holders: 0,
        })
    }

    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let timeout = match self.holders {
                0 => EpollTimeout::NONE,
                _ => LOOK_EVERY_MILLIS.into(),
            };
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(e) => {
                    warn!(error = %e, "the capture socket ended");
                    return;
                }
            };
            for event in &events[..ready] {
                match event.data() {
                    WAKE => return,
                    LISTENER => self.accept(),
                    number => {
                        if self.serve(number).is_err() {
                            self.close(number);
                        }
                    }
                }
            }
            // As events come whenever somebody asks, this is no rarer than the timeout.
            if self.holders > 0 {
                self.look_at_lives();
            }
        }
    }

    fn accept(&mut self) {
        let (stream, credentials) = match self.place.listener.accept() {
            Ok((stream, _)) => match getsockopt(&stream, PeerCredentials) {
                Ok(credentials) => (stream, credentials),
                Err(_) => return,
            },
            Err(_) => return,
        };
        if self.connections.len() >= MAX_CONNECTIONS {
            warn!("too many processes ask to be recorded; one more is not heard");
            return;
        }
        let number = self.next;
        let watched = stream.set_nonblocking(true).and_then(|()| {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
            Ok(self.epoll.add(&stream, event)?)
        });
        if watched.is_err() {
            return;
        }
        self.next += 1;
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        let connection = Connection {
            stream,
            uid: credentials.uid(),
            process: self.peers.sender(pid).map(|(found, _)| found),
            holds: false,
            line: Vec::new(),
        };
        self.connections.insert(number, connection);
    }

    fn serve(&mut self, number: u64) -> Result<(), Over> {
        let connection = self.connections.get_mut(&number).ok_or(Over)?;
        let mut chunk = [0; MAX_CAPTURE_LINE_BYTES];
        let read = match connection.stream.read(&mut chunk) {
            Ok(0) => return Err(Over),
            Ok(n) => &chunk[..n],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(_) => return Err(Over),
        };
        connection.line.extend_from_slice(read);
        let mut rest = std::mem::take(&mut connection.line);
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            let request = CaptureRequest::decode(&rest[..end]).ok_or(Over)?;
            rest.drain(..=end);
            let answer = self.answer(number, request)?;
            let connection = self.connections.get_mut(&number).ok_or(Over)?;
            // Who asks and does not read has had enough room for every answer that it could wait for.
            match connection.stream.write(answer.encode()) {
                Ok(n) if n == answer.encode().len() => {}
                _ => return Err(Over),
            }
        }
        if rest.len() >= MAX_CAPTURE_LINE_BYTES {
            return Err(Over);
        }
        let connection = self.connections.get_mut(&number).ok_or(Over)?;
        connection.line = rest;
        Ok(())
    }

    fn answer(&mut self, number: u64, request: CaptureRequest) -> Result<CaptureAnswer, Over> {
        let connection = self.connections.get_mut(&number).ok_or(Over)?;
        if let Capture::Always(pids) = &self.capture {
            let pid = connection.process.map(|found| found.pid);
            return Ok(match is_among(pid, pids.as_deref()) {
                true => CaptureAnswer::On,
                false => CaptureAnswer::Refused,
            });
        }
        if connection.uid != self.our_uid && connection.uid != 0 {
            return Ok(CaptureAnswer::Refused);
        }
        Ok(match request {
            CaptureRequest::Resume => {
                if !connection.holds {
                    connection.holds = true;
                    self.holders += 1;
                    if self.holders == 1 && !self.switch(true) {
                        self.let_go(number);
                        return Ok(CaptureAnswer::Refused);
                    }
                }
                CaptureAnswer::Resumed
            }
            CaptureRequest::Pause => {
                self.let_go(number);
                match self.holders {
                    0 => CaptureAnswer::Paused,
                    _ => CaptureAnswer::On,
                }
            }
        })
    }

    fn switch(&mut self, on: bool) -> bool {
        let Capture::Switched(switch) = &mut self.capture else {
            return true;
        };
        match switch(on) {
            Ok(()) => true,
            Err(e) => {
                warn!(error = %e, on, "recording cannot be switched");
                false
            }
        }
    }

    fn let_go(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if std::mem::take(&mut connection.holds) {
            self.holders -= 1;
            if self.holders == 0 {
                self.switch(false);
            }
        }
    }

    fn close(&mut self, number: u64) {
        self.let_go(number);
        if let Some(connection) = self.connections.remove(&number) {
            let _ = self.epoll.delete(&connection.stream);
        }
    }

    /// Lets go for those whose process is gone, though its connection stands: a child has it.
    fn look_at_lives(&mut self) {
        let gone = |connection: &Connection| {
            let Some(process) = connection.process else {
                return false;
            };
            let now = self.peers.sender(process.pid).map(|(found, _)| found);
            now.is_none_or(|now| now.target.start_ticks != process.target.start_ticks)
        };
        let holding = self.connections.iter().filter(|(_, c)| c.holds);
        let gone: Vec<u64> = holding
            .filter(|(_, c)| gone(c))
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            self.close(number);
        }
    }
}

/// Whether `pid` is one of `pids`, or a child of theirs in any generation; of everybody with `None`.
fn is_among(pid: Option<u32>, pids: Option<&[u32]>) -> bool {
    let (Some(mut pid), Some(pids)) = (pid, pids) else {
        return pids.is_none();
    };
    for _ in 0..MAX_PARENTS {
        if pids.contains(&pid) {
            return true;
        }
        match parent(pid) {
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

/// Field 4 of `/proc/PID/stat`, the second after the name.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(") ")?;
    after.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::mpsc::{Receiver, sync_channel};
    use std::time::Duration;

    use super::*;

    /// Long enough for anything that will happen at all.
    const LONG: Duration = Duration::from_secs(60);

    struct Fixture {
        folder: tempfile::TempDir,
        _socket: CaptureSocket,
        switched: Receiver<bool>,
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(folder.path(), mode).expect("a folder");
        folder
    }

    fn switched() -> Fixture {
        let folder = folder();
        let (tell, switched) = sync_channel(64);
        let switch = move |on| tell.send(on).map_err(io::Error::other);
        let path = folder.path().join("capture.sock");
        let socket = CaptureSocket::start(&path, Capture::Switched(Box::new(switch)));
        Fixture {
            folder,
            _socket: socket.expect("a place"),
            switched,
        }
    }

    struct Peer(BufReader<UnixStream>);

    impl Peer {
        fn new(folder: &tempfile::TempDir) -> Peer {
            let path = folder.path().join("capture.sock");
            Peer(BufReader::new(UnixStream::connect(path).expect("a peer")))
        }

        fn ask(&mut self, line: &str) -> String {
            let asked = self.0.get_mut().write_all(line.as_bytes());
            asked.expect("a recorder");
            let mut answer = String::new();
            self.0.read_line(&mut answer).expect("a recorder");
            answer
        }
    }

    impl Fixture {
        fn now(&self) -> bool {
            self.switched.recv_timeout(LONG).expect("it is switched")
        }
    }

    #[test]
    fn recording_is_on_while_anybody_holds() {
        let fixture = switched();
        let (mut a, mut b) = (Peer::new(&fixture.folder), Peer::new(&fixture.folder));
        assert_eq!(a.ask("resume/1\n"), "resumed\n");
        assert!(fixture.now());
        assert_eq!(b.ask("resume/1\n"), "resumed\n");
        assert_eq!(b.ask("resume/1\n"), "resumed\n", "once is enough");
        assert_eq!(a.ask("pause/1\n"), "on\n");
        assert_eq!(a.ask("pause/1\n"), "on\n", "it holds no more");
        assert_eq!(b.ask("pause/1\n"), "paused\n");
        assert!(!fixture.now());
        assert_eq!(a.ask("resume/1\n"), "resumed\n");
        assert!(fixture.now());
        drop(b);
        drop(a);
        assert!(!fixture.now(), "a connection that ends lets go");
        assert!(fixture.switched.try_recv().is_err());
    }

    #[test]
    fn lines_that_are_none_of_ours_end_the_connection_and_what_it_held() {
        let fixture = switched();
        for bad in ["nonsense\n".to_owned(), "x".repeat(64), "\n".to_owned()] {
            let mut peer = Peer::new(&fixture.folder);
            assert_eq!(peer.ask("resume/1\n"), "resumed\n");
            assert!(fixture.now());
            assert_eq!(peer.ask(&bad), "");
            assert!(!fixture.now());
        }
        let mut slowly = Peer::new(&fixture.folder);
        slowly.0.get_mut().write_all(b"resu").expect("a recorder");
        assert_eq!(slowly.ask("me/1\npause/1\n"), "resumed\n");
        assert!(fixture.now());
        assert!(!fixture.now());
    }

    #[test]
    fn a_holder_that_is_gone_lets_go_though_a_child_has_its_connection() {
        let fixture = switched();
        let path = fixture.folder.path().join("capture.sock");
        // The child inherits the connection, and outlives its parent.
        let script = "import os, socket, sys, time\n\
            s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'resume/1\\n'); s.recv(64)\n\
            child = os.fork()\n\
            if child == 0: sys.stdin.read()\n\
            else: os._exit(0)\n";
        let child = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            let test = "a_holder_that_is_gone_lets_go_though_a_child_has_its_connection";
            return crate::annotate::tests::skip(test, "no python3");
        };
        assert!(fixture.now());
        let hold = child.stdin.take();
        child.wait().expect("a process");
        assert!(!fixture.now());
        drop(hold);
    }

    #[test]
    fn a_recorder_that_is_on_in_any_case_says_so_to_those_whom_it_records() {
        for (pids, want) in [
            (None, "on\n"),
            (Some(vec![std::process::id()]), "on\n"),
            (parent(std::process::id()).map(|p| vec![p]), "on\n"),
            (Some(vec![1]), "refused\n"),
            (Some(Vec::new()), "refused\n"),
        ] {
            let folder = folder();
            let path = folder.path().join("capture.sock");
            let _socket = CaptureSocket::start(&path, Capture::Always(pids.clone()));
            let mut peer = Peer::new(&folder);
            assert_eq!(peer.ask("resume/1\n"), want, "{pids:?}");
            assert_eq!(peer.ask("pause/1\n"), want, "{pids:?}");
        }
    }

    #[test]
    fn a_switch_that_fails_is_refused_and_held_by_nobody() {
        let folder = folder();
        let path = folder.path().join("capture.sock");
        let mut tries = 0;
        let switch = move |on: bool| {
            tries += u32::from(on);
            match tries {
                1 => Err(io::Error::other("no")),
                _ => Ok(()),
            }
        };
        let _socket = CaptureSocket::start(&path, Capture::Switched(Box::new(switch)));
        let mut peer = Peer::new(&folder);
        assert_eq!(peer.ask("resume/1\n"), "refused\n");
        assert_eq!(peer.ask("resume/1\n"), "resumed\n");
    }
}
