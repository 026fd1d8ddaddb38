//! The scenarios, for real: each is recorded by both backends, and its first finding must name what was injected.

mod support;

use serde_json::Value;
use support::{Home, alone, can_trace, skip};
use warptrace_lab::Truth;

#[derive(Clone, Copy)]
enum Backend {
    Ebpf,
    Preload,
}

struct Demo {
    answer: Value,
    truth: Value,
}

#[track_caller]
fn demo_at(home: &Home, scenario: &str, backend: Backend) -> Demo {
    let truth = home.dir.path().join("truth.json");
    let capture = match backend {
        Backend::Ebpf => "ebpf",
        Backend::Preload => "preload",
    };
    let ran = home.run([
        "demo",
        scenario,
        "--json",
        "--capture",
        capture,
        "--truth",
        truth.to_str().unwrap(),
    ]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let demo = Demo {
        answer: ran.json(),
        truth: serde_json::from_slice(&std::fs::read(truth).unwrap()).unwrap(),
    };
    check_shape(&demo.answer);
    demo
}

/// What holds of every answer, whatever was found.
#[track_caller]
fn check_shape(answer: &Value) {
    assert_eq!(answer["schema"], "warptrace.explain/v1");
    for finding in answer["findings"].as_array().unwrap() {
        let blame = finding["blame"].as_array().unwrap();
        if finding["kind"] != "rule" {
            let sum: u64 = blame.iter().map(|b| b["ns"].as_u64().unwrap()).sum();
            assert_eq!(
                Some(sum),
                finding["excess_ns"].as_u64(),
                "blame adds up: {finding:#}"
            );
            assert_eq!(blame.last().unwrap()["cause"], "unexplained");
        }
        assert!(finding["start_unix_ns"].is_string() && finding["id"].is_string());
    }
    for profile in answer["profile"].as_array().unwrap() {
        let sum: u64 = profile["parts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["ns"].as_u64().unwrap())
            .sum();
        assert_eq!(
            Some(sum),
            profile["mean_ns"].as_u64(),
            "a profile adds up: {profile:#}"
        );
    }
}

#[track_caller]
fn check_first(scenario: &str, backend: Backend, kind: &str, cause: &str) -> Option<Demo> {
    let _alone = alone();
    if matches!(backend, Backend::Ebpf) && !can_trace(&format!("demo_{scenario}_ebpf")) {
        return None;
    }
    let demo = demo_at(&Home::new(), scenario, backend);
    if let Some(why) = busy(&demo) {
        skip(&format!("demo_{scenario}"), &why);
        return None;
    }
    let first = &demo.answer["findings"][0];
    assert_eq!(
        (first["kind"].as_str(), first["cause"].as_str()),
        (Some(kind), Some(cause)),
        "{:#}",
        demo.answer
    );
    if matches!(backend, Backend::Preload) {
        let gaps = demo.answer["gaps"].as_array().unwrap();
        assert!(
            gaps.iter().any(|g| g["code"] == "no_scheduler_records"),
            "says what it cannot know: {gaps:#?}"
        );
    }
    Some(demo)
}

#[test]
fn the_first_finding_of_incident_by_ebpf_is_the_hog_and_its_wait_is_schedstats() {
    let Some(demo) = check_first("incident", Backend::Ebpf, "incident", "run_queue_wait") else {
        return;
    };
    let first = &demo.answer["findings"][0];
    let hog = demo.truth["injected"][0]["pid"].as_u64().unwrap();
    assert!(
        first["summary"].as_str().unwrap().contains("wt-hog"),
        "{first:#}"
    );
    assert!(
        first["evidence"]
            .as_array()
            .unwrap()
            .iter()
            .any(|e| e["pid"] == hog),
        "{first:#}"
    );
    assert_accounts_for_run_delay(&demo);
}

#[test]
fn the_first_finding_of_incident_by_preload_is_run_queue_wait_and_nobody_is_named() {
    let Some(demo) = check_first("incident", Backend::Preload, "incident", "run_queue_wait") else {
        return;
    };
    let first = demo.answer["findings"][0].to_string();
    assert!(!first.contains("wt-hog"), "it cannot know: {first}");
    assert_accounts_for_run_delay(&demo);
}

/// What the finding says was lost, and what is usual in as many units, is what the kernel's own books say of the lead
/// thread between the first and the last slow unit: within 20 %, and not counting what units between them waited that
/// were not slow, since it was hidden behind GPU work: at most their share.
#[track_caller]
fn assert_accounts_for_run_delay(demo: &Demo) {
    let first = &demo.answer["findings"][0];
    let text = |v: &Value| v.as_str().unwrap().parse::<u64>().unwrap();
    let (start, end) = (text(&first["start_unix_ns"]), text(&first["end_unix_ns"]));
    let anchor = warptrace_capture::clock::anchor();
    let boot = |unix| anchor.boot(warptrace_model::UnixNanos(unix)).0;
    let truth = truth(demo);
    let delayed = truth.run_delay_between(boot(start), boot(end));
    let lost: u64 = first["blame"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|b| b["cause"] == "run_queue_wait")
        .map(|b| b["lost_ns"].as_u64().unwrap())
        .sum();
    let units = |name: &str| first["units"][name].as_u64().unwrap();
    let (slow, all) = (units("slow"), units("last") - units("first") + 1);
    let said = (lost + usual_run_queue_wait(demo) * slow) as f64;
    let possible = delayed as f64 * slow as f64 / all as f64..=delayed as f64;
    assert!(
        (0.8 * possible.start()..1.2 * possible.end()).contains(&said),
        "{said} ns said, {possible:?} ns in schedstat: {first:#}"
    );
}

/// The kernel's own books of the workload's main thread.
fn truth(demo: &Demo) -> Truth {
    let readings = serde_json::from_value::<Vec<Reading>>(demo.truth["run_delay"].clone()).unwrap();
    let run_delay = readings
        .iter()
        .map(|r| warptrace_lab::RunDelay {
            boot_ns: r.boot_ns,
            run_delay_ns: r.run_delay_ns,
        })
        .collect();
    Truth {
        run_delay,
        ..Truth::default()
    }
}

/// Why the machine was no place for this demo: before anything was injected (or all the time, when no hog is), the
/// workload already waited for a CPU for a tenth of the time, by the kernel's own books. What is found then is true, and
/// not what was injected.
fn busy(demo: &Demo) -> Option<String> {
    let truth = truth(demo);
    let (first, last) = (
        truth.run_delay.first()?.boot_ns,
        truth.run_delay.last()?.boot_ns,
    );
    let hog = demo.truth["injected"]
        .as_array()?
        .iter()
        .find(|i| i["name"] == warptrace_lab::HOG_NAME);
    let end = hog
        .and_then(|i| i["start_boot_ns"].as_u64())
        .unwrap_or(last);
    let share =
        truth.run_delay_between(first, end) as f64 / end.saturating_sub(first).max(1) as f64;
    (share > 0.1).then(|| {
        format!(
            "the machine was busy: {:.0} % of the time without a CPU before the fault",
            share * 100.0
        )
    })
}

#[derive(serde::Deserialize)]
struct Reading {
    boot_ns: u64,
    run_delay_ns: u64,
}

/// Mean run-queue wait of the usual unit of the finding's key.
fn usual_run_queue_wait(demo: &Demo) -> u64 {
    let key = &demo.answer["findings"][0]["key"];
    demo.answer["profile"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|p| p["key"] == *key)
        .flat_map(|p| p["parts"].as_array().unwrap().clone())
        .filter(|p| p["category"] == "run_queue_wait")
        .map(|p| p["ns"].as_u64().unwrap())
        .sum()
}

#[test]
fn a_copied_binary_alone_does_the_same() {
    let _alone = alone();
    let demo = demo_at(&Home::with_copied_binary(), "incident", Backend::Preload);
    if let Some(why) = busy(&demo) {
        return skip("demo_copied_binary", &why);
    }
    assert_eq!(demo.answer["findings"][0]["cause"], "run_queue_wait");
}

macro_rules! scenarios {
    ($($name:ident: $scenario:literal $backend:ident $kind:literal $cause:literal;)*) => {
        $(#[test]
        fn $name() {
            check_first($scenario, Backend::$backend, $kind, $cause);
        })*
    };
}

scenarios! {
    cold_start_is_found_by_ebpf: "cold-start" Ebpf "incident" "cold_start";
    cold_start_is_found_by_preload: "cold-start" Preload "incident" "cold_start";
    heavy_copies_are_a_steady_finding_by_ebpf: "memcpy-bottleneck" Ebpf "steady" "copy";
    heavy_copies_are_a_steady_finding_by_preload: "memcpy-bottleneck" Preload "steady" "copy";
    allocator_storms_are_found_by_ebpf: "periodic-spike" Ebpf "incident" "allocator";
    allocator_storms_are_found_by_preload: "periodic-spike" Preload "incident" "allocator";
    short_bursts_on_the_core_are_found_by_ebpf: "cpu-contention" Ebpf "incident" "run_queue_wait";
    short_bursts_on_the_core_are_found_by_preload: "cpu-contention" Preload "incident" "run_queue_wait";
    another_process_on_the_gpu_is_found_by_ebpf: "gpu-steal" Ebpf "incident" "gpu_contention";
    another_process_on_the_gpu_is_found_by_preload: "gpu-steal" Preload "incident" "gpu_contention";
}

#[test]
fn a_healthy_run_has_no_finding_above_low() {
    let _alone = alone();
    for backend in [Backend::Ebpf, Backend::Preload] {
        if matches!(backend, Backend::Ebpf) && !can_trace("demo_healthy_ebpf") {
            continue;
        }
        let demo = demo_at(&Home::new(), "healthy", backend);
        if let Some(why) = busy(&demo) {
            skip("demo_healthy", &why);
            continue;
        }
        for finding in demo.answer["findings"].as_array().unwrap() {
            assert_eq!(finding["severity"], "LOW", "{finding:#}");
        }
    }
}

#[test]
fn idle_time_between_requests_is_no_finding() {
    let _alone = alone();
    if !can_trace("serve_idle") {
        return;
    }
    let home = Home::new();
    let libraries = home.simgpu();
    let (cudart, socket) = (
        libraries.join("libcudart.so.12"),
        home.dir.path().join("requests"),
    );
    let binary = env!("CARGO_BIN_EXE_warptrace");
    let serve =
        serde_json::json!({"serve": {"millis": 10_000, "cudart": cudart, "socket": socket}});
    let load = serde_json::json!({"load": {"millis": 10_000, "socket": socket}});
    let mut server = home.command([
        "trace",
        "--json",
        "--",
        binary,
        "simgpu-workload",
        &serve.to_string(),
    ]);
    server
        .env("LD_LIBRARY_PATH", &libraries)
        .env("SIMGPU_SHM", home.dir.path().join("device"));
    let server = server
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let began = std::time::Instant::now();
    while !socket.exists() && began.elapsed().as_secs() < 30 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let client = home.run(["simgpu-workload", &load.to_string()]);
    assert_eq!(client.code, Some(0), "{client:#?}");
    let ran = support::Ran::from(server.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    let answer = ran.json();
    check_shape(&answer);
    for finding in answer["findings"].as_array().unwrap() {
        let cause = finding["cause"].as_str().unwrap();
        assert!(
            !["network_wait", "sleep", "lock_wait"].contains(&cause),
            "waiting for work is no stall: {finding:#}"
        );
    }
    assert!(
        answer["profile"].as_array().is_some_and(|p| !p.is_empty()),
        "{answer:#}"
    );
}
