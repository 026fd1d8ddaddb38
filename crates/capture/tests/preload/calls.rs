//! What is recorded of a call: arguments, return code, nesting, device, counts, stretches.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use warptrace_model::LossReason;
use warptrace_record::op::OPS;
use warptrace_record::{Kind, NESTED_MIN_NANOS, flag};

use crate::lab::*;

/// A program that calls every symbol twice, first failing and then succeeding, found by `dlsym`, and prints what came back.
fn caller_of_everything() -> String {
    let mut main = String::from(PRELUDE);
    main.push_str(MAKE_STRUCTURE);
    main.push_str(
        "int main(int argc, char **argv) { make_structure(); void *l; int *ok; void *f;\n",
    );
    for (library, soname) in LIBRARIES {
        let _ = writeln!(
            main,
            "{{ char path[4096]; snprintf(path, 4096, \"%s/{soname}\", argv[1]); l = dlopen(path, RTLD_NOW|RTLD_LOCAL); }}\
             ok = dlsym(l, \"wt_succeed\");"
        );
        for (row, op) in OPS.iter().enumerate() {
            if op.source.library() != Some(library) {
                continue;
            }
            for symbol in op.symbols {
                let call = call(row, op, "f");
                let _ = writeln!(
                    main,
                    "f = dlsym(l, \"{symbol}\"); *ok = 0; printf(\"%d\\n\", {call}); *ok = 1; printf(\"%d\\n\", {call});\
                     *(u64 *){STRUCTURE:#x} = 0x1000;"
                );
            }
        }
    }
    main.push_str("return 0; }\n");
    main
}

#[test]
fn every_symbol_of_the_op_table_is_recorded_with_its_arguments_and_return_code() {
    let libraries = stand_ins("every", 17);
    let program = compile("every/main", &caller_of_everything(), &["-ldl"]);
    for mechanism in BOTH {
        let got = record(Command::new(&program).arg(&libraries), mechanism).succeeded();
        let calls = got.calls();
        let mut returned = got.stdout.lines().map(|line| line.parse::<i32>().unwrap());
        let mut at = 0;
        for (library, _) in LIBRARIES {
            for (row, op) in OPS.iter().enumerate() {
                if op.source.library() != Some(library) {
                    continue;
                }
                for symbol in op.symbols {
                    for ret in [failure(17, &arguments(row, op)), 0] {
                        let record = calls
                            .get(at)
                            .unwrap_or_else(|| panic!("{symbol} is missing"));
                        at += 1;
                        assert_eq!(
                            returned.next(),
                            Some(ret),
                            "{symbol} was called with other arguments"
                        );
                        assert_eq!(record.call_op().unwrap().name(), op.name, "{symbol}");
                        let want = [op.arg0, op.arg1, op.stream].map(|s| slot(row, op, s, ret));
                        assert_eq!(
                            (record.ret, [record.arg0, record.arg1, record.stream]),
                            (ret, want),
                            "{symbol}"
                        );
                        assert_eq!(record.flags, 0, "{symbol}");
                    }
                }
            }
        }
        assert_eq!(at, calls.len(), "nothing else was recorded");
        let sequence: Vec<u32> = got
            .batch
            .records
            .iter()
            .filter(|r| r.kind != Kind::Process as u8)
            .map(|r| r.seq)
            .collect();
        assert!(
            sequence.iter().enumerate().all(|(i, s)| *s == i as u32),
            "no gap"
        );
        assert!(
            calls.windows(2).all(|w| w[0].ts + w[0].dur <= w[1].ts),
            "in order, apart"
        );
        // One thread has counters for 96 ops; what it could not count, it says.
        let counted: u64 = got.counts().values().sum();
        let reasons: HashSet<_> = got.batch.losses.iter().map(|l| l.reason).collect();
        let uncounted: u64 = got.batch.losses.iter().map(|l| l.count).sum();
        assert_eq!(counted + uncounted, calls.len() as u64);
        assert_eq!(reasons, [LossReason::MapFull].into());
        assert_eq!(got.counts().len(), 96);
    }
}

