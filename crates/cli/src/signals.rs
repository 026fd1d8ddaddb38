//! Signals as values: what arrived, and whether the terminal sent it to the whole group (the command has it already).

use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::Cause;

/// One signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) signal: i32,
    /// From the terminal, which sends to everybody in the foreground.
    pub(crate) to_the_group: bool,
}

/// Receives SIGINT, SIGTERM, SIGQUIT and SIGHUP instead of dying of them.
#[derive(Debug)]
pub(crate) struct Signals {
    arrived: Receiver<Arrived>,
}

impl Signals {
    pub(crate) fn catch() -> anyhow::Result<Signals> {
        let mut signals = SignalsInfo::<WithOrigin>::new([SIGINT, SIGTERM, SIGQUIT, SIGHUP])?;
        let (sender, arrived) = sync_channel(16);
        std::thread::Builder::new()
            .name("wt-signals".into())
            .spawn(move || {
                for origin in &mut signals {
                    let arrived = Arrived {
                        signal: origin.signal,
                        to_the_group: origin.cause == Cause::Kernel,
                    };
                    if sender.send(arrived).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Signals { arrived })
    }

    /// The next signal, waiting up to `patience`.
    pub(crate) fn wait(&self, patience: Duration) -> Option<Arrived> {
        match self.arrived.recv_timeout(patience) {
            Ok(arrived) => Some(arrived),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                std::thread::sleep(patience);
                None
            }
        }
    }
}
