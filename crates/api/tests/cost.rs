//! What the findings of a stored session cost, by the price list that is asked with.

use std::path::Path;
use std::sync::Arc;

use warptrace_api::{Cost, ExplainQuestion, explain};
use warptrace_model::cost::{Prices, Rates};
use warptrace_model::{
    Blame, BootNanos, Cause, ClockAnchor, Device, Event, Finding, FindingId, FindingKind,
    GpuSample, Incarnation, Object, Pid, Severity, StreamScope, Tid, UnitKey, UnitKind, UnitSpan,
    UnixNanos, Value, Window,
};
use warptrace_store::fs::{Fs, MemFs};
use warptrace_store::{DataDir, Session, SessionMeta, SessionWriter};

const H100: &str = "NVIDIA H100 PCIe";
const SECOND: u64 = 1_000_000_000;

/// A process that lost a tenth of ten seconds, on a machine of `provider` with devices of these names; on those with `true` it is seen.
fn session(provider: &str, devices: &[(&str, bool)], device: Option<u16>) -> Session {
    let fs: Arc<dyn Fs> = Arc::new(MemFs::new());
    let mut meta = SessionMeta::new(ClockAnchor {
        boot: BootNanos(0),
        unix: UnixNanos(SECOND),
    });
    meta.id = "s".to_owned();
    meta.identity.provider = provider.to_owned();
    let mut writer = SessionWriter::create(fs.clone(), &DataDir::at("/data"), meta).unwrap();
    let samples = devices.iter().enumerate().map(|(i, (name, is_used))| {
        Event::Gpu(Box::new(GpuSample {
            device: i as u16,
            name: (*name).to_owned(),
            processes: is_used
                .then_some((Pid(7), None, None))
                .into_iter()
                .collect(),
            ..GpuSample::default()
        }))
    });
    writer.events(&samples.collect::<Vec<_>>());
    writer.findings(&[Finding {
        id: FindingId(1),
        kind: FindingKind::Incident,
        severity: Severity::High,
        cause: Cause::DiskWait,
        second: None,
        key: UnitKey {
            process: Incarnation {
                pid: Pid(7),
                start_ticks: 1,
            },
            device: device.map(Device),
            stream: StreamScope::Many,
            kind: UnitKind::WaitInterval,
            class: 1,
        },
        op: None,
        tid: Tid(7),
        comm: "python".to_owned(),
        place: None,
        window: Window::at(BootNanos(0), 10 * SECOND),
        units: UnitSpan {
            first: 0,
            last: 9,
            slow: 9,
            worst: 3,
        },
        shifted: false,
        baseline_ns: 1,
        baseline_units: 50,
        excess_ns: SECOND,
        blame: vec![Blame {
            cause: Cause::Unexplained,
            ns: SECOND,
            lost_ns: SECOND,
            detail: String::new(),
        }],
        evidence: Vec::new(),
    }]);
    writer.seal().unwrap();
    Session::open(fs, Path::new("/data/sessions/s")).unwrap()
}

fn cost(session: &Session, prices: Prices) -> Option<Cost> {
    let question = ExplainQuestion {
        prices,
        ..ExplainQuestion::default()
    };
    explain(session, &question).unwrap().findings.remove(0).cost
}

fn of_file(price: f64, provider: Option<&str>) -> Prices {
    let gpus = Object::from_pairs(vec![(H100.into(), Value::Float(price))]);
    let ours = Object::from_pairs(vec![("ours".into(), gpus.into())]);
    let file = Object::from_pairs(vec![
        ("source".into(), "our contract".into()),
        ("default_provider".into(), "ours".into()),
        ("providers".into(), ours.into()),
    ]);
    Prices {
        rates: Rates::built_in().with_file(&file.into()).unwrap(),
        provider: provider.map(str::to_owned),
    }
}

#[test]
fn a_session_is_priced_by_its_machine_or_by_who_is_named_or_by_the_file() {
    let lambda = session("lambda", &[(H100, true)], Some(0));
    let listed = cost(&lambda, Prices::default()).unwrap();
    // A tenth of $2.86 an hour, for ten seconds.
    assert_eq!(
        (listed.total_micros, listed.per_hour_micros),
        (794, Some(286_000))
    );
    assert_eq!(
        listed.words(),
        "$0.0008, $0.29 an hour while it goes on (NVIDIA H100 PCIe, lambda list price 2026-05)"
    );
    // The machine's provider is there, and the file has another's prices: the list's stay.
    assert_eq!(cost(&lambda, of_file(1.0, None)), Some(listed));
    let named = cost(&lambda, of_file(1.0, Some("ours"))).unwrap();
    assert_eq!(
        named.words(),
        "$0.0003, $0.10 an hour while it goes on (NVIDIA H100 PCIe, ours price of \"our contract\")"
    );
    let nobodys = session("", &[(H100, true)], Some(0));
    assert_eq!(cost(&nobodys, of_file(1.0, None)), Some(named));
}

#[test]
fn where_there_is_no_price_there_is_no_cost() {
    for (provider, devices) in [
        ("", &[(H100, true)][..]),
        ("nobody", &[(H100, true)]),
        ("lambda", &[("simgpu", true)]),
        ("lambda", &[("", true)]),
        ("lambda", &[]),
        // Which of them it was is not known.
        ("lambda", &[(H100, false), ("NVIDIA A10", false)]),
    ] {
        let session = session(provider, devices, Some(0));
        assert_eq!(
            cost(&session, Prices::default()),
            None,
            "{provider} {devices:?}"
        );
    }
}

#[test]
fn a_unit_of_one_device_is_one_gpu_s_time_and_of_several_all_that_its_process_is_on() {
    let devices = [
        (H100, true),
        (H100, true),
        (H100, false),
        ("NVIDIA A10", false),
    ];
    for (device, gpus) in [(Some(1), 1), (None, 2)] {
        let cost = cost(&session("lambda", &devices, device), Prices::default()).unwrap();
        assert_eq!(cost.gpus, gpus);
        assert_eq!(cost.per_hour_micros, Some(286_000 * u64::from(gpus)));
    }
}
