//! Starting the command that is watched: found before anything is recorded, held at a gate until the probes are there,
//! sent the signals that we get, and outlived.

use std::ffi::OsString;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};

use anyhow::Context as _;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Uid, User};

use crate::daemon;

/// A command that exists and may be executed.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// The file that will be executed.
    pub(crate) path: PathBuf,
    /// With the name as typed in front.
    pub(crate) command: Vec<OsString>,
}

/// Why a command cannot be started; the exit code is the shell's.
#[derive(Debug)]
pub(crate) enum NoProgram {
    NotFound(String),
    NotExecutable(String),
}

impl NoProgram {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            NoProgram::NotFound(_) => 127,
            NoProgram::NotExecutable(_) => 126,
        }
    }
}

impl std::fmt::Display for NoProgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoProgram::NotFound(name) => {
                write!(f, "no command {name:?} (is it installed, and in PATH?)")
            }
            NoProgram::NotExecutable(name) => {
                write!(f, "{name:?} cannot be executed (chmod +x? a folder?)")
            }
        }
    }
}

/// Finds the program of `command` as a shell would.
pub(crate) fn find(command: &[OsString]) -> Result<Program, NoProgram> {
    let name = command
        .first()
        .ok_or_else(|| NoProgram::NotFound(String::new()))?;
    let shown = name.to_string_lossy().into_owned();
    let candidates: Vec<PathBuf> = if name.to_string_lossy().contains('/') {
        vec![PathBuf::from(name)]
    } else {
        let path = std::env::var_os("PATH")
            .unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
        std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .collect()
    };
    let mut found = false;
    for path in candidates {
        if !path.exists() {
            continue;
        }
        found = true;
        if path.is_file() && nix::unistd::access(&path, nix::unistd::AccessFlags::X_OK).is_ok() {
            return Ok(Program {
                path,
                command: command.to_vec(),
            });
        }
    }
    Err(if found {
        NoProgram::NotExecutable(shown)
    } else {
        NoProgram::NotFound(shown)
    })
}

/// A started command.
#[derive(Debug)]
pub(crate) struct Job {
    child: Child,
    gate: Option<std::io::PipeWriter>,
}

impl Program {
    /// Starts it at once, with `env` added to ours.
    pub(crate) fn start(&self, env: &[(OsString, OsString)]) -> anyhow::Result<Job> {
        let mut command = Command::new(&self.path);
        daemon::alone(&mut command)
            .arg0(&self.command[0])
            .args(&self.command[1..])
            .envs(env.iter().map(|(k, v)| (k, v)));
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {:?}", self.path))?;
        Ok(Job { child, gate: None })
    }

    /// Starts a process that becomes the command when [`Job::release`] is called: probes can be attached to a pid that
    /// has run nothing yet. Under sudo it becomes the command as the user who called.
    pub(crate) fn start_gated(&self, env: &[(OsString, OsString)]) -> anyhow::Result<Job> {
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        fcntl(&reader, FcntlArg::F_SETFD(FdFlag::empty())).context("cannot pass a pipe on")?;
        let own = std::env::current_exe().context("cannot find our own program")?;
        let mut command = Command::new(own);
        daemon::alone(&mut command)
            .arg("gated-exec")
            .arg(format!("--gate={}", reader.as_raw_fd()))
            .arg("--")
            .arg(&self.path);
        command
            .args(&self.command[1..])
            .envs(env.iter().map(|(k, v)| (k, v)));
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {:?}", self.path))?;
        Ok(Job {
            child,
            gate: Some(writer),
        })
    }
}

/// The other side of [`Program::start_gated`]: waits for the gate, becomes the calling user, becomes the command.
/// Returns only when that fails.
pub(crate) fn gated_exec(gate: i32, command: &[OsString]) -> u8 {
    // The descriptor is ours by number; through /proc it is opened without taking ownership of it unsafely.
    let opened = std::fs::File::open(format!("/proc/self/fd/{gate}"));
    let _ = nix::unistd::close(gate);
    let mut byte = [0];
    let let_go = opened.and_then(|mut pipe| std::io::Read::read(&mut pipe, &mut byte));
    if !matches!(let_go, Ok(1)) {
        // The recorder is gone before the command began: nobody waits for it.
        return 125;
    }
    let mut program = Command::new(&command[0]);
    program.args(&command[1..]);
    if let Some((uid, gid)) = calling_user() {
        let become_user = || -> nix::Result<()> {
            let user = User::from_uid(uid)?.ok_or(nix::Error::ENOENT)?;
            let name =
                std::ffi::CString::new(user.name.as_str()).map_err(|_| nix::Error::EINVAL)?;
            nix::unistd::initgroups(&name, gid)?;
            nix::unistd::setgid(gid)?;
            nix::unistd::setuid(uid)
        };
        if let Err(e) = become_user() {
            eprintln!("warptrace: cannot become user {uid}: {e}");
            return 125;
        }
        if let Ok(Some(user)) = User::from_uid(uid) {
            program
                .env("HOME", &user.dir)
                .env("USER", &user.name)
                .env("LOGNAME", &user.name);
        }
        for name in ["SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND"] {
            program.env_remove(name);
        }
    }
    let e = program.exec();
    eprintln!("warptrace: cannot execute {:?}: {e}", command[0]);
    match e.kind() {
        std::io::ErrorKind::NotFound => 127,
        _ => 126,
    }
}

/// The user who called sudo, when we are root by sudo.
pub(crate) fn calling_user() -> Option<(Uid, Gid)> {
    if !Uid::effective().is_root() {
        return None;
    }
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let uid = number("SUDO_UID")?;
    (uid != 0).then(|| {
        (
            Uid::from_raw(uid),
            Gid::from_raw(number("SUDO_GID").unwrap_or(uid)),
        )
    })
}

impl Job {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets a gated command go.
    pub(crate) fn release(&mut self) {
        if let Some(mut gate) = self.gate.take() {
            let _ = std::io::Write::write_all(&mut gate, b"g");
        }
    }

    /// Whether it has ended, and how.
    pub(crate) fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Passes a signal on. A process that is gone needs none.
    pub(crate) fn signal(&self, signal: i32) {
        if let Ok(signal) = Signal::try_from(signal) {
            let _ = kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal);
        }
    }

    /// Ends it now, and waits.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The exit code that we pass on: the command's own, or 128 + n when signal n killed it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => (128 + signal) as u8,
        (None, None) => 125,
    }
}

/// A path's name for people.
pub(crate) fn shown(command: &[OsString]) -> String {
    command
        .iter()
        .map(|arg| arg.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_command_is_127_and_a_folder_is_126() {
        let find = |name: &str| find(&[OsString::from(name)]).map_err(|e| e.exit_code());
        assert_eq!(find("no-such-command-anywhere").err(), Some(127));
        assert_eq!(find("/no/such/file").err(), Some(127));
        assert_eq!(find("/usr").err(), Some(126));
        assert_eq!(find("/etc/passwd").err(), Some(126));
        assert!(find("sh").is_ok_and(|program| program.path.is_absolute()));
    }

    #[test]
    fn exit_codes_are_the_shells() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }
}
