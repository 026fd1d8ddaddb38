//! Whether a program can be recorded from inside, and by which of the dynamic linker's two doors.
//!
//! The linker must be glibc's, and the program must not get privileges at its start: then the linker ignores both variables. A
//! script is judged by its interpreter. The auditing door is taken from glibc 2.35 on: before that, an auditor made every call
//! through the procedure linkage table slower (bug 15533), and missed libraries that are bound at load (bug 23734).
#![expect(
    unsafe_code,
    reason = "extended attributes and user ids are not in std"
)]

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// By which variable the library gets into a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// `LD_AUDIT`.
    Audit,
    /// `LD_PRELOAD`: misses libraries opened with RTLD_DEEPBIND.
    Preload,
}

impl Mechanism {
    pub const fn variable(self) -> &'static str {
        match self {
            Mechanism::Audit => "LD_AUDIT",
            Mechanism::Preload => "LD_PRELOAD",
        }
    }
}

/// Why a program would run, but not be recorded from inside.
#[derive(Debug, thiserror::Error)]
pub enum PreloadUnsupported {
    #[error("{0:?} is linked statically, so nothing can be loaded into it (as root, use trace)")]
    Static(PathBuf),
    #[error(
        "{program:?} runs on {interpreter:?}, and only glibc can load the library (as root, use trace)"
    )]
    OtherLibc {
        program: PathBuf,
        interpreter: PathBuf,
    },
    #[error(
        "{0:?} runs with the privileges of another user, so the dynamic linker ignores LD_AUDIT and LD_PRELOAD (as root, use trace)"
    )]
    SetUser(PathBuf),
    #[error(
        "{0:?} has file capabilities, so the dynamic linker ignores LD_AUDIT and LD_PRELOAD (as root, use trace)"
    )]
    Capabilities(PathBuf),
    #[error("{0:?} is built for another kind of machine")]
    OtherMachine(PathBuf),
    #[error("{0:?} is neither a program nor a script that names its interpreter")]
    NotAProgram(PathBuf),
    #[error("cannot read {path:?}")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Scripts whose interpreters are scripts, in a row, as many as Linux follows.
const MAX_SCRIPTS: usize = 5;

/// Whether the program at `path` can be recorded. `path` is a file, not a name to be searched for.
///
/// # Errors
/// [`PreloadUnsupported`], with what is in the way.
pub fn preload_support(path: &Path) -> Result<(), PreloadUnsupported> {
    interpreter(path).map(drop)
}

/// The door by which the program at `path` is entered.
///
/// # Errors
/// As [`preload_support`].
pub fn mechanism(path: &Path) -> Result<Mechanism, PreloadUnsupported> {
    let interpreter = interpreter(path)?;
    // A dynamic linker lists the versions of glibc whose symbols it defines; 2.35 added some.
    let linker = std::fs::read(&interpreter).unwrap_or_default();
    let modern = linker.windows(11).any(|name| name == b"GLIBC_2.35\0");
    Ok(if modern {
        Mechanism::Audit
    } else {
        Mechanism::Preload
    })
}

/// The dynamic linker of the program at `path`.
fn interpreter(path: &Path) -> Result<PathBuf, PreloadUnsupported> {
    let mut program = path.to_owned();
    for _ in 0..MAX_SCRIPTS {
        let unreadable = |source| PreloadUnsupported::Unreadable {
            path: program.clone(),
            source,
        };
        let file = File::open(&program).map_err(unreadable)?;
        let mut head = Vec::new();
        (&file)
            .take(256)
            .read_to_end(&mut head)
            .map_err(unreadable)?;
        if let Some(next) = script_interpreter(&head) {
            program = next;
            continue;
        }
        return judge(&program, &file, &head);
    }
    Err(PreloadUnsupported::NotAProgram(path.to_owned()))
}

/// What a `#!` line names.
fn script_interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let name = line
        .trim_ascii_start()
        .split(|b| b.is_ascii_whitespace())
        .next()
        .filter(|name| !name.is_empty())?;
    Some(OsStr::from_bytes(name).into())
}

const MACHINE: u16 = if cfg!(target_arch = "x86_64") {
    62
} else {
    183
};
const PT_INTERP: u32 = 3;

fn judge(program: &Path, file: &File, head: &[u8]) -> Result<PathBuf, PreloadUnsupported> {
    let owned = || program.to_owned();
    let unreadable = |source| PreloadUnsupported::Unreadable {
        path: owned(),
        source,
    };
    if head.len() < 64 || !head.starts_with(b"\x7fELF") {
        return Err(PreloadUnsupported::NotAProgram(owned()));
    }
    let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    // 64 bits, little-endian, this machine.
    if head[4] != 2 || head[5] != 1 || u16_at(18) != MACHINE {
        return Err(PreloadUnsupported::OtherMachine(owned()));
    }
    let metadata = file.metadata().map_err(unreadable)?;
    if takes_other_privileges(&metadata) {
        return Err(PreloadUnsupported::SetUser(owned()));
    }
    if has_capabilities(program) {
        return Err(PreloadUnsupported::Capabilities(owned()));
    }
    let interpreter = program_interpreter(file, head)
        .map_err(unreadable)?
        .ok_or_else(|| PreloadUnsupported::Static(owned()))?;
    let name = interpreter.file_name().unwrap_or_default().as_bytes();
    if !name.starts_with(b"ld-linux") && !name.starts_with(b"ld-2.") {
        return Err(PreloadUnsupported::OtherLibc {
            program: owned(),
            interpreter,
        });
    }
    Ok(interpreter)
}

