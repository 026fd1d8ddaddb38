//! Where in the job's code: from a wait's stack to a function and its line, by the real binary.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::{Home, Ran, alone, can_trace, skip};
use warptrace_store::{Frame, Session};

/// The C job, built with `options`; counts a skip where there is no compiler.
fn build(test: &str, home: &Home, options: &[&str]) -> Option<PathBuf> {
    let libraries = home.simgpu();
    let program = home.dir.path().join("steps");
    let built = Command::new("cc")
        .args(["-O1", "-fno-omit-frame-pointer", "-o"])
        .arg(&program)
        .arg(source())
        .args(options)
        .arg("-L")
        .arg(&libraries)
        .arg("-l:libcudart.so.12")
        .arg(format!("-Wl,-rpath,{}", libraries.display()))
        .output();
    match built {
        Ok(out) if out.status.success() => Some(program),
        Ok(out) => panic!("{}", String::from_utf8_lossy(&out.stderr)),
        Err(e) => {
            skip(test, &format!("no C compiler: {e}"));
            None
        }
    }
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/steps.c")
}

/// Number of the line that says "the wait".
fn line_of_the_wait() -> u64 {
    let text = std::fs::read_to_string(source()).unwrap();
    let lines = text.lines().position(|l| l.contains("/* the wait */"));
    lines.unwrap() as u64 + 1
}

/// Traces a command, with simgpu's libraries.
fn trace(home: &Home, command: &[&str]) -> Ran {
    let mut run = home.command(["trace", "--quiet", "--"]);
    run.args(command).env("LD_LIBRARY_PATH", home.simgpu());
    let ran = Ran::from(run.output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    ran
}

/// `where` of the incident that slow steps are, and the frames of the session's stacks.
fn recorded(home: &Home, program: &Path) -> (Value, Vec<Vec<Frame>>) {
    trace(home, &[program.to_str().unwrap(), "200", "40"]);
    let answer = home.run(["explain", "--json"]).json();
    let findings = answer["findings"].as_array().unwrap();
    let incident = findings
        .iter()
        .find(|f| f["kind"] == "incident")
        .unwrap_or_else(|| panic!("no incident in {answer:#}"));
    (incident["where"].clone(), stacks(home))
}

fn stacks(home: &Home) -> Vec<Vec<Frame>> {
    let folder = home.sessions().pop().expect("a session");
    let disk = std::sync::Arc::new(warptrace_store::fs::RealFs);
    let session = Session::open(disk, &folder).unwrap();
    let stacks = session.stacks().unwrap();
    stacks.into_iter().map(|s| s.frames).collect()
}

#[test]
fn with_debug_information_a_finding_names_the_function_and_its_line() {
    let _machine = alone();
    let test = "with_debug_information_a_finding_names_the_function_and_its_line";
    if !can_trace(test) {
        return;
    }
    let home = Home::new();
    let Some(program) = build(test, &home, &["-g"]) else {
        return;
    };
    let (place, stacks) = recorded(&home, &program);
    assert_eq!(place["function"], "wait_for_the_device", "{place}");
    assert_eq!(place["line"], line_of_the_wait(), "{place}");
    assert!(
        place["file"].as_str().unwrap().ends_with("/steps.c"),
        "{place}"
    );
    assert_eq!(place["op"], "cudaDeviceSync", "{place}");
    // It was inlined into the function that called it, which is a frame of its own.
    let names: Vec<&str> = stacks[0]
        .iter()
        .filter_map(|f| f.function.as_deref())
        .collect();
    let at = names.iter().position(|n| *n == "wait_for_the_device");
    assert_eq!(names[at.unwrap() + 1..][..2], ["step", "main"], "{names:?}");
}

#[test]
fn without_any_symbol_a_finding_names_the_module_and_the_offset_in_it() {
    let _machine = alone();
    let test = "without_any_symbol_a_finding_names_the_module_and_the_offset_in_it";
    if !can_trace(test) {
        return;
    }
    let home = Home::new();
    let Some(program) = build(test, &home, &["-s"]) else {
        return;
    };
    let (place, stacks) = recorded(&home, &program);
    let own = stacks[0]
        .iter()
        .find(|f| f.module.as_deref() == program.to_str())
        .expect("a frame of the program");
    let offset = own.module_offset.unwrap();
    assert!(own.function.is_none() && own.ip % 4096 == offset % 4096);
    assert_eq!(place["file"], format!("steps+{offset:#x}"), "{place}");
    assert!(
        place["function"].is_null() && place["line"].is_null(),
        "{place}"
    );
}

#[test]
fn of_a_python_job_the_native_frames_are_named_and_no_line_is_invented() {
    let _machine = alone();
    let test = "of_a_python_job_the_native_frames_are_named_and_no_line_is_invented";
    if !can_trace(test) {
        return;
    }
    let python = Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|out| out.status.success()) {
        skip(test, "no python3");
        return;
    }
    let home = Home::new();
    let script = home.dir.path().join("job.py");
    std::fs::write(
        &script,
        "import ctypes\n\
         cuda = ctypes.CDLL('libcudart.so.12')\n\
         class Dim3(ctypes.Structure):\n    _fields_ = [(n, ctypes.c_uint) for n in 'xyz']\n\
         cuda.__cudaRegisterFatBinary.restype = ctypes.c_void_p\n\
         handle = ctypes.c_void_p(cuda.__cudaRegisterFatBinary(ctypes.create_string_buffer(64)))\n\
         stub = ctypes.create_string_buffer(1)\n\
         cuda.__cudaRegisterFunction(handle, stub, b'k', b'k', -1, None, None, None, None, None)\n\
         for _ in range(30):\n    \
             assert cuda.cudaLaunchKernel(stub, Dim3(5000, 1, 1), Dim3(32, 1, 1), None, ctypes.c_size_t(0), None) == 0\n    \
             assert cuda.cudaDeviceSynchronize() == 0\n",
    )
    .unwrap();
    trace(&home, &["python3", script.to_str().unwrap()]);
    let stacks = stacks(&home);
    let modules: Vec<&str> = stacks
        .iter()
        .flatten()
        .filter_map(|f| f.module.as_deref())
        .collect();
    assert!(
        modules.iter().any(|m| m.contains("libffi")),
        "what called CUDA for Python: {modules:?}"
    );
    let answer = home.run(["explain", "--json"]).json();
    for finding in answer["findings"].as_array().unwrap() {
        assert!(finding["where"]["line"].is_null(), "{finding:#}");
    }
}
