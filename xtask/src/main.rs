//! Developer commands: `cargo xtask COMMAND`.

mod bpf;
mod ci;
mod conformance;
#[cfg(test)]
mod docs;
#[cfg(test)]
mod metrics_page;
mod ops;
mod programs;
mod python;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use python::Programs;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  ops [--check]   write bpf/ops.h from the op table, or compare
  bpf [--check]   build the BPF objects from bpf/, or rebuild and compare with those committed
  conformance [DIR]  run the formats' vectors, ours or those in DIR, and say which did not pass
  agent           build the program for a service beside servers, as it is published, into target/agent
  develop         build the native module of the Python package into python/, for target/venv
  wheel [--release]  build the Python package with the programs in it, into target/wheels
  test-python     build the wheel, install it into a fresh environment, and run the Python tests there
  test-frameworks  the same beside torch, Lightning, Ray and the like (8 GB), with the adapters' tests; not in ci
  tidy            hold the tree against ARCHITECTURE.md's table of crates
  ci              all that a change must pass: format, tidy, generated files, lints, tests";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["ops"] => ops::write(&root()),
        ["ops", "--check"] => ops::check(&root()),
        ["bpf"] => ops::write(&root()).and_then(|()| bpf::build(&root())),
        ["bpf", "--check"] => ops::check(&root()).and_then(|()| bpf::check(&root())),
        ["conformance"] => conformance::run(&root(), None),
        ["conformance", folder] => conformance::run(&root(), Some(Path::new(folder))),
        ["agent"] => programs::agent(&root()),
        ["develop"] => python::develop(&root()),
        ["wheel"] => python::wheel(&root(), Programs::Dev).map(|_| ()),
        ["wheel", "--release"] => python::wheel(&root(), Programs::Release).map(|_| ()),
        ["test-python"] => python::test(&root()),
        ["test-frameworks"] => python::test_frameworks(&root()),
        ["tidy"] => tidy::check(&root()),
        ["ci"] => ci::run(&root()),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the workspace, above this package.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}
