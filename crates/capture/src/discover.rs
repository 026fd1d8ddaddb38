//! Which CUDA and NCCL libraries a command that is about to start may load, by where it would look for them.
//!
//! Probes placed before the first call miss nothing; a library that is not found here is found when it is mapped, some
//! milliseconds late. So this looks in the usual places only, runs nothing, and may name libraries that are never loaded.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::ebpf::is_candidate;

/// Folders of distributions, of NVIDIA's installers and of containers.
const SYSTEM: [&str; 9] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/compat",
    "/usr/local/nvidia/lib64",
    "/opt/conda/lib",
];

/// Most libraries that are named.
const MAX_FOUND: usize = 64;

/// Libraries for a command whose program is `program` (as typed) in the environment `variable`.
///
/// Looks in `LD_LIBRARY_PATH`, `CUDA_HOME`, `CONDA_PREFIX` and the system's folders, beside the program, and in the
/// packages of the Python that the program is, lies beside, or that `VIRTUAL_ENV` names. Each file once; at most 64.
///
/// Cost: reads some twenty folders, 2 ms.
pub fn candidate_libraries(
    program: &OsStr,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Vec<PathBuf> {
    let paths = |name: &str| -> Vec<PathBuf> {
        variable(name)
            .map(|v| std::env::split_paths(&v).collect())
            .unwrap_or_default()
    };
    let mut folders = paths("LD_LIBRARY_PATH");
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .iter()
        .flat_map(|name| paths(name))
        .collect();
    folders.extend(paths("CUDA_HOME").iter().map(|home| home.join("lib64")));
    folders.extend(paths("CONDA_PREFIX").iter().map(|home| home.join("lib")));
    for found in find_program(Path::new(program), &paths("PATH")) {
        let Some(folder) = found.parent() else {
            continue;
        };
        folders.push(folder.to_owned());
        // PREFIX/bin/python has its packages in PREFIX/lib/pythonX.Y.
        prefixes.extend(folder.parent().map(Path::to_owned));
    }
    for prefix in &prefixes {
        for python in entries(&prefix.join("lib"), |name| name.starts_with("python3")) {
            let packages = python.join("site-packages");
            folders.push(packages.join("torch/lib"));
            for part in entries(&packages.join("nvidia"), |_| true) {
                folders.push(part.join("lib"));
            }
        }
    }
    folders.extend(SYSTEM.iter().map(PathBuf::from));

    let mut found: Vec<PathBuf> = Vec::new();
    for folder in folders {
        for library in entries(&folder, is_candidate) {
            // Links lead to one file, which is named once.
            let Ok(real) = library.canonicalize() else {
                continue;
            };
            if found.len() < MAX_FOUND && !found.contains(&real) {
                found.push(real);
            }
        }
    }
    found
}

/// The program as the shell would find it, and the file that it leads to: a virtual environment's python is a link.
fn find_program(program: &Path, path: &[PathBuf]) -> Vec<PathBuf> {
    let found = if program.components().count() > 1 {
        Some(program.to_owned())
    } else {
        path.iter().map(|p| p.join(program)).find(|p| p.is_file())
    };
    let real = found.as_ref().and_then(|p| p.canonicalize().ok());
    found.into_iter().chain(real).collect()
}

/// What `wanted` likes in a folder, sorted by name; nothing when there is no such folder.
fn entries(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|e| e.file_name().to_str().is_some_and(&wanted))
        .map(|e| e.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_a_virtual_environment_and_of_the_search_path_are_found_once() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path.canonicalize().unwrap()
        };
        let python = make("venv/bin/python");
        let runtime =
            make("venv/lib/python3.12/site-packages/nvidia/cuda_runtime/lib/libcudart.so.12");
        let torch = make("venv/lib/python3.12/site-packages/torch/lib/libtorch_cuda.so");
        let driver = make("stubs/libcuda.so.1");
        make("stubs/libcudnn.so.9");
        std::os::unix::fs::symlink(&driver, dir.path().join("stubs/libcuda.so")).unwrap();
        let stubs = dir.path().join("stubs").into_os_string();
        let found = candidate_libraries(python.as_os_str(), |name| {
            (name == "LD_LIBRARY_PATH").then(|| stubs.clone())
        });
        let ours: Vec<_> = found
            .into_iter()
            .filter(|p| p.starts_with(dir.path().canonicalize().unwrap()))
            .collect();
        assert_eq!(ours, [driver, torch, runtime]);
    }

    #[test]
    fn a_program_without_a_slash_is_looked_for_in_the_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tool"), "").unwrap();
        let path = [PathBuf::from("/nowhere"), dir.path().to_owned()];
        assert_eq!(
            find_program(Path::new("tool"), &path)[0],
            dir.path().join("tool")
        );
        assert!(find_program(Path::new("absent"), &path).is_empty());
    }
}
