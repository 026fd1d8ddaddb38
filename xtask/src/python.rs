//! `cargo xtask develop`, `wheel` and `test-python`: the Python package, for the edit-test cycle and as its users get it.
//!
//! The native module is built with a profile (`python`) and in a target folder (`target/py`) of its own, so that neither
//! waits for a build of the workspace. The tools come from `target/venv`, which is made when it is not there.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::programs::{self, cargo, output, run};

/// How the programs in the wheel are built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Programs {
    /// As a plain `cargo build` has them: quick.
    Dev,
    /// To publish: with the profile `dist`, and needing no library but glibc's and libgcc_s.
    Release,
}

/// Builds the native module and puts it, and the folder that it is in, where `target/venv`'s Python imports it.
pub(crate) fn develop(root: &Path) -> anyhow::Result<()> {
    let python = venv(root)?;
    native(root)?;
    let site = output(Command::new(&python).args([
        "-c",
        "import sysconfig; print(sysconfig.get_path('purelib'))",
    ]))?;
    let link = Path::new(site.trim()).join("warptrace-develop.pth");
    let package = root.join("python");
    std::fs::write(&link, format!("{}\n", package.display()))
        .with_context(|| format!("cannot write {link:?}"))?;
    println!(
        "develop: {} imports warptrace from {package:?}",
        python.display()
    );
    Ok(())
}

/// Builds the wheel with the programs in it, and returns its path, in `target/wheels`.
pub(crate) fn wheel(root: &Path, programs: Programs) -> anyhow::Result<PathBuf> {
    let python = venv(root)?;
    // The native module is checked against that version by maturin.
    let staged = stage(root, programs)?;
    let wheels = root.join("target/wheels");
    run(maturin(root, &python, programs)
        .arg("build")
        .args(match programs {
            Programs::Dev => ["--profile", "dev"].as_slice(),
            Programs::Release => &[],
        })
        .args(["--compatibility", &tag(&staged)?])
        .arg("--out")
        .arg(&wheels))?;
    let mut built: Vec<PathBuf> = std::fs::read_dir(&wheels)
        .with_context(|| format!("cannot read {wheels:?}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension() == Some(OsStr::new("whl")))
        .collect();
    built.sort_by_key(|path| path.metadata().and_then(|m| m.modified()).ok());
    let wheel = built.pop().context("maturin left no wheel")?;
    println!("wheel: {}", wheel.display());
    Ok(wheel)
}

/// Builds the wheel, installs it into a new virtual environment, and runs the tests there.
pub(crate) fn test(root: &Path) -> anyhow::Result<()> {
    let wheel = wheel(root, Programs::Dev)?;
    let tools = venv(root)?;
    let fresh = root.join("target/wheel-venv");
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&fresh))?;
    let python = fresh.join("bin/python3");
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--no-index"])
        .arg(&wheel))?;
    // The tests' own packages are those of target/venv. They come after the wheel's, and without that one's `.pth`
    // files, so that `warptrace` is the wheel.
    let site = output(Command::new(&tools).args([
        "-c",
        "import sysconfig; print(sysconfig.get_path('purelib'))",
    ]))?;
    let link = output(Command::new(&python).args([
        "-c",
        "import sysconfig; print(sysconfig.get_path('purelib'))",
    ]))?;
    std::fs::write(
        Path::new(link.trim()).join("tools.pth"),
        format!("{}\n", site.trim()),
    )
    .context("cannot link the tests' packages")?;
    run(Command::new(&python)
        .args([
            "-m",
            "pytest",
            "--import-mode=importlib",
            "-p",
            "no:cacheprovider",
        ])
        .env("PATH", path_with(&fresh.join("bin"))?)
        // Python looks for modules where it is started: not beside the package's source.
        .current_dir(root.join("python/tests")))
}

