//! The programs as they are published: small, and needing no library but glibc's and libgcc_s.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

/// Where [`build`] leaves them.
pub(crate) const BUILT: &str = "target/dist";

/// Bytes of an agent, stripped, at most.
const AGENT_BYTES: u64 = 15_000_000;

/// Builds `warptrace` with the profile `dist`; `more` are arguments of cargo.
pub(crate) fn build(root: &Path, more: &[&str]) -> anyhow::Result<()> {
    let archive = libelf()?;
    run(cargo()
        .args(["build", "--package", "warptrace", "--bin", "warptrace"])
        .args(["--profile", "dist"])
        .args(["--features", "warptrace-capture/static"])
        .args(more)
        .env("LIBBPF_SYS_LIBRARY_PATH", archive.parent().unwrap_or(root))
        .current_dir(root))
}

/// Builds the agent, `warptrace` without what only a person needs beside it, into `target/agent`. Fails when it is too big.
pub(crate) fn agent(root: &Path) -> anyhow::Result<()> {
    build(root, &["--no-default-features"])?;
    let folder = root.join("target/agent");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {folder:?}"))?;
    let agent = folder.join("warptrace");
    run(Command::new("strip")
        .arg("-o")
        .arg(&agent)
        .arg(root.join(BUILT).join("warptrace")))?;
    check(&agent)?;
    let bytes = std::fs::metadata(&agent)?.len();
    println!("agent: {}, {bytes} bytes", agent.display());
    ensure!(
        bytes <= AGENT_BYTES,
        "the agent has more than {AGENT_BYTES} bytes"
    );
    Ok(())
}

/// Fails when `program` needs a library that not every machine has.
pub(crate) fn check(program: &Path) -> anyhow::Result<()> {
    let foreign = foreign_libraries(program)?;
    ensure!(
        foreign.is_empty(),
        "{program:?} needs {foreign:?}, which not every machine has"
    );
    Ok(())
}

/// The archive libelf.a, from which the programs that are published take what libbpf needs of it; libz.a lies beside it.
fn libelf() -> anyhow::Result<PathBuf> {
    let found = output(Command::new("cc").arg("-print-file-name=libelf.a"))?;
    let archive = PathBuf::from(found.trim());
    // Not found, it is named without a folder.
    ensure!(
        archive.is_absolute(),
        "no libelf.a (Debian: libelf-dev and zlib1g-dev; Fedora: elfutils-libelf-devel-static and zlib-static)"
    );
    archive
        .canonicalize()
        .with_context(|| format!("cannot find {archive:?}"))
}

/// The libraries that a program needs beside those that wheels for any Linux with a new enough glibc may need (manylinux, PEP 600).
pub(crate) fn foreign_libraries(binary: &Path) -> anyhow::Result<Vec<String>> {
    let headers = output(Command::new("objdump").arg("--private-headers").arg(binary))?;
    Ok(foreign(&headers))
}

fn foreign(private_headers: &str) -> Vec<String> {
    const EVERYWHERE: [&str; 7] = [
        "libc.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "libdl.so.2",
        "libpthread.so.0",
        "librt.so.1",
        "ld-linux-x86-64.so.2",
    ];
    let lines = private_headers.lines();
    let needed = lines.filter_map(|line| line.trim().strip_prefix("NEEDED"));
    needed
        .map(str::trim)
        .filter(|library| !EVERYWHERE.contains(library))
        .map(str::to_owned)
        .collect()
}

pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot run {name:?}"))?;
    if !status.success() {
        bail!("{name:?} failed: {command:?}");
    }
    Ok(())
}

pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {name:?}"))?;
    ensure!(output.status.success(), "{name:?} failed: {command:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_not_every_machine_has_is_found() {
        let headers = "Dynamic Section:\n\
            \x20 NEEDED               libelf.so.1\n\
            \x20 NEEDED               libgcc_s.so.1\n\
            \x20 NEEDED               libc.so.6\n\
            \x20 INIT                 0x000000000000c000\n";
        assert_eq!(foreign(headers), ["libelf.so.1"]);
    }
}
