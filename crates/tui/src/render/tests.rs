//! Screens as text.

use expect_test::{Expect, expect};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::layout::Rect;
use warptrace_api::{Blame, Drop, Finding, Gap, HostContext, Key, Live, LiveOp, Units};
use warptrace_model::SystemSample;

use super::{DROPS, FINDINGS, HEADER, OPS, SECTIONS, heights, page, render, sections};
use crate::{Sort, View};

const MS: u64 = 1_000_000;
const SEC: u64 = 1_000_000_000;

fn op(op: &'static str, count: u64, p50_ns: u64, p99_ns: u64, wall_share: f64) -> LiveOp {
    LiveOp {
        layer: "cuda",
        op,
        pid: 4711,
        device: Some(0),
        count,
        recent: count / 6,
        p50_ns,
        p95_ns: p50_ns.midpoint(p99_ns),
        p99_ns,
        wall_share,
        tail: p99_ns > 3 * p50_ns,
    }
}

fn finding(severity: &'static str, title: &str, cause: &'static str, detail: &str) -> Finding {
    Finding {
        id: "00000000000000f3".to_owned(),
        kind: "incident",
        severity,
        cause,
        title: title.to_owned(),
        key: Key {
            pid: 4711,
            start_ticks: 1,
            device: Some(0),
            kind: "wait_interval",
            class: 17,
        },
        op: None,
        tid: 4711,
        comm: "python".to_owned(),
        place: None,
        start_unix_ns: 0,
        end_unix_ns: 0,
        units: Units {
            first: 412,
            last: 538,
            slow: 126,
            worst: 440,
        },
        shifted: false,
        baseline_ns: 38_200_000,
        excess_ns: 2_700 * MS,
        blame: vec![Blame {
            cause,
            ns: 2_450 * MS,
            lost_ns: 2_500 * MS,
            share: 0.907,
            detail: detail.to_owned(),
        }],
        summary: String::new(),
        recommendation:
            "give the job its own cores (taskset -c LIST python train.py), or move the other away: \
                         taskset -apc LIST 4890, renice -n 19 -p 4890"
                .to_owned(),
        evidence: Vec::new(),
        cost: None,
    }
}

/// Nothing has happened yet.
fn nothing() -> Live {
    Live {
        session: "20261121-104500-f3a1".to_owned(),
        target: "all CUDA processes".to_owned(),
        sources: vec!["ebpf"],
        window_ns: 10 * SEC,
        ..Live::default()
    }
}

/// A training job that a hog holds up.
fn busy() -> Live {
    Live {
        session: "20261121-104500-f3a1".to_owned(),
        target: "python train.py (pid 4711)".to_owned(),
        sources: vec!["ebpf"],
        elapsed_ns: 62 * SEC,
        records: 1_234_567,
        calls: 987_654,
        window_ns: 10 * SEC,
        ops: vec![
            op("cudaStreamSync", 1_184, 31 * MS, 59_600_000, 0.81),
            op("cudaMemcpyAsync", 2_368, 3_100_000, 3_400_000, 0.081),
            op("cudaLaunchKernel", 47_360, 2_100, 9_400, 0.012),
            LiveOp {
                layer: "driver",
                device: None,
                recent: 0,
                ..op("cuModuleLoadData", 1, 12_400_000, 12_400_000, 0.0)
            },
        ],
        host: HostContext {
            run_queue_ns: 2_450 * MS,
            quota_ns: 0,
            blocked_ns: 3_100 * MS,
            disk_ns: 160 * MS,
            reclaim_ns: 0,
            switches: 48_211,
            block_io: 41,
            retransmits: 0,
            occupants: vec![
                ("stress-ng".to_owned(), 4890, 2_300 * MS),
                ("kworker/1:2".to_owned(), 97, 12 * MS),
            ],
        },
        system: Some(SystemSample {
            cpu: Some(0.634),
            steal: Some(0.003),
            memory_total: 64 << 30,
            memory_available: 44 << 30,
            load1: 3.25,
            major_faults: Some(3.0),
            pressure_cpu: Some(0.31),
            pressure_io: Some(0.02),
            pressure_memory: Some(0.0),
            ..SystemSample::default()
        }),
        findings: vec![
            finding(
                "HIGH",
                "Waiting for a CPU: 126 of wait intervals 412-538 took 21.4 ms longer than usual (38.2 ms → 59.6 ms), 2.70 s in all",
                "run_queue_wait",
                "stress-ng (pid 4890) held cpu 1",
            ),
            Finding {
                recommendation: String::new(),
                ..finding("LOW", "Copies take 8 % of a usual step", "copy", "")
            },
        ],
        ..Live::default()
    }
}

