//! The jobs on simgpu: each fault is in the summary when it was asked for, costs what it should, and goes through its own mechanism.

#[path = "../../fixtures/testing.rs"]
mod testing;

use std::{path::PathBuf, time::Duration};

use simgpu_workload::{
    AllocatorStorm, DiskReads, Every, Faults, HogOptions, HostPause, LockContention, PageFaults,
    ServeOptions, Sleep, SlowLoader, Summary, TrainOptions, WorkloadError, hog_gpu, serve, train,
};
use testing::{Device, libraries};

/// Set in the process of its own that a test's job runs in: the libraries read their environment once per process.
const INNER: &str = "JOBS_TEST_INNER";

/// Starts the same test again in a process with a device of its own. True in that process.
fn in_own_process(test: &str) -> bool {
    if std::env::var_os(INNER).is_some() {
        return true;
    }
    let device = Device::new();
    let mut command = device.command(std::env::current_exe().unwrap());
    let output = command
        .args(["--exact", test, "--nocapture"])
        .env(INNER, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{text}{errors}");
    false
}

fn runtime() -> PathBuf {
    libraries().join("libcudart.so.12")
}

/// Small steps: 1 MiB, 2.4 ms of kernels.
fn options(steps: u64, faults: Faults) -> TrainOptions {
    TrainOptions {
        runtime: runtime(),
        steps: Some(steps),
        duration: None,
        batch_bytes: 1 << 20,
        layers: 5,
        blocks: 100,
        host_work: Duration::from_micros(200),
        faults,
        ..TrainOptions::default()
    }
}

fn injected(summary: &Summary, kind: &str) -> Vec<u64> {
    let of_kind = summary.injected.iter().filter(|i| i.kind == kind);
    of_kind.map(|i| i.step).collect()
}

const THIRD: Every = Every { every: 3, from: 1 };

#[test]
fn a_healthy_job_makes_its_steps_and_injects_nothing() {
    if !in_own_process("a_healthy_job_makes_its_steps_and_injects_nothing") {
        return;
    }
    let summary = train(&options(10, Faults::default())).unwrap();
    assert_eq!(summary.steps.len(), 10);
    assert_eq!(summary.injected, []);
    for (index, step) in summary.steps.iter().enumerate() {
        // 24 kernels of 102 µs; nothing makes them faster.
        assert!(step.duration_ns >= 2_400_000, "{step:?}");
        if let Some(next) = summary.steps.get(index + 1) {
            assert!(next.start_ns >= step.start_ns + step.duration_ns);
        }
    }
    let mut json = Vec::new();
    summary.write_json(&mut json).unwrap();
    let json = String::from_utf8(json).unwrap();
    assert!(json.starts_with(&format!(
        r#"{{"pid":{},"steps":[{{"start_ns":"#,
        summary.pid
    )));
    assert!(json.ends_with("],\"injected\":[]}\n"), "{json}");
}

#[test]
fn each_fault_hits_its_steps_and_takes_its_time() {
    if !in_own_process("each_fault_hits_its_steps_and_takes_its_time") {
        return;
    }
    let time = Duration::from_millis(5);
    let faults = Faults {
        allocator_storm: Some(AllocatorStorm {
            when: THIRD,
            blocks: 20,
            block_bytes: 512 << 20,
        }),
        lock_contention: Some(LockContention {
            when: THIRD,
            hold: time,
            holder_computes: false,
        }),
        host_pause: Some(HostPause {
            when: THIRD,
            cpu: time,
        }),
        page_faults: Some(PageFaults {
            when: THIRD,
            bytes: 1 << 20,
        }),
        sleep: Some(Sleep { when: THIRD, time }),
        ..Faults::default()
    };
    let summary = train(&options(8, faults)).unwrap();
    for (kind, least_ms) in [
        // 20 × (2 × (10 µs + 256 pages × 0.5 µs)).
        ("allocator_storm", 5),
        ("lock_contention", 4),
        ("host_pause", 5),
        ("page_faults", 0),
        ("sleep", 5),
    ] {
        assert_eq!(injected(&summary, kind), [1, 4, 7], "{kind}");
        for fault in summary.injected.iter().filter(|i| i.kind == kind) {
            let took = fault.end_ns - fault.start_ns;
            assert!(took >= least_ms * 1_000_000, "{fault:?}");
            let step = summary.steps[fault.step as usize];
            assert!(fault.start_ns >= step.start_ns);
            assert!(fault.end_ns <= step.start_ns + step.duration_ns);
        }
    }
}

#[test]
fn copies_from_pageable_memory_take_their_bytes_time() {
    if !in_own_process("copies_from_pageable_memory_take_their_bytes_time") {
        return;
    }
    let faults = Faults {
        pageable_copies: true,
        extra_copies: 3,
        ..Faults::default()
    };
    let summary = train(&options(5, faults)).unwrap();
    // 4 copies of 1 MiB at 4 GB/s and 8 µs each, besides the kernels.
    let least = 2_400_000 + 4 * (262_144 + 8_000);
    assert!(summary.steps.iter().all(|s| s.duration_ns >= least));
}

#[test]
fn a_slow_loader_reads_more_and_says_which_batches() {
    if !in_own_process("a_slow_loader_reads_more_and_says_which_batches") {
        return;
    }
    let faults = Faults {
        slow_loader: Some(SlowLoader {
            when: Every { every: 4, from: 2 },
            times: 20,
        }),
        ..Faults::default()
    };
    let mut options = options(8, faults);
    options.reads = DiskReads::DropCache;
    let summary = train(&options).unwrap();
    let batches = injected(&summary, "slow_loader");
    assert_eq!(batches[..2], [2, 6], "it may be ahead of the last step");
}

#[test]
fn data_files_are_removed_with_the_folder_that_was_made_for_them() {
    if !in_own_process("data_files_are_removed_with_the_folder_that_was_made_for_them") {
        return;
    }
    let folder = std::env::temp_dir().join(format!("simgpu-data-{}", std::process::id()));
    let mut options = options(2, Faults::default());
    options.data_dir = Some(folder.clone());
    train(&options).unwrap();
    assert!(!folder.exists());
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("mine"), "kept").unwrap();
    train(&options).unwrap();
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
    assert_eq!(left.len(), 1);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_server_answers_every_request_with_its_tokens_in_steps() {
    if !in_own_process("a_server_answers_every_request_with_its_tokens_in_steps") {
        return;
    }
    let mut options = ServeOptions {
        runtime: runtime(),
        prefill_blocks_per_token: 2,
        decode_blocks: 500,
        decode_blocks_per_request: 50,
        host_work: Duration::ZERO,
        ..ServeOptions::default()
    };
    options.load.requests_per_sec = 20.0;
    options.load.duration = Duration::from_secs(1);
    let first = serve(&options).unwrap();
    let second = serve(&options).unwrap();
    assert!(first.requests.len() >= 5, "{}", first.requests.len());
    assert_eq!(first.prefills.len(), first.requests.len());
    let most = first.requests.iter().map(|r| r.output_tokens - 1).max();
    assert!(first.decodes.len() as u32 >= most.unwrap());
    for request in &first.requests {
        assert!(request.arrived_ns < request.first_token_ns);
        assert!(request.first_token_ns < request.done_ns);
    }
    let asked = |summary: &simgpu_workload::ServeSummary| {
        let mut all: Vec<_> = summary
            .requests
            .iter()
            .map(|r| (r.id, r.prompt_tokens, r.output_tokens))
            .collect();
        all.sort_unstable();
        all
    };
    assert_eq!(asked(&first), asked(&second), "the same seed");
}

#[test]
fn a_hog_works_in_bursts_and_is_quiet_between() {
    if !in_own_process("a_hog_works_in_bursts_and_is_quiet_between") {
        return;
    }
    let ms = Duration::from_millis;
    let summary = hog_gpu(&HogOptions {
        runtime: runtime(),
        duration: ms(300),
        delay: ms(20),
        busy: ms(50),
        pause: ms(50),
        blocks: 1000,
        ..HogOptions::default()
    })
    .unwrap();
    assert!(summary.kernels >= 2 && !summary.bursts.is_empty());
    for pair in summary.bursts.windows(2) {
        let quiet = pair[1].0 - pair[0].1;
        assert!(quiet >= 50_000_000, "{quiet}");
    }
}

#[test]
fn a_library_that_is_not_there_is_named() {
    let mut options = options(1, Faults::default());
    options.runtime = "/nowhere/libcudart.so.12".into();
    let error = train(&options).unwrap_err();
    assert!(matches!(error, WorkloadError::Open { .. }));
    assert!(error.to_string().contains("/nowhere/libcudart.so.12"));
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let mut endless = options(1, Faults::default());
    endless.steps = None;
    assert!(matches!(train(&endless), Err(WorkloadError::Option(_))));
    let mut odd = options(1, Faults::default());
    odd.batch_bytes = 1000;
    assert!(matches!(train(&odd), Err(WorkloadError::Option(_))));
}

#[test]
fn a_python_program_trains_through_ctypes() {
    if std::process::Command::new("python3")
        .arg("-V")
        .output()
        .is_err()
    {
        eprintln!("skipped: no python3 on this machine");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/train.py");
    let text = Device::new().run(
        "python3".as_ref(),
        &[script, "--steps", "5", "--blocks", "20"],
        &[],
    );
    assert_eq!(text.matches("duration_ns").count(), 5, "{text}");
}
