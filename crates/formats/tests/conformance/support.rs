//! What the vectors of every format need: their folder, the disputed ones, and the report that `cargo xtask conformance` prints.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The folder of the vectors.
pub(crate) fn folder() -> PathBuf {
    match std::env::var_os("WARPTRACE_CONFORMANCE") {
        Some(folder) => PathBuf::from(folder),
        None => committed(),
    }
}

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/conformance")
}

/// The bytes of `name` in [`folder`].
#[track_caller]
pub(crate) fn read(name: impl AsRef<Path>) -> Vec<u8> {
    let path = folder().join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("cannot read {path:?}: {e}"))
}

/// The cases of a file that is one JSON array.
#[allow(dead_code, reason = "not every crate's vectors come as arrays")]
#[track_caller]
pub(crate) fn cases(name: &str) -> Vec<Value> {
    serde_json::from_slice(&read(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The cases of a file that has one JSON object a line.
#[allow(dead_code, reason = "not every feature's vectors come as lines")]
#[track_caller]
pub(crate) fn lines(name: &str) -> Vec<Value> {
    let bytes = read(name);
    let lines = bytes.split(|&b| b == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace))
        .map(|(i, line)| {
            serde_json::from_slice(line).unwrap_or_else(|e| panic!("{name}:{}: {e}", i + 1))
        })
        .collect()
}

/// Whether two values are equal, with the difference as text when they are not.
#[allow(dead_code, reason = "not every crate compares values one by one")]
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(
    what: &str,
    got: T,
    want: T,
) -> Result<(), String> {
    if got == want {
        return Ok(());
    }
    Err(format!("{what}\n    got  {got:?}\n    want {want:?}"))
}

/// The results of one format's vectors.
pub(crate) struct Report {
    format: &'static str,
    disputed: Vec<String>,
    passed: Vec<String>,
    failed: BTreeMap<String, String>,
    elsewhere: Vec<String>,
}

impl Report {
    /// An empty report; `format` names its file, `target/conformance/<format>.json`.
    pub(crate) fn new(format: &'static str) -> Report {
        let table = committed().join("DISPUTED.md");
        let table = std::fs::read_to_string(&table).unwrap_or_default();
        Report {
            format,
            disputed: disputed(&table),
            passed: Vec::new(),
            failed: BTreeMap::new(),
            elsewhere: Vec::new(),
        }
    }

    /// Runs one case. A panic is a failure of this case, and does not stop the others.
    pub(crate) fn case(&mut self, id: &str, run: impl FnOnce() -> Result<(), String>) {
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("panicked: {}", text.unwrap_or_default()))
        });
        match result {
            Ok(()) => self.passed.push(id.to_owned()),
            Err(why) => {
                self.failed.insert(id.to_owned(), why);
            }
        }
    }

    /// Notes a case that has no meaning in Rust, or belongs to another crate's tests.
    #[allow(
        dead_code,
        reason = "not every feature's vectors have parts that belong elsewhere"
    )]
    pub(crate) fn elsewhere(&mut self, id: &str) {
        self.elsewhere.push(id.to_owned());
    }

    /// Writes the report, and fails the test for every case that failed and is not disputed, and for every disputed one that
    /// passed after all.
    #[track_caller]
    pub(crate) fn finish(self) {
        let is_disputed = |id: &String| self.disputed.contains(id);
        let (disputed, failed): (Vec<_>, Vec<_>) =
            self.failed.iter().partition(|(id, _)| is_disputed(id));
        let ids = |cases: &[(&String, &String)]| -> Vec<String> {
            cases.iter().map(|(id, _)| (*id).clone()).collect()
        };
        let report = json!({
            "format": self.format,
            "passed": self.passed.len(),
            "failed": ids(&failed),
            "disputed": ids(&disputed),
            "elsewhere": self.elsewhere.len(),
        });
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../conformance");
        let path = folder.join(format!("{}.json", self.format));
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(&path, format!("{report}\n")))
            .unwrap_or_else(|e| panic!("cannot write {path:?}: {e}"));
        let mut wrong = String::new();
        for (id, why) in failed {
            wrong += &format!("  {id}: {why}\n");
        }
        for id in self.passed.iter().filter(|id| is_disputed(id)) {
            wrong += &format!("  {id}: disputed, and passes: take it out of DISPUTED.md\n");
        }
        assert!(wrong.is_empty(), "{}:\n{wrong}", self.format);
    }
}

/// The ids in the first column of the table.
fn disputed(table: &str) -> Vec<String> {
    let rows = table.lines().filter(|line| line.starts_with('|'));
    // Behind the heading and its rule.
    rows.skip(2)
        .filter_map(|row| row.split('|').nth(1))
        .map(|id| id.trim().trim_matches('`').to_owned())
        .filter(|id| !id.is_empty())
        .collect()
}

#[test]
fn disputed_ids_are_those_of_the_table_s_rows() {
    let table = "# Title\n\n| id | why |\n|---|---|\n| `ann-383` | because | \n| m-1 | so |\n";
    assert_eq!(disputed(table), ["ann-383", "m-1"]);
}