/// A runtime that calls the driver, and NCCL that calls the runtime; the driver call spins for as long as it is told.
fn nesting() -> (std::path::PathBuf, std::path::PathBuf) {
    let spin = "static void spin(u64 ns) { struct timespec a, b; clock_gettime(CLOCK_MONOTONIC, &a); do clock_gettime(CLOCK_MONOTONIC, &b);\
        while ((b.tv_sec - a.tv_sec) * 1000000000ull + b.tv_nsec - a.tv_nsec < ns); }\n";
    let driver = format!(
        "{PRELUDE}{spin} int cuMemAlloc_v2(u64 *p, size_t n) {{ spin(n); *p = n; return 0; }} int cuLaunchKernel(void) {{ return 0; }}"
    );
    compile(
        "nested/libcuda.so.1",
        &driver,
        &["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"],
    );
    let runtime = format!(
        "{PRELUDE} int cudaMalloc(u64 *p, size_t n) {{ static int (*f)(u64 *, size_t); if (!f) f = dlsym(dlopen(\"libcuda.so.1\", 2), \"cuMemAlloc_v2\");\
         return f(p, n); }} int cudaLaunchKernel(void) {{ return 0; }}"
    );
    compile(
        "nested/libcudart.so.12",
        &runtime,
        &["-shared", "-fPIC", "-Wl,-soname,libcudart.so.12", "-ldl"],
    );
    let nccl = format!(
        "{PRELUDE} int cudaMalloc(u64 *, size_t); int ncclAllReduce(u64 *s, u64 n) {{ return cudaMalloc(s, n); }}"
    );
    let here = folder().join("nested");
    let runtime_path = here.join("libcudart.so.12");
    compile(
        "nested/libnccl.so.2",
        &nccl,
        &[
            "-shared",
            "-fPIC",
            "-Wl,-soname,libnccl.so.2",
            runtime_path.to_str().unwrap(),
        ],
    );
    let main = format!(
        "{PRELUDE} int cudaMalloc(u64 *, size_t); int ncclAllReduce(u64 *, u64); int main() {{ u64 p;\
         cudaMalloc(&p, 1000); cudaMalloc(&p, {slow}); ncclAllReduce(&p, 1000); ncclAllReduce(&p, {slow}); return 0; }}",
        slow = 3 * NESTED_MIN_NANOS
    );
    let program = compile(
        "nested/main",
        &main,
        &[
            runtime_path.to_str().unwrap(),
            here.join("libnccl.so.2").to_str().unwrap(),
        ],
    );
    (program, here)
}

#[test]
fn nested_calls_are_counted_nowhere_and_recorded_only_when_slow() {
    let (program, libraries) = nesting();
    for mechanism in BOTH {
        let got = record(
            Command::new(&program).env("LD_LIBRARY_PATH", &libraries),
            mechanism,
        )
        .succeeded();
        let calls: Vec<_> = got
            .calls()
            .iter()
            .map(|r| (r.call_op().unwrap().name(), r.flags))
            .collect();
        let nested = |name| (name, flag::NESTED);
        let in_library = |name| (name, flag::NESTED | flag::NESTED_IN_LIBRARY);
        // An outer call is recorded when it ends, so after those inside it. A slow machine may make more of the nested ones slow.
        let expected = [
            ("cudaMalloc", 0),
            nested("cuMemAlloc"),
            ("cudaMalloc", 0),
            ("ncclAllReduce", 0),
            in_library("cuMemAlloc"),
            in_library("cudaMalloc"),
            ("ncclAllReduce", 0),
        ];
        let mut rest = calls.iter();
        for want in expected {
            assert!(
                rest.any(|c| *c == want),
                "{want:?} is missing or out of order in {calls:?}"
            );
        }
        for record in got.calls() {
            assert!(
                record.flags == 0 || record.dur >= NESTED_MIN_NANOS,
                "{record:?}"
            );
        }
        assert_eq!(
            got.counts(),
            [("cudaMalloc", 2), ("ncclAllReduce", 2)].into()
        );
    }
}

