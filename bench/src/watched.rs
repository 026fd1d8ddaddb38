//! `warptrace` as a process that is measured.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A start or a stop that takes longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The newest of the binaries in `target`.
///
/// # Errors
/// None is built.
pub fn built() -> anyhow::Result<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let candidates = ["release", "debug"].map(|profile| target.join(profile).join("warptrace"));
    let age = |path: &PathBuf| path.metadata().and_then(|m| m.modified()).ok();
    candidates
        .into_iter()
        .filter(|path| path.exists())
        .max_by_key(age)
        .context("no warptrace is built: `cargo build --bin warptrace`, or give its path")
}

/// A binary, and the folder of its sessions.
pub struct Installed {
    pub binary: PathBuf,
    pub data: PathBuf,
}

impl Installed {
    /// A command of it, whoever started us.
    pub fn warptrace(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env("WARPTRACE_DATA", &self.data)
            .env("NO_COLOR", "1");
        for name in ["SUDO_UID", "SUDO_GID", "SUDO_USER"] {
            command.env_remove(name);
        }
        command
    }

    /// The folder of simgpu's libraries, which `check` writes.
    ///
    /// # Errors
    /// It wrote none.
    pub fn simgpu(&self) -> anyhow::Result<PathBuf> {
        let said = self
            .warptrace()
            .arg("check")
            .output()
            .context("cannot start warptrace")?;
        for entry in std::fs::read_dir(&self.data)? {
            let folder = entry?.path().join("simgpu");
            if folder.join("libcudart.so.12").exists() {
                return Ok(folder);
            }
        }
        bail!(
            "`warptrace check` wrote no libraries: {}",
            String::from_utf8_lossy(&said.stderr)
        )
    }
}

/// A running `warptrace trace`. It dies with this.
pub struct Agent {
    child: Child,
    began: Instant,
}

impl Agent {
    /// Starts `command`; `told` gets each line of its output.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        command: &mut Command,
        mut told: impl FnMut(&str) + Send + 'static,
    ) -> anyhow::Result<Agent> {
        let began = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start warptrace")?;
        let lines = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        // Reads to the end, so that the agent never waits for its reader.
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                told(&line);
            }
        });
        Ok(Agent { child, began })
    }

    pub fn began(&self) -> Instant {
        self.began
    }

    /// Waits for its end after `signal`. Returns how it ended and how long that took.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn stop(&mut self, signal: Signal) -> anyhow::Result<(ExitStatus, Duration)> {
        let began = Instant::now();
        kill(self.pid(), signal)?;
        let status = self.child.wait()?;
        Ok((status, began.elapsed()))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// CPU time until now.
    ///
    /// # Errors
    /// It has ended.
    pub fn spent(&self) -> anyhow::Result<Spent> {
        Ok(Spent {
            cpu_nanos: self.cpu_nanos()?,
            at: Instant::now(),
        })
    }

    /// What it took since then.
    ///
    /// # Errors
    /// It has ended.
    pub fn used_since(&self, before: &Spent) -> anyhow::Result<Use> {
        let nanos = self.cpu_nanos()? - before.cpu_nanos;
        let share = nanos as f64 / before.at.elapsed().as_nanos() as f64;
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = |name: &str| -> anyhow::Result<f64> {
            let line = status
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .context("the kernel tells memory")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<f64>()?)
        };
        Ok(Use {
            share,
            resident: kib("VmRSS:")? * 1024e-6,
            anonymous: kib("RssAnon:")? * 1024e-6,
        })
    }

    /// Time that its threads have run, ns; threads that ended are not in it.
    fn cpu_nanos(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            sum += text
                .split(' ')
                .next()
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0);
        }
        Ok(sum)
    }

    /// Ends it by SIGINT.
    ///
    /// # Errors
    /// It did not end well.
    pub fn end(mut self) -> anyhow::Result<()> {
        let (status, _) = self.stop(Signal::SIGINT)?;
        ensure!(status.success(), "trace ended with {status}");
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of all threads at a moment.
pub struct Spent {
    cpu_nanos: u64,
    at: Instant,
}

pub struct Use {
    /// Of one core, 0..
    pub share: f64,
    /// MB, all of it and without mapped files (the binary itself, the kernel's ring).
    pub resident: f64,
    pub anonymous: f64,
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} % of a core, {:.0} MB resident ({:.0} MB anonymous)",
            100.0 * self.share,
            self.resident,
            self.anonymous
        )
    }
}
