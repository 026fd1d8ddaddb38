//! Where the socket lies: the addresses that agents and writers agree on.

use std::path::{Path, PathBuf};

/// Name of the socket in its folder.
pub const SOCKET_NAME: &str = "annotate.sock";
/// Names a socket; a recorder sets it for the command that it starts.
pub const SOCKET_VARIABLE: &str = "WARPTRACE_ANNOTATE_SOCKET";

const SYSTEM_FOLDER: &str = "/run/warptrace";
const PEER_SYSTEM_FOLDER: &str = "/run/ingero";

/// What the places depend on; whoever has an environment fills it in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// Of the superuser.
    pub is_root: bool,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// The folder of our data: `WARPTRACE_DATA`, else `warptrace` in `XDG_DATA_HOME`.
    pub data: Option<PathBuf>,
}

impl Surroundings {
    /// By variables, as `variable` gives them; an empty one counts as not set.
    pub fn new(
        is_root: bool,
        variable: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Surroundings {
        let path = |name: &str| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        let home = path("HOME");
        let data = path("WARPTRACE_DATA")
            .or_else(|| Some(path("XDG_DATA_HOME")?.join("warptrace")))
            .or_else(|| Some(home.as_deref()?.join(".local/share/warptrace")));
        Surroundings {
            is_root,
            runtime_dir: path("XDG_RUNTIME_DIR"),
            home,
            data,
        }
    }

    /// Where an agent listens: `/run/warptrace` as root, else the user's runtime folder, else our data folder.
    pub fn own_socket(&self) -> Option<PathBuf> {
        if self.is_root {
            return Some(Path::new(SYSTEM_FOLDER).join(SOCKET_NAME));
        }
        self.users_socket()
    }

    /// Where writers made for the `ingero` agent look, which an agent takes over while nobody else has it.
    pub fn peer_socket(&self) -> Option<PathBuf> {
        if self.is_root {
            return Some(Path::new(PEER_SYSTEM_FOLDER).join(SOCKET_NAME));
        }
        self.users_peer_socket()
    }

    /// Where a writer looks, the first that takes its connection: ours before the other agent's, the machine's before the
    /// user's.
    pub fn candidates(&self) -> Vec<PathBuf> {
        let peers = [
            Some(Path::new(PEER_SYSTEM_FOLDER).join(SOCKET_NAME)),
            self.users_peer_socket(),
        ];
        let mut all = self.own_candidates();
        all.extend(peers.into_iter().flatten());
        all
    }

    /// Those of them that are ours.
    pub(super) fn own_candidates(&self) -> Vec<PathBuf> {
        let runtime = self.runtime_dir.as_deref();
        let data = self.data.as_deref();
        [
            Some(Path::new(SYSTEM_FOLDER).join(SOCKET_NAME)),
            runtime.map(|dir| dir.join("warptrace").join(SOCKET_NAME)),
            data.map(|dir| dir.join(SOCKET_NAME)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn users_socket(&self) -> Option<PathBuf> {
        match (&self.runtime_dir, &self.data) {
            (Some(dir), _) => Some(dir.join("warptrace").join(SOCKET_NAME)),
            (None, Some(dir)) => Some(dir.join(SOCKET_NAME)),
            (None, None) => None,
        }
    }

    fn users_peer_socket(&self) -> Option<PathBuf> {
        Some(
            self.home
                .as_deref()?
                .join(".ingero/annotate")
                .join(SOCKET_NAME),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(is_root: bool, variables: &[(&str, &str)]) -> Surroundings {
        Surroundings::new(is_root, |name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).into())
        })
    }

    fn shown(path: Option<PathBuf>) -> String {
        path.unwrap_or_default().display().to_string()
    }

    #[test]
    fn an_agent_listens_where_only_its_user_can_write() {
        let root = with(
            true,
            &[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/1000")],
        );
        assert_eq!(shown(root.own_socket()), "/run/warptrace/annotate.sock");
        assert_eq!(shown(root.peer_socket()), "/run/ingero/annotate.sock");
        let user = with(false, &[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/user/7")]);
        assert_eq!(
            shown(user.own_socket()),
            "/run/user/7/warptrace/annotate.sock"
        );
        assert_eq!(
            shown(user.peer_socket()),
            "/h/.ingero/annotate/annotate.sock"
        );
        let bare = with(false, &[("HOME", "/h"), ("XDG_RUNTIME_DIR", "")]);
        assert_eq!(
            shown(bare.own_socket()),
            "/h/.local/share/warptrace/annotate.sock"
        );
        assert_eq!(with(false, &[]).own_socket(), None);
    }

    #[test]
    fn a_writer_finds_every_place_where_an_agent_may_listen() {
        for is_root in [true, false] {
            for variables in [
                &[
                    ("HOME", "/h"),
                    ("XDG_RUNTIME_DIR", "/r"),
                    ("WARPTRACE_DATA", "/d"),
                ][..],
                &[("HOME", "/h"), ("XDG_DATA_HOME", "/x")],
                &[("WARPTRACE_DATA", "/d")],
            ] {
                let here = with(is_root, variables);
                let candidates = with(false, variables).candidates();
                for place in [here.own_socket(), here.peer_socket()]
                    .into_iter()
                    .flatten()
                {
                    assert!(candidates.contains(&place), "{place:?} in {candidates:?}");
                }
            }
        }
    }
}
