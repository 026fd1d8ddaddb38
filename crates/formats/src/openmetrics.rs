//! Metrics as text for Prometheus: OpenMetrics 1.0 with exemplars, and the older text format 0.0.4.
//!
//! OpenMetrics has rules for names that other tracers' names break (a counter ends in `_total`), so those are written in 0.0.4
//! alone, as they always were. Neither has exponential histograms: these are shown by the buckets of the table
//! ([`Metric::bounds`](warptrace_model::metric::Metric::bounds)).
//!
//! Written by hand, since the families, types and labels come from a table at run time, and one writer serves both formats; the
//! crate `prometheus-client` (0.24) knows OpenMetrics alone and has its registry of typed metrics in the way.

use std::fmt::Write as _;

use warptrace_model::metric::{Exemplar, Explicit, Family, Instrument, Number, Snapshot};
use warptrace_model::{Object, Value};

use crate::metrics::{Dialect, Label, Names, Written, WrittenPoint, ingero, native, resource};

/// Which text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// What a request's `Accept` header asks for; without one, and for another tracer's names, it is [`Format::Text`].
    pub fn negotiate(accept: &str, names: Names) -> Format {
        if names.has_ingero() {
            return Format::Text;
        }
        let (mut openmetrics, mut text) = (0.0, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let (mut quality, mut version) = (1.0, "");
            for parameter in parts {
                match parameter.split_once('=').map(|(k, v)| (k.trim(), v.trim())) {
                    Some((key, value)) if key.eq_ignore_ascii_case("q") => {
                        quality = value.parse().unwrap_or(0.0);
                    }
                    Some((key, value)) if key.eq_ignore_ascii_case("version") => {
                        version = value.trim_matches('"');
                    }
                    _ => {}
                }
            }
            let is = |name: &str| media.eq_ignore_ascii_case(name);
            if is("application/openmetrics-text") && matches!(version, "" | "1.0.0" | "0.0.1") {
                openmetrics = f64::max(openmetrics, quality);
            } else if is("text/plain") || is("text/*") || is("*/*") {
                text = f64::max(text, quality);
            }
        }
        match openmetrics > 0.0 && openmetrics >= text {
            true => Format::OpenMetrics,
            false => Format::Text,
        }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// All of `snapshot`; in OpenMetrics under our own names, whatever `names` says.
pub fn encode(snapshot: &Snapshot, names: Names, format: Format) -> String {
    let names = match format {
        Format::OpenMetrics => Names::Native,
        Format::Text => names,
    };
    let mut to = Text {
        out: String::new(),
        format,
    };
    if names.has_native() {
        to.target(&resource(&snapshot.resource, names));
    }
    for family in &snapshot.families {
        let own = names
            .has_native()
            .then(|| native(family, Dialect::Prometheus));
        if names.has_ingero() {
            let theirs = ingero(family, Dialect::Prometheus);
            for written in theirs {
                // Under one name it is one metric, and ours has it.
                if own.as_ref().is_none_or(|own| own.name != written.name) {
                    to.family(&written, family, "");
                }
            }
        }
        if let Some(own) = own {
            let ending = if own.kind == Instrument::Counter {
                "_total"
            } else {
                ""
            };
            to.family(&own, family, ending);
        }
    }
    if format == Format::OpenMetrics {
        to.out.push_str("# EOF\n");
    }
    to.out
}

struct Text {
    out: String,
    format: Format,
}

impl Text {
    /// Who all of it is about. Source: OpenTelemetry specification, *Prometheus and OpenMetrics Compatibility*.
    fn target(&mut self, resource: &Object) {
        let mut seen: Vec<String> = Vec::new();
        let mut labels = String::new();
        for (key, value) in resource.iter() {
            let name = label_name(key);
            let value = match value {
                Value::String(text) => text.to_string(),
                Value::Int(n) => n.to_string(),
                Value::Bool(b) => b.to_string(),
                Value::Float(x) => number(*x, Format::Text),
                Value::Null | Value::Array(_) | Value::Object(_) => continue,
            };
            if seen.contains(&name) {
                continue;
            }
            push_label(&mut labels, &name, &value);
            seen.push(name);
        }
        if labels.is_empty() {
            return;
        }
        self.out.push_str(match self.format {
            Format::OpenMetrics => "# TYPE target info\n# HELP target Who the metrics are about\n",
            Format::Text => {
                "# HELP target_info Who the metrics are about\n# TYPE target_info gauge\n"
            }
        });
        let _ = writeln!(self.out, "target_info{{{labels}}} 1");
    }

    /// `ending` is of the samples' names, and in the older format of the family's.
    fn family(&mut self, written: &Written<'_>, family: &Family, ending: &str) {
        if written.points.is_empty() {
            return;
        }
        let name = match self.format {
            Format::OpenMetrics => written.name.to_string(),
            Format::Text => format!("{}{ending}", written.name),
        };
        let kind = match written.kind {
            Instrument::Counter => "counter",
            Instrument::Gauge | Instrument::UpDownCounter => "gauge",
            Instrument::Histogram => "histogram",
        };
        let help = escaped(written.meaning, self.format == Format::OpenMetrics);
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        if self.format == Format::OpenMetrics && !written.unit.is_empty() {
            let _ = writeln!(self.out, "# UNIT {name} {}", written.unit);
        }
        for point in &written.points {
            let sample = format!("{}{ending}", written.name);
            match &*point.value {
                Number::Int(n) => self.value(&sample, point, n.to_string()),
                Number::Double(x) => {
                    let value = number(*x, self.format);
                    self.value(&sample, point, value);
                }
                Number::Explicit(h) => self.histogram(&written.name, point, h),
                Number::Exponential(h) => {
                    let explicit = h.to_explicit(1.0, family.metric.bounds);
                    self.histogram(&written.name, point, &explicit);
                }
            }
        }
    }

    fn value(&mut self, name: &str, point: &WrittenPoint<'_>, value: String) {
        let _ = write!(self.out, "{name}{} {value}", braces(&labels(point)));
        // Only counters and buckets may have one.
        if name.ends_with("_total") {
            self.exemplar(point.exemplars.last());
        }
        self.out.push('\n');
    }

    fn histogram(&mut self, name: &str, point: &WrittenPoint<'_>, histogram: &Explicit) {
        let labels = labels(point);
        let mut below = 0;
        let mut low = f64::NEG_INFINITY;
        for (i, n) in histogram.counts().iter().enumerate() {
            below += n;
            let high = histogram.bounds().get(i).copied().unwrap_or(f64::INFINITY);
            let mut with_bound = labels.clone();
            push_label(&mut with_bound, "le", &number(high, self.format));
            let _ = write!(self.out, "{name}_bucket{{{with_bound}}} {below}");
            let inside = |e: &&Exemplar| e.value > low && e.value <= high;
            self.exemplar(point.exemplars.iter().rev().find(inside));
            self.out.push('\n');
            low = high;
        }
        let labels = braces(&labels);
        let sum = number(histogram.sum(), self.format);
        let _ = writeln!(
            self.out,
            "{name}_sum{labels} {sum}\n{name}_count{labels} {below}"
        );
    }

    fn exemplar(&mut self, exemplar: Option<&Exemplar>) {
        /// Characters of all names and values, as OpenMetrics 1.0 has it.
        const LIMIT: usize = 128;
        let (Some(exemplar), Format::OpenMetrics) = (exemplar, self.format) else {
            return;
        };
        let mut pairs: Vec<(String, String)> = Vec::new();
        if let Some((trace, span)) = exemplar.context {
            pairs.push(("trace_id".to_owned(), format!("{trace:032x}")));
            pairs.push(("span_id".to_owned(), format!("{span:016x}")));
        }
        for (key, value) in exemplar.attributes.iter() {
            let value = match value {
                Value::String(text) => text.to_string(),
                Value::Int(n) => n.to_string(),
                Value::Bool(b) => b.to_string(),
                _ => continue,
            };
            let name = label_name(key);
            if pairs.iter().all(|(other, _)| *other != name) {
                pairs.push((name, value));
            }
        }
        let (mut labels, mut length) = (String::new(), 0);
        for (name, value) in &pairs {
            length += name.chars().count() + value.chars().count();
            if length > LIMIT {
                break;
            }
            push_label(&mut labels, name, value);
        }
        let value = number(exemplar.value, self.format);
        let (secs, nanos) = (exemplar.at.0 / 1_000_000_000, exemplar.at.0 % 1_000_000_000);
        let _ = write!(self.out, " # {{{labels}}} {value} {secs}.{nanos:09}");
    }
}

fn labels(point: &WrittenPoint<'_>) -> String {
    let mut labels = String::new();
    for (name, value) in &point.labels {
        let value = match value {
            Label::Text(text) => text.clone(),
            Label::Int(n) => n.to_string(),
            Label::Double(x) => number(*x, Format::Text),
            Label::Bool(b) => b.to_string(),
        };
        push_label(&mut labels, name, &value);
    }
    labels
}

fn braces(labels: &str) -> String {
    match labels.is_empty() {
        true => String::new(),
        false => format!("{{{labels}}}"),
    }
}

fn push_label(labels: &mut String, name: &str, value: &str) {
    if !labels.is_empty() {
        labels.push(',');
    }
    let _ = write!(labels, "{name}=\"{}\"", escaped(value, true));
}

fn escaped(text: &str, quotes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out
}

/// Characters that no label's name has become `_`.
fn label_name(key: &str) -> String {
    let mut name: String = key
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' {
                c
            } else {
                '_'
            }
        })
        .collect();
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, '_');
    }
    name
}

