//! That the library in the job is a guest: what goes wrong for it, does not go wrong for the job.

use std::collections::HashSet;
use std::process::Command;

use warptrace_capture::preload::PreloadOptions;
use warptrace_model::LossReason;

use crate::lab::*;

fn memset_program(name: &str, body: &str) -> Command {
    let libraries = stand_ins(name, 5);
    let runtime = libraries.join("libcudart.so.12");
    let source = format!(
        "{PRELUDE}\n#include <pthread.h>\n#include <sys/resource.h>\n#include <signal.h>\n#include <sys/time.h>\n\
         int cudaMemset(u64, u64, u64); int cudaStreamSynchronize(u64); {body}"
    );
    let program = compile(
        &format!("{name}/main"),
        &source,
        &[runtime.to_str().unwrap(), "-pthread"],
    );
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", libraries);
    command
}

const THREE_THREADS: &str = "static void *run(void *n) { for (int i = 0; i < 1000; i++) if (cudaMemset(1, 2, 3) == 0) abort(); return 0; }\n\
    int main() { for (int i = 0; i < 3; i++) { pthread_t t; pthread_create(&t, 0, run, 0); pthread_join(t, 0); } puts(\"done\"); return 0; }";

#[test]
fn the_library_needs_no_other_and_no_version_of_anything() {
    let out = |args: &[&str]| {
        let out = Command::new("readelf")
            .args(args)
            .arg(library())
            .output()
            .unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let dynamic = out(&["-dW"]);
    assert!(
        dynamic.contains("SONAME") && !dynamic.contains("NEEDED"),
        "{dynamic}"
    );
    assert!(out(&["-VW"]).contains("No version information"));
    let symbols = out(&["-W", "--dyn-syms"]);
    let undefined: Vec<&str> = symbols
        .lines()
        .filter(|l| l.contains(" UND ") && l.split_whitespace().count() > 7)
        .collect();
    assert!(
        undefined
            .iter()
            .all(|l| l.contains("WEAK") && l.contains("dl_iterate_phdr")),
        "{undefined:?}"
    );
    for name in ["memcpy", "strlen", "malloc", "environ"] {
        assert!(
            !symbols
                .lines()
                .any(|l| l.split_whitespace().last() == Some(name)),
            "{name} would replace the job's"
        );
    }
}

#[test]
fn a_full_file_system_leaves_threads_unrecorded_by_count_and_the_job_alone() {
    let place = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "none"])
        .arg(place.path())
        .output()
        .is_ok_and(|o| o.status.success());
    if !mounted {
        return skip("a small tmpfs cannot be mounted");
    }
    struct Unmount<'a>(&'a std::path::Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0).status();
        }
    }
    let _unmount = Unmount(place.path());
    for mechanism in BOTH {
        let options = PreloadOptions {
            shared_memory: place.path().into(),
            budget: Some(1 << 30),
            ..options()
        };
        let filler = place.path().join("filler");
        std::fs::write(&filler, vec![1; 700 << 10]).unwrap();
        let got = record_with(
            &options,
            &mut memset_program("full", THREE_THREADS),
            mechanism,
            |_, _, _| (),
        )
        .succeeded();
        assert_eq!(got.stdout.trim(), "done");
        assert!(got.calls().is_empty());
        let reasons: HashSet<_> = got.batch.losses.iter().map(|l| l.reason).collect();
        let threads: u64 = got.batch.losses.iter().map(|l| l.count).sum();
        assert_eq!(
            (reasons, threads),
            ([LossReason::NoRing].into(), 3),
            "{mechanism:?}"
        );
    }
}

#[test]
fn a_spent_budget_and_a_limit_on_file_sizes_leave_the_job_alone() {
    for mechanism in BOTH {
        let options = PreloadOptions {
            budget: Some(1000),
            ..options()
        };
        let got = record_with(
            &options,
            &mut memset_program("budget", THREE_THREADS),
            mechanism,
            |_, _, _| (),
        )
        .succeeded();
        assert_eq!((got.stdout.trim(), got.calls().len()), ("done", 0));
        // Beyond this limit an allocation is answered by SIGXFSZ.
        let body = THREE_THREADS.replace(
            "int main() {",
            "int main() { struct rlimit l = {1000, 1000}; setrlimit(RLIMIT_FSIZE, &l);",
        );
        let got = record(&mut memset_program("fsize", &body), mechanism).succeeded();
        assert_eq!((got.stdout.trim(), got.calls().len()), ("done", 0));
        assert_eq!(got.batch.losses.iter().map(|l| l.count).sum::<u64>(), 3);
        // No descriptor is left.
        let body = THREE_THREADS.replace(
            "int main() {",
            "int main() { struct rlimit l = {0, 0}; setrlimit(RLIMIT_NOFILE, &l);",
        );
        let got = record(&mut memset_program("nofile", &body), mechanism).succeeded();
        assert_eq!((got.stdout.trim(), got.calls().len()), ("done", 0));
    }
}

#[test]
fn a_shell_script_of_a_hundred_commands_runs_as_ever_and_makes_no_ring() {
    for mechanism in BOTH {
        let script =
            "for i in $(seq 50); do /bin/true; x=$(/bin/echo $i); done; ls / > /dev/null; echo $x";
        let got = record(Command::new("/bin/sh").args(["-c", script]), mechanism).succeeded();
        assert_eq!(got.stdout.trim(), "50");
        assert_eq!(
            (
                got.batch.records.len(),
                got.batch.processes.len(),
                got.rings_left
            ),
            (0, 0, 0)
        );
        assert!(got.batch.losses.is_empty());
    }
}

