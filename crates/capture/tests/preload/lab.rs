//! What the tests share: the preload library as it is shipped, stand-ins for CUDA made from the op table, and a recording of a program.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use warptrace_capture::preload::{Mechanism, Preload, PreloadOptions};
use warptrace_capture::{Batch, Source as _};
use warptrace_record::op::{OPS, Slot};
use warptrace_record::{Kind, Op, Record};

/// Says why a test did not run, in one form that the runner counts.
pub(crate) fn skip(reason: &str) {
    println!("skipped: {reason}");
    eprintln!("skipped: {reason}");
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target")
}

/// The preload library, built as it is shipped.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let target = target().join("preload");
        let built = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--package",
                "warptrace-preload",
                "--profile",
                "preload",
            ])
            .arg("--target-dir")
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success());
        target
            .join("preload/libwarptrace_preload.so")
            .canonicalize()
            .unwrap()
    });
    &LIBRARY
}

/// A folder for compiled fixtures.
pub(crate) fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("preload");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    })
}

/// Compiles `source` with `compiler` (`cc` or `c++`) to `name` in [`folder`], once: tests run at the same time, and none may write a file that another
/// runs. Two sources for one name are a mistake of the tests.
pub(crate) fn compile_with(compiler: &str, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    type Built = Arc<OnceLock<PathBuf>>;
    static BUILT: Mutex<BTreeMap<String, (String, Built)>> = Mutex::new(BTreeMap::new());
    let recipe = format!("{compiler} {flags:?}\n{source}");
    let mut all = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let (first, built) = all
        .entry(name.to_owned())
        .or_insert_with(|| (recipe.clone(), Built::default()));
    assert_eq!(*first, recipe, "two fixtures have the name {name}");
    let built = Arc::clone(built);
    drop(all);
    built
        .get_or_init(|| build(compiler, name, source, flags))
        .clone()
}

fn build(compiler: &str, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let out = folder().join(name);
    std::fs::create_dir_all(out.parent().unwrap()).unwrap();
    let extension = if compiler == "c++" { "cpp" } else { "c" };
    let file = folder().join(format!("{}.{extension}", name.replace('/', "_")));
    std::fs::write(&file, source).unwrap();
    let status = Command::new(compiler)
        .arg("-O1")
        .arg("-w")
        .arg("-o")
        .arg(&out)
        .arg(&file)
        .args(flags)
        .status()
        .unwrap();
    assert!(status.success(), "{compiler} {name}");
    out
}

pub(crate) fn compile(name: &str, source: &str, flags: &[&str]) -> PathBuf {
    compile_with("cc", name, source, flags)
}

/// Bytes of arguments of each call, their pointers being the same everywhere.
pub(crate) const PRELUDE: &str = "#define _GNU_SOURCE\n#include <stdint.h>\n#include <stddef.h>\n#include <stdio.h>\n#include <stdlib.h>\n\
    #include <string.h>\n#include <unistd.h>\n#include <dlfcn.h>\n#include <errno.h>\n#include <time.h>\ntypedef uint64_t u64;\n";

/// Stand-ins for libcudart.so.12, libcuda.so.1 and libnccl.so.2 in a folder `name`: every symbol of the op table, each of which returns a number
/// that depends on every argument, or 0 and an output when `wt_succeed` of its library is set.
pub(crate) fn stand_ins(name: &str, salt: u64) -> PathBuf {
    for (library, soname) in LIBRARIES {
        let mut source = String::from(PRELUDE);
        source.push_str("int wt_succeed;\n");
        for (row, op) in OPS.iter().enumerate() {
            if op.source.library() == Some(library) {
                for symbol in op.symbols {
                    define(&mut source, row, op, symbol, salt);
                }
            }
        }
        let soname_flag = format!("-Wl,-soname,{soname}");
        compile(
            &format!("{name}/{soname}"),
            &source,
            &["-shared", "-fPIC", &soname_flag],
        );
    }
    folder().join(name)
}

