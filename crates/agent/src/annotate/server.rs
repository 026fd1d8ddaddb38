//! The thread that serves every connection.
//!
//! One epoll, one read a round and connection, so that nobody waits for somebody else's flood. It never waits for the
//! pipeline, and what it holds is bounded: an unfinished line and a few looked-up processes a connection.
//!
//! Many senders that write one line at a time would cost a round of system calls a line. So when rounds come fast, each waits a
//! fifth of a millisecond for more ([`Pace`]): a receive time is late by that at most, and only under such a load.

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tracing::{debug, warn};
use warptrace_capture::clock;
use warptrace_formats::annotation::{Draft, Lines, RateWindow, Refusal, check_scope};
use warptrace_model::{Annotation, BootNanos, ClockAnchor, Incarnation, Pid, Sender};

use super::Limits;
use super::counts::{AnnotationCounts, ConnectionLoss, LineLoss};
use super::peers::{Found, Peers, View};
use super::place::Bound;
use super::queue::Filler;

/// Bytes of one read: what a sender's buffer holds by default is read in a few turns.
const READ_BYTES: usize = 64 << 10;
/// Reads of one connection when the server stops: what it had sent by then is taken in, what it goes on sending is not.
const LAST_READS: usize = 64;
/// Connections accepted in one turn.
const ACCEPT_AT_ONCE: usize = 64;
/// How long nothing is accepted when the kernel has no descriptors left.
const ACCEPT_PAUSE_MILLIS: u16 = 100;
/// How long a looked-up process is taken as it was. A pid that comes again in between is still another incarnation.
const KNOWN_NANOS: u64 = 1_000_000_000;
/// Looked-up processes kept for one connection.
const KNOWN: usize = 256;
/// Look-ups of one user in a second, over all of its connections: 2 % of a core's time.
const LOOKUPS_PER_SEC: u32 = 500;
/// Rounds in one millisecond that are begun at once; before any more, lines are left to gather.
const PROMPT_ROUNDS: u32 = 8;
const PACE_NANOS: u64 = 1_000_000;
/// How long lines gather. A sender's buffer holds 278 of its writes by default (Linux 6.18), at a microsecond each.
const GATHER: Duration = Duration::from_micros(200);
/// Lines that are handed over in the middle of a round.
const BATCH_LINES: usize = 4096;
/// How often the clocks are compared.
const ANCHOR_EVERY_NANOS: u64 = 1_000_000_000;

const WAKE: u64 = 0;

pub(super) struct Server {
    epoll: Epoll,
    wake: Arc<EventFd>,
    places: Vec<Bound>,
    /// By their number in epoll, which is never used again.
    connections: HashMap<u64, Connection>,
    next: u64,
    accepting: bool,
    pace: Pace,
    intake: Intake,
    buffer: Vec<u8>,
}

/// How fast rounds come.
#[derive(Default)]
struct Pace {
    since: BootNanos,
    rounds: u32,
}

impl Pace {
    /// Notes a round that begins now, and says whether lines should gather first.
    fn is_fast(&mut self, now: BootNanos) -> bool {
        if now.since(self.since) >= PACE_NANOS {
            (self.since, self.rounds) = (now, 0);
        }
        self.rounds += 1;
        self.rounds > PROMPT_ROUNDS
    }
}

struct Connection {
    stream: UnixStream,
    lines: Lines,
    speaker: Speaker,
}

/// Who sends on a connection, and what may still come of it.
struct Speaker {
    sender: Sender,
    rate: Option<RateWindow>,
    /// The sending process, once it has been looked up.
    itself: Option<(Found, View)>,
    known: HashMap<u32, (BootNanos, Option<Found>)>,
    /// The last of them that was there: lines of one connection are nearly always about one process.
    last: Option<(u32, BootNanos, Found)>,
}

/// What all connections share.
struct Intake {
    limits: Limits,
    our_uid: u32,
    peers: Peers,
    users: HashMap<u32, User>,
    anchor: ClockAnchor,
    anchored: BootNanos,
    received: BootNanos,
    batch: Vec<Annotation>,
    queue: Filler,
    counts: Arc<AnnotationCounts>,
}