/// What the tests with frameworks need, in the order in which it is installed: DeepSpeed's build looks for torch.
const FRAMEWORKS: [&[&str]; 3] = [
    &[
        "pytest",
        "torch",
        "lightning",
        "transformers",
        "accelerate",
        "ray[train]",
        "wandb",
        "mlflow",
        "setuptools",
        "wheel",
        "nv-one-logger-training-telemetry",
    ],
    &["--no-build-isolation", "deepspeed"],
    &["--no-deps", "nv-one-logger-pytorch-lightning-integration"],
];

/// vLLM's Python, which can be imported without a device, and what that imports; as vLLM wants another torch than the newest,
/// nothing of it is installed beside the rest.
const VLLM: [&str; 13] = [
    "vllm",
    "prometheus_client",
    "cbor2",
    "pyzmq",
    "openai_harmony",
    "openai",
    "pybase64",
    "msgspec",
    "uvloop",
    "xgrammar",
    "apache-tvm-ffi",
    "partial_json_parser",
    "llguidance",
];

/// Builds the wheel, installs it beside the frameworks into `target/frameworks-venv`, and runs the adapters' tests there.
/// The first time this brings some 8 GB; what cannot be had is said, and its tests are skipped.
pub(crate) fn test_frameworks(root: &Path) -> anyhow::Result<()> {
    let wheel = wheel(root, Programs::Dev)?;
    let venv = root.join("target/frameworks-venv");
    let python = venv.join("bin/python3");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let pip = |arguments: &[&str]| {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--no-cache-dir"])
            .args(arguments)
            // Its operations are compiled when they are used.
            .env("DS_BUILD_OPS", "0");
        pip
    };
    for packages in FRAMEWORKS {
        if let Err(e) = run(&mut pip(packages)) {
            println!("test-frameworks: without {packages:?}: {e:#}");
        }
    }
    let vllm = root.join("target/frameworks-vllm");
    if !vllm.join("vllm").exists() {
        let installed = run(pip(&["--no-deps", "--target"]).arg(&vllm).args(VLLM));
        if let Err(e) = installed {
            println!("test-frameworks: without vllm: {e:#}");
        }
    }
    run(pip(&["--no-index", "--no-deps", "--force-reinstall"]).arg(&wheel))?;
    run(Command::new(&python)
        .args(["-m", "pytest", "-p", "no:cacheprovider", "--durations=10"])
        .env("PATH", path_with(&venv.join("bin"))?)
        .env("PYTHONPATH", &vllm)
        .env(
            "TORCH_EXTENSIONS_DIR",
            root.join("target/frameworks-extensions"),
        )
        // Python looks for modules where it is started: not beside the package's source.
        .current_dir(root.join("python/tests/frameworks")))
}

/// The file name of the native module in the package.
const MODULE: &str = "_native.abi3.so";

/// Builds the native module and copies it into the package's folder.
fn native(root: &Path) -> anyhow::Result<()> {
    run(cargo()
        .args(["build", "--package", "warptrace-py", "--profile", "python"])
        .args(["--target-dir", "target/py"])
        // Without it PyO3 would link libpython, which an extension finds in the process that loads it.
        .env("PYO3_BUILD_EXTENSION_MODULE", "1")
        .env("PYO3_NO_PYTHON", "1")
        .current_dir(root))?;
    // Renamed into place: a process that has the old one mapped goes on with it.
    let package = root.join("python/warptrace");
    let new = package.join(format!("{MODULE}.new"));
    std::fs::copy(root.join("target/py/python/lib_native.so"), &new)
        .and_then(|_| std::fs::rename(&new, package.join(MODULE)))
        .with_context(|| format!("cannot put the native module into {package:?}"))
}

