//! The annotation socket: where the job says what it is doing.
//!
//! ```text
//!  writers ──► socket ──► wt-annotate: lines, rate, decode, scope, limits ──► bounded queue ──► pipeline
//! ```
//!
//! Clients send lines ([`warptrace_formats::annotation`]) and get nothing back. One thread serves all of them; it waits
//! neither for a client nor for the pipeline. Any user may connect: what a line may label is decided by the credentials
//! that the kernel gives of its sender, and pids are read as the sender's pid namespace numbers them
//! (docs/decisions/020-annotation-socket.md). What is not taken is counted by reason.
//!
//! It does not know what labels mean, nor who is being recorded.

mod counts;
mod peers;
pub(crate) mod place;
mod queue;
mod server;
mod switch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tracing::{info, warn};
use warptrace_formats::annotation::{Surroundings, USUAL_LINES_PER_SEC};

pub use counts::{AnnotationCounts, ConnectionLoss, LineLoss};
pub use place::SocketError;
pub use queue::AnnotationReceiver;
pub use switch::{Capture, CaptureSocket};

use place::{Bound, Open, is_of_machine};
use server::Server;

/// What is taken from whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Lines a second and connection; `None`: as many as come.
    pub lines_per_sec: Option<u32>,
    pub connections: usize,
    pub connections_per_user: usize,
    /// Memory of what waits for the pipeline.
    pub queue_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            lines_per_sec: Some(USUAL_LINES_PER_SEC),
            connections: 768,
            connections_per_user: 256,
            queue_bytes: 16 << 20,
        }
    }
}

/// Where to listen, and the limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOptions {
    /// Our own path.
    pub path: PathBuf,
    /// A path where existing writers look, taken only while nobody else has it.
    pub peer_path: Option<PathBuf>,
    pub limits: Limits,
}

impl SocketOptions {
    /// The usual places of this process' user and environment, with `data` as the data folder.
    ///
    /// # Errors
    /// None while there is a data folder.
    pub fn usual(data: &Path) -> Result<SocketOptions, SocketError> {
        let around = Surroundings {
            data: Some(data.to_owned()),
            ..Surroundings::new(is_of_machine(), |name| std::env::var_os(name))
        };
        Ok(SocketOptions {
            path: around.own_socket().ok_or(SocketError::NoPlace)?,
            peer_path: around.peer_socket(),
            limits: Limits::default(),
        })
    }
}

/// A listening socket. Dropping it stops it.
#[derive(Debug)]
pub struct AnnotationSocket {
    thread: Option<JoinHandle<()>>,
    wake: Arc<EventFd>,
    counts: Arc<AnnotationCounts>,
    paths: Vec<PathBuf>,
    not_taken: Option<SocketError>,
}

impl AnnotationSocket {
    /// Takes the places and starts to listen. What comes is in the receiver, on the boot clock.
    ///
    /// That the peer path could not be taken is no error: [`AnnotationSocket::not_taken`].
    ///
    /// # Errors
    /// [`SocketError`]: our own path could not be taken, or the machine gives no thread.
    pub fn start(
        options: SocketOptions,
    ) -> Result<(AnnotationSocket, AnnotationReceiver), SocketError> {
        let open = Open::usual();
        let mut places = vec![Bound::new(&options.path, open, true)?];
        let mut not_taken = None;
        if let Some(path) = &options.peer_path {
            match Bound::new(path, open, false) {
                Ok(place) => places.push(place),
                Err(e) => not_taken = Some(e),
            }
        }
        places[0].end_turn();
        let paths: Vec<PathBuf> = places.iter().map(|place| place.path.clone()).collect();
        let counts = Arc::new(AnnotationCounts::default());
        let (filler, receiver) = queue::queue(options.limits.queue_bytes);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(|e| SocketError::Thread(e.into()))?;
        let wake = Arc::new(wake);
        let server = Server::new(
            places,
            Arc::clone(&wake),
            options.limits,
            filler,
            Arc::clone(&counts),
        )
        .map_err(SocketError::Thread)?;
        let thread = Builder::new()
            .name("wt-annotate".to_owned())
            .spawn(move || server.run())
            .map_err(SocketError::Thread)?;
        info!(paths = ?paths, "annotations are taken");
        if let Some(e) = &not_taken {
            info!(error = %e, "writers made for another agent are not heard");
        }
        let socket = AnnotationSocket {
            thread: Some(thread),
            wake,
            counts,
            paths,
            not_taken,
        };
        Ok((socket, receiver))
    }

    /// Where it listens: our own path, and the peer path if that was to be had.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Why the peer path was not taken.
    pub fn not_taken(&self) -> Option<&SocketError> {
        self.not_taken.as_ref()
    }

    /// What became of connections and lines, also after it has stopped.
    pub fn counts(&self) -> Arc<AnnotationCounts> {
        Arc::clone(&self.counts)
    }

    /// Takes in what senders have sent by now, closes their connections, and leaves the places. The receiver then ends.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if let Err(e) = self.wake.write(1) {
            warn!(error = %e, "the annotation socket cannot be stopped");
            return;
        }
        if thread.join().is_err() {
            warn!("the annotation socket's thread panicked");
        }
    }
}

impl Drop for AnnotationSocket {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
