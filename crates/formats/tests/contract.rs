//! Every name, kind, unit, attribute and label of another tracer's metrics, held against what our encoders write of the table.
#![cfg(all(feature = "otlp", feature = "openmetrics"))]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use warptrace_formats::metrics::Names;
use warptrace_formats::openmetrics::{Format, encode};
use warptrace_formats::otlp::{Data, KeyValue, Metric, MetricsEncoder, PointValue, Variant};
use warptrace_formats::prometheus_text::{Kind, Samples};
use warptrace_model::metric::{
    Attribute, Exemplar, Exponential, Family, Form, Instrument, Number, Point, Snapshot, attribute,
    metric, resource,
};
use warptrace_model::{Object, UnixNanos, Value};

fn testdata(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/metrics");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

/// A line of the fixture.
#[derive(Debug, PartialEq)]
struct Row {
    kind: String,
    unit: Option<String>,
    attributes: Vec<String>,
    bounds: Vec<f64>,
}

fn list(cell: &str) -> Vec<String> {
    match cell {
        "-" => Vec::new(),
        cell => cell.split(',').map(str::to_owned).collect(),
    }
}

/// What is in OTLP, and what is in Prometheus, by name.
fn contract() -> (BTreeMap<String, Row>, BTreeMap<String, Row>) {
    let (mut otlp, mut prometheus) = (BTreeMap::new(), BTreeMap::new());
    for line in testdata("ingero.tsv")
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let cells: Vec<&str> = line.split('\t').collect();
        let [
            name,
            kind,
            unit,
            attributes,
            family,
            family_kind,
            labels,
            bounds,
        ] = cells[..]
        else {
            panic!("{line:?} has not eight columns");
        };
        let bounds: Vec<f64> = list(bounds).iter().map(|b| b.parse().unwrap()).collect();
        if name != "-" {
            let row = Row {
                kind: kind.to_owned(),
                unit: (unit != "-").then(|| unit.to_owned()),
                attributes: list(attributes),
                bounds: bounds.clone(),
            };
            assert_eq!(otlp.insert(name.to_owned(), row), None, "{name} twice");
        }
        if family != "-" {
            let row = Row {
                kind: family_kind.to_owned(),
                unit: None,
                attributes: list(labels),
                bounds,
            };
            assert_eq!(
                prometheus.insert(family.to_owned(), row),
                None,
                "{family} twice"
            );
        }
    }
    (otlp, prometheus)
}

/// A value that an attribute may have; of those that choose among rows, the one of the row.
fn value(attribute: &Attribute) -> Value {
    match attribute.form {
        Form::Text => "x".into(),
        Form::Double => Value::Float(0.5),
        _ => 7.into(),
    }
}

/// A point of every metric, with every attribute that a name anywhere asks for.
fn snapshot() -> Snapshot {
    let families = metric::ALL.iter().map(|metric| {
        let mut attributes = Object::new();
        let theirs = metric.ingero.iter().flat_map(|row| row.attributes);
        for attribute in metric.attributes.iter().chain(theirs) {
            if **attribute != attribute::PERCENTILE {
                attributes.insert(attribute.name, value(attribute));
            }
        }
        let mut choices: Vec<Object> = Vec::new();
        for (key, word) in metric.ingero.iter().filter_map(|row| row.only) {
            let mut chosen = attributes.clone();
            chosen.insert(key.name, word);
            choices.push(chosen);
        }
        if choices.is_empty() {
            choices.push(attributes);
        }
        let points = choices.into_iter().map(|attributes| {
            let value = match metric.instrument {
                Instrument::Histogram => {
                    let mut histogram = Exponential::default();
                    histogram.record(metric.bounds[0]);
                    Number::Exponential(histogram)
                }
                Instrument::Gauge => Number::Double(0.5),
                _ if metric.unit == "s" => Number::Double(0.5),
                _ => Number::Int(1),
            };
            let exemplar = Exemplar {
                value: 1.0,
                at: UnixNanos(5),
                context: None,
                attributes: Object::new(),
            };
            Point {
                attributes,
                start: UnixNanos(1),
                at: UnixNanos(9),
                value,
                exemplars: vec![exemplar],
            }
        });
        Family {
            metric,
            points: points.collect(),
        }
    });
    let mut about = Object::new();
    for row in resource::ALL {
        about.insert(row.name, "x");
    }
    about.insert(resource::SERVICE_NAME, "warptrace");
    Snapshot {
        resource: about,
        families: families.collect(),
    }
}

