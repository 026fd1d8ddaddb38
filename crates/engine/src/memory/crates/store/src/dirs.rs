//! Where sessions are: the folder that this user writes to and those that he reads from.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::StoreError;
use crate::fs::Owner;

/// Where the system's daemon keeps its sessions.
pub const SYSTEM_DATA: &str = "/var/lib/warptrace";

/// What of the environment says where sessions are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Env {
    /// `WARPTRACE_DATA`.
    pub data: Option<OsString>,
    /// `XDG_DATA_HOME`.
    pub xdg_data_home: Option<OsString>,
    /// `HOME`.
    pub home: Option<OsString>,
    /// Effective user.
    pub uid: u32,
    /// `SUDO_UID` and `SUDO_GID`.
    pub sudo: Option<Owner>,
    /// The home folder of the user `SUDO_UID`.
    pub sudo_home: Option<PathBuf>,
}

impl Env {
    /// This process's. Reads `/proc/self` and, under sudo, `/etc/passwd`.
    pub fn of_process() -> Env {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty());
        let id = |name| -> Option<u32> { var(name)?.to_str()?.parse().ok() };
        let sudo = id("SUDO_UID").zip(id("SUDO_GID"));
        let sudo = sudo.map(|(uid, gid)| Owner { uid, gid });
        let passwd = sudo.and_then(|_| std::fs::read_to_string("/etc/passwd").ok());
        Env {
            data: var("WARPTRACE_DATA"),
            xdg_data_home: var("XDG_DATA_HOME"),
            home: var("HOME"),
            // The files there belong to the effective user.
            uid: std::fs::metadata("/proc/self").map_or(u32::MAX, |m| m.uid()),
            sudo_home: sudo.and_then(|o| home_in_passwd(&passwd?, o.uid)),
            sudo,
        }
    }
}

/// The home folder of `uid` in the text of `/etc/passwd` (passwd(5)).
fn home_in_passwd(passwd: &str, uid: u32) -> Option<PathBuf> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found: u32 = fields.next()?.parse().ok()?;
        let home = fields.nth(2)?;
        (found == uid && home.starts_with('/')).then(|| PathBuf::from(home))
    })
}

/// The folder that sessions are written to, and those where they are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir {
    /// New sessions go to `sessions/` in it.
    pub path: PathBuf,
    /// Where sessions are read from; `path` is the first.
    pub read: Vec<PathBuf>,
    /// To whom what is written belongs, when that is not this process's user: under sudo, the caller.
    pub owner: Option<Owner>,
}

impl DataDir {
    /// The folder that `flag` (`--data`) or the environment says.
    ///
    /// In order: `flag`; `WARPTRACE_DATA`; for root under sudo the caller's `~/.local/share/warptrace`;
    /// `$XDG_DATA_HOME/warptrace`; `~/.local/share/warptrace`; for root without a home [`SYSTEM_DATA`]. Where neither
    /// flag nor variable names one, sessions are also read from the caller's folder and from [`SYSTEM_DATA`].
    ///
    /// # Errors
    /// [`StoreError::NoDataDir`] when nothing says where.
    pub fn resolve(flag: Option<&Path>, env: &Env) -> Result<DataDir, StoreError> {
        let under_sudo = env.uid == 0 && env.sudo.is_some_and(|o| o.uid != 0);
        let owner = env.sudo.filter(|_| under_sudo);
        if let Some(path) = flag.or(env.data.as_deref().map(Path::new)) {
            return Ok(DataDir {
                path: path.to_owned(),
                read: vec![path.to_owned()],
                owner,
            });
        }
        let share = |home: &Path| home.join(".local/share/warptrace");
        // The XDG specification has relative paths ignored.
        let xdg = env.xdg_data_home.as_deref().map(Path::new);
        let xdg = xdg.filter(|p| p.is_absolute()).map(|p| p.join("warptrace"));
        let home = env.home.as_deref().map(|h| share(Path::new(h)));
        let caller = env.sudo_home.as_deref().filter(|_| under_sudo).map(share);
        let system = PathBuf::from(SYSTEM_DATA);
        let fallback = (env.uid == 0).then(|| system.clone());
        let mut read: Vec<PathBuf> = Vec::new();
        for dir in [caller, xdg, home, fallback, Some(system)]
            .into_iter()
            .flatten()
        {
            if !read.contains(&dir) {
                read.push(dir);
            }
        }
        // An ordinary user never writes to the system's folder.
        match read.first() {
            Some(path) if env.uid == 0 || path != Path::new(SYSTEM_DATA) => Ok(DataDir {
                path: path.clone(),
                read,
                owner,
            }),
            _ => Err(StoreError::NoDataDir),
        }
    }

