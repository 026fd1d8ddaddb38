//! `cargo xtask tidy`: the table of crates in ARCHITECTURE.md, held against the tree.
//!
//! The table is the one source: which of our crates each crate may depend on (normal dependencies; tests may use what
//! they like), which are pure, and where `unsafe` may stand. The compiler denies `unsafe` everywhere by the workspace's
//! lints, so what is checked here is that every crate takes those lints and who opts out of them.
//!
//! It knows the table's shape and nothing of what the crates do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// Checks the tree.
///
/// # Errors
/// All that is wrong, one line each.
pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let page = read(&root.join("ARCHITECTURE.md"))?;
    let rows = parse_table(&page)?;
    let packages = packages(root)?;
    let mut wrong = dependencies(&rows, &packages);
    for package in &packages {
        wrong.extend(manifest(
            package,
            &read(&root.join(&package.folder).join("Cargo.toml"))?,
        ));
        let Some(row) = rows.get(&package.name_in_table()) else {
            continue;
        };
        for (path, text) in sources(&root.join(&package.folder))? {
            wrong.extend(source(row, &package.folder.join(path), &text));
        }
    }
    for (path, text) in files(&root.join("bpf"), &["c", "h"])? {
        wrong.extend(bpf(&Path::new("bpf").join(path), &text));
    }
    if wrong.is_empty() {
        println!("tidy: {} crates as ARCHITECTURE.md has them", rows.len());
        return Ok(());
    }
    bail!("{} wrong:\n  {}", wrong.len(), wrong.join("\n  "))
}

/// A row of the table of crates.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: String,
    may_use: MayUse,
    /// No files, sockets, threads, processes, environment or clocks.
    pure: bool,
    unsafety: Unsafe,
}

#[derive(Debug, PartialEq, Eq)]
enum MayUse {
    Any,
    These(BTreeSet<String>),
}

#[derive(Debug, PartialEq, Eq)]
enum Unsafe {
    No,
    Yes,
    /// In files of the crate whose path begins so.
    Under(String),
}

/// The rows of the table whose head begins with `| crate |`, by name.
fn parse_table(page: &str) -> anyhow::Result<BTreeMap<String, Row>> {
    let mut rows = BTreeMap::new();
    let table = page
        .lines()
        .skip_while(|line| !line.starts_with("| crate |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    for line in table {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, _, may_use, rules, _] = cells[..] else {
            bail!("the table of crates has five columns, not as in {line:?}");
        };
        let name = name.trim_matches('`').to_owned();
        let may_use = match may_use {
            "any" => MayUse::Any,
            "nothing" => MayUse::These(BTreeSet::new()),
            these => MayUse::These(
                these
                    .split(", ")
                    .map(|word| word.trim_matches('`').to_owned())
                    .collect(),
            ),
        };
        let mut row = Row {
            name: name.clone(),
            may_use,
            pure: false,
            unsafety: Unsafe::No,
        };
        for rule in rules.split(", ").filter(|rule| !rule.is_empty()) {
            match rule.strip_prefix("unsafe in ") {
                Some(place) => row.unsafety = Unsafe::Under(place.trim_matches('`').to_owned()),
                None if rule == "unsafe" => row.unsafety = Unsafe::Yes,
                None if rule == "pure" => row.pure = true,
                None => bail!("{name}: {rule:?} is no rule (pure, unsafe, unsafe in PATH)"),
            }
        }
        ensure!(
            rows.insert(name.clone(), row).is_none(),
            "{name} has two rows"
        );
    }
    ensure!(
        !rows.is_empty(),
        "ARCHITECTURE.md has no table that begins with \"| crate |\""
    );
    Ok(rows)
}

/// A member of the workspace.
#[derive(Debug)]
struct Package {
    /// Below the root: `crates/model`, `xtask`.
    folder: PathBuf,
    license: String,
    /// Folders of our crates that it depends on, tests and build scripts left out.
    uses: BTreeSet<PathBuf>,
}

impl Package {
    /// The folder, without `crates/`.
    fn name_in_table(&self) -> String {
        name_in_table(&self.folder)
    }
}

fn name_in_table(folder: &Path) -> String {
    let name = folder.strip_prefix("crates").unwrap_or(folder);
    name.to_string_lossy().into_owned()
}

