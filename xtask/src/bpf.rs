//! The BPF objects: built from `bpf/`, committed beside it, and proved to match.
//!
//! `bpf/SOURCE` holds a hash of the sources and the compiler's version: a hash is compared on any machine, bytes only
//! where that compiler is.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

/// Sources that become an object each: the product's, and the floor that the benchmark measures it against.
const OBJECTS: [&str; 2] = ["warptrace", "empty"];

/// Architecture in the object's name, and the macro that libbpf's headers want.
const TARGETS: [(&str, &str); 2] = [("x86_64", "x86"), ("aarch64", "arm64")];

/// Compilers to look for; the version that built the committed objects is in `bpf/SOURCE`.
const COMPILERS: [(&str, &str); 2] = [("clang-14", "llvm-strip-14"), ("clang", "llvm-strip")];

pub(crate) fn build(root: &Path) -> anyhow::Result<()> {
    let (clang, strip, version) = compiler()?;
    for name in OBJECTS {
        for target in TARGETS {
            let object = compile(root, clang, strip, name, target)?;
            let path = committed(root, name, target.0);
            std::fs::write(&path, object).with_context(|| format!("cannot write {path:?}"))?;
        }
    }
    let path = root.join("bpf/SOURCE");
    std::fs::write(&path, note(&hash(root)?, &version))
        .with_context(|| format!("cannot write {path:?}"))
}

pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    check_hash(root)?;
    let (clang, strip, version) = compiler()?;
    let note = std::fs::read_to_string(root.join("bpf/SOURCE"))?;
    if !note.contains(&version) {
        bail!(
            "{version:?} is not the compiler of bpf/SOURCE, so bytes cannot be compared:\n{note}"
        );
    }
    for name in OBJECTS {
        for target in TARGETS {
            let built = compile(root, clang, strip, name, target)?;
            let path = committed(root, name, target.0);
            let old = std::fs::read(&path).with_context(|| format!("cannot read {path:?}"))?;
            if built != old {
                bail!("{path:?} is not what bpf/ builds: run `cargo xtask bpf`");
            }
        }
    }
    Ok(())
}

/// Compares `bpf/SOURCE` with the sources.
pub(crate) fn check_hash(root: &Path) -> anyhow::Result<()> {
    let path = root.join("bpf/SOURCE");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}"))?;
    let hash = hash(root)?;
    if !text.contains(&hash) {
        bail!(
            "the objects in bpf/ were built from other sources than these ({hash}): run `cargo xtask bpf`"
        );
    }
    Ok(())
}

fn note(hash: &str, version: &str) -> String {
    format!("sources sha256 {hash}\ncompiler {version}\n")
}

fn committed(root: &Path, name: &str, arch: &str) -> PathBuf {
    root.join(format!("bpf/{name}.{arch}.bpf.o"))
}

fn compiler() -> anyhow::Result<(&'static str, &'static str, String)> {
    for (clang, strip) in COMPILERS {
        let Ok(out) = Command::new(clang).arg("--version").output() else {
            continue;
        };
        if let Some(line) = String::from_utf8_lossy(&out.stdout).lines().next() {
            return Ok((clang, strip, line.trim().to_owned()));
        }
    }
    bail!("no clang found (Debian: apt install clang-14 llvm-14 libbpf-dev)");
}

fn compile(
    root: &Path,
    clang: &str,
    strip: &str,
    name: &str,
    (arch, target): (&str, &str),
) -> anyhow::Result<Vec<u8>> {
    let out = std::env::temp_dir().join(format!("{name}-{}-{arch}.bpf.o", std::process::id()));
    // As the compiler sees it, which knows no links.
    let bpf = root.join("bpf").canonicalize()?;
    // The folder's name must not reach the object, whose line information would hold it.
    run(Command::new(clang)
        .current_dir(&bpf)
        .args([
            "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror",
        ])
        .arg(format!("-D__TARGET_ARCH_{target}"))
        .args(["-idirafter", "/usr/include/x86_64-linux-gnu"])
        .arg(format!("-ffile-prefix-map={}=.", bpf.display()))
        .args(["-c", &format!("{name}.bpf.c"), "-o"])
        .arg(&out))?;
    run(Command::new(strip).arg("-g").arg(&out))?;
    let object = std::fs::read(&out).with_context(|| format!("cannot read {out:?}"))?;
    let _ = std::fs::remove_file(&out);
    Ok(object)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{:?} failed: {status}", command.get_program());
    }
    Ok(())
}

/// SHA-256 over names and contents of the sources, in the order of their names.
fn hash(root: &Path) -> anyhow::Result<String> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(root.join("bpf"))?
        .map(|e| e.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    names.retain(|p| p.extension().is_some_and(|e| e == "c" || e == "h"));
    names.sort();
    let mut hasher = Sha256::new();
    for path in names {
        let text = std::fs::read(&path)?;
        hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    let mut hex = String::new();
    for byte in hasher.finalize() {
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_objects_were_built_from_these_sources() {
        super::check_hash(&crate::root()).unwrap();
    }
}
