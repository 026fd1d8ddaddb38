//! Network namespaces: which one a process is in, and doing something in it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::sys;

/// The identity of a network namespace: its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NetNamespace(u64);

impl NetNamespace {
    /// Ours.
    pub(super) fn own() -> io::Result<NetNamespace> {
        identity(Path::new("/proc/thread-self/ns/net"))
    }

    /// # Errors
    /// Of a process that is gone, or that we may not look into (`ptrace_scope`, another user's without CAP_SYS_PTRACE).
    pub(super) fn of(pid: u32) -> io::Result<NetNamespace> {
        identity(Path::new(&format!("/proc/{pid}/ns/net")))
    }
}

fn identity(path: &Path) -> io::Result<NetNamespace> {
    Ok(NetNamespace(std::fs::metadata(path)?.ino()))
}

/// Does `work` on a thread of its own in the network namespace `namespace` of process `pid`, and waits for it: sockets that it
/// makes are that namespace's. No other thread is moved, and the thread ends with the work.
///
/// # Errors
/// When the process is in another namespace meanwhile, or entering is refused (it needs CAP_SYS_ADMIN there and here).
pub(super) fn within<T: Send>(
    pid: u32,
    namespace: NetNamespace,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    let file = File::open(format!("/proc/{pid}/ns/net"))?;
    if file.metadata()?.ino() != namespace.0 {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("wt-engine-net".to_owned());
        let thread = thread.spawn_scoped(scope, || {
            sys::enter_net_namespace(file.as_fd())?;
            Ok(work())
        })?;
        let panicked = |_| Err(io::Error::other("the work panicked"));
        thread.join().unwrap_or_else(panicked)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_namespace_is_that_of_our_process_and_work_in_it_leaves_us_where_we_are() {
        let own = NetNamespace::own().unwrap();
        assert_eq!(NetNamespace::of(std::process::id()).unwrap(), own);
        assert!(NetNamespace::of(u32::MAX - 1).is_err());
        // Without CAP_SYS_ADMIN it is refused; with it, it is the same namespace.
        if let Ok(there) = within(std::process::id(), own, NetNamespace::own) {
            assert_eq!(there.unwrap(), own);
        }
        assert_eq!(NetNamespace::own().unwrap(), own);
    }

    #[test]
    fn a_namespace_that_the_process_is_no_longer_in_is_not_entered() {
        let result = within(std::process::id(), NetNamespace(1), NetNamespace::own);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