/// The members of the workspace, as cargo sees them.
fn packages(root: &Path) -> anyhow::Result<Vec<Package>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    let failure = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata failed: {failure}");
    parse_metadata(&serde_json::from_slice(&output.stdout)?)
}

fn parse_metadata(metadata: &Value) -> anyhow::Result<Vec<Package>> {
    let root = metadata["workspace_root"]
        .as_str()
        .context("metadata names no root")?;
    let below = |path: &str| -> anyhow::Result<PathBuf> {
        let path = Path::new(path).strip_prefix(root);
        Ok(path.context("a path outside the workspace")?.to_owned())
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut packages = Vec::new();
    for package in list(&metadata["packages"]) {
        let manifest = package["manifest_path"]
            .as_str()
            .context("a package without a manifest")?;
        let folder = below(manifest)?
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default();
        let mut uses = BTreeSet::new();
        for dependency in list(&package["dependencies"]) {
            if let (Value::Null, Some(path)) = (&dependency["kind"], dependency["path"].as_str()) {
                uses.insert(below(path)?);
            }
        }
        packages.push(Package {
            folder,
            license: package["license"].as_str().unwrap_or_default().to_owned(),
            uses,
        });
    }
    Ok(packages)
}

/// Arrows against the grain, and crates or rows without their counterpart.
fn dependencies(rows: &BTreeMap<String, Row>, packages: &[Package]) -> Vec<String> {
    let mut wrong = Vec::new();
    let names: BTreeSet<String> = packages.iter().map(Package::name_in_table).collect();
    for package in packages {
        let name = package.name_in_table();
        let Some(row) = rows.get(&name) else {
            wrong.push(format!(
                "{name} has no row in ARCHITECTURE.md's table of crates"
            ));
            continue;
        };
        if let MayUse::These(these) = &row.may_use {
            let used: BTreeSet<String> = package
                .uses
                .iter()
                .map(|path| name_in_table(path))
                .collect();
            for against in used.difference(these) {
                wrong.push(format!("{name} may not depend on {against}"));
            }
        }
        if package.license != "Apache-2.0" {
            wrong.push(format!(
                "{name} is licensed {:?}, not Apache-2.0",
                package.license
            ));
        }
    }
    for (name, row) in rows {
        if !names.contains(name) {
            wrong.push(format!(
                "{name} has a row in ARCHITECTURE.md and is no member of the workspace"
            ));
        }
        if let MayUse::These(these) = &row.may_use {
            for unknown in these.difference(&names) {
                wrong.push(format!("{name} may depend on {unknown}, which is no crate"));
            }
        }
    }
    wrong
}

/// A manifest that does not take the workspace's lints.
fn manifest(package: &Package, text: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let takes = lines.any(|line| line == "[lints]") && lines.next() == Some("workspace = true");
    (!takes).then(|| {
        let name = package.name_in_table();
        format!("{name} does not take the workspace's lints ([lints] workspace = true)")
    })
}

/// Modules of std that a pure crate does without.
const IMPURE: [&str; 6] = ["env", "fs", "net", "os", "process", "thread"];
/// Clocks likewise.
const CLOCKS: [&str; 2] = ["Instant::now", "SystemTime::now"];

/// What one Rust file does that its crate may not; `path` is from the root.
fn source(row: &Row, path: &Path, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut say = |line: usize, what: String| {
        wrong.push(format!("{}:{}: {what}", path.display(), line + 1));
    };
    let inside: String = path.to_string_lossy().into_owned();
    let may_opt_out = match &row.unsafety {
        Unsafe::Yes => true,
        Unsafe::No => false,
        Unsafe::Under(place) => inside.contains(&format!("{}/{place}", row.name)),
    };
    let mut pure = row.pure && !is_outside(path);
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        // Tests stand at the end of a file, and may do what they need.
        pure &= code.trim() != "#[cfg(test)]";
        if code.contains(concat!("unsafe", "_code")) && !may_opt_out {
            say(number, format!("{} has no unsafe code here", row.name));
        }
        if !pure {
            continue;
        }
        for module in IMPURE {
            if names_std(code, module) {
                say(
                    number,
                    format!("{} is pure, and std::{module} is not", row.name),
                );
            }
        }
        for clock in CLOCKS {
            if code.contains(clock) {
                say(
                    number,
                    format!("{} is pure, and takes times as values", row.name),
                );
            }
        }
    }
    let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    if is_root && !text.starts_with("//!") {
        say(0, "a crate opens with what it is for (//!)".to_owned());
    }
    wrong
}

