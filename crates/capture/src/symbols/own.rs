//! Whose code a frame is: by the names of the files that everybody's programs share.

use warptrace_record::op::OPS;

use super::Frame;

/// Beginnings of the file names of CUDA's libraries, the C and C++ runtimes, the linker, and what is between an
/// interpreter and a library that it calls.
const RUNTIMES: [&str; 29] = [
    "libcuda",
    "libnccl",
    "libnv",
    "libcublas",
    "libcudnn",
    "libcufft",
    "libcurand",
    "libcusolver",
    "libcusparse",
    "libcupti",
    "libc.so",
    "libc-",
    "libpthread",
    "libm.so",
    "libm-",
    "libdl",
    "librt.so",
    "librt-",
    "ld-",
    "ld.so",
    "libstdc++",
    "libc++",
    "libgcc_s",
    "libgomp",
    "libffi",
    "_ctypes",
    "libwarptrace",
    "[vdso]",
    "[uprobes]",
];

/// Interpreters: the line that they were at is not in their own code.
const INTERPRETERS: [&str; 3] = ["python", "libpython", "pypy"];

/// Frameworks that a job calls, and that call CUDA.
const FRAMEWORKS: [&str; 10] = [
    "libtorch",
    "libc10",
    "_C.",
    "libtriton",
    "libjax",
    "xla_",
    "libtensorflow",
    "_pywrap_",
    "libonnxruntime",
    "libnvinfer",
];

fn begins(name: &str, with: &[&str]) -> bool {
    with.iter().any(|w| name.starts_with(w))
}

/// A part of CUDA that was linked into the program.
fn is_cuda_function(name: &str) -> bool {
    name.starts_with("__cudart") || OPS.iter().any(|op| op.symbols.contains(&name))
}

/// Whether lines in this file would be nobody's own: names are enough of it.
pub(super) fn is_runtime(file_name: &str) -> bool {
    begins(file_name, &RUNTIMES) || begins(file_name, &INTERPRETERS)
}

pub(super) fn own_frame(frames: &[Frame]) -> Option<&Frame> {
    // Below a frame that is nothing we know, a stack may be anything.
    let known = frames.iter().take_while(|f| f.module.is_some());
    let mut framework = None;
    for frame in known {
        let name = frame.module_name().unwrap_or_default();
        if begins(name, &FRAMEWORKS) {
            framework = framework.or(frame.function.as_ref().map(|_| frame));
        } else if !is_runtime(name) && !frame.function.as_deref().is_some_and(is_cuda_function) {
            return Some(frame);
        }
    }
    framework
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(frames: &[(&str, &str)], want: Option<&str>) {
        let frames: Vec<Frame> = frames
            .iter()
            .map(|(module, function)| Frame {
                module: (!module.is_empty()).then(|| format!("/usr/lib/{module}")),
                function: (!function.is_empty()).then(|| (*function).to_owned()),
                ..Frame::default()
            })
            .collect();
        let got = own_frame(&frames).map(|f| {
            f.function
                .as_deref()
                .or(f.module_name())
                .unwrap_or_default()
        });
        assert_eq!(got, want);
    }

    #[test]
    fn the_innermost_frame_of_the_programs_own_is_found() {
        check(
            &[
                ("libcudart.so.12", "cudaDeviceSynchronize"),
                ("train", "step"),
                ("train", "main"),
                ("libc.so.6", "__libc_start_main"),
            ],
            Some("step"),
        );
        check(&[("train", ""), ("train", "main")], Some("train"));
        check(&[("libmodel.so", "forward")], Some("forward"));
    }

    #[test]
    fn a_frameworks_frame_stands_in_where_there_is_no_own_one() {
        let torch = ("libtorch_cuda.so", "at::native::copy_kernel_cuda");
        check(
            &[
                ("libc10_cuda.so", ""),
                torch,
                ("libpython3.11.so.1.0", "_PyEval_Vector"),
            ],
            Some("at::native::copy_kernel_cuda"),
        );
        check(&[torch, ("my_ext.so", "fused_step")], Some("fused_step"));
    }

    #[test]
    fn interpreters_and_runtimes_are_nobodys_own() {
        check(
            &[
                ("libffi.so.8", ""),
                ("_ctypes.cpython-311.so", ""),
                ("python3.11", "_PyEval"),
            ],
            None,
        );
        check(&[], None);
    }

    #[test]
    fn cuda_that_was_linked_in_is_not_the_programs_own() {
        check(
            &[
                ("train", "cudaMemcpy"),
                ("train", "__cudart612"),
                ("train", "load"),
            ],
            Some("load"),
        );
    }

    #[test]
    fn nothing_below_an_unknown_frame_is_believed() {
        check(
            &[("libcudart.so.12", ""), ("", ""), ("train", "main")],
            None,
        );
    }
}
