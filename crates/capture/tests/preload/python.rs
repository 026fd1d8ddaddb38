//! Python programs, NVIDIA's own runtime, PyTorch.
//!
//! The wheels come from PyPI into a virtual environment under `target/`; without a driver every call of the runtime returns an error,
//! which is recorded all the same. PyTorch is large, so that test takes an interpreter that has it: `WARPTRACE_TORCH_PYTHON`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use warptrace_record::Source as Layer;
use warptrace_record::op::OPS;

use crate::lab::*;

/// An interpreter with numpy and the runtime's wheel, or why there is none.
fn python() -> Result<&'static Path, &'static str> {
    static PYTHON: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/preload-python/venv");
        let python = home.join("bin/python");
        let has_all = || {
            Command::new(&python)
                .args(["-c", "import numpy, nvidia.cuda_runtime"])
                .output()
                .is_ok_and(|out| out.status.success())
        };
        if has_all() {
            return Ok(python);
        }
        let run = |command: &mut Command| command.output().is_ok_and(|out| out.status.success());
        if !run(Command::new("python3").args(["-m", "venv"]).arg(&home)) {
            return Err("python3 has no venv".into());
        }
        let wheels = ["numpy", "nvidia-cuda-runtime-cu12"];
        if !run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet"])
            .args(wheels))
            || !has_all()
        {
            return Err("the wheels cannot be installed".into());
        }
        Ok(python)
    });
    PYTHON.as_deref().map_err(String::as_str)
}

#[test]
fn every_call_of_nvidias_runtime_is_recorded_when_ctypes_makes_it() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return skip(why),
    };
    let mut names = String::new();
    for op in OPS
        .iter()
        .filter(|op| matches!(op.source, Layer::Runtime | Layer::Graph))
    {
        for symbol in op.symbols {
            names.push_str(&format!("({symbol:?}, {}),", op.params));
        }
    }
    // Every argument leads to zeros, so that functions that look at theirs before they miss the driver find something.
    let script = format!(
        "import ctypes, glob, numpy, nvidia.cuda_runtime as n\n\
         lib = ctypes.CDLL(glob.glob(list(n.__path__)[0] + '/lib/libcudart.so.1*')[0])\n\
         zeros = ctypes.create_string_buffer(16384); at = (ctypes.addressof(zeros) + 4095) & ~4095\n\
         print(at, float(numpy.ones((50, 50)).dot(numpy.ones(50)).sum()))\n\
         for name, params in [{names}]:\n    f = getattr(lib, name, None)\n    if f:\n        f.restype = ctypes.c_int\n        print(name, f(*[ctypes.c_uint64(at)] * params))\n"
    );
    for mechanism in BOTH {
        let got = record(Command::new(python).args(["-c", &script]), mechanism).succeeded();
        let mut lines = got.stdout.lines();
        let (at, sum) = lines.next().unwrap().split_once(' ').unwrap();
        assert_eq!(sum, "2500.0", "numpy computes as ever");
        let at: u64 = at.parse().unwrap();
        let calls = got.calls();
        let mut calls = calls.iter().filter(|r| r.flags == 0);
        let mut seen = 0;
        for line in lines {
            let (name, ret) = line.split_once(' ').unwrap();
            let op = OPS
                .iter()
                .find(|op| op.symbols.contains(&name) && op.source != Layer::Driver)
                .unwrap();
            let record = calls.next().unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!(
                record.call_op().unwrap().name(),
                op.name,
                "{mechanism:?} {name}"
            );
            assert_eq!(record.ret, ret.parse::<i32>().unwrap(), "{name}");
            use warptrace_record::op::Slot;
            for (slot, value) in [
                (op.arg0, record.arg0),
                (op.arg1, record.arg1),
                (op.stream, record.stream),
            ] {
                match slot {
                    Slot::P(_) => assert_eq!(value, at, "{name}"),
                    Slot::Int(_) => assert_eq!(value, at & 0xffff_ffff, "{name}"),
                    Slot::Zero => assert_eq!(value, 0, "{name}"),
                    _ => {}
                }
            }
            seen += 1;
        }
        assert!(seen >= 90, "{seen} symbols of the wheel were called");
        assert!(calls.next().is_none(), "nothing else was recorded");
    }
}

#[test]
fn a_python_program_with_numpy_and_threads_runs_as_ever() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return skip(why),
    };
    let script = "import numpy, threading, subprocess, multiprocessing, json, ssl, sqlite3\n\
        t = [threading.Thread(target=lambda: numpy.linalg.svd(numpy.random.rand(60, 60))) for _ in range(8)]\n\
        [x.start() for x in t]; [x.join() for x in t]\n\
        print(subprocess.check_output(['echo', 'child']).decode().strip(), multiprocessing.get_context('fork').Pool(2).map(abs, [-1, -2]))";
    for mechanism in BOTH {
        let got = record(Command::new(python).args(["-c", script]), mechanism).succeeded();
        assert_eq!(got.stdout.trim(), "child [1, 2]");
        assert_eq!(
            (got.calls().len(), got.rings_left),
            (0, 0),
            "no CUDA, no ring"
        );
    }
}

#[test]
fn pytorch_reaches_its_own_runtime_through_us() {
    let Some(python) = std::env::var_os("WARPTRACE_TORCH_PYTHON") else {
        return skip("WARPTRACE_TORCH_PYTHON names no interpreter with PyTorch");
    };
    let script = "import torch, threading\nc = torch._C._cudart; x = torch.randn(64, 64)\n\
        c.cudaHostRegister(x.data_ptr(), 4096, 0); c.cudaStreamCreate(x.data_ptr())\n\
        t = [threading.Thread(target=lambda: c.cudaHostUnregister(x.data_ptr())) for _ in range(4)]\n\
        [i.start() for i in t]; [i.join() for i in t]\nprint((x @ x).isfinite().all().item())";
    for mechanism in BOTH {
        let got = record(
            Command::new(&python).args(["-W", "ignore", "-c", script]),
            mechanism,
        )
        .succeeded();
        assert_eq!(got.stdout.trim(), "True");
        let mut names = BTreeMap::new();
        for name in got.names_of_calls() {
            *names.entry(name).or_insert(0) += 1;
        }
        assert_eq!(
            names,
            [
                ("cudaHostRegister", 1),
                ("cudaHostUnregister", 4),
                ("cudaStreamCreate", 1)
            ]
            .into()
        );
    }
}
