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

/// Executable memory that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Of `start`, in the file.
    pub(crate) offset: u64,
    /// Where the first byte of its file is mapped; else where its first mapped byte is.
    pub(crate) base: u64,
    pub(crate) inode: u64,
    /// As the process names it; `[vdso]` and the like for what is no file.
    pub(crate) path: PathBuf,
    deleted: bool,
}

impl Region {
    /// As [`Mapped::reach`].
    pub(crate) fn reach(&self, pid: u32) -> PathBuf {
        if self.deleted {
            PathBuf::from(format!(
                "/proc/{pid}/map_files/{:x}-{:x}",
                self.start, self.end
            ))
        } else {
            through_root(pid, &self.path)
        }
    }
}

/// Executable memory with a name in the text of `/proc/PID/maps`, ascending.
pub(crate) fn regions(maps: &str) -> Vec<Region> {
    let mut found: Vec<Region> = Vec::new();
    // Mappings of one file follow each other.
    let mut file: Option<(&str, u64, u64)> = None;
    for line in maps.lines() {
        // address perms offset dev inode path; the path is padded, is the rest of the line, and may hold spaces.
        let mut fields = line.splitn(6, ' ');
        let (Some(range), Some(permissions), Some(offset), Some(_), Some(inode), Some(name)) = (
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
        ) else {
            continue;
        };
        let hex = |text| u64::from_str_radix(text, 16);
        let Some((start, end)) = range.split_once('-') else {
            continue;
        };
        let (Ok(start), Ok(end), Ok(offset), Ok(inode)) =
            (hex(start), hex(end), hex(offset), inode.parse::<u64>())
        else {
            continue;
        };
        let name = name.trim_start();
        if name.is_empty() {
            continue;
        }
        let base = match file {
            Some((of, same, base)) if of == name && same == inode && offset > 0 => base,
            _ => start,
        };
        file = Some((name, inode, base));
        if permissions.as_bytes().get(2) != Some(&b'x') {
            continue;
        }
        let (path, deleted) = match name.strip_suffix(" (deleted)") {
            Some(path) => (path, true),
            None => (name, false),
        };
        found.push(Region {
            start,
            end,
            offset,
            base,
            inode,
            path: PathBuf::from(path),
            deleted,
        });
    }
    found
}

/// The one of `regions` that holds `address`.
pub(crate) fn region_of(regions: &[Region], address: u64) -> Option<&Region> {
    let after = regions.partition_point(|r| r.start <= address);
    regions
        .get(after.checked_sub(1)?)
        .filter(|r| address < r.end)
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

    #[test]
    fn an_address_is_found_in_the_code_of_its_file() {
        let maps = "\
55d0a0000000-55d0a0001000 r--p 00000000 fe:00 7                          /opt/my env/train
55d0a0001000-55d0a0003000 r-xp 00001000 fe:00 7                          /opt/my env/train
55d0a0003000-55d0a0004000 rw-p 00003000 fe:00 7                          /opt/my env/train
7f0000000000-7f0000001000 rwxp 00000000 00:00 0 
7f0000003000-7f0000004000 r-xp 00000000 fe:00 13                         /tmp/libcuda.so.1 (deleted)
7f0000004000-7f0000005000 r-xp 00001000 fe:00 13                         /tmp/libcuda.so.1 (deleted)
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
not a line
";
        let all = regions(maps);
        let of = |address| region_of(&all, address);
        let code = of(0x55d0_a000_1234).unwrap();
        assert_eq!(code.path, Path::new("/opt/my env/train"));
        assert_eq!(
            (code.base, code.offset, code.inode),
            (0x55d0_a000_0000, 0x1000, 7)
        );
        assert_eq!(code.reach(9), Path::new("/proc/9/root/opt/my env/train"));
        assert_eq!(of(0x55d0_a000_0010), None, "no code");
        assert_eq!(of(0x55d0_a000_3000), None, "past its end");
        assert_eq!(of(0x7f00_0000_0010), None, "nobody's");
        let gone = of(0x7f00_0000_4000).unwrap();
        assert_eq!(gone.base, 0x7f00_0000_3000);
        assert_eq!(
            gone.reach(9),
            Path::new("/proc/9/map_files/7f0000004000-7f0000005000")
        );
        assert_eq!(of(0x7ffd_0000_0000).unwrap().path, Path::new("[vdso]"));
        assert_eq!(of(0), None);
    }
}
