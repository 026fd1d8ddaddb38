//! Processes and threads that come, go, fork, become other programs and are killed.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use warptrace_record::{Kind, Record, flag, process};

use crate::lab::*;

/// A program linked to a stand-in runtime, whose `cudaMemset(p, value, n)` the tests count.
fn linked(name: &str, body: &str, flags: &[&str]) -> Command {
    let libraries = stand_ins(name, 5);
    let runtime = libraries.join("libcudart.so.12");
    let mut all = vec![runtime.to_str().unwrap(), "-pthread"];
    all.extend(flags);
    let source = format!(
        "{PRELUDE}\n#include <pthread.h>\n#include <sys/wait.h>\n#include <signal.h>\n#include <setjmp.h>\n#include <sys/syscall.h>\n\
         int cudaMemset(u64, u64, u64); int cudaStreamSynchronize(u64); {body}"
    );
    let program = compile(&format!("{name}/main"), &source, &all);
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", libraries);
    command
}

fn values(calls: &[Record]) -> Vec<u64> {
    calls.iter().map(|r| r.arg1).collect()
}

#[test]
fn a_forked_child_has_its_own_ring_and_its_parents_is_untouched() {
    for mechanism in BOTH {
        let mut program = linked(
            "fork",
            "int main() { cudaMemset(1, 0, 0); cudaStreamSynchronize(0); fflush(0); if (fork() == 0) { cudaMemset(2, 0, 0);\
             if (fork() == 0) { cudaMemset(3, 0, 0); _exit(0); } wait(0); cudaMemset(4, 0, 0); _exit(0); }\
             wait(0); cudaMemset(5, 0, 0); return 0; }",
            &[],
        );
        let got = record(&mut program, mechanism).succeeded();
        let mut by_pid: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for call in got
            .calls()
            .iter()
            .filter(|r| r.call_op().unwrap().name() == "cudaMemset")
        {
            by_pid.entry(call.pid).or_default().push(call.arg1);
            assert_eq!(call.pid, call.tid);
        }
        let sets: BTreeSet<Vec<u64>> = by_pid.into_values().collect();
        assert_eq!(
            sets,
            [vec![1, 5], vec![2, 4], vec![3]].into(),
            "{mechanism:?}"
        );
        assert_eq!(got.rings_left, 0, "rings of ended threads are removed");
        let processes: BTreeSet<_> = got.batch.processes.iter().map(|p| p.incarnation).collect();
        assert_eq!(processes.len(), 3);
        assert!(
            got.batch
                .processes
                .iter()
                .all(|p| p.incarnation.start_ticks > 0)
        );
    }
}

#[test]
fn a_program_that_becomes_another_is_recorded_on() {
    for mechanism in BOTH {
        let mut program = linked(
            "exec",
            "int main(int c, char **v) { cudaMemset(c, 0, 0); if (c < 4) { char *a[] = {v[0], \"a\", \"b\", c > 1 ? \"c\" : 0, 0};\
             execv(\"/proc/self/exe\", a); } return 0; }",
            &[],
        );
        let got = record(&mut program, mechanism).succeeded();
        assert_eq!(values(&got.calls()), [1, 3, 4], "{mechanism:?}");
        let pids: BTreeSet<_> = got.calls().iter().map(|r| r.pid).collect();
        assert_eq!(pids.len(), 1);
    }
}

#[test]
fn two_hundred_threads_each_have_a_ring_and_lose_nothing() {
    for mechanism in BOTH {
        let mut program = linked(
            "threads",
            "static void *run(void *n) { for (int i = 0; i < 50; i++) cudaMemset((u64)n, 0, i); return 0; }\n\
             int main() { pthread_t t[200]; for (long i = 0; i < 200; i++) pthread_create(t + i, 0, run, (void *)i);\
             for (int i = 0; i < 200; i++) pthread_join(t[i], 0); return 0; }",
            &[],
        );
        let got = record(&mut program, mechanism).succeeded();
        let mut calls: Vec<(u64, u64)> = got.calls().iter().map(|r| (r.arg1, r.arg0)).collect();
        calls.sort_unstable();
        let want: Vec<(u64, u64)> = (0..200)
            .flat_map(|t| (0..50).map(move |i| (t, i)))
            .collect();
        assert!(
            calls == want,
            "{mechanism:?}: {} calls of {}, {:?}",
            calls.len(),
            want.len(),
            got.batch.losses
        );
        assert_eq!(got.counts(), [("cudaMemset", 10_000)].into());
        assert!(got.batch.losses.is_empty(), "{:?}", got.batch.losses);
        assert_eq!(got.rings_left, 0);
    }
}