#[test]
fn the_device_follows_the_runtime_and_the_contexts_of_the_driver() {
    let libraries = stand_ins("device", 1);
    let main = format!(
        "{PRELUDE} int cudaSetDevice(u64); int cudaEventQuery(u64); int cuCtxPushCurrent_v2(u64); int cuCtxPopCurrent_v2(u64);\
         int cuDevicePrimaryCtxRetain(u64, u64); extern int wt_succeed; int main(int c, char **v) {{ u64 context;\
         int *rt = dlsym(dlopen(\"libcudart.so.12\", 1), \"wt_succeed\"), *dr = dlsym(dlopen(\"libcuda.so.1\", 1), \"wt_succeed\");\
         *dr = *rt = 1; cudaEventQuery(0); cudaSetDevice(5); cudaEventQuery(1);\
         *rt = 0; cudaSetDevice(6); *rt = 1; cudaEventQuery(2);\
         cuDevicePrimaryCtxRetain((u64)&context, 3); cuCtxPushCurrent_v2(context); cudaEventQuery(3); cuCtxPopCurrent_v2(0); cudaEventQuery(4);\
         cuCtxPushCurrent_v2(0xdead); cudaEventQuery(5); return 0; }}"
    );
    let files = ["libcudart.so.12", "libcuda.so.1"].map(|l| libraries.join(l));
    let mut flags: Vec<&str> = files.iter().map(|f| f.to_str().unwrap()).collect();
    flags.push("-ldl");
    let program = compile("device/main", &main, &flags);
    for mechanism in BOTH {
        let got = record(
            Command::new(&program).env("LD_LIBRARY_PATH", &libraries),
            mechanism,
        )
        .succeeded();
        let queries: Vec<_> = got
            .calls()
            .iter()
            .filter(|r| r.call_op().unwrap().name() == "cudaEventQuery")
            .map(|r| (r.arg0, r.device))
            .collect();
        assert_eq!(
            queries,
            [(0, 0), (1, 5), (2, 5), (3, 3), (4, 5), (5, u16::MAX)]
        );
        let mut counted: Vec<_> = got
            .batch
            .counts
            .iter()
            .filter(|c| c.key.op.name() == "cudaEventQuery")
            .map(|c| (c.key.device.map(|d| d.0), c.durations.count()))
            .collect();
        counted.sort_unstable();
        assert_eq!(
            counted,
            [(None, 1), (Some(0), 1), (Some(3), 1), (Some(5), 3)]
        );
    }
}

#[test]
fn stretches_tile_the_time_between_waits_and_agree_with_the_scheduler() {
    let libraries = stand_ins("stretch", 1);
    let main = format!(
        "{PRELUDE} int cudaStreamSynchronize(u64); static u64 delay() {{ char b[100] = {{0}}; FILE *f = fopen(\"/proc/thread-self/schedstat\", \"r\");\
         u64 a, d; fscanf(f, \"%lu %lu\", &a, &d); fclose(f); return d; }}\n int main() {{ volatile u64 x = 0; cudaStreamSynchronize(1); u64 d = delay();\
         for (int i = 0; i < 20; i++) {{ for (int j = 0; j < 2000000; j++) x += j; usleep(2000); cudaStreamSynchronize(i); }}\
         printf(\"%lu\\n\", delay() - d); return 0; }}"
    );
    let runtime = libraries.join("libcudart.so.12");
    let program = compile("stretch/main", &main, &[runtime.to_str().unwrap()]);
    let got = record(
        Command::new(&program).env("LD_LIBRARY_PATH", &libraries),
        BOTH[0],
    )
    .succeeded();
    let stretches = got.of_kind(Kind::Stretch);
    assert!(stretches.len() >= 20, "{}", stretches.len());
    for pair in stretches.windows(2) {
        assert_eq!(pair[0].ts + pair[0].dur, pair[1].ts, "no hole");
    }
    assert!(stretches.iter().all(|s| s.arg0 + s.arg1 <= s.dur));
    let runnable: u64 = stretches.iter().map(|s| s.arg1).sum();
    let scheduler: u64 = got.stdout.trim().parse().unwrap();
    // Between the program's own readings and the first and last stretch lie a few calls.
    assert!(
        runnable + 5_000_000 > scheduler,
        "{runnable} ns of run-queue time recorded, {scheduler} by the scheduler"
    );
    let blocked: u64 = stretches.iter().map(|s| s.dur - s.arg0 - s.arg1).sum();
    assert!(blocked >= 20 * 2_000_000 * 9 / 10, "it slept: {blocked}");
    assert!(stretches.iter().any(|s| s.arg0 > 100_000), "it ran");
}