/// Puts the programs, stripped, where `python/pyproject.toml` tells maturin to take them from, and returns their paths.
fn stage(root: &Path, programs: Programs) -> anyhow::Result<Vec<PathBuf>> {
    let built = match programs {
        Programs::Dev => {
            run(cargo()
                .args(["build", "--package", "warptrace", "--bin", "warptrace"])
                .current_dir(root))?;
            "target/debug"
        }
        Programs::Release => {
            programs::build(root, &["--features", "grpc"])?;
            programs::BUILT
        }
    };
    let built = root.join(built);
    let data = root.join("target/py/warptrace.data");
    if data.exists() {
        std::fs::remove_dir_all(&data).with_context(|| format!("cannot empty {data:?}"))?;
    }
    let scripts = data.join("scripts");
    std::fs::create_dir_all(&scripts).with_context(|| format!("cannot make {scripts:?}"))?;
    let mut staged = Vec::new();
    for program in ["warptrace", "warptrace-sql"] {
        let from = built.join(program);
        if !from.exists() {
            ensure!(program != "warptrace", "cargo left no {from:?}");
            println!(
                "wheel: without {program}, which was not built (cargo build --package {program})"
            );
            continue;
        }
        let to = scripts.join(program);
        run(Command::new("strip").arg("-o").arg(&to).arg(&from))?;
        if programs == Programs::Release {
            programs::check(&to)?;
        }
        staged.push(to);
    }
    Ok(staged)
}

/// The platform in the tag of a wheel with these programs: any Linux with that glibc, or, when they need other libraries, one like this.
fn tag(programs: &[PathBuf]) -> anyhow::Result<String> {
    for program in programs {
        if !programs::foreign_libraries(program)?.is_empty() {
            return Ok("linux".to_owned());
        }
    }
    Ok(format!("manylinux_{}", glibc(programs)?))
}

/// The newest version of glibc whose symbols `binaries` need, as in the tag of a wheel: `2_34`.
fn glibc(binaries: &[PathBuf]) -> anyhow::Result<String> {
    let mut newest = (2, 17);
    for binary in binaries {
        let symbols = output(Command::new("objdump").arg("--dynamic-syms").arg(binary))?;
        newest = newest.max(newest_glibc(&symbols).unwrap_or(newest));
    }
    Ok(format!("{}_{}", newest.0, newest.1))
}

fn newest_glibc(symbols: &str) -> Option<(u32, u32)> {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|text| {
        let text = text
            .split(|c: char| c != '.' && !c.is_ascii_digit())
            .next()?;
        let mut parts = text.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    });
    versions.max()
}

/// The Python of `target/venv`, which is made if need be, with maturin and the tests' tools in it.
fn venv(root: &Path) -> anyhow::Result<PathBuf> {
    let venv = root.join("target/venv");
    let python = venv.join("bin/python3");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let missing: Vec<&str> = ["maturin", "pytest"]
        .into_iter()
        .filter(|tool| !venv.join("bin").join(tool).exists())
        .collect();
    if !missing.is_empty() {
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet"])
            .args(missing))?;
    }
    Ok(python)
}

fn maturin(root: &Path, python: &Path, programs: Programs) -> Command {
    let mut maturin = Command::new(python.with_file_name("maturin"));
    maturin.current_dir(root.join("python"));
    match programs {
        // What the workspace's builds have built already.
        Programs::Dev => maturin.env("CARGO_TARGET_DIR", root.join("target")),
        Programs::Release => maturin.env("CARGO_TARGET_DIR", root.join("target/py")),
    };
    maturin
}

/// `PATH` with `folder` before the rest.
fn path_with(folder: &Path) -> anyhow::Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(folders).context("a folder that PATH cannot hold")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wheel_is_for_the_newest_glibc_that_a_symbol_needs() {
        let symbols = "\
            0 DF *UND* 0 (GLIBC_2.2.5) malloc\n\
            0 DF *UND* 0 (GLIBC_2.34) dlsym\n\
            0 DF *UND* 0 (GLIBC_2.9) pipe2\n\
            0 DF *UND* 0 (GCC_3.0) _Unwind_Resume\n";
        assert_eq!(newest_glibc(symbols), Some((2, 34)));
        assert_eq!(newest_glibc("no dynamic symbols"), None);
    }
}
