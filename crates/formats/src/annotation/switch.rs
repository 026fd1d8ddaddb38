//! The capture socket, beside the annotation socket: where a job asks to be recorded for a while.
//!
//! ```text
//!  job ──► recorder    resume/1 LF        from now on, and as long as this connection stands
//!      ◄──             resumed LF         it is recorded from here on; `on` when it is in any case; `refused`
//!      ──►             pause/1 LF         no longer on my account
//!      ◄──             paused LF          from here on nothing is recorded; `on` while others hold
//! ```
//!
//! Each line is answered by one. A connection that ends, as that of a process that is killed, says `pause`.

use std::path::{Path, PathBuf};

use super::Surroundings;

/// Name of the socket, in the folder of the annotation socket.
pub const CAPTURE_SOCKET_NAME: &str = "capture.sock";
/// Names a socket; a recorder sets it for the command that it starts.
pub const CAPTURE_SOCKET_VARIABLE: &str = "WARPTRACE_CAPTURE_SOCKET";
/// No line is longer, its line feed included; of a longer one the connection ends.
pub const MAX_CAPTURE_LINE_BYTES: usize = 64;

/// What a job asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureRequest {
    /// Record until I say otherwise, or am gone.
    Resume,
    /// I do not need it any more.
    Pause,
}

/// What it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureAnswer {
    /// It is recorded from now on, because somebody asked for it.
    Resumed,
    /// It is recorded: in any case, or, after a pause, because of others.
    On,
    /// Nothing is recorded from now on.
    Paused,
    /// It is not for this process to say, or it is not one that is recorded.
    Refused,
}

impl CaptureRequest {
    /// The line, with its line feed.
    pub const fn encode(self) -> &'static [u8] {
        match self {
            CaptureRequest::Resume => b"resume/1\n",
            CaptureRequest::Pause => b"pause/1\n",
        }
    }

    /// Of a line without its line feed.
    pub fn decode(line: &[u8]) -> Option<CaptureRequest> {
        let all = [CaptureRequest::Resume, CaptureRequest::Pause];
        let mut found = all.into_iter();
        found.find(|r| r.encode().strip_suffix(b"\n") == Some(line))
    }
}

impl CaptureAnswer {
    /// The line, with its line feed.
    pub const fn encode(self) -> &'static [u8] {
        match self {
            CaptureAnswer::Resumed => b"resumed\n",
            CaptureAnswer::On => b"on\n",
            CaptureAnswer::Paused => b"paused\n",
            CaptureAnswer::Refused => b"refused\n",
        }
    }

    /// Of a line without its line feed.
    pub fn decode(line: &[u8]) -> Option<CaptureAnswer> {
        let all = [
            CaptureAnswer::Resumed,
            CaptureAnswer::On,
            CaptureAnswer::Paused,
            CaptureAnswer::Refused,
        ];
        let mut found = all.into_iter();
        found.find(|a| a.encode().strip_suffix(b"\n") == Some(line))
    }
}

/// The capture socket in the folder of `annotation_socket`.
pub fn capture_socket_beside(annotation_socket: &Path) -> PathBuf {
    annotation_socket.with_file_name(CAPTURE_SOCKET_NAME)
}

impl Surroundings {
    /// Where a job looks, the first that takes its connection: the machine's before the user's. Other agents have no such socket.
    pub fn capture_candidates(&self) -> Vec<PathBuf> {
        let own = self.own_candidates();
        own.iter()
            .map(|place| capture_socket_beside(place))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read_as_what_it_was_written_as() {
        for request in [CaptureRequest::Resume, CaptureRequest::Pause] {
            let line = request.encode().strip_suffix(b"\n").expect("a line");
            assert_eq!(CaptureRequest::decode(line), Some(request));
            assert!(line.len() < MAX_CAPTURE_LINE_BYTES);
        }
        for answer in [
            CaptureAnswer::Resumed,
            CaptureAnswer::On,
            CaptureAnswer::Paused,
            CaptureAnswer::Refused,
        ] {
            let line = answer.encode().strip_suffix(b"\n").expect("a line");
            assert_eq!(CaptureAnswer::decode(line), Some(answer));
        }
        for other in [&b""[..], b"resume", b"resume/2", b"resume/1\n", b"\xff"] {
            assert_eq!(CaptureRequest::decode(other), None);
            assert_eq!(CaptureAnswer::decode(other), None);
        }
    }

    #[test]
    fn a_job_looks_where_our_recorders_listen_and_nowhere_else() {
        let here = |is_root| {
            Surroundings::new(is_root, |name| match name {
                "HOME" => Some("/h".into()),
                "XDG_RUNTIME_DIR" => Some("/r".into()),
                _ => None,
            })
        };
        let candidates = here(false).capture_candidates();
        for is_root in [true, false] {
            let own = here(is_root).own_socket().expect("a place");
            assert!(candidates.contains(&capture_socket_beside(&own)));
        }
        let shown: Vec<_> = candidates.iter().map(|c| c.to_string_lossy()).collect();
        assert!(
            !shown.iter().any(|place| place.contains("ingero")),
            "{shown:?}"
        );
    }
}
