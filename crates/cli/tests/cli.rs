//! What a person sees at the command line: exit codes, errors that say what to do, signals.

mod support;

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::{Home, Ran, alone, can_trace, skip};

#[test]
fn the_bare_command_shows_three_commands() {
    let ran = Home::new().run::<_, &str>([]);
    assert_eq!(ran.code, Some(0));
    for command in ["warptrace demo", "warptrace record --", "warptrace explain"] {
        assert!(ran.out.contains(command), "{ran:#?}");
    }
}

#[test]
fn nonsense_is_refused_with_2_and_the_nearest_word() {
    let home = Home::new();
    for (args, said) in [
        (&["explian"][..], "explain"),
        (&["explain", "--jsno"], "--json"),
        (&["explain", "--since", "soon"], "not a time"),
        (
            &["explain", "--fail-on", "dire"],
            "low, medium, high, critical",
        ),
        (&["trace", "--ring-size", "3MiB"], "nearest: 2MiB, 4MiB"),
        (&["trace", "--duration", "0s"], "above zero"),
        (&["demo", "no-such"], "memcpy-bottleneck"),
        (&["record"], "CMD"),
        (&["query"], "SQL"),
    ] {
        let ran = home.run(args);
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:#?}");
        assert!(
            ran.err.contains(said),
            "{args:?} should say {said:?}: {ran:#?}"
        );
    }
}

#[test]
fn a_commands_own_exit_code_is_ours() {
    let home = Home::new();
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
    ] {
        let ran = home.run(["record", "--", "sh", "-c", script]);
        assert_eq!(ran.code, Some(code), "{script}: {ran:#?}");
    }
    let ran = home.run(["record", "--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(
        ran.out, "out\n",
        "the command's output is its own: {ran:#?}"
    );
    assert!(
        ran.err.contains("err\n") && ran.err.contains("No CUDA call was recorded"),
        "{ran:#?}"
    );
}

#[test]
fn a_command_that_cannot_be_started_is_126_or_127_and_leaves_no_session() {
    let home = Home::new();
    for verb in ["record", "trace"] {
        assert_eq!(home.run([verb, "--", "no-such-command"]).code, Some(127));
        assert_eq!(home.run([verb, "--", "/etc/passwd"]).code, Some(126));
        assert_eq!(home.run([verb, "--", "/"]).code, Some(126));
    }
    assert!(home.sessions().is_empty());
}

#[test]
fn a_target_that_preload_cannot_enter_is_refused_with_what_to_do() {
    let home = Home::new();
    let source = home.dir.path().join("main.c");
    std::fs::write(&source, "int main(void) { return 0; }").unwrap();
    let make = |compiler: &str, args: &[&str], name: &str| {
        let path = home.dir.path().join(name);
        let made = std::process::Command::new(compiler)
            .args(args)
            .arg("-o")
            .arg(&path)
            .arg(&source)
            .status();
        made.is_ok_and(|status| status.success()).then_some(path)
    };
    let mut targets = Vec::new();
    match make("gcc", &["-static"], "static") {
        Some(path) => targets.push((path, "static")),
        None => skip("preload_refuses_static", "no static libc to link with"),
    }
    match make("musl-gcc", &[], "musl") {
        Some(path) => targets.push((path, "musl")),
        None => skip("preload_refuses_musl", "no musl-gcc"),
    }
    if let Some(path) = make("gcc", &[], "setuid") {
        // To another user than ours: as nobody when we are root, and root's is not ours to make otherwise.
        if nix::unistd::Uid::effective().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4755)).unwrap();
            targets.push((path, "privileges of another user"));
        } else {
            skip(
                "preload_refuses_setuid",
                "needs root to make a program of another user",
            );
        }
    }
    assert!(!targets.is_empty());
    for (path, word) in targets {
        let ran = home.run([Path::new("record"), Path::new("--"), &path]);
        assert_eq!(ran.code, Some(125), "{ran:#?}");
        assert!(
            ran.err.contains(word) && ran.err.contains("sudo warptrace trace"),
            "{word}: {ran:#?}"
        );
    }
}

#[test]
fn a_store_that_cannot_be_written_is_named() {
    let home = Home::new();
    let file = home.dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let ran = Ran::from(
        home.command(["record", "--", "true"])
            .env("WARPTRACE_DATA", &file)
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, Some(125), "{ran:#?}");
    assert!(ran.err.contains("file"), "{ran:#?}");
}

