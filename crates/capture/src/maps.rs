//! What a process has mapped: lines of `/proc/PID/maps`.

use std::path::{Path, PathBuf};

/// A file that is mapped, once however many mappings it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// As the process names it, in its own mount namespace.
    pub(crate) path: PathBuf,
    /// Its name was removed since.
    pub(crate) deleted: bool,
    /// `START-END` of its first mapping, as in `/proc/PID/map_files`.
    pub(crate) range: String,
}

impl Mapped {
    /// Where this process of ours finds the file: through the other's root, or by the mapping itself when the name is gone.
    pub(crate) fn reach(&self, pid: u32) -> PathBuf {
        if self.deleted {
            PathBuf::from(format!("/proc/{pid}/map_files/{}", self.range))
        } else {
            through_root(pid, &self.path)
        }
    }
}

/// `path` as process `pid` sees it.
pub(crate) fn through_root(pid: u32, path: &Path) -> PathBuf {
    let mut out = PathBuf::from(format!("/proc/{pid}/root"));
    out.push(path.strip_prefix("/").unwrap_or(path));
    out
}

/// Files in the text of `/proc/PID/maps` whose file name `wanted` likes, in the order of their addresses.
pub(crate) fn mapped_files(maps: &str, wanted: impl Fn(&str) -> bool) -> Vec<Mapped> {
    let mut files: Vec<Mapped> = Vec::new();
    for line in maps.lines() {
        // address perms offset dev inode path; the path is the rest of the line and may hold spaces.
        let Some(at) = line.find('/') else { continue };
        let (path, deleted) = match line[at..].strip_suffix(" (deleted)") {
            Some(path) => (path, true),
            None => (&line[at..], false),
        };
        let name = path.rsplit('/').next().unwrap_or(path);
        if !wanted(name)
            || files
                .iter()
                .any(|f| f.path == Path::new(path) && f.deleted == deleted)
        {
            continue;
        }
        files.push(Mapped {
            path: PathBuf::from(path),
            deleted,
            range: line.split(' ').next().unwrap_or_default().to_owned(),
        });
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_listed_once_with_its_spaces_and_its_deletion() {
        let maps = "\
7f0000000000-7f0000001000 r--p 00000000 fe:00 12 /opt/my env/libcudart.so.12
7f0000001000-7f0000002000 r-xp 00001000 fe:00 12 /opt/my env/libcudart.so.12
7f0000003000-7f0000004000 r-xp 00000000 fe:00 13 /tmp/libcuda.so.1 (deleted)
7f0000005000-7f0000006000 r-xp 00000000 fe:00 14 /lib/libc.so.6
7ffd00000000-7ffd00001000 rw-p 00000000 00:00 0 [stack]
";
        let got = mapped_files(maps, |name| name.starts_with("libcuda"));
        assert_eq!(got.len(), 2);
        assert_eq!(got[0].path, Path::new("/opt/my env/libcudart.so.12"));
        assert_eq!(
            got[0].reach(7),
            Path::new("/proc/7/root/opt/my env/libcudart.so.12")
        );
        assert_eq!(
            got[1].reach(7),
            Path::new("/proc/7/map_files/7f0000003000-7f0000004000")
        );
    }
}
