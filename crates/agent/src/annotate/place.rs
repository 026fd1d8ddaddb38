//! Taking and giving up a place in the file system where writers find us.
//!
//! Whoever can write to the socket's folder can put another socket in our place, so the folder must be ours alone. What
//! already stands at the path is replaced only when it is a socket that nobody listens on; nothing else is ever deleted.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
    PermissionsExt as _,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use warptrace_formats::annotation::Surroundings;

/// Why a place was not taken. Nothing has been deleted then, and nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("neither XDG_RUNTIME_DIR nor a data folder says where the annotation socket may lie")]
    NoPlace,
    #[error(
        "the path of the annotation socket is longer than the 107 bytes that an address holds: {0:?}"
    )]
    PathTooLong(PathBuf),
    #[error("cannot use the folder of the annotation socket: {path:?}")]
    Folder {
        path: PathBuf,
        #[source]
        why: io::Error,
    },
    #[error(
        "{path:?} is a {what}, not a folder: remove it, or say where else the annotation socket may lie"
    )]
    NotAFolder { path: PathBuf, what: &'static str },
    #[error(
        "the folder {path:?} belongs to user {owner}, not to us (user {us}), who could put another socket in our place"
    )]
    ForeignFolder { path: PathBuf, owner: u32, us: u32 },
    #[error(
        "others may write to the folder {path:?} (mode {mode:o}) and put another socket in our place: chmod go-w it"
    )]
    WritableFolder { path: PathBuf, mode: u32 },
    #[error(
        "there is a {what} where the annotation socket should be, which is left alone: {path:?}"
    )]
    Occupied { path: PathBuf, what: &'static str },
    #[error("another recorder listens for annotations already: {0:?}")]
    InUse(PathBuf),
    #[error("cannot listen at {path:?}")]
    Listen {
        path: PathBuf,
        #[source]
        why: io::Error,
    },
    #[error("cannot start the annotation socket's thread")]
    Thread(#[source] io::Error),
}

/// Who may reach a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Open {
    /// Every user of the machine.
    ToAll,
    /// Our user only.
    ToUs,
}

/// Whether we are the machine's recorder, and not a user's: root, or the service for which the service manager has made the machine's
/// folder (`RuntimeDirectory=warptrace`), whoever that runs as.
pub(crate) fn is_of_machine() -> bool {
    let machines = Surroundings::new(true, |_| None).own_socket();
    let machines = machines.as_deref().and_then(Path::parent);
    let made = std::env::var_os("RUNTIME_DIRECTORY").unwrap_or_default();
    let is_service = std::env::split_paths(&made).any(|folder| Some(&*folder) == machines);
    is_service || nix::unistd::geteuid().is_root()
}

impl Open {
    /// To whom the recorder's work is of use.
    pub(crate) fn usual() -> Open {
        match is_of_machine() {
            true => Open::ToAll,
            false => Open::ToUs,
        }
    }

    fn folder_mode(self) -> u32 {
        match self {
            Open::ToAll => 0o755,
            Open::ToUs => 0o700,
        }
    }

    fn socket_mode(self) -> u32 {
        match self {
            Open::ToAll => 0o666,
            Open::ToUs => 0o600,
        }
    }
}

/// A place that is taken; dropping it removes our socket, and the folders that we made for it.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: UnixListener,
    pub(crate) path: PathBuf,
    /// Device and inode of the socket.
    identity: (u64, u64),
    /// The deepest first.
    made: Vec<PathBuf>,
    /// Nobody else is between looking for a stale socket and replacing it, here and where the holder goes on to.
    turn: Option<File>,
}

impl Bound {
    /// Takes `path`; with `in_turn`, when no other recorder is just starting in that folder, and none will be until
    /// [`Bound::end_turn`].
    pub(crate) fn new(path: &Path, open: Open, in_turn: bool) -> Result<Bound, SocketError> {
        UnixAddr::new(path).map_err(|_| SocketError::PathTooLong(path.to_owned()))?;
        let folder = path.parent().ok_or(SocketError::NoPlace)?;
        let made = make(folder, open)?;
        let taken = check_folder(folder)
            .and_then(|()| in_turn.then(|| take_turn(folder)).transpose())
            .and_then(|turn| Ok((turn, listen(path, open)?)));
        match taken {
            Ok((turn, (listener, identity))) => Ok(Bound {
                listener,
                path: path.to_owned(),
                identity,
                made,
                turn,
            }),
            Err(e) => {
                remove_empty(&made);
                Err(e)
            }
        }
    }
}