pub(crate) const LIBRARIES: [(&str, &str); 3] = [
    ("libcudart", "libcudart.so.12"),
    ("libcuda", "libcuda.so.1"),
    ("libnccl", "libnccl.so.2"),
];

fn define(out: &mut String, row: usize, op: &Op, symbol: &str, salt: u64) {
    let params: Vec<String> = (1..=op.params).map(|n| format!("u64 p{n}")).collect();
    let _ = write!(out, "int {symbol}({}) {{ u64 h = {salt};", params.join(","));
    for n in 1..=op.params {
        let _ = write!(out, " h = h * 31 + p{n};");
    }
    for slot in [op.arg0, op.arg1] {
        if let Slot::Out(n) = slot {
            let _ = write!(out, " if (wt_succeed) *(u64 *)p{n} = {};", output(row));
        }
    }
    out.push_str(" return wt_succeed ? 0 : (int)(h & 0x7fffffff); }\n");
}

/// What the call of a row writes where it is told to.
pub(crate) fn output(row: usize) -> u64 {
    0xabc0_0000_0000 + row as u64
}

/// Address of the structure that pointer arguments lead to; word k of it is `0x1000 + k`.
pub(crate) const STRUCTURE: u64 = 0x1_0000_0000;

/// Argument `n` of a call.
pub(crate) fn argument(row: usize, op: &Op, n: u8) -> u64 {
    let is_pointer = [op.arg0, op.arg1, op.stream].iter().any(|slot| {
        matches!(slot, Slot::Out(m) | Slot::ConfigDims(m) | Slot::At(m, _) | Slot::AtMul(m, _) if *m == n)
    });
    if is_pointer {
        STRUCTURE
    } else {
        // Both halves matter; the low ones are small, so that products stay in range.
        ((row as u64 + 1) << 40) + u64::from(n) * 7 + 3
    }
}

pub(crate) fn arguments(row: usize, op: &Op) -> Vec<u64> {
    (1..=op.params).map(|n| argument(row, op, n)).collect()
}

/// What the stand-in returns when it fails.
pub(crate) fn failure(salt: u64, arguments: &[u64]) -> i32 {
    let hash = arguments
        .iter()
        .fold(salt, |h, a| h.wrapping_mul(31).wrapping_add(*a));
    (hash & 0x7fff_ffff) as i32
}

/// The value of a slot, by the words of its definition.
pub(crate) fn slot(row: usize, op: &Op, slot: Slot, ret: i32) -> u64 {
    use warptrace_record::op::{nccl_dtype_bytes, pack_dims};
    let p = |n: u8| argument(row, op, n);
    let low = |v: u64| v as u32;
    let high = |v: u64| (v >> 32) as u32;
    let word = |k: u64| 0x1000 + k;
    match slot {
        Slot::Zero => 0,
        Slot::Const(c) => u64::from(c),
        Slot::P(n) => p(n),
        Slot::Int(n) => u64::from(low(p(n))),
        Slot::Out(_) if ret == 0 => output(row),
        Slot::Out(_) => 0,
        Slot::Mul(n) => p(n).wrapping_mul(p(n + 1)),
        Slot::Shl(n, k) => p(n) << k,
        Slot::NcclBytes(n) => p(n).wrapping_mul(nccl_dtype_bytes(low(p(n + 1)))),
        Slot::Dim3(n) => pack_dims(
            [low(p(n)), high(p(n)), low(p(n + 1))],
            [low(p(n + 2)), high(p(n + 2)), low(p(n + 3))],
        ),
        Slot::Dims(n) => {
            let six: Vec<u32> = (n..n + 6).map(|i| low(p(i))).collect();
            pack_dims([six[0], six[1], six[2]], [six[3], six[4], six[5]])
        }
        Slot::ConfigDims(_) => pack_dims(
            [low(word(0)), high(word(0)), low(word(1))],
            [high(word(1)), low(word(2)), high(word(2))],
        ),
        // An output overwrites word 0 alone.
        Slot::At(_, k) => word(u64::from(k)),
        Slot::AtMul(_, k) => word(u64::from(k)).wrapping_mul(word(u64::from(k) + 1)),
        Slot::Pair(n, k) => p(n) << 32 | u64::from(low(p(k))),
    }
}