#[test]
fn errno_and_the_order_of_the_jobs_descriptors_are_not_touched() {
    let body = "\n#include <fcntl.h>\nint main() { errno = 42; int a = open(\"/dev/null\", 0); cudaMemset(1, 2, 3); cudaStreamSynchronize(0); int kept = errno;\
        int b = open(\"/dev/null\", 0); printf(\"%d %d\\n\", kept, b - a); return 0; }";
    for mechanism in BOTH {
        let got = record(&mut memset_program("errno", body), mechanism).succeeded();
        assert_eq!(got.stdout.trim(), "42 1", "{mechanism:?}");
        assert_eq!(got.calls().len(), 2);
    }
}

#[test]
fn a_job_that_closes_every_descriptor_is_recorded_on() {
    let body = "int main() { cudaStreamSynchronize(1); for (int i = 3; i < 1024; i++) close(i); for (int i = 0; i < 600; i++) dup(1);\
        for (int i = 0; i < 5; i++) { usleep(1000); cudaStreamSynchronize(1); } puts(\"done\"); return 0; }";
    for mechanism in BOTH {
        let got = record(&mut memset_program("closes", body), mechanism).succeeded();
        assert_eq!(got.stdout.trim(), "done");
        assert_eq!(got.calls().len(), 6);
    }
}

#[test]
fn signal_handlers_that_call_cuda_at_any_moment_lose_records_only_by_count() {
    let body = "static volatile long handled; static void on(int s) { cudaMemset(9, 9, 9); handled++; }\n\
        int main() { struct sigaction a = {0}; a.sa_handler = on; sigaction(SIGALRM, &a, 0); struct itimerval t = {{0, 20}, {0, 20}};\
        setitimer(ITIMER_REAL, &t, 0); long n = 0; while (handled < 3000) { cudaMemset(1, 2, 3); n++; } t.it_value.tv_usec = 0; setitimer(ITIMER_REAL, &t, 0);\
        printf(\"%ld\\n\", n + handled); return 0; }";
    for mechanism in BOTH {
        let got = record(&mut memset_program("signals", body), mechanism).succeeded();
        let made: u64 = got.stdout.trim().parse().unwrap();
        let count = |reason| {
            got.batch
                .losses
                .iter()
                .filter(|l| l.reason == reason)
                .map(|l| l.count)
                .sum::<u64>()
        };
        let counted: u64 = got.counts().values().sum();
        // A handler inside a call is a nested one, which is counted only in the ring when slow.
        assert!(
            counted <= made && counted + 3000 >= made,
            "{counted} of {made}"
        );
        assert_eq!(count(LossReason::Malformed), 0);
        assert!(
            got.calls()
                .iter()
                .all(|r| [[2, 3, 1], [9, 9, 9]].contains(&[
                    if r.arg1 == 9 { 9 } else { 2 },
                    r.arg0,
                    r.arg1
                ])),
            "a record was mixed"
        );
    }
}

#[test]
fn after_the_recorder_has_stopped_the_job_runs_on_unrecorded() {
    use warptrace_capture::Source as _;
    let body = "int main() { char c; cudaMemset(1, 0, 0); puts(\"first\"); fflush(0); read(0, &c, 1); cudaMemset(2, 0, 0); cudaStreamSynchronize(0); puts(\"second\"); return 0; }";
    for mechanism in BOTH {
        let mut program = memset_program("stopped", body);
        program
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut source = warptrace_capture::preload::Preload::start(&options()).unwrap();
        program.envs(source.environment_by(mechanism, |_| None));
        let mut child = program.spawn().unwrap();
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        assert_eq!(lines.next().unwrap().unwrap(), "first");
        source.stop();
        let mut batch = warptrace_capture::Batch::default();
        source.poll(&mut batch).unwrap();
        drop(source);
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"x").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "second");
        assert!(child.wait().unwrap().success());
        let calls = batch.records.iter().filter(|r| r.kind == 1).count();
        assert_eq!(calls, 1, "{mechanism:?}");
    }
}

#[test]
fn without_a_recorder_the_library_does_nothing() {
    for mechanism in BOTH {
        let mut program = memset_program(
            "nobody",
            "int main() { cudaMemset(1, 0, 0); cudaStreamSynchronize(0); puts(\"ok\"); return 0; }",
        );
        for rings in [None, Some("/nowhere/at/all"), Some("relative"), Some("")] {
            program.env(mechanism.variable(), library());
            match rings {
                Some(rings) => program.env("WARPTRACE_RINGS", rings),
                None => program.env_remove("WARPTRACE_RINGS"),
            };
            let out = program.output().unwrap();
            assert!(
                out.status.success() && out.stdout == b"ok\n",
                "{mechanism:?} {rings:?} {out:?}"
            );
            assert!(out.stderr.is_empty(), "{out:?}");
        }
    }
}

#[test]
fn a_damaged_control_page_is_not_believed() {
    for damage in [&b""[..], b"wtctrl01", &[0xff; 4096], &[0; 4096]] {
        for mechanism in BOTH {
            let place = tempfile::tempdir().unwrap();
            std::fs::write(place.path().join("control"), damage).unwrap();
            let mut program = memset_program(
                "damaged",
                "int main() { cudaMemset(1, 0, 0); puts(\"ok\"); return 0; }",
            );
            program
                .env(mechanism.variable(), library())
                .env("WARPTRACE_RINGS", place.path());
            let out = program.output().unwrap();
            assert!(out.status.success() && out.stdout == b"ok\n", "{out:?}");
            assert_eq!(
                std::fs::read_dir(place.path()).unwrap().count(),
                1,
                "no ring was made"
            );
        }
    }
}