impl Bound {
    /// Lets other recorders of the folder start.
    pub(crate) fn end_turn(&mut self) {
        self.turn = None;
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let there = std::fs::symlink_metadata(&self.path);
        if there.is_ok_and(|there| identity(&there) == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
        remove_empty(&self.made);
    }
}

fn identity(there: &Metadata) -> (u64, u64) {
    (there.dev(), there.ino())
}

fn remove_empty(made: &[PathBuf]) {
    for folder in made {
        if std::fs::remove_dir(folder).is_err() {
            break;
        }
    }
}

/// Makes the folder and what is missing above it, and says what it made.
fn make(folder: &Path, open: Open) -> Result<Vec<PathBuf>, SocketError> {
    let mut missing: Vec<&Path> = folder
        .ancestors()
        .take_while(|part| {
            let there = std::fs::symlink_metadata(part);
            there.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
        })
        .collect();
    missing.retain(|part| !part.as_os_str().is_empty());
    let mut made = Vec::new();
    for part in missing.into_iter().rev() {
        let mode = open.folder_mode();
        let result = DirBuilder::new().mode(mode).create(part).and_then(|()| {
            // The process' umask may have taken bits away.
            std::fs::set_permissions(part, Permissions::from_mode(mode))
        });
        match result {
            Ok(()) => made.insert(0, part.to_owned()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(why) => {
                remove_empty(&made);
                let path = part.to_owned();
                return Err(SocketError::Folder { path, why });
            }
        }
    }
    Ok(made)
}

fn check_folder(folder: &Path) -> Result<(), SocketError> {
    let path = folder.to_owned();
    let there = match std::fs::symlink_metadata(folder) {
        Ok(there) => there,
        Err(why) => return Err(SocketError::Folder { path, why }),
    };
    let us = nix::unistd::geteuid().as_raw();
    let mode = there.mode() & 0o7777;
    if !there.is_dir() {
        let what = kind(&there);
        return Err(SocketError::NotAFolder { path, what });
    }
    if there.uid() != us {
        let owner = there.uid();
        return Err(SocketError::ForeignFolder { path, owner, us });
    }
    if mode & 0o022 != 0 {
        return Err(SocketError::WritableFolder { path, mode });
    }
    Ok(())
}

fn kind(there: &Metadata) -> &'static str {
    let kind = there.file_type();
    if kind.is_symlink() {
        "symbolic link"
    } else if kind.is_dir() {
        "folder"
    } else if kind.is_socket() {
        "socket"
    } else if kind.is_file() {
        "file"
    } else {
        "special file"
    }
}

/// Two recorders that start at once would each take the other's fresh socket for a stale one. Waits for those before us,
/// which is not long. The file stays when we go: whoever removed it could lock what nobody else sees.
fn take_turn(folder: &Path) -> Result<File, SocketError> {
    let path = folder.join("annotate.lock");
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options.custom_flags(OFlag::O_NOFOLLOW.bits());
    let locked = options.open(&path).and_then(|file| {
        file.lock()?;
        Ok(file)
    });
    locked.map_err(|why| SocketError::Folder { path, why })
}

fn listen(path: &Path, open: Open) -> Result<(UnixListener, (u64, u64)), SocketError> {
    let failed = |why: io::Error| SocketError::Listen {
        path: path.to_owned(),
        why,
    };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(why) => return Err(failed(why)),
        Ok(there) if there.file_type().is_socket() => {
            if !is_stale(path) {
                return Err(SocketError::InUse(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        Ok(there) => {
            return Err(SocketError::Occupied {
                path: path.to_owned(),
                what: kind(&there),
            });
        }
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let made = || {
        listener.set_nonblocking(true)?;
        std::fs::set_permissions(path, Permissions::from_mode(open.socket_mode()))?;
        std::fs::symlink_metadata(path)
    };
    match made() {
        Ok(there) => Ok((listener, identity(&there))),
        Err(why) => {
            let _ = std::fs::remove_file(path);
            Err(failed(why))
        }
    }
}

/// Whether nobody listens on the socket at `path`. In doubt somebody does: one whose queue is full does not answer either.
fn is_stale(path: &Path) -> bool {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let Ok(probe) = socket(AddressFamily::Unix, SockType::Stream, flags, None) else {
        return false;
    };
    let Ok(address) = UnixAddr::new(path) else {
        return false;
    };
    connect(probe.as_raw_fd(), &address) == Err(Errno::ECONNREFUSED)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn take(path: &Path) -> Result<Bound, SocketError> {
        let mut bound = Bound::new(path, Open::ToUs, true)?;
        bound.end_turn();
        Ok(bound)
    }

    /// What stands in a folder, by name and kind.
    fn list(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut entries: Vec<_> = entries
            .map(|e| {
                let e = e.unwrap();
                let kind = kind(&e.path().symlink_metadata().unwrap());
                format!("{} {kind}", e.file_name().display())
            })
            .collect();
        entries.sort();
        entries
    }

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().mode() & 0o7777
    }

    #[test]
    fn a_place_is_made_with_its_modes_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        for (open, folder_mode, socket_mode) in
            [(Open::ToAll, 0o755, 0o666), (Open::ToUs, 0o700, 0o600)]
        {
            let path = dir.path().join("a/b/annotate.sock");
            let bound = Bound::new(&path, open, false).unwrap();
            assert_eq!(mode(&path), socket_mode);
            assert_eq!(mode(&dir.path().join("a/b")), folder_mode);
            UnixStream::connect(&path).unwrap();
            drop(bound);
            assert_eq!(list(dir.path()), [""; 0]);
        }
    }

    #[test]
    fn folders_that_are_not_ours_alone_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        std::fs::create_dir(&real).unwrap();
        symlink(&real, dir.path().join("link")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let refused =
            |folder: &str| take(&dir.path().join(folder).join("annotate.sock")).unwrap_err();
        assert!(matches!(
            refused("link"),
            SocketError::NotAFolder {
                what: "symbolic link",
                ..
            }
        ));
        assert!(matches!(
            refused("file"),
            SocketError::NotAFolder { what: "file", .. }
        ));
        for mode in [0o770, 0o707, 0o1777] {
            std::fs::set_permissions(&real, Permissions::from_mode(mode)).unwrap();
            let e = refused("real");
            assert!(
                matches!(e, SocketError::WritableFolder { mode: m, .. } if m == mode),
                "{e}"
            );
        }
        assert_eq!(list(&real), [""; 0]);
        assert_eq!(
            list(dir.path()),
            ["file file", "link symbolic link", "real folder"]
        );
        if nix::unistd::geteuid().is_root() {
            std::fs::set_permissions(&real, Permissions::from_mode(0o755)).unwrap();
            std::os::unix::fs::chown(&real, Some(12_345), None).unwrap();
            assert!(matches!(
                refused("real"),
                SocketError::ForeignFolder {
                    owner: 12_345,
                    us: 0,
                    ..
                }
            ));
        }
    }

    #[test]
    fn only_a_socket_that_nobody_listens_on_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        let path = dir.path().join("annotate.sock");

        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            take(&path).unwrap_err(),
            SocketError::Occupied { what: "file", .. }
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();

        let elsewhere = dir.path().join("elsewhere");
        let listening = UnixListener::bind(&elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(matches!(
            take(&path).unwrap_err(),
            SocketError::Occupied {
                what: "symbolic link",
                ..
            }
        ));
        std::fs::remove_file(&path).unwrap();

        std::fs::rename(&elsewhere, &path).unwrap();
        assert!(matches!(take(&path).unwrap_err(), SocketError::InUse(_)));
        drop(listening);
        let bound = take(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert_eq!(list(dir.path()), ["annotate.lock file"]);
    }

    #[test]
    fn a_second_recorder_is_told_and_what_replaced_us_stays() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        let path = dir.path().join("annotate.sock");
        let first = take(&path).unwrap();
        assert!(matches!(take(&path).unwrap_err(), SocketError::InUse(_)));
        let beside = take(&dir.path().join("annotate-2.sock")).unwrap();
        drop(beside);
        std::fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(first);
        assert_eq!(
            list(dir.path()),
            ["annotate.lock file", "annotate.sock socket"]
        );
        drop(other);
    }

    #[test]
    fn of_many_that_start_at_once_in_a_stale_place_one_has_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        let path = dir.path().join("annotate.sock");
        for _ in 0..20 {
            drop(UnixListener::bind(&path).unwrap());
            let taken: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| take(&path))).collect();
                let results = threads.into_iter().map(|t| t.join().unwrap());
                results.filter_map(Result::ok).collect()
            });
            assert_eq!(taken.len(), 1);
            UnixStream::connect(&path).unwrap();
        }
    }

    #[test]
    fn a_path_that_no_address_holds_is_said_to_be_too_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(120)).join("annotate.sock");
        assert!(matches!(
            take(&path).unwrap_err(),
            SocketError::PathTooLong(_)
        ));
        assert_eq!(list(dir.path()), [""; 0]);
    }
}