fn described(attributes: &[KeyValue]) -> Vec<String> {
    let pairs = attributes.iter().map(|pair| {
        let kind = match pair.value.as_ref().and_then(|v| v.value.as_ref()) {
            Some(Variant::StringValue(_)) => "s",
            Some(Variant::IntValue(_)) => "i",
            Some(Variant::DoubleValue(_)) => "d",
            other => panic!("{other:?}"),
        };
        format!("{}:{kind}", pair.key)
    });
    pairs.collect()
}

/// As the fixture has it.
fn row_of(metric: &Metric) -> Row {
    let (kind, attributes, bounds) = match metric.data.as_ref().unwrap() {
        Data::Gauge(gauge) => {
            let point = &gauge.data_points[0];
            let kind = match point.value {
                Some(PointValue::AsInt(_)) => "int gauge",
                _ => "double gauge",
            };
            (kind, &point.attributes, Vec::new())
        }
        Data::Sum(sum) => {
            let point = &sum.data_points[0];
            assert!(
                sum.is_monotonic && sum.aggregation_temporality == 2,
                "{}",
                metric.name
            );
            assert!(
                matches!(point.value, Some(PointValue::AsInt(_))),
                "{}",
                metric.name
            );
            assert_eq!(point.start_time_unix_nano, 1, "{}", metric.name);
            ("sum", &point.attributes, Vec::new())
        }
        Data::Histogram(histogram) => {
            let point = &histogram.data_points[0];
            assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
            assert_eq!(
                (point.count, point.bucket_counts[0]),
                (1, 1),
                "{}",
                metric.name
            );
            (
                "histogram",
                &point.attributes,
                point.explicit_bounds.clone(),
            )
        }
        Data::ExponentialHistogram(_) => panic!("{} is exponential", metric.name),
    };
    Row {
        kind: kind.to_owned(),
        unit: Some(metric.unit.clone()),
        attributes: described(attributes),
        bounds,
    }
}

#[test]
fn in_otlp_every_metric_has_its_name_kind_unit_and_attributes() {
    let encoder = MetricsEncoder {
        names: Names::Ingero,
        version: "1".into(),
        ..MetricsEncoder::default()
    };
    let mut request = encoder.request(&snapshot());
    let about = request.resource_metrics.remove(0);
    let scope = about.scope_metrics[0].scope.as_ref().unwrap();
    assert_eq!(
        (about.scope_metrics.len(), scope.name.as_str()),
        (1, "ingero")
    );
    let (mut contract, _) = contract();
    for metric in &about.scope_metrics[0].metrics {
        let mut row = row_of(metric);
        let Some(expected) = contract.remove(&metric.name) else {
            panic!("{} is not in the contract, or twice here", metric.name);
        };
        if expected.unit.is_none() {
            row.unit = None;
        }
        if expected.bounds.is_empty() {
            row.bounds.clear();
        }
        assert_eq!(row, expected, "{}", metric.name);
    }
    assert!(contract.is_empty(), "not written: {:?}", contract.keys());
    let keys: Vec<String> = about
        .resource
        .unwrap()
        .attributes
        .into_iter()
        .map(|kv| kv.key)
        .collect();
    assert_eq!(
        keys[..7],
        [
            "service.name",
            "service.version",
            "ingero.node.id",
            "ingero.cluster.id",
            "ingero.provider",
            "ingero.world_size",
            "ingero.node.rank"
        ]
    );
    assert!(
        keys[7..].iter().all(|key| !key.starts_with("warptrace.")),
        "{keys:?}"
    );
}