    /// One folder for all.
    pub fn at(path: impl Into<PathBuf>) -> DataDir {
        let path = path.into();
        DataDir {
            read: vec![path.clone()],
            path,
            owner: None,
        }
    }

    /// Where new sessions go.
    pub fn sessions(&self) -> PathBuf {
        self.path.join("sessions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(uid: u32, home: &str) -> Env {
        Env {
            uid,
            home: Some(home.into()).filter(|_| !home.is_empty()),
            ..Env::default()
        }
    }

    #[track_caller]
    fn check(flag: Option<&str>, env: Env, path: &str, read: &[&str]) {
        let dir = DataDir::resolve(flag.map(Path::new), &env).unwrap();
        assert_eq!(dir.path, Path::new(path));
        assert_eq!(dir.read, read.iter().map(PathBuf::from).collect::<Vec<_>>());
    }

    #[test]
    fn a_flag_wins_over_the_variable_which_wins_over_the_home() {
        let mut e = env(1000, "/home/a");
        e.data = Some("/data".into());
        check(Some("/flag"), e.clone(), "/flag", &["/flag"]);
        check(None, e, "/data", &["/data"]);
        let own = "/home/a/.local/share/warptrace";
        check(None, env(1000, "/home/a"), own, &[own, SYSTEM_DATA]);
    }

    #[test]
    fn xdg_data_home_is_used_only_when_it_is_absolute() {
        let mut e = env(1000, "/home/a");
        let own = "/home/a/.local/share/warptrace";
        e.xdg_data_home = Some("/xdg".into());
        check(
            None,
            e.clone(),
            "/xdg/warptrace",
            &["/xdg/warptrace", own, SYSTEM_DATA],
        );
        e.xdg_data_home = Some("xdg".into());
        check(None, e, own, &[own, SYSTEM_DATA]);
    }

    #[test]
    fn under_sudo_sessions_are_the_callers() {
        let caller = Owner {
            uid: 1000,
            gid: 100,
        };
        let mut e = env(0, "/root");
        e.sudo = Some(caller);
        e.sudo_home = Some("/home/a".into());
        let dir = DataDir::resolve(None, &e).unwrap();
        assert_eq!(dir.path, Path::new("/home/a/.local/share/warptrace"));
        assert_eq!(dir.owner, Some(caller));
        // A program that only inherited the variables is not under sudo any more.
        e.uid = 33;
        let dir = DataDir::resolve(None, &e).unwrap();
        assert_eq!(dir.path, Path::new("/root/.local/share/warptrace"));
        assert_eq!(dir.owner, None);
    }

    #[test]
    fn a_daemon_without_a_home_uses_the_systems_folder_and_a_user_without_one_is_told() {
        check(None, env(0, ""), SYSTEM_DATA, &[SYSTEM_DATA]);
        let error = DataDir::resolve(None, &env(1000, "")).unwrap_err();
        assert!(error.to_string().contains("--data"), "{error}");
    }

    #[test]
    fn the_home_of_a_user_is_the_sixth_field_of_his_line() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbad line\na:x:1000:100:A, Room 5:/home/a:/bin/sh\n";
        assert_eq!(home_in_passwd(passwd, 1000), Some("/home/a".into()));
        assert_eq!(home_in_passwd(passwd, 7), None);
    }
}