#[test]
fn threads_that_end_give_back_their_memory_and_descriptors() {
    let program = || {
        linked(
            "churn",
            "\n#include <dirent.h>\nstatic int count(const char *d) { DIR *o = opendir(d); int n = 0; while (readdir(o)) n++; closedir(o); return n; }\n\
         static int maps() { char line[600]; int n = 0; FILE *f = fopen(\"/proc/self/maps\", \"r\"); while (fgets(line, 600, f)) n += strstr(line, \"ring.\") != 0; fclose(f); return n; }\n\
         static void *run(void *n) { cudaMemset((u64)n, 0, 0); cudaStreamSynchronize(0); return 0; }\n\
         int main() { int fds = count(\"/proc/self/fd\"); for (long i = 0; i < 500; i++) { pthread_t t; pthread_create(&t, 0, run, (void *)i); pthread_join(t, 0); }\
         printf(\"%d %d\\n\", count(\"/proc/self/fd\") - fds, maps()); return 0; }",
            &[],
        )
    };
    for mechanism in BOTH {
        let got = record(&mut program(), mechanism).succeeded();
        let numbers: Vec<i32> = got
            .stdout
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        assert!(
            numbers.iter().all(|n| *n < 10),
            "descriptors and maps left: {numbers:?}"
        );
        let threads: BTreeSet<u64> = got
            .calls()
            .iter()
            .filter(|r| r.call_op().unwrap().name() == "cudaMemset")
            .map(|r| r.arg1)
            .collect();
        // Their rings keep what they wrote until the recorder has read it; so many in so short a time can spend the budget.
        let unrecorded: u64 = got.batch.losses.iter().map(|l| l.count).sum();
        assert_eq!(
            threads.len() as u64 + unrecorded,
            500,
            "{:?}",
            got.batch.losses
        );
        assert!(threads.len() > 150, "{}", threads.len());
    }
}

#[test]
fn a_killed_program_leaves_its_last_record_and_the_call_that_it_was_in() {
    for mechanism in BOTH {
        let mut program = linked(
            "killed",
            "static void *run(void *n) { for (u64 i = 0;; i++) cudaMemset(i, 0, 7); }\n\
             int main() { for (u64 i = 0; i < 300000; i++) cudaMemset(i, 0, 0); kill(getpid(), SIGKILL); }",
            &[],
        );
        let got = record(&mut program, mechanism);
        assert!(!got.status.success());
        let calls = got.calls();
        assert_eq!(calls.last().unwrap().arg1, 299_999, "{mechanism:?}");
        let of_the_ring = got
            .batch
            .records
            .iter()
            .filter(|r| r.kind != Kind::Process as u8);
        let (given, written) = of_the_ring.fold((0, 0), |(n, last), r| {
            (n + 1, last.max(u64::from(r.seq) + 1))
        });
        let lost: u64 = got.batch.losses.iter().map(|l| l.count).sum();
        assert_eq!(given + lost, written, "what is not there is counted");
        assert!(written >= 300_000);
        assert_eq!(
            got.counts(),
            [("cudaMemset", 300_000)].into(),
            "counts are exact all the same"
        );
        let ends: Vec<_> = got.of_kind(Kind::Process).iter().map(|r| r.op).collect();
        assert_eq!(ends, [process::EXIT]);
    }
}

#[test]
fn a_call_in_flight_is_seen_while_it_hangs_and_when_the_program_is_killed_in_it() {
    // A runtime whose synchronisation waits for ever.
    compile(
        "hang/libcudart.so.12",
        &format!(
            "{PRELUDE} int cudaLaunchKernel(void) {{ return 0; }} int cudaStreamSynchronize(u64 s) {{ for (;;) pause(); }}"
        ),
        &["-shared", "-fPIC", "-Wl,-soname,libcudart.so.12"],
    );
    let library = folder().join("hang/libcudart.so.12");
    let program = compile(
        "hang/main",
        &format!(
            "{PRELUDE} int cudaStreamSynchronize(u64); int main() {{ return cudaStreamSynchronize(77); }}"
        ),
        &[library.to_str().unwrap()],
    );
    for mechanism in BOTH {
        let mut seen = None;
        let mut command = Command::new(&program);
        command.env("LD_LIBRARY_PATH", folder().join("hang"));
        let got = record_with(&options(), &mut command, mechanism, |source, _, pid| {
            use warptrace_capture::Source as _;
            if seen.is_none()
                && let Some(call) = source.in_flight().first()
            {
                seen = Some(*call);
                Command::new("kill")
                    .args(["-9", &pid.to_string()])
                    .status()
                    .unwrap();
            }
        });
        let call = seen.unwrap();
        assert_eq!(
            (call.call_op().unwrap().name(), call.stream, call.kind),
            ("cudaStreamSync", 77, Kind::InFlight as u8)
        );
        let calls = got.calls();
        assert_eq!(calls.len(), 1);
        assert_eq!(
            (calls[0].flags, calls[0].stream, calls[0].ts),
            (flag::NO_RETURN, 77, call.ts)
        );
        assert!(calls[0].dur > 0);
    }
}