/// C that calls `symbol` of `row` with [`arguments`], through the pointer `f`.
pub(crate) fn call(row: usize, op: &Op, pointer: &str) -> String {
    let types = vec!["u64"; op.params as usize].join(",");
    let values: Vec<String> = arguments(row, op)
        .iter()
        .map(|a| format!("{a:#x}ull"))
        .collect();
    format!("((int (*)({types})){pointer})({})", values.join(", "))
}

/// C that makes [`STRUCTURE`].
pub(crate) const MAKE_STRUCTURE: &str = "#include <sys/mman.h>\nstatic void make_structure(void) { u64 *s = mmap((void *)0x100000000, 4096, 3, 0x32, -1, 0);\
    for (int k = 0; k < 512; k++) s[k] = 0x1000 + k; }\n";

/// What a recording gave.
pub(crate) struct Recording {
    pub(crate) batch: Batch,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) rings_left: usize,
}

impl Recording {
    pub(crate) fn calls(&self) -> Vec<Record> {
        self.of_kind(Kind::Call)
    }

    pub(crate) fn of_kind(&self, kind: Kind) -> Vec<Record> {
        let records = self.batch.records.iter();
        records.filter(|r| r.kind == kind as u8).copied().collect()
    }

    pub(crate) fn names_of_calls(&self) -> Vec<&'static str> {
        self.calls()
            .iter()
            .map(|r| r.call_op().unwrap().name())
            .collect()
    }

    /// Exact counts by name of the op.
    pub(crate) fn counts(&self) -> HashMap<&'static str, u64> {
        let mut counts = HashMap::new();
        for count in &self.batch.counts {
            *counts.entry(count.key.op.name()).or_insert(0) += count.durations.count();
        }
        counts
    }

    #[track_caller]
    pub(crate) fn succeeded(self) -> Recording {
        assert!(self.status.success(), "{}: {}", self.status, self.stdout);
        self
    }
}

pub(crate) fn options() -> PreloadOptions {
    PreloadOptions::new(library())
}

pub(crate) const BOTH: [Mechanism; 2] = [Mechanism::Audit, Mechanism::Preload];

/// Records `command` until all that it started has closed its standard output.
pub(crate) fn record(command: &mut Command, mechanism: Mechanism) -> Recording {
    record_with(&options(), command, mechanism, |_, _, _| ())
}

/// As [`record`]; `watch` is called after each poll with what came so far and the program's number.
pub(crate) fn record_with(
    options: &PreloadOptions,
    command: &mut Command,
    mechanism: Mechanism,
    mut watch: impl FnMut(&mut Preload, &Batch, u32),
) -> Recording {
    let mut source = Preload::start(options).unwrap();
    command.envs(source.environment_by(mechanism, |name| std::env::var_os(name)));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let mut pipe = child.stdout.take().unwrap();
    let (sender, ended) = sync_channel::<()>(1);
    let reader = std::thread::Builder::new()
        .name("reader".into())
        .spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).unwrap();
            drop(sender);
            text
        })
        .unwrap();
    let mut batch = Batch::default();
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_millis(2)) {
        source.poll(&mut batch).unwrap();
        watch(&mut source, &batch, pid);
    }
    let status = child.wait().unwrap();
    source.stop();
    source.poll(&mut batch).unwrap();
    let rings_left = std::fs::read_dir(source.directory())
        .unwrap()
        .filter(|e| {
            e.as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with("ring.")
        })
        .count();
    let directory = source.directory().to_owned();
    drop(source);
    assert!(!directory.exists(), "the directory goes with its recorder");
    Recording {
        batch,
        status,
        stdout: reader.join().unwrap(),
        rings_left,
    }
}
