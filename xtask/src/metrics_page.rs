//! `docs/metrics.md` from its marker on: the table of metrics, written out. `UPDATE_EXPECT=1 cargo test -p xtask` rewrites it.

use std::fmt::Write as _;

use expect_test::expect_file;
use warptrace_model::metric::{
    Attribute, Derived, Instrument, Metric, Shape, attribute, metric, prometheus_name, resource,
};

const MARKER: &str = "<!-- From here on the page is written by the tests of xtask. -->\n";

/// Groups of the page, by the beginnings of names; the first that fits.
const GROUPS: [(&str, &[&str]); 9] = [
    (
        "Inference servers, watched from outside",
        &["warptrace.inference."],
    ),
    (
        "What inference servers say of themselves",
        &["gen_ai.", "warptrace.serving."],
    ),
    ("Calls", &["warptrace.cuda.", "warptrace.driver."]),
    ("Collectives", &["warptrace.nccl."]),
    (
        "Devices",
        &["hw.", "warptrace.gpu.", "warptrace.process.gpu."],
    ),
    ("The machine", &["system.", "process.context_switches"]),
    (
        "What was concluded",
        &["warptrace.unit.", "warptrace.blame.", "warptrace.finding."],
    ),
    (
        "Health of a node in its fleet",
        &[
            "warptrace.node.",
            "warptrace.fleet.",
            "warptrace.agent.fleet.",
            "warptrace.agent.detection_mode",
        ],
    ),
    (
        "warptrace itself",
        &[
            "warptrace.agent.",
            "warptrace.annotation.",
            "warptrace.store.",
            "warptrace.stream.",
            "warptrace.metric.",
            "warptrace.receive.",
            "warptrace.alert.",
            "otel.sdk.",
            "process.",
        ],
    ),
];

fn group(metric: &Metric) -> &'static str {
    let found = GROUPS.iter().find(|(_, beginnings)| {
        beginnings
            .iter()
            .any(|start| metric.name.starts_with(start))
    });
    match found {
        Some((group, _)) => group,
        None => panic!("{} is of no group of the page", metric.name),
    }
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn list(attributes: &[&Attribute], name: impl Fn(&Attribute) -> Option<&'static str>) -> String {
    let names: Vec<String> = attributes
        .iter()
        .filter_map(|a| name(a))
        .map(code)
        .collect();
    names.join(", ")
}

fn generated() -> String {
    let mut page = String::new();
    for (name, _) in GROUPS {
        let _ = write!(
            page,
            "\n## {name}\n\n| metric | kind, unit | attributes | in Prometheus | |\n|---|---|---|---|---|\n"
        );
        for metric in metric::ALL.iter().filter(|metric| group(metric) == name) {
            let (mut family, _) = prometheus_name(metric);
            if metric.instrument == Instrument::Counter {
                family += "_total";
            }
            let _ = writeln!(
                page,
                "| `{}` | {}, `{}` | {} | `{family}` | {} |",
                metric.name,
                metric.instrument.name(),
                metric.unit,
                list(metric.attributes, |a| Some(a.name)),
                metric.meaning,
            );
        }
    }
    page += "\n## Attributes\n\n| attribute | type | of `ingero`, in OTLP | in Prometheus | |\n|---|---|---|---|---|\n";
    for attribute in attribute::ALL {
        let or_none = |name: Option<&str>| name.map(code).unwrap_or_default();
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} | {} |",
            attribute.name,
            attribute.form.name(),
            or_none(attribute.ingero),
            or_none(attribute.label),
            attribute.meaning,
        );
    }
    page += "\n## The resource\n\n| attribute | of `ingero` | |\n|---|---|---|\n";
    for row in resource::ALL {
        let theirs = row.ingero.map(code).unwrap_or_default();
        let _ = writeln!(page, "| `{}` | {theirs} | {} |", row.name, row.meaning);
    }
    page += "\n## Names of `ingero`\n\n| in OTLP | kind, unit | in Prometheus | attributes or labels | from |\n|---|---|---|---|---|\n";
    for (metric, row) in metric::ALL
        .iter()
        .flat_map(|m| m.ingero.iter().map(move |row| (m, row)))
    {
        let shape = match row.shape {
            Shape::IntGauge => "gauge of integers",
            Shape::DoubleGauge => "gauge",
            Shape::Sum => "sum",
            Shape::Histogram => "histogram",
        };
        let unit = match row.unit {
            "" => String::new(),
            unit => format!(", `{unit}`"),
        };
        let names = match row.name {
            Some(_) => list(row.attributes, |a| a.ingero),
            None => list(row.attributes, |a| a.label),
        };
        let mut from = code(metric.name);
        if let Some((attribute, value)) = row.only {
            let _ = write!(from, " where `{}` is `{value}`", attribute.name);
        }
        from += match row.derived {
            Derived::Times(_) => "",
            Derived::Percentiles(_) => ", its percentiles",
            Derived::Count => ", its count",
            Derived::Sum => ", its sum",
            Derived::Measurements(_) => ", each measurement",
        };
        let _ = writeln!(
            page,
            "| {} | {shape}{unit} | {} | {names} | {from} |",
            row.name.map(code).unwrap_or_default(),
            row.prometheus.map(code).unwrap_or_default(),
        );
    }
    page
}

#[test]
fn the_page_on_metrics_is_the_table() {
    let path = crate::root().join("docs/metrics.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (head, _) = page
        .split_once(MARKER)
        .expect("the marker of docs/metrics.md");
    expect_file![path].assert_eq(&format!("{head}{MARKER}{}", generated()));
}