/// A file that is no part of the crate's library: tests, examples, benchmarks.
fn is_outside(path: &Path) -> bool {
    let outside = ["tests", "examples", "benches"];
    let folder = |part: std::path::Component<'_>| outside.iter().any(|o| part.as_os_str() == *o);
    path.ends_with("tests.rs") || path.components().any(folder)
}

/// Whether a line of code names a module of std, alone or in a group (`use std::{fs, io}`).
fn names_std(code: &str, module: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut words = code.split(|c| !is_word(c)).filter(|word| !word.is_empty());
    let Some((_, after)) = code.split_once("std::") else {
        return false;
    };
    if after.starts_with('{') {
        return words.any(|word| word == module);
    }
    code.match_indices("std::").any(|(at, std)| {
        let rest = &code[at + std.len()..];
        rest.split(|c| !is_word(c)).next() == Some(module)
    })
}

/// A BPF source without its licence, which the kernel asks for.
fn bpf(path: &Path, text: &str) -> Option<String> {
    let first = text.lines().next().unwrap_or_default();
    let licensed = first.contains("SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause");
    (!licensed).then(|| {
        let path = path.display();
        format!("{path}:1: begins with SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause")
    })
}

/// The Rust files of a package, by their paths in it.
fn sources(package: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    files(package, &["rs"])
}

