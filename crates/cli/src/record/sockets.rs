//! The sockets of one command's recording: its environment names them, so that several recorders may run side by side.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Context as _;
use warptrace_agent::{
    AnnotationReceiver, AnnotationSocket, Capture, CaptureSocket, SocketOptions,
};
use warptrace_formats::annotation::{CAPTURE_SOCKET_VARIABLE, SOCKET_VARIABLE};

pub(super) type Annotations = (AnnotationSocket, AnnotationReceiver);

/// A socket for one command, whose environment `env` names it: several recorders may run side by side.
pub(super) fn annotation_socket(
    data: &Path,
    env: &mut Vec<(OsString, OsString)>,
) -> anyhow::Result<Annotations> {
    let mut options = SocketOptions::usual(data)?;
    let name = format!("annotate-{}.sock", std::process::id());
    options.path.set_file_name(name);
    let path = options.path.clone();
    let started = AnnotationSocket::start(options).context("cannot listen for annotations")?;
    env.push((SOCKET_VARIABLE.into(), path.into()));
    Ok(started)
}

/// Where one command's job asks to be recorded; its environment `env` names it. Without it the job is recorded all the same, unless it
/// is `needed`.
pub(super) fn capture_socket(
    data: &Path,
    env: &mut Vec<(OsString, OsString)>,
    capture: Capture,
    needed: bool,
) -> anyhow::Result<Option<CaptureSocket>> {
    let started = SocketOptions::usual(data).and_then(|usual| {
        let name = format!("capture-{}.sock", std::process::id());
        CaptureSocket::start(&usual.path.with_file_name(name), capture)
    });
    match started {
        Ok(socket) => {
            env.push((CAPTURE_SOCKET_VARIABLE.into(), socket.path().into()));
            Ok(Some(socket))
        }
        Err(e) if needed => Err(e).context("the job could not ask to be recorded"),
        Err(e) => {
            tracing::info!(error = %e, "the job is not told that it is recorded");
            Ok(None)
        }
    }
}
