//! The binary under test in an empty folder, and skips that are counted.
#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Records take a CPU and demos pin theirs: one at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// The machine to ourselves.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An empty home, and the binary in it.
pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
    binary: PathBuf,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home {
            dir: tempfile::tempdir().expect("a temporary folder"),
            binary: env!("CARGO_BIN_EXE_warptrace").into(),
        }
    }

    /// Only a copy of the binary, in an empty folder.
    pub(crate) fn with_copied_binary() -> Home {
        let mut home = Home::new();
        let copy = home.dir.path().join("only/warptrace");
        std::fs::create_dir(copy.parent().unwrap()).unwrap();
        // Another process's descriptor: one of ours, in a child that another test forks meanwhile, would keep the copy "busy".
        let copied = Command::new("cp").arg(&home.binary).arg(&copy).status();
        assert!(
            copied.is_ok_and(|s| s.success()),
            "the binary can be copied"
        );
        home.binary = copy;
        home
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The command, with nothing of our own environment that it listens to.
    pub(crate) fn command<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(
        &self,
        args: I,
    ) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("WARPTRACE_DATA", self.data())
            .env("NO_COLOR", "1");
        for name in [
            "SUDO_UID",
            "SUDO_GID",
            "SUDO_USER",
            "LD_AUDIT",
            "LD_PRELOAD",
            "SIMGPU_SHM",
            "WARPTRACE_RINGS",
            "WARPTRACE_CONFIG",
        ] {
            command.env_remove(name);
        }
        command
    }

    pub(crate) fn run<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(&self, args: I) -> Ran {
        Ran::from(self.command(args).output().expect("the binary starts"))
    }

    /// Where simgpu's libraries are.
    pub(crate) fn simgpu(&self) -> PathBuf {
        assert!(
            self.run(["check"]).code.is_some(),
            "writes the carried libraries"
        );
        let mut found = std::fs::read_dir(self.data())
            .unwrap()
            .flatten()
            .map(|e| e.path().join("simgpu"));
        found
            .find(|p| p.is_dir())
            .expect("the libraries are written")
    }

    /// Folders of the sessions, oldest first.
    pub(crate) fn sessions(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = std::fs::read_dir(self.data().join("sessions"))
            .map(|entries| {
                entries
                    .flatten()
                    .map(|e| e.path())
                    .filter(|p| p.is_dir())
                    .collect()
            })
            .unwrap_or_default();
        found.sort();
        found
    }
}

/// What a run said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        let line = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {self:#?}"))
    }
}

/// Whether this machine lets us trace; counts a skip with its reason when not.
pub(crate) fn can_trace(test: &str) -> bool {
    match warptrace_capture::ebpf::kernel::Kernel::probe().refusal() {
        None => true,
        Some(why) => {
            skip(test, &format!("eBPF is not allowed here: {why}"));
            false
        }
    }
}

/// Counts a skipped test.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../skipped");
    let _ = std::fs::create_dir_all(&folder);
    let _ = std::fs::write(folder.join(format!("{test}.txt")), reason);
}
