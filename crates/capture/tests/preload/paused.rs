//! Recording that is switched off and on while the job runs.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use warptrace_capture::preload::Preload;
use warptrace_capture::{Batch, Source as _};
use warptrace_model::Window;
use warptrace_record::Kind;

use crate::lab::{BOTH, PRELUDE, compile, options, stand_ins};

/// Steps of a program, which waits for a line before each but the first, and says when each is done.
fn program(name: &str, steps: &[&str]) -> Command {
    let libraries = stand_ins(name, 1);
    let steps: String = steps
        .iter()
        .map(|step| {
            format!("{step} puts(\"done\"); fflush(0); if (read(0, &c, 1) != 1) return 1; ")
        })
        .collect();
    let main = format!(
        "{PRELUDE}#include <sys/wait.h>\nint cudaSetDevice(u64); int cudaEventQuery(u64); int cudaStreamSynchronize(u64); extern int wt_succeed;\
         int main() {{ char c; *(int *)dlsym(dlopen(\"libcudart.so.12\", 1), \"wt_succeed\") = 1; {steps} return 0; }}"
    );
    let file = libraries.join("libcudart.so.12");
    let program = compile(
        &format!("{name}/main"),
        &main,
        &[file.to_str().unwrap(), "-ldl"],
    );
    let mut command = Command::new(program);
    command
        .env("LD_LIBRARY_PATH", &libraries)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// Runs `steps`, each with recording on or off.
fn run(
    name: &str,
    mechanism: warptrace_capture::preload::Mechanism,
    steps: &[(bool, &str)],
) -> Batch {
    let mut options = options();
    options.paused = !steps[0].0;
    let mut source = Preload::start(&options).unwrap();
    let switch = source.switch();
    let code: Vec<&str> = steps.iter().map(|(_, code)| *code).collect();
    let mut program = program(name, &code);
    program.envs(source.environment_by(mechanism, |_| None));
    let mut child = program.spawn().unwrap();
    let (mut tell, hear) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut lines = BufReader::new(hear).lines();
    let mut batch = Batch::default();
    for (i, (on, _)) in steps.iter().enumerate() {
        if i > 0 {
            switch.set(*on).unwrap();
            assert_eq!(switch.is_on(), *on);
            tell.write_all(b"x").unwrap();
        }
        assert_eq!(lines.next().unwrap().unwrap(), "done");
        source.poll(&mut batch).unwrap();
    }
    tell.write_all(b"x").unwrap();
    assert!(child.wait().unwrap().success());
    source.stop();
    source.poll(&mut batch).unwrap();
    // Too late to matter, and no error.
    switch.set(true).unwrap();
    batch
}

const STEPS: [(bool, &str); 5] = [
    (
        false,
        "cudaEventQuery(0); cudaStreamSynchronize(0); cudaSetDevice(5);",
    ),
    (true, "cudaEventQuery(1); cudaStreamSynchronize(1);"),
    (false, "cudaEventQuery(2); cudaStreamSynchronize(2);"),
    (false, "cudaSetDevice(6); cudaEventQuery(3);"),
    (
        true,
        "cudaEventQuery(4); cudaStreamSynchronize(4); usleep(1000); cudaStreamSynchronize(5);",
    ),
];

#[test]
fn only_calls_while_it_is_on_are_recorded_and_on_the_device_that_was_chosen_while_it_was_off() {
    for mechanism in BOTH {
        let batch = run("paused", mechanism, &STEPS);
        let calls = batch.records.iter().filter(|r| r.kind == Kind::Call as u8);
        let calls: Vec<_> = calls
            .map(|r| (r.call_op().unwrap().name(), r.arg0.max(r.stream), r.device))
            .collect();
        let (query, wait) = ("cudaEventQuery", "cudaStreamSync");
        assert_eq!(
            calls,
            [
                (query, 1, 5),
                (wait, 1, 5),
                (query, 4, 6),
                (wait, 4, 6),
                (wait, 5, 6)
            ],
            "{mechanism:?}"
        );
        let counted: u64 = batch.counts.iter().map(|c| c.durations.count()).sum();
        assert_eq!(counted, 5, "{mechanism:?}");
        assert!(batch.losses.is_empty(), "{:?}", batch.losses);
    }
}

#[test]
fn what_is_off_has_a_begin_and_an_end_and_no_stretch_of_a_thread_reaches_into_it() {
    for mechanism in BOTH {
        let batch = run("paused", mechanism, &STEPS);
        let on: Vec<bool> = batch.switched.iter().map(|s| s.on).collect();
        assert_eq!(on, [false, true, false, true]);
        let off: Vec<Window> = batch
            .switched
            .chunks(2)
            .map(|s| Window {
                start: s[0].at,
                end: s[1].at,
            })
            .collect();
        assert!(off.iter().all(|w| w.nanos() > 0));
        let stretches = batch.records.iter();
        let stretches: Vec<Window> = stretches
            .filter(|r| r.kind == Kind::Stretch as u8)
            .map(|r| Window::at(warptrace_model::BootNanos(r.ts), r.dur))
            .collect();
        assert!(!stretches.is_empty());
        for stretch in &stretches {
            let overlap: u64 = off.iter().map(|w| w.overlap(stretch)).sum();
            assert_eq!(overlap, 0, "{stretch:?} in {off:?}");
        }
    }
}

#[test]
fn a_child_that_is_forked_while_it_is_off_is_recorded_when_it_is_on() {
    for mechanism in BOTH {
        let steps = [
            (
                false,
                "cudaSetDevice(2); int p[2], q[2]; pipe(p); pipe(q); if (!fork()) { for (int i = 0; i < 2; i++) { read(p[0], &c, 1); cudaEventQuery(i); write(q[1], &c, 1); } _exit(0); }",
            ),
            (true, "write(p[1], &c, 1); read(q[0], &c, 1);"),
            (false, "write(p[1], &c, 1); read(q[0], &c, 1); wait(0);"),
        ];
        let batch = run("paused-fork", mechanism, &steps);
        let calls = batch.records.iter().filter(|r| r.kind == Kind::Call as u8);
        let calls: Vec<_> = calls.map(|r| (r.arg0, r.tid == r.pid)).collect();
        assert_eq!(calls, [(0, true)], "{mechanism:?}");
    }
}

#[test]
fn a_recording_that_was_never_off_says_nothing_of_it() {
    let steps = [(true, "cudaEventQuery(0);"), (true, "cudaEventQuery(1);")];
    let batch = run("never-paused", BOTH[0], &steps);
    assert!(batch.switched.is_empty());
    let calls = batch.records.iter().filter(|r| r.kind == Kind::Call as u8);
    assert_eq!(calls.count(), 2);
}