/// Files under `folder` with one of these extensions, sorted by path; none when there is no such folder. Folders named
/// `target` are cargo's.
fn files(folder: &Path, extensions: &[&str]) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(next) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&next) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            let extension = path
                .extension()
                .and_then(|e| e.to_str())
                .unwrap_or_default();
            if path.is_dir() && !path.ends_with("target") {
                todo.push(path);
            } else if path.is_file() && extensions.contains(&extension) {
                let text = read(&path)?;
                found.push((path.strip_prefix(folder)?.to_owned(), text));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {path:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TABLE: &str = "\
before

| crate | what | may depend on | rules | must not know |
|---|---|---|---|---|
| `record` | layouts | nothing | pure, unsafe in `src/ring` | meanings |
| `engine` | judgement | `record` | pure | files |
| `simgpu/cuda` | a simulator | `record`, `engine` | unsafe | us |
| `cli` | the binary | any | | |

| crate | another table | nothing | | |
";

    fn rows() -> BTreeMap<String, Row> {
        parse_table(TABLE).unwrap()
    }

    fn package(folder: &str, uses: &[&str]) -> Package {
        Package {
            folder: folder.into(),
            license: "Apache-2.0".to_owned(),
            uses: uses.iter().map(PathBuf::from).collect(),
        }
    }

    fn tree() -> Vec<Package> {
        vec![
            package("crates/record", &[]),
            package("crates/engine", &["crates/record"]),
            package("simgpu/cuda", &["crates/record"]),
            package("crates/cli", &["crates/engine", "simgpu/cuda"]),
        ]
    }

    #[test]
    fn the_tree_is_tidy() {
        check(&crate::root()).unwrap();
    }

    #[test]
    fn the_table_ends_where_its_lines_end() {
        let rows = rows();
        assert_eq!(rows.len(), 4);
        assert_eq!(rows["cli"].may_use, MayUse::Any);
        assert_eq!(rows["record"].may_use, MayUse::These(BTreeSet::new()));
        assert_eq!(
            rows["record"].unsafety,
            Unsafe::Under("src/ring".to_owned())
        );
        assert!(rows["engine"].pure && !rows["cli"].pure);
    }

    #[test]
    fn a_table_that_cannot_be_read_is_an_error_and_not_an_empty_one() {
        for (from, to) in [
            ("| crate | what", "| crates | what"),
            ("| files |", "|"),
            ("| pure | files", "| purely | files"),
            ("`engine` | judgement", "`record` | judgement"),
        ] {
            let page = TABLE.replacen(from, to, 1);
            assert!(parse_table(&page).is_err(), "{from}");
        }
    }

    #[test]
    fn a_tree_as_the_table_has_it_is_right() {
        assert_eq!(dependencies(&rows(), &tree()), [] as [&str; 0]);
    }

    #[test]
    fn an_arrow_against_the_grain_is_named() {
        let mut tree = tree();
        tree[0] = package("crates/record", &["crates/engine"]);
        assert_eq!(
            dependencies(&rows(), &tree),
            ["record may not depend on engine"]
        );
    }

    #[test]
    fn a_crate_without_a_row_and_a_row_without_a_crate_are_named() {
        let mut tree = tree();
        tree[3] = package("crates/web", &[]);
        let wrong = dependencies(&rows(), &tree);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].starts_with("web has no row"), "{wrong:?}");
        assert!(wrong[1].starts_with("cli has a row"), "{wrong:?}");
    }

    #[test]
    fn only_normal_dependencies_of_ours_count() {
        let metadata = json!({
            "workspace_root": "/w",
            "packages": [{
                "manifest_path": "/w/crates/engine/Cargo.toml",
                "license": "MIT",
                "dependencies": [
                    {"kind": null, "path": "/w/crates/record"},
                    {"kind": "dev", "path": "/w/crates/cli"},
                    {"kind": "build", "path": "/w/simgpu/cuda"},
                    {"kind": null, "path": null},
                ],
            }],
        });
        let packages = parse_metadata(&metadata).unwrap();
        assert_eq!(packages[0].name_in_table(), "engine");
        assert_eq!(
            packages[0].uses,
            BTreeSet::from([PathBuf::from("crates/record")])
        );
        let wrong = dependencies(&rows(), &packages);
        assert!(
            wrong.iter().any(|line| line.contains("\"MIT\"")),
            "{wrong:?}"
        );
    }

    #[test]
    fn a_manifest_takes_the_lints_of_the_workspace() {
        let package = package("crates/engine", &[]);
        assert_eq!(
            manifest(&package, "[package]\n\n[lints]\nworkspace = true\n"),
            None
        );
        for text in [
            "[package]\n",
            "[lints]\n[dependencies]\nworkspace = true\n",
            "[lints.rust]\nworkspace = true\n",
        ] {
            assert!(manifest(&package, text).is_some(), "{text}");
        }
    }

    #[test]
    fn the_lint_against_unsafe_is_opted_out_of_only_where_the_table_allows_it() {
        let attribute = concat!("//! x\n#![expect(unsafe", "_code, reason = \"\")]\n");
        let rows = rows();
        let wrong = |name: &str, path: &str| source(&rows[name], Path::new(path), attribute);
        assert_eq!(wrong("engine", "crates/engine/src/lib.rs").len(), 1);
        assert_eq!(wrong("record", "crates/record/src/lib.rs").len(), 1);
        assert_eq!(wrong("record", "crates/record/src/ring.rs").len(), 0);
        assert_eq!(
            wrong("record", "crates/record/src/ring/control.rs").len(),
            0
        );
        assert_eq!(wrong("simgpu/cuda", "simgpu/cuda/src/lib.rs").len(), 0);
    }

    #[test]
    fn a_pure_crate_takes_everything_as_values() {
        let path = Path::new("crates/engine/src/rules.rs");
        for line in [
            "use std::fs::File;",
            "use std::{collections::BTreeMap, thread};",
            "let now = Instant::now();",
            "fn f(path: &str) -> std::io::Result<()> { std::fs::write(path, \"\") }",
        ] {
            assert_eq!(source(&rows()["engine"], path, line).len(), 1, "{line}");
            assert_eq!(source(&rows()["cli"], path, line).len(), 0, "{line}");
        }
        for line in [
            "use std::collections::BTreeMap;",
            "let thread = 1; // std::thread",
            "std::fmt::Write",
        ] {
            assert_eq!(source(&rows()["engine"], path, line).len(), 0, "{line}");
        }
    }

    #[test]
    fn a_crate_opens_with_what_it_is_for_and_a_bpf_source_with_its_licence() {
        let path = Path::new("crates/cli/src/main.rs");
        assert_eq!(source(&rows()["cli"], path, "fn main() {}\n").len(), 1);
        assert_eq!(source(&rows()["cli"], path, "//! The binary.\n").len(), 0);
        let path = Path::new("bpf/x.bpf.c");
        assert!(
            bpf(
                path,
                "// SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause\n"
            )
            .is_none()
        );
        assert!(bpf(path, "// SPDX-License-Identifier: GPL-2.0\n").is_some());
    }
}