struct User {
    connections: usize,
    lookups: RateWindow,
}

impl Server {
    pub(super) fn new(
        places: Vec<Bound>,
        wake: Arc<EventFd>,
        limits: Limits,
        queue: Filler,
        counts: Arc<AnnotationCounts>,
    ) -> io::Result<Server> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        for (place, number) in places.iter().zip(WAKE + 1..) {
            epoll.add(
                &place.listener,
                EpollEvent::new(EpollFlags::EPOLLIN, number),
            )?;
        }
        let anchor = clock::anchor();
        Ok(Server {
            epoll,
            wake,
            next: WAKE + 1 + places.len() as u64,
            places,
            connections: HashMap::new(),
            accepting: true,
            pace: Pace::default(),
            intake: Intake {
                limits,
                our_uid: nix::unistd::geteuid().as_raw(),
                peers: Peers::new(),
                users: HashMap::new(),
                anchor,
                anchored: anchor.boot,
                received: anchor.boot,
                batch: Vec::new(),
                queue,
                counts,
            },
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Serves until it is woken, then takes in what had been sent by then.
    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let timeout = match self.accepting {
                true => EpollTimeout::NONE,
                false => ACCEPT_PAUSE_MILLIS.into(),
            };
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(e) => {
                    warn!(error = %e, "the annotation socket ended");
                    return;
                }
            };
            if !self.accepting {
                self.listen(true);
            }
            if self.pace.is_fast(clock::boot_now()) {
                std::thread::sleep(GATHER);
            }
            for event in &events[..ready] {
                match event.data() {
                    WAKE => return self.finish(),
                    place if place <= self.places.len() as u64 => self.accept(place),
                    connection => self.serve(connection, 1),
                }
            }
            self.intake.hand_over();
        }
    }

    fn finish(mut self) {
        for place in 1..=self.places.len() as u64 {
            self.accept(place);
        }
        // Senders that come from now on are told that nobody is here.
        self.places.clear();
        let open: Vec<u64> = self.connections.keys().copied().collect();
        for connection in open {
            self.serve(connection, LAST_READS);
            self.close(connection);
        }
        self.intake.hand_over();
        let _ = self.wake.read();
    }

    fn listen(&mut self, accepting: bool) {
        self.accepting = accepting;
        let interest = match accepting {
            true => EpollFlags::EPOLLIN,
            false => EpollFlags::empty(),
        };
        for (place, number) in self.places.iter().zip(WAKE + 1..) {
            let mut event = EpollEvent::new(interest, number);
            let _ = self.epoll.modify(&place.listener, &mut event);
        }
    }

    fn accept(&mut self, place: u64) {
        for _ in 0..ACCEPT_AT_ONCE {
            let Some(place) = self.places.get(place as usize - 1) else {
                return;
            };
            match place.listener.accept() {
                Ok((stream, _)) => self.take(stream),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // It went away again while it waited.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    if self.intake.counts.count_cut(ConnectionLoss::AcceptFailed) {
                        warn!(error = %e, "a sender of annotations could not be accepted; more are counted only");
                    }
                    self.listen(false);
                    return;
                }
            }
        }
    }

    fn take(&mut self, stream: UnixStream) {
        let cut = |reason: ConnectionLoss| {
            if self.intake.counts.count_cut(reason) {
                warn!(
                    reason = reason.name(),
                    "a sender of annotations was turned away; more are counted only"
                );
            }
        };
        let Ok(credentials) = getsockopt(&stream, PeerCredentials) else {
            return cut(ConnectionLoss::NoCredentials);
        };
        let sender = Sender {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: u32::try_from(credentials.pid()).unwrap_or(0),
        };
        if self.connections.len() >= self.intake.limits.connections {
            return cut(ConnectionLoss::TooMany);
        }
        let of_user = self
            .intake
            .users
            .get(&sender.uid)
            .map_or(0, |u| u.connections);
        if of_user >= self.intake.limits.connections_per_user {
            return cut(ConnectionLoss::TooManyOfUser);
        }
        let number = self.next;
        let watched = stream.set_nonblocking(true).and_then(|()| {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
            Ok(self.epoll.add(&stream, event)?)
        });
        if watched.is_err() {
            return cut(ConnectionLoss::AcceptFailed);
        }
        self.next += 1;
        self.intake.user(sender.uid).connections += 1;
        self.intake.counts.opened();
        debug!(
            uid = sender.uid,
            pid = sender.pid,
            "a sender of annotations"
        );
        let mut speaker = Speaker {
            sender,
            rate: self.intake.limits.lines_per_sec.map(RateWindow::new),
            itself: None,
            known: HashMap::new(),
            last: None,
        };
        // Asked for at once: a process that sends one line and ends may be gone when that is read.
        self.intake.tick();
        let _ = self.intake.itself(&mut speaker);
        let connection = Connection {
            stream,
            lines: Lines::default(),
            speaker,
        };
        self.connections.insert(number, connection);
    }

    /// Reads from a connection, `reads` times at most, and closes it when it has ended.
    fn serve(&mut self, number: u64, reads: usize) {
        let Some(Connection {
            stream,
            lines,
            speaker,
        }) = self.connections.get_mut(&number)
        else {
            return;
        };
        let intake = &mut self.intake;
        for _ in 0..reads {
            let over = match stream.read(&mut self.buffer) {
                Ok(0) => {
                    intake.tick();
                    lines.finish(|line| intake.line(speaker, line));
                    true
                }
                Ok(n) => {
                    intake.tick();
                    let pushed = lines.push(&self.buffer[..n], |line| intake.line(speaker, line));
                    if pushed.is_err() {
                        intake.lost(LineLoss::Refused(Refusal::LineTooLong), &speaker.sender);
                        intake.counts.count_cut(ConnectionLoss::Oversized);
                    }
                    pushed.is_err()
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Its process was killed with lines of ours unread, or the like: what came before stands.
                Err(_) => true,
            };
            if intake.batch.len() >= BATCH_LINES {
                intake.hand_over();
            }
            if over {
                return self.close(number);
            }
        }
    }

    fn close(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            let _ = self.epoll.delete(&connection.stream);
            let uid = connection.speaker.sender.uid;
            self.intake.user(uid).connections -= 1;
            self.intake.counts.closed();
        }
    }
}

