//! Rows of what was concluded, and of what is missing: units, findings, losses, gaps.

use warptrace_model::inference::{CgroupHash, EventId, Outlier, OutlierBucket, Phase, WorkloadKey};
use warptrace_model::{
    Blame, BootNanos, Category, Cause, Device, Evidence, Finding, FindingId, FindingKind, Gap,
    GapCode, Incarnation, Loss, NamedBy, Parts, Pid, Place, Severity, SpanContext, Stream,
    StreamScope, Tid, Unit, UnitKey, UnitKind, UnitName, UnitSpan, Window,
};
use warptrace_record::OpId;

use super::{
    BlameRow, DropRow, EvidenceRow, FindingRow, GapRow, KvAgeRow, OutlierRow, StoredLoss, UnitRow,
};

fn stream_of(scope: StreamScope) -> Option<u64> {
    match scope {
        StreamScope::One(stream) => Some(stream.0),
        StreamScope::Many => None,
    }
}

fn scope_of(stream: Option<u64>) -> StreamScope {
    stream.map_or(StreamScope::Many, |s| StreamScope::One(Stream(s)))
}

impl From<&Unit> for UnitRow {
    fn from(u: &Unit) -> UnitRow {
        let p = &u.parts;
        UnitRow {
            boot_ns: u.start.0,
            dur_ns: u.dur,
            pid: u.key.process.pid.0,
            start_ticks: u.key.process.start_ticks,
            tid: u.lead.0,
            device: u.key.device.map(|d| d.0),
            stream: stream_of(u.key.stream),
            kind: u.key.kind.name().to_owned(),
            class: u.key.class,
            label: u.name.as_ref().map(|n| n.label.label().to_owned()),
            value: u.name.as_ref().map(|n| n.value.to_string()),
            number: u.number,
            launches: u.launches,
            slow: u.slow,
            incomplete: u.incomplete,
            run_queue_wait_ns: p[Category::RunQueueWait],
            cpu_quota_ns: p[Category::CpuQuota],
            disk_wait_ns: p[Category::DiskWait],
            page_fault_ns: p[Category::PageFault],
            reclaim_ns: p[Category::Reclaim],
            lock_wait_ns: p[Category::LockWait],
            network_wait_ns: p[Category::NetworkWait],
            sleep_ns: p[Category::Sleep],
            allocator_ns: p[Category::Allocator],
            copy_ns: p[Category::Copy],
            launch_ns: p[Category::Launch],
            launch_gap_ns: p[Category::LaunchGap],
            device_wait_ns: p[Category::DeviceWait],
            unexplained_ns: p[Category::Unexplained],
        }
    }
}

impl UnitRow {
    pub(crate) fn unit(self) -> Option<Unit> {
        let mut parts = Parts::default();
        let label = self.label.as_deref().and_then(NamedBy::by_label);
        let name = label.zip(self.value).map(|(label, value)| UnitName {
            label,
            value: value.into(),
        });
        for (category, ns) in [
            (Category::RunQueueWait, self.run_queue_wait_ns),
            (Category::CpuQuota, self.cpu_quota_ns),
            (Category::DiskWait, self.disk_wait_ns),
            (Category::PageFault, self.page_fault_ns),
            (Category::Reclaim, self.reclaim_ns),
            (Category::LockWait, self.lock_wait_ns),
            (Category::NetworkWait, self.network_wait_ns),
            (Category::Sleep, self.sleep_ns),
            (Category::Allocator, self.allocator_ns),
            (Category::Copy, self.copy_ns),
            (Category::Launch, self.launch_ns),
            (Category::LaunchGap, self.launch_gap_ns),
            (Category::DeviceWait, self.device_wait_ns),
            (Category::Unexplained, self.unexplained_ns),
        ] {
            parts[category] = ns;
        }
        Some(Unit {
            key: UnitKey {
                process: Incarnation {
                    pid: Pid(self.pid),
                    start_ticks: self.start_ticks,
                },
                device: self.device.map(Device),
                stream: scope_of(self.stream),
                kind: UnitKind::by_name(&self.kind)?,
                class: self.class,
            },
            name,
            lead: Tid(self.tid),
            number: self.number,
            start: BootNanos(self.boot_ns),
            dur: self.dur_ns,
            parts,
            launches: self.launches,
            slow: self.slow,
            incomplete: self.incomplete,
        })
    }
}