#[test]
fn calls_left_by_longjmp_and_by_an_exception_do_not_disturb_those_that_follow() {
    let libraries = folder().join("jump");
    compile_with(
        "c++",
        "jump/libcudart.so.12",
        &format!(
            "{PRELUDE}\n#include <setjmp.h>\nextern \"C\" {{ int cudaLaunchKernel(void) {{ return 0; }} int cudaMemset(u64 p, u64 v, u64 n) {{ return v; }}\
             int cudaLaunchHostFunc(u64 s, void (*f)(void *), void *a) {{ f(a); return 0; }} }}"
        ),
        &["-shared", "-fPIC", "-Wl,-soname,libcudart.so.12"],
    );
    let program = compile_with(
        "c++",
        "jump/main",
        &format!(
            "{PRELUDE}\n#include <setjmp.h>\nextern \"C\" {{ int cudaMemset(u64, u64, u64); int cudaLaunchHostFunc(u64, void (*)(void *), void *); }}\n\
             static jmp_buf back; static void jump(void *) {{ cudaMemset(0, 1, 0); longjmp(back, 1); }} static void raise(void *) {{ throw 7; }}\n\
             int main() {{ int caught = 0; for (int i = 0; i < 30; i++) {{ if (!setjmp(back)) cudaLaunchHostFunc(0, jump, 0);\
             try {{ cudaLaunchHostFunc(0, raise, 0); }} catch (int n) {{ caught += n; }} }} cudaMemset(0, 2, 0); printf(\"%d\", caught); return 0; }}"
        ),
        &[libraries.join("libcudart.so.12").to_str().unwrap()],
    );
    for mechanism in BOTH {
        let got = record(
            Command::new(&program).env("LD_LIBRARY_PATH", &libraries),
            mechanism,
        )
        .succeeded();
        assert_eq!(got.stdout, "210", "exceptions pass through {mechanism:?}");
        let last = *got.calls().last().unwrap();
        assert_eq!(
            (last.ret, last.flags),
            (2, 0),
            "the last call is an outermost one"
        );
        let no_return: u64 = got.batch.losses.iter().map(|l| l.count).sum();
        assert_eq!(no_return, 60, "{:?}", got.batch.losses);
    }
}

#[test]
fn a_program_in_a_pid_namespace_of_its_own_has_the_recorders_ids() {
    let mut program = linked(
        "namespace",
        "static void *run(void *n) { cudaMemset(2, 0, 0); cudaStreamSynchronize(0); sleep(1); return 0; }\n\
         int main() { printf(\"%d\\n\", getpid()); fflush(0); cudaMemset(1, 0, 0); pthread_t t; pthread_create(&t, 0, run, 0); pthread_join(t, 0); return 0; }",
        &[],
    );
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork"]).arg(program.get_program());
    for (name, value) in program.get_envs() {
        command.env(name, value.unwrap());
    }
    if !Command::new("unshare")
        .args(["--pid", "--fork", "true"])
        .output()
        .is_ok_and(|o| o.status.success())
    {
        return skip("no new pid namespace may be made here");
    }
    let _ = &mut program;
    let got = record(&mut command, BOTH[0]).succeeded();
    assert_eq!(got.stdout.trim(), "1", "it numbers itself");
    let calls = got.calls();
    let ids: BTreeSet<_> = calls.iter().map(|r| (r.pid, r.tid)).collect();
    assert_eq!(ids.len(), 2, "{calls:?}");
    assert!(calls.iter().all(|r| r.pid > 1 && r.tid > 2), "{calls:?}");
    let main = calls.iter().find(|r| r.arg1 == 1).unwrap();
    assert_eq!(main.pid, main.tid);
    assert_eq!(got.rings_left, 0);
}