impl Intake {
    /// Notes the time at which bytes were read.
    fn tick(&mut self) {
        let now = clock::boot_now();
        if now.since(self.anchored) >= ANCHOR_EVERY_NANOS {
            self.anchored = now;
            self.anchor = clock::anchor();
        }
        self.received = self.received.max(now);
    }

    fn user(&mut self, uid: u32) -> &mut User {
        if self.users.len() > 1024 {
            self.users.retain(|_, user| user.connections > 0);
        }
        self.users.entry(uid).or_insert_with(|| User {
            connections: 0,
            lookups: RateWindow::new(LOOKUPS_PER_SEC),
        })
    }

    fn line(&mut self, speaker: &mut Speaker, line: &[u8]) {
        let taken = self.read_line(speaker, line);
        match taken {
            Ok(annotation) => self.batch.push(annotation),
            Err(loss) => self.lost(loss, &speaker.sender),
        }
    }

    fn read_line(&mut self, speaker: &mut Speaker, line: &[u8]) -> Result<Annotation, LineLoss> {
        // Lines of one read keep their order in time.
        self.received = self.received.plus(1);
        if let Some(rate) = &mut speaker.rate
            && !rate.take(self.received.0)
        {
            return Err(LineLoss::RateLimited);
        }
        let refused = LineLoss::Refused;
        let draft = Draft::decode(line).map_err(refused)?;
        let scope = match draft.pid() {
            Some(pid) => Some(self.claimed(speaker, pid, draft.start_time())?),
            None => self.unclaimed(speaker)?,
        };
        let line = draft.check().map_err(refused)?;
        if scope.is_some() && line.pid.is_none() {
            self.counts.count_narrowed();
        }
        Ok(line.into_annotation(self.received, &self.anchor, scope, Some(speaker.sender)))
    }