impl From<&Finding> for FindingRow {
    fn from(f: &Finding) -> FindingRow {
        let name = |op: OpId| op.name().to_owned();
        let place = f.place.clone();
        let place = place.unwrap_or(Place {
            file: None,
            line: None,
            function: None,
            op: None,
        });
        FindingRow {
            id: f.id.0,
            kind: f.kind.name().to_owned(),
            severity: f.severity.name().to_owned(),
            cause: f.cause.name().to_owned(),
            second: f.second.map(|c| c.name().to_owned()),
            pid: f.key.process.pid.0,
            start_ticks: f.key.process.start_ticks,
            device: f.key.device.map(|d| d.0),
            stream: stream_of(f.key.stream),
            unit_kind: f.key.kind.name().to_owned(),
            class: f.key.class,
            op: f.op.map(name),
            tid: f.tid.0,
            comm: f.comm.clone(),
            place_file: place.file,
            place_line: place.line,
            place_function: place.function,
            place_op: place.op.map(name),
            boot_ns: f.window.start.0,
            dur_ns: f.window.nanos(),
            first_unit: f.units.first,
            last_unit: f.units.last,
            slow_units: f.units.slow,
            worst_unit: f.units.worst,
            shifted: f.shifted,
            baseline_ns: f.baseline_ns,
            baseline_units: f.baseline_units,
            excess_ns: f.excess_ns,
            blame: f
                .blame
                .iter()
                .map(|b| BlameRow {
                    cause: b.cause.name().to_owned(),
                    ns: b.ns,
                    lost_ns: b.lost_ns,
                    detail: b.detail.clone(),
                })
                .collect(),
            evidence: f
                .evidence
                .iter()
                .map(|e| EvidenceRow {
                    what: e.what.clone(),
                    pid: e.pid,
                    tid: e.tid,
                    comm: e.comm.clone(),
                    path: e.path.clone(),
                    boot_ns: e.start.0,
                    dur_ns: e.dur,
                })
                .collect(),
        }
    }
}

impl FindingRow {
    pub(crate) fn finding(self) -> Option<Finding> {
        // A name is absent, or known; an unknown one is no finding that this version could tell.
        let op = |name: Option<String>| match name {
            None => Some(None),
            Some(name) => OpId::by_name(&name).map(Some),
        };
        let second = match self.second {
            None => None,
            Some(name) => Some(Cause::by_name(&name)?),
        };
        let place = Place {
            file: self.place_file,
            line: self.place_line,
            function: self.place_function,
            op: op(self.place_op)?,
        };
        let nowhere = place.file.is_none()
            && place.line.is_none()
            && place.function.is_none()
            && place.op.is_none();
        Some(Finding {
            id: FindingId(self.id),
            kind: FindingKind::by_name(&self.kind)?,
            severity: Severity::by_name(&self.severity)?,
            cause: Cause::by_name(&self.cause)?,
            second,
            key: UnitKey {
                process: Incarnation {
                    pid: Pid(self.pid),
                    start_ticks: self.start_ticks,
                },
                device: self.device.map(Device),
                stream: scope_of(self.stream),
                kind: UnitKind::by_name(&self.unit_kind)?,
                class: self.class,
            },
            op: op(self.op)?,
            tid: Tid(self.tid),
            comm: self.comm,
            place: (!nowhere).then_some(place),
            window: Window::at(BootNanos(self.boot_ns), self.dur_ns),
            units: UnitSpan {
                first: self.first_unit,
                last: self.last_unit,
                slow: self.slow_units,
                worst: self.worst_unit,
            },
            shifted: self.shifted,
            baseline_ns: self.baseline_ns,
            baseline_units: self.baseline_units,
            excess_ns: self.excess_ns,
            blame: self
                .blame
                .into_iter()
                .map(|b| {
                    Some(Blame {
                        cause: Cause::by_name(&b.cause)?,
                        ns: b.ns,
                        lost_ns: b.lost_ns,
                        detail: b.detail,
                    })
                })
                .collect::<Option<_>>()?,
            evidence: self
                .evidence
                .into_iter()
                .map(|e| Evidence {
                    what: e.what,
                    pid: e.pid,
                    tid: e.tid,
                    comm: e.comm,
                    path: e.path,
                    start: BootNanos(e.boot_ns),
                    dur: e.dur_ns,
                })
                .collect(),
        })
    }
}

