//! The example `live` on a pseudo terminal: keys, signals, and the terminal as it was found.
//!
//! `cargo test -p warptrace-tui` builds the example; with `--test terminal` alone it may be an old one.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};

const CTRL_C: &[u8] = b"\x03";
const CTRL_Z: &[u8] = b"\x1a";
const LEAVE_ALTERNATE_SCREEN: &str = "\x1b[?1049l";

/// A terminal with the example in its foreground.
struct Session {
    /// The master side. On Linux its settings are the terminal's.
    keyboard: File,
    before: Termios,
    child: Child,
    output: Vec<u8>,
}

impl Session {
    fn start(args: &[&str]) -> Session {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // One at a time: the descriptors of `openpty` would go to the other tests' children, too, and hold this
        // terminal open when its own child is gone.
        static OPENING: Mutex<()> = Mutex::new(());
        let _opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        let pty = openpty(&size, None).unwrap();
        for fd in [&pty.master, &pty.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let before = tcgetattr(&pty.master).unwrap();
        let terminal = || Stdio::from(pty.slave.try_clone().unwrap());
        // setsid(1) makes it the controlling terminal, from which Ctrl-C comes as a signal. timeout(1) only turns a
        // test that would wait for ever into one that fails and shows its screen.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", "timeout", "--foreground", "60"])
            .arg(example())
            .args(args)
            .env("TERM", "xterm-256color")
            .stdin(terminal())
            .stdout(terminal())
            .stderr(terminal())
            .spawn()
            .expect("setsid (util-linux) and timeout (coreutils) start the example");
        Session {
            keyboard: File::from(pty.master),
            before,
            child,
            output: Vec::new(),
        }
    }

    /// Reads what the example writes until `text` is there. A terminal that nobody holds any more gives EIO.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        let mut bytes = [0; 4096];
        while !self.shown().contains(text) {
            match self.keyboard.read(&mut bytes) {
                Ok(n) if n > 0 => self.output.extend_from_slice(&bytes[..n]),
                end => panic!("{end:?} before {text:?} in {:?}", self.shown()),
            }
        }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Waits for the example's end, and checks that it left the terminal as it was; gives its exit code.
    #[track_caller]
    fn end(mut self) -> Option<i32> {
        let status = self.child.wait().unwrap();
        assert!(
            self.shown().contains(LEAVE_ALTERNATE_SCREEN),
            "{:?}",
            self.shown()
        );
        assert_eq!(tcgetattr(&self.keyboard).unwrap(), self.before);
        status.code()
    }
}

fn example() -> PathBuf {
    // target/debug/deps/terminal-HASH -> target/debug/examples/live
    let test = std::env::current_exe().unwrap();
    let target = test.parent().and_then(|deps| deps.parent()).unwrap();
    target.join("examples").join("live")
}

#[test]
fn ctrl_c_stays_a_signal_and_the_terminal_comes_back() {
    let mut session = Session::start(&[]);
    session.expect("cudaStreamSync");
    let during = tcgetattr(&session.keyboard).unwrap();
    assert!(during.local_flags.contains(LocalFlags::ISIG));
    assert!(
        !during
            .local_flags
            .intersects(LocalFlags::ICANON | LocalFlags::ECHO)
    );
    session.press(CTRL_C);
    session.expect("stopped by a signal");
    assert_eq!(session.end(), Some(0));
}

#[test]
fn keys_are_answered_and_ctrl_z_does_not_stop_the_recorder() {
    let mut session = Session::start(&[]);
    session.expect("cudaStreamSync");
    session.press(CTRL_Z);
    session.press(b"?");
    // A word of the help in a row that was empty: only cells that change are sent.
    session.expect("something");
    session.press(b"q");
    session.expect("stopped by a key");
    assert_eq!(session.end(), Some(0));
}

#[test]
fn a_panic_gives_the_terminal_back_before_its_message() {
    let mut session = Session::start(&["panic"]);
    session.expect("as asked");
    let shown = session.shown();
    let (left, message) = (shown.find(LEAVE_ALTERNATE_SCREEN), shown.find("as asked"));
    assert!(left.is_some() && left < message, "{shown}");
    assert_eq!(session.end(), Some(101));
}
