//! What `/proc` says of a process: its constant facts. Read once a process, never in a loop over calls.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use warptrace_model::{BootNanos, Incarnation, Pid, ProcessInfo};

use crate::maps::mapped_files;

/// Arguments and environment longer than this are cut, bytes.
const MAX_TEXT: u64 = 1 << 20;

/// Nanoseconds of a clock tick of `/proc`: USER_HZ is 100 on every architecture that we run on.
const TICK_NANOS: u64 = 10_000_000;

/// The facts of process `pid`, or `None` when it is gone.
///
/// `from_start` and `in_job` are what the caller knows. Cost: five small files, 100 µs.
pub fn process_info(pid: u32, from_start: bool, in_job: bool) -> Option<ProcessInfo> {
    let dir = format!("/proc/{pid}");
    let stat = Stat::parse(&read(&dir, "stat")?)?;
    let environ = read(&dir, "environ").unwrap_or_default();
    let cgroup = cgroup_path(&String::from_utf8_lossy(
        &read(&dir, "cgroup").unwrap_or_default(),
    ));
    Some(ProcessInfo {
        incarnation: Incarnation {
            pid: Pid(pid),
            start_ticks: stat.start_ticks,
        },
        parent: Pid(stat.parent),
        name: stat.name,
        command: words(&read(&dir, "cmdline").unwrap_or_default()),
        start: BootNanos(stat.start_ticks.saturating_mul(TICK_NANOS)),
        from_start,
        in_job,
        uid: std::fs::metadata(&dir).map_or(0, |m| m.uid()),
        container_id: container_id(&cgroup).unwrap_or_default().to_owned(),
        cgroup,
        rank: variable(&environ, "RANK"),
        local_rank: variable(&environ, "LOCAL_RANK"),
        world_size: variable(&environ, "WORLD_SIZE"),
    })
}

/// Which life of `pid` it is, and its parent; `None` when it is gone. Cost: one small file.
pub fn incarnation(pid: u32) -> Option<(Incarnation, Pid)> {
    let stat = Stat::parse(&read(&format!("/proc/{pid}"), "stat")?)?;
    let life = Incarnation {
        pid: Pid(pid),
        start_ticks: stat.start_ticks,
    };
    Some((life, Pid(stat.parent)))
}

/// The arguments of a process, empty ones too, of at most 1 MiB; none of a kernel thread or of a process that is gone.
pub fn arguments(pid: u32) -> Vec<String> {
    let text = read(&format!("/proc/{pid}"), "cmdline").unwrap_or_default();
    // Each ends with a NUL; who writes a title over them may leave many.
    let end = text.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    if end == 0 {
        return Vec::new();
    }
    let words = text[..end].split(|b| *b == 0);
    words
        .map(|w| String::from_utf8_lossy(w).into_owned())
        .collect()
}

/// A variable of a process's first environment; `None` when it has none, or may not be looked into.
pub fn environment_variable(pid: u32, name: &str) -> Option<String> {
    let environ = read(&format!("/proc/{pid}"), "environ")?;
    environ.split(|b| *b == 0).find_map(|v| {
        let value = v.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        String::from_utf8(value.to_vec()).ok()
    })
}

/// The name of a thread, or `None` when it is gone.
pub fn thread_name(pid: u32, tid: u32) -> Option<String> {
    let name = read(&format!("/proc/{pid}/task/{tid}"), "comm")?;
    Some(
        String::from_utf8_lossy(&name)
            .trim_end_matches('\n')
            .to_owned(),
    )
}

/// Numbers of all processes, unsorted.
pub fn unsorted_pids() -> Vec<u32> {
    numbers("/proc")
}

/// Threads of a process, unsorted; empty when it is gone.
pub fn unsorted_tids(pid: u32) -> Vec<u32> {
    numbers(&format!("/proc/{pid}/task"))
}

fn numbers(dir: &str) -> Vec<u32> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

fn read(dir: &str, name: &str) -> Option<Vec<u8>> {
    use std::io::Read as _;
    let mut out = Vec::new();
    let file = std::fs::File::open(Path::new(dir).join(name)).ok()?;
    file.take(MAX_TEXT).read_to_end(&mut out).ok()?;
    Some(out)
}

fn words(text: &[u8]) -> Vec<String> {
    text.split(|b| *b == 0)
        .filter(|w| !w.is_empty())
        .map(|w| String::from_utf8_lossy(w).into_owned())
        .collect()
}

fn variable(environ: &[u8], name: &str) -> Option<u32> {
    environ.split(|b| *b == 0).find_map(|v| {
        let v = std::str::from_utf8(v).ok()?;
        v.strip_prefix(name)?.strip_prefix('=')?.parse().ok()
    })
}

