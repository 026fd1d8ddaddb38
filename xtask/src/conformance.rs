//! `cargo xtask conformance [DIR]`: runs the vectors of every format and prints, for each, how many passed and the ids that
//! did not. The tests leave a report each in `target/conformance/`.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::Value;

/// Runs the vectors in `folder`, or those committed.
pub(crate) fn run(root: &Path, folder: Option<&Path>) -> anyhow::Result<()> {
    let reports = root.join("target/conformance");
    if reports.exists() {
        std::fs::remove_dir_all(&reports).with_context(|| format!("cannot empty {reports:?}"))?;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut tests = Command::new(cargo);
    tests
        .args(["test", "--package", "warptrace-formats"])
        .args(["--package", "warptrace-sdk"])
        .args(["--test", "conformance", "--test", "exporter_config"])
        .arg("--no-fail-fast")
        .current_dir(root);
    if let Some(folder) = folder {
        let folder = folder
            .canonicalize()
            .with_context(|| format!("no folder {folder:?}"))?;
        tests.env("WARPTRACE_CONFORMANCE", folder);
    }
    let status = tests.status().context("cannot run cargo")?;
    let mut texts = Vec::new();
    for entry in
        std::fs::read_dir(&reports).with_context(|| format!("no reports in {reports:?}"))?
    {
        let path = entry?.path();
        let report =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}"))?;
        texts.push(line(&report).with_context(|| format!("{path:?} is not a report"))?);
    }
    texts.sort();
    print!("{}", texts.concat());
    if !status.success() {
        bail!("some vectors did not pass");
    }
    Ok(())
}

/// A report for people.
fn line(report: &str) -> anyhow::Result<String> {
    let report: Value = serde_json::from_str(report)?;
    let format = report["format"].as_str().context("no format")?;
    let passed = report["passed"].as_u64().context("no count")?;
    let mut text = format!("{format}: {passed} passed");
    for what in ["failed", "disputed"] {
        let ids = report[what].as_array().context("no ids")?;
        text += &format!(", {} {what}", ids.len());
        if !ids.is_empty() {
            let ids: Vec<&str> = ids.iter().filter_map(Value::as_str).collect();
            text += &format!(" ({})", ids.join(", "));
        }
    }
    if let Some(n @ 1..) = report["elsewhere"].as_u64() {
        text += &format!(", {n} tested elsewhere");
    }
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_did_not_pass() {
        let report = r#"{"format":"x","passed":3,"failed":["a","b"],"disputed":[],"elsewhere":0}"#;
        assert_eq!(
            line(report).unwrap(),
            "x: 3 passed, 2 failed (a, b), 0 disputed\n"
        );
    }
}
