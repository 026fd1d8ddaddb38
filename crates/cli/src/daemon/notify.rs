//! What a service manager is told over the socket that `NOTIFY_SOCKET` names (systemd's `sd_notify(3)`): datagrams of
//! `NAME=value` lines.
//!
//! Forty lines of our own instead of a crate: libsystemd is not on every machine, and the protocol is one `send`.

use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use warptrace_model::BootNanos;

/// The service manager's variables, which are ours alone: a child that had them could speak for us.
const VARIABLES: [&str; 4] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "JOURNAL_STREAM",
];

/// How long a manager may take until it has room for what is said.
const PATIENCE: Duration = Duration::from_millis(200);

/// Takes from a command what the service manager told us alone.
pub(crate) fn alone(command: &mut Command) -> &mut Command {
    for name in VARIABLES {
        command.env_remove(name);
    }
    command
}

/// Whoever manages us as a service. Without one all is said to nobody.
#[derive(Debug, Default)]
pub(crate) struct Manager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Watchdog>,
    /// As it was said last.
    status: String,
}

#[derive(Debug)]
struct Watchdog {
    every: Duration,
    told: Instant,
    turned: BootNanos,
}

impl Manager {
    /// By the variables of our environment. A socket that cannot be reached is no failure: we would not be told of it either.
    pub(crate) fn of_process() -> Manager {
        Manager::new(|name| std::env::var_os(name))
    }

    fn new(variable: impl Fn(&str) -> Option<OsString>) -> Manager {
        let socket = variable("NOTIFY_SOCKET").and_then(|place| match connect(&place) {
            Ok(socket) => Some(socket),
            Err(e) => {
                tracing::warn!(error = %e, "the service manager cannot be told anything");
                None
            }
        });
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let micros = number("WATCHDOG_USEC").filter(|micros| *micros > 0 && is_ours);
        Manager {
            watchdog: micros.filter(|_| socket.is_some()).map(|micros| Watchdog {
                every: Duration::from_micros(micros) / 3,
                told: Instant::now(),
                turned: BootNanos(0),
            }),
            socket,
            status: String::new(),
        }
    }

    /// Whether somebody manages us.
    pub(crate) fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// The work has begun, or goes on after a reload.
    pub(crate) fn ready(&mut self, status: &str) {
        self.say("READY=1", status);
    }

    /// The settings are read again; [`Manager::ready`] ends it.
    pub(crate) fn reloading(&mut self) {
        // The manager compares it with the moment at which it asked.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
        let micros = now.unwrap_or_default().as_micros();
        let state = format!("RELOADING=1\nMONOTONIC_USEC={micros}");
        self.say(&state, "reading the settings again");
    }

    pub(crate) fn stopping(&mut self) {
        self.say("STOPPING=1", "sealing the session");
    }

    /// For people who ask `systemctl status`. Cost: nothing when it says what it said before.
    pub(crate) fn status(&mut self, status: &str) {
        if self.status != status {
            self.say("", status);
        }
    }

    /// Says that we live, a few times in the span after which we would be killed, if the recording made progress since the last time:
    /// `turned` is when it last did.
    pub(crate) fn watch(&mut self, turned: BootNanos) {
        let Some(watchdog) = &mut self.watchdog else {
            return;
        };
        if watchdog.told.elapsed() >= watchdog.every && turned > watchdog.turned {
            watchdog.told = Instant::now();
            watchdog.turned = turned;
            self.send("WATCHDOG=1");
        }
    }

    fn say(&mut self, state: &str, status: &str) {
        if self.socket.is_none() {
            return;
        }
        status.clone_into(&mut self.status);
        // A line's end would end the value.
        let status: String = status.chars().filter(|c| !c.is_control()).collect();
        self.send(&format!("{state}\nSTATUS={status}"));
    }

    fn send(&self, state: &str) {
        if let Some(socket) = &self.socket
            && let Err(e) = socket.send(state.trim_start().as_bytes())
        {
            tracing::debug!(error = %e, "the service manager could not be told");
        }
    }
}

fn connect(place: &OsStr) -> std::io::Result<UnixDatagram> {
    let address = match place.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(place)?,
        _ => {
            let why = "neither a path nor an abstract name";
            return Err(std::io::Error::other(why));
        }
    };
    let socket = UnixDatagram::unbound()?;
    // What it does not hear it would act upon; but one that reads nothing must not hold us up.
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> Option<String> {
        let mut datagram = [0; 512];
        socket.set_nonblocking(true).unwrap();
        let n = socket.recv(&mut datagram).ok()?;
        Some(String::from_utf8_lossy(&datagram[..n]).into_owned())
    }

    fn manager(place: OsString, watchdog: &str, pid: u32) -> Manager {
        Manager::new(|name| match name {
            "NOTIFY_SOCKET" => Some(place.clone()),
            "WATCHDOG_USEC" => Some(watchdog.into()),
            "WATCHDOG_PID" => Some(pid.to_string().into()),
            _ => None,
        })
    }

    #[test]
    fn a_manager_is_told_at_a_path_and_at_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("warptrace-test-{}", std::process::id());
        let by_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (place, socket) in [
            (path.clone().into_os_string(), UnixDatagram::bind(&path)),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&by_name)),
        ] {
            let socket = socket.unwrap();
            let mut manager = manager(place, "0", 0);
            manager.ready("two\nlines");
            assert_eq!(heard(&socket).unwrap(), "READY=1\nSTATUS=twolines");
            manager.status("new");
            manager.status("new");
            assert_eq!(heard(&socket).unwrap(), "STATUS=new");
            assert_eq!(heard(&socket), None);
            manager.reloading();
            let reloading = heard(&socket).unwrap();
            assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="));
        }
        assert!(!manager("relative".into(), "0", 0).is_there());
        assert!(!manager("/nowhere/at/all".into(), "0", 0).is_there());
    }

    #[test]
    fn the_watchdog_hears_of_progress_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let place = path.into_os_string();
        let mut ours = manager(place.clone(), "1", std::process::id());
        // A third of a microsecond must have passed.
        let mut told = |turned| loop {
            ours.watch(BootNanos(turned));
            if let Some(said) = heard(&socket) {
                std::thread::sleep(Duration::from_micros(10));
                ours.watch(BootNanos(turned));
                return said;
            }
        };
        assert_eq!(told(5), "WATCHDOG=1");
        assert_eq!(heard(&socket), None, "nothing was done since");
        assert_eq!(told(6), "WATCHDOG=1");
        let mut anothers = manager(place.clone(), "1", 1);
        anothers.watch(BootNanos(7));
        let mut rarely = manager(place, "60000000", std::process::id());
        rarely.watch(BootNanos(7));
        assert_eq!(heard(&socket), None);
    }
}
