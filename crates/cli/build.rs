//! Builds the libraries that the binary carries: the preload library, and simgpu's for the demo.
//!
//! cargo builds no cdylib of a dependency, so a second cargo does, in a target folder of its own inside ours. They have
//! next to no dependencies: this takes seconds. They are always optimised: the job pays for them, or the demo measures
//! them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Package, file that cargo makes of it, name that the binary gives it.
const GUESTS: &[(&str, &str, &str)] = &[
    (
        "warptrace-preload",
        "libwarptrace_preload.so",
        "libwarptrace_preload.so",
    ),
    ("simgpu-cudart", "libsimgpu_cudart.so", "libcudart.so.12"),
    ("simgpu-cuda", "libsimgpu_cuda.so", "libcuda.so.1"),
    ("simgpu-nvml", "libsimgpu_nvml.so", "libnvidia-ml.so.1"),
];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the workspace is there");
    for folder in [
        "simgpu",
        "crates/preload",
        "crates/record",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(folder).display());
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target = std::env::var("TARGET").expect("cargo sets TARGET");
    let folder = out.join("guests");

    let mut cargo = Command::new(std::env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo
        .current_dir(&root)
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            &target,
            "--target-dir",
        ])
        .arg(&folder);
    let guests: Vec<_> = GUESTS
        .iter()
        .filter(|(package, ..)| !package.starts_with("simgpu") || cfg!(feature = "demo"))
        .collect();
    for (package, ..) in &guests {
        cargo.args(["--package", package]);
    }
    // Frame pointers: functions then begin with `push`, as the real libraries' do, and probes cost the same on them.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Cforce-frame-pointers=yes");
    cargo.env("CARGO_PROFILE_RELEASE_PANIC", "abort");
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "thin");
    cargo.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
    cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    cargo.env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    for name in [
        "RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET_DIR",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_MAKEFLAGS",
    ] {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(
        status.success(),
        "building the embedded libraries failed: {status}"
    );

    let mut list = String::from("&[\n");
    for (_, file, name) in &guests {
        let built = folder.join(&target).join("release").join(file);
        let bytes = std::fs::read(built).expect("cargo built it");
        let packed = out.join(name);
        let file = std::fs::File::create(&packed).expect("OUT_DIR can be written");
        let mut packer = flate2::write::ZlibEncoder::new(file, flate2::Compression::best());
        packer
            .write_all(&bytes)
            .and_then(|()| packer.finish())
            .expect("OUT_DIR can be written");
        list += &format!(
            "    Guest {{ name: {name:?}, len: {}, packed: include_bytes!({:?}) }},\n",
            bytes.len(),
            packed.display().to_string()
        );
    }
    list += "]\n";
    std::fs::write(out.join("guests.rs"), list).expect("OUT_DIR can be written");
}