#[test]
fn in_prometheus_every_family_has_its_name_type_and_labels() {
    let text = encode(&snapshot(), Names::Ingero, Format::Text);
    let mut families: BTreeMap<String, Row> = BTreeMap::new();
    for sample in Samples::new(text.as_bytes()) {
        let sample = sample.unwrap();
        let kind = match sample.kind.unwrap() {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            other => panic!("{other:?}"),
        };
        let le: Option<f64> = sample.label("le").map(|le| le.parse().unwrap());
        let labels = sample.labels.iter().map(|(name, _)| name.to_string());
        let row = families.entry(sample.family().to_owned()).or_insert(Row {
            kind: kind.to_owned(),
            unit: None,
            attributes: labels.filter(|name| name != "le").collect(),
            bounds: Vec::new(),
        });
        row.bounds.extend(le.filter(|le| le.is_finite()));
    }
    let (_, contract) = contract();
    let names: BTreeSet<&String> = families.keys().collect();
    assert_eq!(names, contract.keys().collect());
    assert_eq!(families, contract);
}

#[test]
fn every_name_that_it_keeps_is_in_the_table() {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    known.extend(
        metric::ALL
            .iter()
            .flat_map(|m| m.ingero)
            .filter_map(|row| row.name),
    );
    known.extend(
        attribute::ALL
            .iter()
            .filter_map(|attribute| attribute.ingero),
    );
    known.extend(resource::ALL.iter().filter_map(|row| row.ingero));
    let names = testdata("ingero_names.txt");
    let (points, spans) = names.split_once("# spans").unwrap();
    for line in points.lines().filter(|line| !line.starts_with('#')) {
        for name in line.split(' ') {
            assert!(known.contains(name), "{name:?} is not in the table");
        }
    }
    let said = warptrace_formats::otlp::INGERO_SPAN_ATTRIBUTES;
    for name in spans.split_whitespace() {
        assert!(said.contains(&name), "{name:?} is of no span");
    }
}

#[test]
fn under_our_own_names_each_metric_is_there_once_as_the_table_says() {
    let snapshot = snapshot();
    for names in [Names::Native, Names::Both] {
        let encoder = MetricsEncoder {
            names,
            version: "1".into(),
            ..MetricsEncoder::default()
        };
        let mut request = encoder.request(&snapshot);
        let about = request.resource_metrics.remove(0);
        let ours = &about.scope_metrics[0];
        assert_eq!(ours.scope.as_ref().unwrap().name, "warptrace");
        assert_eq!(ours.metrics.len(), metric::ALL.len());
        for (written, row) in ours.metrics.iter().zip(metric::ALL) {
            assert_eq!(
                (written.name.as_str(), written.unit.as_str()),
                (row.name, row.unit)
            );
            let (kind, keys) = match written.data.as_ref().unwrap() {
                Data::Gauge(data) => (Instrument::Gauge, &data.data_points[0].attributes),
                Data::Sum(data) if data.is_monotonic => {
                    (Instrument::Counter, &data.data_points[0].attributes)
                }
                Data::Sum(data) => (Instrument::UpDownCounter, &data.data_points[0].attributes),
                Data::Histogram(data) => (Instrument::Histogram, &data.data_points[0].attributes),
                Data::ExponentialHistogram(data) => {
                    (Instrument::Histogram, &data.data_points[0].attributes)
                }
            };
            assert_eq!(kind, row.instrument, "{}", row.name);
            let keys: Vec<&str> = keys.iter().map(|pair| pair.key.as_str()).collect();
            let expected: Vec<&str> = row.attributes.iter().map(|a| a.name).collect();
            assert_eq!(keys, expected, "{}", row.name);
        }
        let mut all: Vec<&str> = about
            .scope_metrics
            .iter()
            .flat_map(|scope| &scope.metrics)
            .map(|metric| metric.name.as_str())
            .collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "a name twice");
        assert_eq!(
            about.scope_metrics.len(),
            if names == Names::Both { 2 } else { 1 }
        );
    }
}