/// The shortest digits that are the same double, as Go's `%g` has them, which Prometheus' own writers use: `250000`, `1e+06`,
/// `+Inf`. In OpenMetrics a whole number has a point: `1.0`.
fn number(x: f64, format: Format) -> String {
    if x.is_nan() {
        return "NaN".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{x}");
    match format == Format::OpenMetrics && !plain.contains('.') {
        true => plain + ".0",
        false => plain,
    }
}

#[cfg(test)]
mod tests {
    use warptrace_model::metric::{Meter, metric};
    use warptrace_model::{Int, UnixNanos};

    use super::*;

    fn object(pairs: &[(&str, Value)]) -> Object {
        let pairs = pairs.iter().map(|(k, v)| ((*k).into(), v.clone()));
        Object::from_pairs(pairs.collect())
    }

    fn snapshot() -> Snapshot {
        let mut meter = Meter::new(UnixNanos(1), 100);
        let workload = object(&[
            ("warptrace.cgroup.hash", "f6f7a079fa79fb5d".into()),
            ("process.pid", 4242.into()),
            ("warptrace.cuda.stream", Value::Int(Int::from(0x7f00_u64))),
            ("warptrace.inference.phase", "decode".into()),
            (
                "warptrace.inference.kernel_fingerprint",
                Value::Int(Int::from(0xaf_u64)),
            ),
        ]);
        let exemplar = Exemplar {
            value: 0.03,
            at: UnixNanos(1_700_000_000_500_000_000),
            context: Some((1, 2)),
            attributes: object(&[("warptrace.event.id", "x\"y".into())]),
        };
        let steps = &metric::INFERENCE_HEALTHY_STEP_DURATION;
        meter
            .record_explicit(steps, workload.clone(), 0.02, None)
            .unwrap();
        meter
            .record_explicit(steps, workload.clone(), 0.03, Some(exemplar))
            .unwrap();
        let call = object(&[
            ("warptrace.layer", "cuda".into()),
            ("warptrace.cuda.function", "cudaMalloc \"x\\\n".into()),
        ]);
        for i in 1..=100 {
            meter
                .record(
                    &metric::CUDA_CALL_DURATION,
                    call.clone(),
                    f64::from(i) * 1e-6,
                    None,
                )
                .unwrap();
        }
        meter.add(&metric::FINDING_COUNT, Object::new(), 3).unwrap();
        let load = Number::Double(0.5);
        meter
            .set(&metric::LOAD_AVERAGE_1M, Object::new(), load)
            .unwrap();
        meter
            .set(&metric::GPU_UTILIZATION, Object::new(), Number::Double(1.0))
            .unwrap();
        let resource = object(&[("service.name", "warptrace".into()), ("9.a-b", 1.into())]);
        meter.snapshot(resource, UnixNanos(9))
    }

    fn lines_with(text: &str, part: &str) -> Vec<String> {
        text.lines()
            .filter(|line| line.contains(part))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn openmetrics_has_units_exemplars_and_an_end() {
        let text = encode(&snapshot(), Names::Both, Format::OpenMetrics);
        assert_eq!(
            lines_with(&text, "target"),
            [
                "# TYPE target info",
                "# HELP target Who the metrics are about",
                "target_info{service_name=\"warptrace\",_9_a_b=\"1\"} 1",
            ]
        );
        let steps = lines_with(&text, "warptrace_inference_healthy_step_duration_seconds");
        assert_eq!(
            steps[1..3],
            [
                "# TYPE warptrace_inference_healthy_step_duration_seconds histogram",
                "# UNIT warptrace_inference_healthy_step_duration_seconds seconds",
            ]
        );
        let labels = "warptrace_cgroup_hash=\"f6f7a079fa79fb5d\",process_pid=\"4242\",warptrace_cuda_stream=\"0x7f00\",\
            warptrace_inference_phase=\"decode\",warptrace_inference_kernel_fingerprint=\"00000000000000af\"";
        let bucket = |le: &str, rest: &str| {
            format!(
                "warptrace_inference_healthy_step_duration_seconds_bucket{{{labels},le=\"{le}\"}} {rest}"
            )
        };
        assert!(steps.contains(&bucket("0.025", "1")), "{steps:?}");
        let exemplar = "2 # {trace_id=\"00000000000000000000000000000001\",span_id=\"0000000000000002\",\
            warptrace_event_id=\"x\\\"y\"} 0.03 1700000000.500000000";
        assert!(steps.contains(&bucket("0.05", exemplar)), "{steps:?}");
        assert!(steps.contains(&bucket("1.0", "2")) && steps.contains(&bucket("+Inf", "2")));
        assert_eq!(
            lines_with(&text, "warptrace_finding_count"),
            [
                "# HELP warptrace_finding_count Findings that began",
                "# TYPE warptrace_finding_count counter",
                "warptrace_finding_count_total 3",
            ]
        );
        assert!(text.contains("hw_gpu_utilization_ratio 1.0\n"));
        assert!(
            !text.contains("ingero"),
            "OpenMetrics has our own names alone"
        );
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn another_tracers_names_are_as_it_writes_them() {
        let text = encode(&snapshot(), Names::Ingero, Format::Text);
        let labels = "cgroup_path_hash=\"f6f7a079fa79fb5d\",pid=\"4242\",stream_handle=\"32512\",phase=\"decode\",\
            kernel_fingerprint=\"00000000000000af\"";
        let steps = lines_with(&text, "ingero_infer_step_duration_ns");
        for (le, n) in [
            ("100000", 0),
            ("1e+06", 0),
            ("2.5e+07", 1),
            ("5e+07", 2),
            ("1e+10", 2),
            ("+Inf", 2),
        ] {
            let line = format!("ingero_infer_step_duration_ns_bucket{{{labels},le=\"{le}\"}} {n}");
            assert!(steps.contains(&line), "{line} in {steps:#?}");
        }
        assert!(steps.contains(&format!(
            "ingero_infer_step_duration_ns_sum{{{labels}}} 5e+07"
        )));
        assert_eq!(
            lines_with(&text, "ingero_anomaly_count"),
            [
                "# HELP ingero_anomaly_count Findings that began",
                "# TYPE ingero_anomaly_count counter",
                "ingero_anomaly_count 3",
            ]
        );
        let calls = "source=\"cuda\",operation=\"cudaMalloc \\\"x\\\\\\n\"";
        let p50 =
            format!("gpu_cuda_operation_duration_microseconds{{{calls},percentile=\"p50\"}} ");
        let said = lines_with(&text, &p50);
        let value: f64 = said[0].strip_prefix(&p50).unwrap().parse().unwrap();
        assert!(
            (48.0..=52.0).contains(&value) && value.fract() == 0.0,
            "{value}"
        );
        assert!(text.contains(&format!("gpu_cuda_operation_count{{{calls}}} 100\n")));
        assert!(text.contains("system_cpu_load_average_1m 0.5\n"));
        assert!(!text.contains("warptrace_") && !text.contains("target_info"));
    }

    #[test]
    fn both_have_no_family_twice_and_what_is_read_back_is_what_was_said() {
        for (names, format) in [
            (Names::Both, Format::Text),
            (Names::Native, Format::Text),
            (Names::Native, Format::OpenMetrics),
        ] {
            let text = encode(&snapshot(), names, format);
            let types = lines_with(&text, "# TYPE");
            let mut unique = types.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), types.len());
            let samples: Result<Vec<_>, _> =
                crate::prometheus_text::Samples::new(text.as_bytes()).collect();
            let samples = samples.unwrap();
            assert!(
                samples
                    .iter()
                    .all(|sample| sample.kind.is_some() || sample.name == "target_info")
            );
            let find = |name: &str| samples.iter().find(|s| s.name == name).unwrap();
            assert_eq!(find("warptrace_finding_count_total").value, 3.0);
            let call = find("warptrace_cuda_call_duration_seconds_count");
            assert_eq!(
                call.label("warptrace_cuda_function"),
                Some("cudaMalloc \"x\\\n")
            );
            assert_eq!(call.value, 100.0);
        }
    }

    #[test]
    fn numbers_are_as_gos_shortest() {
        for (x, text, openmetrics) in [
            (0.0, "0", "0.0"),
            (1.0, "1", "1.0"),
            (0.1, "0.1", "0.1"),
            (250_000.0, "250000", "250000.0"),
            (1e6, "1e+06", "1e+06"),
            (1_234_567.0, "1.234567e+06", "1.234567e+06"),
            (1e-4, "0.0001", "0.0001"),
            (2.5e-5, "2.5e-05", "2.5e-05"),
            (-1e100, "-1e+100", "-1e+100"),
            (f64::INFINITY, "+Inf", "+Inf"),
            (f64::NAN, "NaN", "NaN"),
        ] {
            assert_eq!(number(x, Format::Text), text);
            assert_eq!(number(x, Format::OpenMetrics), openmetrics);
        }
    }

    #[test]
    fn the_accept_header_chooses_and_another_tracers_names_need_the_older_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            (
                "application/openmetrics-text; version=\"1.0.0\"; q=0.2, text/plain",
                Format::Text,
            ),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;version=2.0.0", Format::Text),
            ("", Format::Text),
            ("*/*", Format::Text),
        ] {
            assert_eq!(Format::negotiate(accept, Names::Native), format, "{accept}");
        }
        assert_eq!(Format::negotiate(prometheus, Names::Both), Format::Text);
    }
}