#[test]
fn a_price_list_with_a_mistake_is_refused_and_the_mistake_named() {
    let home = Home::new();
    let file = home.dir.path().join("rates.yaml");
    for (text, said) in [
        ("providers: {ours: {L4: -1}}", "not a price"),
        ("provider: {}", "nearest: providers"),
        ("fallback_rate: 2", "fallback_rate"),
    ] {
        std::fs::write(&file, text).unwrap();
        let ran = home.run(["explain", "--gpu-rates", file.to_str().unwrap()]);
        assert_eq!(ran.code, Some(2), "{ran:#?}");
        assert!(ran.err.contains("rates.yaml"), "{ran:#?}");
        assert!(ran.err.contains(said), "{ran:#?}");
    }
}

#[test]
fn explaining_without_a_session_says_how_to_make_one() {
    let ran = Home::new().run(["explain"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("warptrace record --"), "{ran:#?}");
}

#[test]
fn foreign_and_newer_sessions_are_refused_and_an_unknown_id_is_named() {
    let home = Home::new();
    let folder = home.data().join("sessions/20260101T000000Z-00000001");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join("session.json"),
        r#"{"format": 99, "id": "20260101T000000Z-00000001"}"#,
    )
    .unwrap();
    let ran = home.run([Path::new("explain"), &folder]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("upgrade"), "{ran:#?}");
    std::fs::write(folder.join("session.json"), "not ours").unwrap();
    let ran = home.run([Path::new("explain"), &folder]);
    assert!(
        ran.code == Some(2) && ran.err.contains("not a session"),
        "{ran:#?}"
    );
    let ran = home.run(["explain", "20991231"]);
    assert!(
        ran.code == Some(2) && ran.err.contains("20991231"),
        "{ran:#?}"
    );
}

#[test]
fn a_query_without_the_sql_engine_says_how_to_get_it() {
    let home = Home::with_copied_binary();
    assert_eq!(home.run(["record", "--", "true"]).code, Some(0));
    let ran = Ran::from(
        home.command(["query", "select 1"])
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.err.contains("cargo build --release -p warptrace-sql"),
        "{ran:#?}"
    );
}

#[test]
fn a_signal_is_passed_on_once_and_the_session_is_sealed() {
    let home = Home::new();
    let script = "trap 'n=$((n+1)); echo got $n; [ $n = 1 ] && sleep 1; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = home
        .command(["record", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (Some(3), "got 1\n"),
        "{ran:#?}"
    );
    let meta = std::fs::read_to_string(home.sessions()[0].join("session.json")).unwrap();
    assert!(meta.contains("ended_unix_ns"), "{meta}");
}

#[test]
fn tracing_without_privilege_names_what_is_missing_and_points_to_record() {
    if !nix::unistd::Uid::effective().is_root() {
        return skip("trace_without_privilege", "needs root to become nobody");
    }
    let home = Home::with_copied_binary();
    let folder = home.dir.path();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = std::process::Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(folder.join("only/warptrace"));
    command
        .args(["trace", "--duration", "1s"])
        .env("WARPTRACE_DATA", folder.join("nobody"))
        .env("HOME", folder);
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, Some(2), "{ran:#?}");
    assert!(
        ran.err.contains("CAP_BPF") && ran.err.contains("warptrace record --"),
        "{ran:#?}"
    );
}

#[test]
fn tracing_an_unknown_pid_says_so() {
    let ran = Home::new().run(["trace", "--pid", "4194304"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("no process 4194304"), "{ran:#?}");
}

#[test]
fn the_first_interrupt_of_trace_stops_and_explains() {
    let _alone = alone();
    if !can_trace("trace_interrupt") {
        return;
    }
    let home = Home::new();
    let child = home
        .command(["trace"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let began = Instant::now();
    while home.sessions().is_empty() && began.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(10));
    }
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert!(ran.err.contains("warptrace explain "), "{ran:#?}");
}

#[test]
fn check_ends_in_two_lines_that_say_what_can_be_done() {
    let home = Home::new();
    let ran = home.run(["check"]);
    let last: Vec<&str> = ran.out.lines().rev().take(2).collect();
    assert!(
        last[1].starts_with("record: ") && last[0].starts_with("trace: "),
        "{ran:#?}"
    );
    let json = home.run(["check", "--json"]).json();
    assert_eq!(json["schema"], "warptrace.check/v1");
    assert_eq!(json["record"]["ok"], true, "{json:#}");
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = Home::new().run(["completions", shell]);
        assert!(
            ran.code == Some(0) && ran.out.contains("explain"),
            "{shell}"
        );
        assert!(
            !ran.out.contains("lab-fault --"),
            "hidden commands stay hidden"
        );
    }
}