/// A cgroup with a tenth of a CPU, removed when it is dropped.
struct Group(std::path::PathBuf);

impl Group {
    fn new() -> Result<Group, String> {
        let root = Path::new("/sys/fs/cgroup");
        let v2 = std::fs::read_to_string(root.join("cgroup.subtree_control"))
            .is_ok_and(|c| c.split_whitespace().any(|c| c == "cpu"));
        let name = format!("warptrace-preload-{}", std::process::id());
        let (folder, limits) = if v2 {
            (root.join(name), vec![("cpu.max", "10000 100000")])
        } else {
            let limits = vec![
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "10000"),
            ];
            (root.join("cpu").join(name), limits)
        };
        std::fs::create_dir(&folder).map_err(|e| format!("no cgroup {folder:?}: {e}"))?;
        let group = Group(folder);
        for (file, value) in limits {
            let path = group.0.join(file);
            std::fs::write(&path, value).map_err(|e| format!("cannot write {path:?}: {e}"))?;
        }
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes have ended, but may still be leaving.
        for _ in 0..1000 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::yield_now();
        }
    }
}

#[test]
fn time_held_back_by_a_quota_is_told_from_other_waiting() {
    let group = match Group::new() {
        Ok(group) => group,
        Err(why) => return skip(&why),
    };
    let libraries = stand_ins("quota", 1);
    // It reads the group's books between its waits, as the stretches do.
    let main = format!(
        "{PRELUDE} int cudaStreamSynchronize(u64); static u64 held(const char *path) {{ char line[200]; u64 v = 0; FILE *f = fopen(path, \"r\");\
         while (fgets(line, sizeof line, f)) {{ if (sscanf(line, \"throttled_usec %lu\", &v) == 1) v *= 1000; else sscanf(line, \"throttled_time %lu\", &v); }}\
         fclose(f); return v; }}\n int main(int n, char **args) {{ volatile u64 x = 0; cudaStreamSynchronize(1); u64 before = held(args[1]);\
         for (int i = 0; i < 60; i++) {{ for (int j = 0; j < 2000000; j++) x += j; cudaStreamSynchronize(i); }}\
         printf(\"%lu\\n\", held(args[1]) - before); return 0; }}"
    );
    let runtime = libraries.join("libcudart.so.12");
    let program = compile("quota/main", &main, &[runtime.to_str().unwrap()]);
    let got = record(
        Command::new("/bin/sh")
            .arg("-c")
            .arg("echo $$ > \"$1/cgroup.procs\" && exec \"$0\" \"$1/cpu.stat\"")
            .arg(&program)
            .arg(&group.0)
            .env("LD_LIBRARY_PATH", &libraries),
        BOTH[0],
    )
    .succeeded();
    let kernel: u64 = got.stdout.trim().parse().unwrap();
    assert!(kernel > 300_000_000, "it was held back: {kernel} ns");
    let stretches = got.of_kind(Kind::Stretch);
    let held: u64 = stretches.iter().map(|s| (s.stream >> 32) * 1000).sum();
    assert!(
        stretches.iter().all(|s| (s.stream >> 32) * 1000 <= s.arg1),
        "no more than was waited"
    );
    // The first and the last stretch begin and end a few calls beside the program's readings: there it may be held back once, for
    // at most a period.
    assert!(
        held.abs_diff(kernel) <= kernel / 10 + 100_000_000,
        "{held} ns in the stretches, {kernel} ns by the group"
    );
}