impl From<&Loss> for DropRow {
    fn from(l: &Loss) -> DropRow {
        DropRow {
            source: l.source.to_owned(),
            reason: l.reason.name().to_owned(),
            count: l.count,
            boot_ns: l.window.map(|w| w.start.0),
            dur_ns: l.window.map(|w| w.nanos()),
            pid: l.pid.map(|p| p.0),
        }
    }
}

impl DropRow {
    pub(crate) fn loss(self) -> StoredLoss {
        StoredLoss {
            source: self.source,
            reason: self.reason,
            count: self.count,
            window: self
                .boot_ns
                .map(|at| Window::at(BootNanos(at), self.dur_ns.unwrap_or(0))),
            pid: self.pid.map(Pid),
        }
    }
}

impl From<&Gap> for GapRow {
    fn from(g: &Gap) -> GapRow {
        GapRow {
            code: g.code.name().to_owned(),
            detail: g.detail.clone(),
            count: g.count,
        }
    }
}

impl GapRow {
    pub(crate) fn gap(self) -> Option<Gap> {
        Some(Gap {
            code: GapCode::by_name(&self.code)?,
            detail: self.detail,
            count: self.count,
        })
    }
}

impl From<&Outlier> for OutlierRow {
    fn from(o: &Outlier) -> OutlierRow {
        let window = o.window();
        OutlierRow {
            boot_ns: window.start.0,
            dur_ns: o.step_nanos,
            event_id: o.id.to_string(),
            trace_id: format!("{:032x}", o.span.trace),
            span_id: format!("{:016x}", o.span.span),
            cgroup_hash: o.key.cgroup.map(|hash| format!("{:016x}", hash.0)),
            pid: o.key.process.pid.0,
            start_ticks: o.key.process.start_ticks,
            device: o.key.device.map(|d| d.0),
            stream: o.key.stream.0,
            phase: o.key.phase.map(|phase| phase.name().to_owned()),
            fingerprint: o.key.fingerprint,
            bucket: o.bucket.name().to_owned(),
            p95_ns: o.p95_nanos,
            mean_ns: o.mean_nanos,
            tid: o.tid.0,
            op: o.op.get().name.to_owned(),
            launches: o.launches,
            copied_bytes: o.copied_bytes,
            memory_calls: o.memory_calls,
            throttle_reasons: o.throttle_reasons,
            min_sm_clock_mhz: o.min_sm_clock_mhz,
            kv_ages: o
                .kv_ages_millis
                .iter()
                .map(|&age_ms| KvAgeRow { age_ms })
                .collect(),
            first_in_minute: o.first_in_minute,
        }
    }
}

impl OutlierRow {
    pub(crate) fn outlier(self) -> Option<Outlier> {
        let phase = match self.phase {
            Some(name) => Some(Phase::by_name(&name)?),
            None => None,
        };
        let id = self.event_id.replace('-', "");
        Some(Outlier {
            id: EventId(u128::from_str_radix(&id, 16).ok()?),
            span: SpanContext {
                trace: u128::from_str_radix(&self.trace_id, 16).ok()?,
                span: u64::from_str_radix(&self.span_id, 16).ok()?,
            },
            key: WorkloadKey {
                cgroup: match self.cgroup_hash {
                    Some(hash) => Some(CgroupHash(u64::from_str_radix(&hash, 16).ok()?)),
                    None => None,
                },
                process: Incarnation {
                    pid: Pid(self.pid),
                    start_ticks: self.start_ticks,
                },
                stream: Stream(self.stream),
                phase,
                device: self.device.map(Device),
                fingerprint: self.fingerprint,
            },
            at: BootNanos(self.boot_ns).plus(self.dur_ns),
            step_nanos: self.dur_ns,
            p95_nanos: self.p95_ns,
            mean_nanos: self.mean_ns,
            bucket: OutlierBucket::by_name(&self.bucket)?,
            tid: Tid(self.tid),
            op: OpId::by_name(&self.op)?,
            launches: self.launches,
            copied_bytes: self.copied_bytes,
            memory_calls: self.memory_calls,
            throttle_reasons: self.throttle_reasons,
            min_sm_clock_mhz: self.min_sm_clock_mhz,
            kv_ages_millis: self.kv_ages.into_iter().map(|age| age.age_ms).collect(),
            first_in_minute: self.first_in_minute,
        })
    }
}