/// Fields of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    parent: u32,
    start_ticks: u64,
}

impl Stat {
    /// The name is in parentheses and may hold any byte, parentheses too: it ends at the last one.
    fn parse(text: &[u8]) -> Option<Stat> {
        let text = String::from_utf8_lossy(text);
        let (open, close) = (text.find('(')?, text.rfind(')')?);
        // From field 3, the state, on.
        let rest: Vec<&str> = text.get(close + 1..)?.split_whitespace().collect();
        Some(Stat {
            name: text.get(open + 1..close)?.to_owned(),
            parent: rest.get(1)?.parse().ok()?,
            start_ticks: rest.get(19)?.parse().ok()?,
        })
    }
}

/// Path in the v2 hierarchy; of the v1 cpu controller where v2 puts the process at its root.
fn cgroup_path(text: &str) -> String {
    let lines = || {
        text.lines().filter_map(|l| {
            let mut parts = l.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            Some((controllers, path))
        })
    };
    let v2 = lines().find(|(c, _)| c.is_empty()).map(|(_, p)| p);
    let v1 = lines()
        .find(|(c, _)| c.split(',').any(|c| c == "cpu"))
        .map(|(_, p)| p);
    match (v2, v1) {
        (Some(p), _) if p != "/" => p,
        (_, Some(p)) => p,
        (Some(p), None) => p,
        (None, None) => "",
    }
    .to_owned()
}

/// The 64 hex digits by which container runtimes name a cgroup.
fn container_id(cgroup: &str) -> Option<&str> {
    cgroup
        .split(|c: char| !c.is_ascii_hexdigit())
        .rfind(|part| part.len() == 64)
}

/// Files that the process has mapped whose name begins with `stem` and `.so`, as it names them; none when it cannot be looked at.
pub fn loaded(pid: Pid, stem: &str) -> Vec<PathBuf> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let wanted = |name: &str| {
        name.strip_prefix(stem)
            .is_some_and(|rest| rest.starts_with(".so"))
    };
    let files = mapped_files(&maps, wanted).into_iter();
    files.map(|file| file.path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_a_process_has_loaded_is_found_by_its_stem() {
        let pid = Pid(std::process::id());
        let libc = loaded(pid, "libc");
        assert!(
            libc.iter()
                .any(|path| path.to_string_lossy().contains("libc.so")),
            "{libc:?}"
        );
        assert!(loaded(pid, "lib").is_empty());
        assert!(loaded(Pid(u32::MAX), "libc").is_empty());
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = b"12 (a ) b (c) S 7 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9876 1 1";
        assert_eq!(
            Stat::parse(stat),
            Some(Stat {
                name: "a ) b (c".into(),
                parent: 7,
                start_ticks: 9876
            })
        );
        assert_eq!(Stat::parse(b"12 (a) S"), None);
    }

    #[test]
    fn the_cgroup_is_v2s_unless_that_is_the_root() {
        assert_eq!(
            cgroup_path("0::/user.slice/a\n3:cpu,cpuacct:/x\n"),
            "/user.slice/a"
        );
        assert_eq!(cgroup_path("3:cpu,cpuacct:/x\n0::/\n"), "/x");
        assert_eq!(cgroup_path("0::/\n"), "/");
        assert_eq!(cgroup_path(""), "");
    }

    #[test]
    fn a_container_is_known_by_its_64_digits() {
        let id = "0123456789abcdef".repeat(4);
        for path in [
            format!("/docker/{id}"),
            format!("/kubepods.slice/cri-containerd-{id}.scope"),
        ] {
            assert_eq!(container_id(&path), Some(id.as_str()));
        }
        assert_eq!(container_id("/user.slice"), None);
    }

    #[test]
    fn our_own_facts_are_true() {
        let pid = std::process::id();
        let info = process_info(pid, true, false).unwrap();
        assert_eq!(info.incarnation.pid, Pid(pid));
        assert!(info.start.0 > 0 && !info.command.is_empty() && info.from_start);
        assert!(unsorted_tids(pid).contains(&pid));
        assert!(unsorted_pids().contains(&pid));
        assert_eq!(process_info(u32::MAX - 1, true, true), None);
        let (life, parent) = incarnation(pid).unwrap();
        assert_eq!((life, parent), (info.incarnation, info.parent));
        assert_eq!(arguments(pid), std::env::args().collect::<Vec<_>>());
        let path = environment_variable(pid, "PATH");
        assert_eq!(path, std::env::var("PATH").ok());
        assert_eq!(environment_variable(pid, "PAT"), None);
        assert_eq!(arguments(u32::MAX - 1), Vec::<String>::new());
    }
}