    /// The process that a line names.
    fn claimed(
        &mut self,
        speaker: &mut Speaker,
        pid: u32,
        start_time: Option<u64>,
    ) -> Result<Incarnation, LineLoss> {
        let refused = LineLoss::Refused;
        let now = self.received;
        let found = match speaker.last {
            Some((of, at, found)) if of == pid && now.since(at) < KNOWN_NANOS => found,
            _ => {
                let (at, found) = self.find(speaker, pid)?;
                let found = found.ok_or(refused(Refusal::PidUnverifiable))?;
                speaker.last = Some((pid, at, found));
                found
            }
        };
        check_scope(start_time, speaker.sender.uid, found.target).map_err(refused)?;
        Ok(incarnation(found))
    }

    /// Who a pid of the sender's is, and when that was looked up.
    fn find(
        &mut self,
        speaker: &mut Speaker,
        pid: u32,
    ) -> Result<(BootNanos, Option<Found>), LineLoss> {
        let now = self.received;
        if let Some((at, found)) = speaker.known.get(&pid)
            && now.since(*at) < KNOWN_NANOS
        {
            return Ok((*at, *found));
        }
        let (itself, view) = self.itself(speaker)?;
        let found = match view {
            View::Theirs(_, own) if own == pid => Some(itself),
            View::Ours if itself.pid == pid => Some(itself),
            view => {
                self.look_up(speaker.sender.uid)?;
                self.peers.find(view, pid)
            }
        };
        if speaker.known.len() >= KNOWN {
            speaker.known.clear();
        }
        speaker.known.insert(pid, (now, found));
        Ok((now, found))
    }

    /// Whom a line without a process is about. The superuser and our own user speak for everything that is recorded, from
    /// where they see what we see; everybody else for the process that they are.
    fn unclaimed(&mut self, speaker: &mut Speaker) -> Result<Option<Incarnation>, LineLoss> {
        let uid = speaker.sender.uid;
        let (itself, view) = self.itself(speaker)?;
        if view == View::Ours && (uid == 0 || uid == self.our_uid) {
            return Ok(None);
        }
        check_scope(None, uid, itself.target).map_err(LineLoss::Refused)?;
        Ok(Some(incarnation(itself)))
    }

    /// The process that opened the connection.
    fn itself(&mut self, speaker: &mut Speaker) -> Result<(Found, View), LineLoss> {
        if let Some(known) = speaker.itself {
            return Ok(known);
        }
        self.look_up(speaker.sender.uid)?;
        let found = self.peers.sender(speaker.sender.pid);
        speaker.itself = found;
        found.ok_or(LineLoss::Refused(Refusal::PidUnverifiable))
    }

    /// Spends one look-up of a user's second.
    fn look_up(&mut self, uid: u32) -> Result<(), LineLoss> {
        let now = self.received.0;
        match self.user(uid).lookups.take(now) {
            true => Ok(()),
            false => Err(LineLoss::LookupLimited),
        }
    }

    fn hand_over(&mut self) {
        let all = self.batch.len();
        let taken = self.queue.push(&mut self.batch);
        self.counts.count_taken(taken);
        if self.counts.count_lost(LineLoss::QueueFull, all - taken) {
            warn!(
                "annotations come faster than they are stored; those that do not fit are counted only"
            );
        }
    }

    fn lost(&self, loss: LineLoss, sender: &Sender) {
        if self.counts.count_lost(loss, 1) {
            let Sender { uid, pid, .. } = *sender;
            warn!(
                reason = loss.name(),
                uid, pid, "an annotation was refused; more are counted only"
            );
        }
    }
}

fn incarnation(found: Found) -> Incarnation {
    Incarnation {
        pid: Pid(found.pid),
        start_ticks: found.target.start_ticks,
    }
}