/// What PT_INTERP names; `None` in a program without it.
fn program_interpreter(file: &File, head: &[u8]) -> io::Result<Option<PathBuf>> {
    let word = |b: &[u8], at: usize| {
        let mut out = [0; 8];
        out.copy_from_slice(&b[at..at + 8]);
        u64::from_le_bytes(out)
    };
    let (at, count) = (word(head, 32), u16::from_le_bytes([head[56], head[57]]));
    for i in 0..u64::from(count) {
        let mut header = [0; 56];
        file.read_exact_at(&mut header, at.saturating_add(56 * i))?;
        if header[..4] != PT_INTERP.to_le_bytes() {
            continue;
        }
        let len = word(&header, 32).min(4096) as usize;
        let mut name = vec![0; len];
        file.read_exact_at(&mut name, word(&header, 8))?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(len);
        return Ok(Some(OsStr::from_bytes(&name[..end]).into()));
    }
    Ok(None)
}

fn takes_other_privileges(metadata: &std::fs::Metadata) -> bool {
    // SAFETY: cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let mode = metadata.mode();
    mode & libc::S_ISUID != 0 && metadata.uid() != uid
        || mode & libc::S_ISGID != 0 && mode & libc::S_IXGRP != 0 && metadata.gid() != gid
}

/// File capabilities, unless we are root, who has them anyway.
fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: two strings; a null buffer of length 0 asks for the size alone.
    unsafe {
        libc::getuid() != 0
            && libc::getxattr(
                path.as_ptr(),
                c"security.capability".as_ptr(),
                std::ptr::null_mut(),
                0,
            ) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A program of one program header, which names `interpreter`.
    fn elf(class: u8, machine: u16, interpreter: Option<&str>) -> Vec<u8> {
        let mut b = vec![0; 64];
        b[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
        b[18..20].copy_from_slice(&machine.to_le_bytes());
        b[32..40].copy_from_slice(&64u64.to_le_bytes());
        b[56..58].copy_from_slice(&1u16.to_le_bytes());
        let mut header = [0; 56];
        if let Some(name) = interpreter {
            header[..4].copy_from_slice(&PT_INTERP.to_le_bytes());
            header[8..16].copy_from_slice(&120u64.to_le_bytes());
            header[32..40].copy_from_slice(&(name.len() as u64 + 1).to_le_bytes());
        }
        b.extend_from_slice(&header);
        b.extend_from_slice(interpreter.unwrap_or_default().as_bytes());
        b.push(0);
        b.resize(256, 0);
        b
    }

    #[track_caller]
    fn check(bytes: &[u8], want: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, bytes).unwrap();
        let got = match preload_support(&path) {
            Ok(()) => "ok".to_owned(),
            Err(e) => format!("{e:?}"),
        };
        assert!(got.starts_with(want), "{got} is not {want}");
    }

    #[test]
    fn each_kind_of_program_is_judged_by_what_is_in_the_way() {
        let glibc = Some("/lib64/ld-linux-x86-64.so.2");
        check(&elf(2, MACHINE, glibc), "ok");
        check(&elf(2, MACHINE, None), "Static");
        check(
            &elf(2, MACHINE, Some("/lib/ld-musl-x86_64.so.1")),
            "OtherLibc",
        );
        check(&elf(1, 3, glibc), "OtherMachine");
        check(&elf(2, 243, glibc), "OtherMachine");
        check(b"#!/bin/sh\necho", "ok");
        check(b"#! /usr/bin/env python3\n", "ok");
        check(b"#!/no/such/file\n", "Unreadable");
        check(b"echo hello", "NotAProgram");
        check(b"", "NotAProgram");
        check(b"\x7fELF", "NotAProgram");
        let mut far = elf(2, MACHINE, glibc);
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        check(&far, "Unreadable");
    }

    #[test]
    fn a_script_that_is_its_own_interpreter_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loop");
        std::fs::write(&path, format!("#!{}\n", path.display())).unwrap();
        assert!(matches!(
            preload_support(&path),
            Err(PreloadUnsupported::NotAProgram(_))
        ));
    }

    #[test]
    fn a_program_with_anothers_privileges_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, elf(2, MACHINE, Some("/lib64/ld-linux-x86-64.so.2"))).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4755)).unwrap();
        // SAFETY: cannot fail.
        if unsafe { libc::getuid() } != 0 {
            assert!(
                preload_support(&path).is_ok(),
                "our own privileges are no others"
            );
            return;
        }
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4755)).unwrap();
        assert!(matches!(
            preload_support(&path),
            Err(PreloadUnsupported::SetUser(_))
        ));
    }

    #[test]
    fn the_shell_of_this_machine_is_entered_by_one_of_the_doors() {
        let door = mechanism(Path::new("/bin/sh")).unwrap();
        assert!(door.variable().starts_with("LD_"));
    }
}
