//! `cargo xtask ci`: everything that a change must pass, cheapest first. What CI runs is this, after it has installed
//! what a bare machine lacks (`.ci/run`).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::{bpf, ops, tidy};

/// Runs all steps, the first failure last.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let skips = root.join("target/skipped");
    if skips.exists() {
        std::fs::remove_dir_all(&skips).with_context(|| format!("cannot empty {skips:?}"))?;
    }
    step("format", || cargo(root, &["fmt", "--all", "--check"]))?;
    step("tidy", || tidy::check(root))?;
    step("generated files", || {
        ops::check(root).and_then(|()| bpf::check_hash(root))
    })?;
    step("lints", || {
        cargo(
            root,
            &["clippy", "--all-targets", "--", "--deny", "warnings"],
        )
    })?;
    step("lints of the agent", || {
        let agent = ["clippy", "--package", "warptrace", "--no-default-features"];
        cargo(root, &[&agent[..], &["--", "--deny", "warnings"]].concat())
    })?;
    let tests = step("tests", || cargo(root, &["test"]));
    print!("{}", report(&skipped(&skips)?));
    tests
}

fn step(name: &str, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    println!("ci: {name}");
    run().with_context(|| name.to_owned())
}

fn cargo(root: &Path, args: &[&str]) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let status = Command::new(cargo).args(args).current_dir(root).status();
    let status = status.context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} failed", args.join(" "));
    }
    Ok(())
}

/// Why tests could not run here, by test: a file each in `folder` (see CONTRIBUTING.md).
fn skipped(folder: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut skipped = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(skipped);
    };
    for entry in entries {
        let path = entry?.path();
        let test = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let reason =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}"))?;
        skipped.insert(test, reason.trim().to_owned());
    }
    Ok(skipped)
}

fn report(skipped: &BTreeMap<String, String>) -> String {
    let mut text = format!(
        "ci: tests skipped for what this machine lacks: {}\n",
        skipped.len()
    );
    for (test, reason) in skipped {
        text += &format!("  {test}: {reason}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_counted_and_told_with_its_reason() {
        let folder = std::env::temp_dir().join(format!("warptrace-skips-{}", std::process::id()));
        assert_eq!(
            report(&skipped(&folder).unwrap()),
            "ci: tests skipped for what this machine lacks: 0\n"
        );
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("a_full_disk_is_survived.txt"), "no tmpfs\n").unwrap();
        let found = skipped(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(
            report(&found.unwrap()),
            "ci: tests skipped for what this machine lacks: 1\n  a_full_disk_is_survived: no tmpfs\n"
        );
    }
}