/// The same, with losses and things unknown.
fn lossy() -> Live {
    Live {
        drops: vec![
            Drop {
                source: "ebpf".to_owned(),
                reason: "ring_full".to_owned(),
                count: 1_200,
            },
            Drop {
                source: "store".to_owned(),
                reason: "store_failed".to_owned(),
                count: 34,
            },
        ],
        gaps: vec![
            Gap {
                code: "attached_late",
                detail: "pid 4711 ran for 12.0 s before it was watched".to_owned(),
                count: 1,
            },
            Gap {
                code: "no_nvml",
                detail: String::new(),
                count: 3,
            },
        ],
        ..busy()
    }
}

fn plain() -> View {
    View::new(false)
}

/// The screen's rows, without the blanks at their ends.
fn screen(live: &Live, view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| render(live, view, frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = (0..height).map(|y| {
        let row: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        row.trim_end().to_owned() + "\n"
    });
    rows.collect()
}

#[track_caller]
fn check(live: &Live, view: &View, (width, height): (u16, u16), want: Expect) {
    want.assert_eq(&screen(live, view, width, height));
}

#[test]
fn an_ordinary_terminal_shows_everything() {
    check(
        &busy(),
        &plain(),
        (80, 24),
        expect![[r#"
            warptrace  python train.py (pid 4711)                             recording 1:02
            by ebpf  987,654 calls  1,234,567 records  session 20261121-104500-f3a1
            CPU ██████░░░░ 63.4%  Mem ███░░░░░░░ 31.2%, 44.0 GiB free  Load 3.25  Swap 0 B
            Steal 0.3%  Pressure cpu 31.0%  Pressure io 2.0%  Pressure memory 0.0%
            Major faults 3/s

            OPERATION, last 10.0s       PID DEV    COUNT     P50     P95     P99 ▾WALL% FLAG
            cudaStreamSync             4711   0     1184  31.0ms  45.3ms  59.6ms  81.0%
            cudaMemcpyAsync            4711   0     2368   3.1ms   3.3ms   3.4ms   8.1%
            cudaLaunchKernel           4711   0    47360   2.1µs   5.8µs   9.4µs   1.2% tail
            cuModuleLoadData           4711   -        1  12.4ms  12.4ms  12.4ms   0.0%
            HOST, last 10.0s  CPU wait 2.5s  quota 0  disk 160.0ms  reclaim 0  blocked 3.1s
            switches 48,211  block I/O 41  TCP retransmits 0
            CPU held by stress-ng (pid 4890) 2.3s  kworker/1:2 (pid 97) 12.0ms
            nothing dropped
            2 FINDINGS
            HIGH  Waiting for a CPU: 126 of wait intervals 412-538 took 21.4 ms longer than
                  usual (38.2 ms → 59.6 ms), 2.70 s in all
                  2.5s 90.7% waiting for a CPU stress-ng (pid 4890) held cpu 1
                  do  give the job its own cores (taskset -c LIST python train.py), or move
                      the other away: taskset -apc LIST 4890, renice -n 19 -p 4890
            LOW  Copies take 8 % of a usual step
                  2.5s 90.7% copies
            q stop  p pause  s sort: wall  ? help
        "#]],
    );
}

#[test]
fn losses_and_gaps_are_named_and_counted() {
    check(
        &lossy(),
        &plain(),
        (80, 24),
        expect![[r#"
            warptrace  python train.py (pid 4711)                             recording 1:02
            by ebpf  987,654 calls  1,234,567 records  session 20261121-104500-f3a1
            CPU ██████░░░░ 63.4%  Mem ███░░░░░░░ 31.2%, 44.0 GiB free  Load 3.25  Swap 0 B
            Steal 0.3%  Pressure cpu 31.0%  Pressure io 2.0%  Pressure memory 0.0%
            Major faults 3/s
            OPERATION, last 10.0s       PID DEV    COUNT     P50     P95     P99 ▾WALL% FLAG
            cudaStreamSync             4711   0     1184  31.0ms  45.3ms  59.6ms  81.0%
            cudaMemcpyAsync            4711   0     2368   3.1ms   3.3ms   3.4ms   8.1%
            cudaLaunchKernel           4711   0    47360   2.1µs   5.8µs   9.4µs   1.2% tail
            cuModuleLoadData           4711   -        1  12.4ms  12.4ms  12.4ms   0.0%
            HOST, last 10.0s  CPU wait 2.5s  quota 0  disk 160.0ms  reclaim 0  blocked 3.1s
            switches 48,211  block I/O 41  TCP retransmits 0
            CPU held by stress-ng (pid 4890) 2.3s  kworker/1:2 (pid 97) 12.0ms
            DROPPED 1,234  ebpf ring_full 1,200  store store_failed 34
            gap pid 4711 ran for 12.0 s before it was watched
            gap no nvml (3 times)
            2 FINDINGS
            HIGH  Waiting for a CPU: 126 of wait intervals 412-538 took 21.4 ms longer than
                  usual (38.2 ms → 59.6 ms), 2.70 s in all
                  2.5s 90.7% waiting for a CPU stress-ng (pid 4890) held cpu 1
            LOW  Copies take 8 % of a usual step
                  2.5s 90.7% copies

            q stop  p pause  s sort: wall  ? help
        "#]],
    );
}

#[test]
fn a_wide_terminal_shows_all_columns() {
    check(
        &busy(),
        &plain(),
        (140, 20),
        expect![[r#"
            warptrace  python train.py (pid 4711)                                                                                         recording 1:02
            by ebpf  987,654 calls  1,234,567 records  session 20261121-104500-f3a1
            CPU █████████████░░░░░░░ 63.4%  Mem ██████░░░░░░░░░░░░░░ 31.2%, 44.0 GiB free  Load 3.25  Swap 0 B  Steal 0.3%  Pressure cpu 31.0%
            Pressure io 2.0%  Pressure memory 0.0%  Major faults 3/s

            OPERATION, last 10.0s                  LAYER          PID DEV    COUNT     P50     P95     P99 ▾WALL% FLAG
            cudaStreamSync                         cuda          4711   0     1184  31.0ms  45.3ms  59.6ms  81.0%
            cudaMemcpyAsync                        cuda          4711   0     2368   3.1ms   3.3ms   3.4ms   8.1%
            cudaLaunchKernel                       cuda          4711   0    47360   2.1µs   5.8µs   9.4µs   1.2% tail
            cuModuleLoadData                       driver        4711   -        1  12.4ms  12.4ms  12.4ms   0.0%
            HOST, last 10.0s  CPU wait 2.5s  quota 0  disk 160.0ms  reclaim 0  blocked 3.1s  switches 48,211  block I/O 41  TCP retransmits 0
            CPU held by stress-ng (pid 4890) 2.3s  kworker/1:2 (pid 97) 12.0ms
            nothing dropped
            2 FINDINGS
            HIGH  Waiting for a CPU: 126 of wait intervals 412-538 took 21.4 ms longer than usual (38.2 ms → 59.6 ms), 2.70 s in all
                  2.5s 90.7% waiting for a CPU stress-ng (pid 4890) held cpu 1
                  do  give the job its own cores (taskset -c LIST python train.py), or move the other away: taskset -apc LIST 4890, renice -n 19 -p 4890
            LOW  Copies take 8 % of a usual step
                  2.5s 90.7% copies
            q stop  p pause  s sort: wall  ? help
        "#]],
    );
}

#[test]
fn a_tiny_terminal_keeps_the_target_the_losses_and_the_worst_finding() {
    check(
        &lossy(),
        &plain(),
        (40, 10),
        expect![[r#"
            warptrace  python train…  recording 1:02
            CPU ███░ 63.4%
            OPERATION          COUNT     P50     P99
            cudaStreamSync      1184  31.0ms  59.6ms
            cudaMemcpyAsync     2368   3.1ms   3.4ms
            HOST, last 10.0s  CPU wait 2.5s  quota 0
            DROPPED 1,234  ebpf ring_full 1,200
            2 FINDINGS
            HIGH  Waiting for a CPU: 126 of wait
            ↑↓ 1-2 of 4  q stop  p pause  s sort: wa
        "#]],
    );
}

#[test]
fn before_the_first_call_it_says_that_there_is_nothing_yet() {
    check(
        &nothing(),
        &plain(),
        (80, 10),
        expect![[r#"
            warptrace  all CUDA processes                                     recording 0:00
            by ebpf  0 calls  0 records  session 20261121-104500-f3a1
            machine: no sample yet
            OPERATION, last 10.0s       PID DEV    COUNT     P50     P95     P99 ▾WALL% FLAG
            no calls yet
            HOST, last 10.0s  CPU wait 0  quota 0  disk 0  reclaim 0  blocked 0  switches 0
            block I/O 0  TCP retransmits 0
            nothing dropped
            no findings yet
            q stop  p pause  s sort: wall  ? help
        "#]],
    );
}

#[test]
fn a_held_picture_says_so_and_that_recording_goes_on() {
    let mut view = plain();
    view.paused = true;
    check(
        &busy(),
        &view,
        (60, 5),
        expect![[r#"
            warptrace  python train.py (p…  paused, still recording 1:02
            OPERATION           PID    COUNT     P50     P99 ▾WALL% FLAG
            cudaStreamSync     4711     1184  31.0ms  59.6ms  81.0%
            cudaMemcpyAsync    4711     2368   3.1ms   3.4ms   8.1%
            nothing dropped
        "#]],
    );
}

#[test]
fn help_fits_an_ordinary_terminal() {
    let mut view = plain();
    view.help = true;
    check(
        &busy(),
        &view,
        (80, 24),
        expect![[r#"
        warptrace trace

        q, Ctrl-C     stop, and explain what was recorded
        p, space      hold the picture still; recording goes on
        s             order the table by the next column
        ↑ ↓ PgUp PgDn Home End   scroll the table
        ?             this page, and back

        COUNT         calls since the start, exactly, lost records or not
        P50 P95 P99   of the window that the table's head names
        WALL%         of the window; above 100 % with several threads
        tail          p99 is more than 3 times the median
        CPU wait      ready to run while another thread had the CPU
        gap           something that could not be known, and why










    "#]],
    );
}

#[test]
fn no_size_panics_and_small_ones_still_show_who_is_watched() {
    let mut view = View::new(true);
    for live in [&nothing(), &busy(), &lossy()] {
        for (width, height) in [
            (0, 0),
            (1, 1),
            (2, 40),
            (40, 1),
            (40, 10),
            (80, 3),
            (300, 100),
        ] {
            view.help = !view.help;
            screen(live, &view, width, height);
        }
        for width in 0..130 {
            for height in 0..30 {
                screen(live, &plain(), width, height);
            }
        }
    }
    assert!(screen(&busy(), &plain(), 40, 1).contains("python"));
}

#[test]
fn sections_never_take_more_rows_than_there_are_nor_than_they_fill() {
    for width in [40, 80, 140] {
        let sections = sections(&lossy(), &plain(), width);
        for total in 0..60 {
            let heights = heights(total, &sections);
            assert!(heights.iter().sum::<u16>() <= total);
            assert!((0..SECTIONS).all(|i| usize::from(heights[i]) <= sections[i].len()));
            if total >= 7 {
                assert!(
                    heights[HEADER] >= 1 && heights[DROPS] >= 1,
                    "{total}: {heights:?}"
                );
                assert!(
                    heights[OPS] >= 3 && heights[FINDINGS] >= 2,
                    "{total}: {heights:?}"
                );
            }
        }
    }
}

#[test]
fn a_long_table_shows_a_page_from_where_it_is_scrolled_to() {
    const NAMES: [&str; 6] = ["cuA", "cuB", "cuC", "cuD", "cuE", "cuF"];
    let mut live = nothing();
    live.ops = (0..30u32)
        .map(|i| LiveOp {
            pid: i,
            ..op(NAMES[i as usize % 6], 1, 1_000, 1_000, 0.0)
        })
        .collect();
    let mut view = plain();
    view.sort = Sort::Op;
    let area = Rect::new(0, 0, 80, 14);
    let rows = page(&live, &view, area);
    assert!((5..12).contains(&rows), "{rows}");
    view.scroll = 6;
    let shown = screen(&live, &view, 80, 14);
    assert!(shown.contains(&format!("7-{} of 30", 6 + rows)), "{shown}");
    // Five of each name: the seventh row is the second of cuB.
    let first_row = shown.lines().find(|line| line.starts_with("cu")).unwrap();
    assert!(
        first_row.starts_with("cuB") && first_row.contains(" 7 "),
        "{shown}"
    );
    // Scrolled past the end, the last page is shown in full.
    view.scroll = 1_000;
    let shown = screen(&live, &view, 80, 14);
    assert!(
        shown.contains(&format!("{}-30 of 30", 31 - rows)),
        "{shown}"
    );
    assert_eq!(
        shown.lines().filter(|line| line.starts_with("cu")).count(),
        rows
    );
}

#[test]
fn each_order_of_the_table_puts_its_largest_row_first() {
    let live = busy();
    for (sort, first) in [
        (Sort::Wall, "cudaStreamSync"),
        (Sort::Count, "cudaLaunchKernel"),
        (Sort::P50, "cudaStreamSync"),
        (Sort::P95, "cudaStreamSync"),
        (Sort::P99, "cudaStreamSync"),
        (Sort::Op, "cuModuleLoadData"),
    ] {
        assert_eq!(sort.sorted(&live.ops)[0].op, first, "{sort:?}");
    }
}

#[test]
fn without_colour_no_cell_has_one_and_losses_still_stand_out() {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal
        .draw(|frame| render(&lossy(), &plain(), frame))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let reset = ratatui::style::Color::Reset;
    assert!(
        buffer
            .content()
            .iter()
            .all(|c| c.fg == reset && c.bg == reset)
    );
    let reversed: String = buffer
        .content()
        .iter()
        .filter(|c| c.modifier.contains(ratatui::style::Modifier::REVERSED))
        .map(|c| c.symbol())
        .collect();
    assert_eq!(reversed, "DROPPED 1,234HIGH");

    terminal
        .draw(|frame| render(&lossy(), &View::new(true), frame))
        .unwrap();
    assert!(
        terminal
            .backend()
            .buffer()
            .content()
            .iter()
            .any(|c| c.fg != reset)
    );
}

#[test]
fn names_of_processes_cannot_steer_the_terminal() {
    let mut live = lossy();
    live.host.occupants[0].0 = "\u{1b}[31mhog\u{7}".to_owned();
    live.findings[0].title = "a\u{1b}]0;b\u{7}".to_owned();
    live.target = "\u{1b}[2J".to_owned();
    let shown = screen(&live, &plain(), 80, 24);
    assert!(
        !shown.contains('\u{1b}') && !shown.contains('\u{7}'),
        "{shown}"
    );
    assert!(shown.contains("·[31mhog·"), "{shown}");
}
