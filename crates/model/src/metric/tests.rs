//! The table against itself; against another tracer's page of names it is held by `crates/formats/tests/contract.rs`.

use std::collections::HashSet;

use super::*;

#[test]
fn names_are_unique_lower_case_and_without_unit_or_total() {
    let mut seen = HashSet::new();
    let mut spelt = HashSet::new();
    for metric in metric::ALL {
        assert!(seen.insert(metric.name), "{} twice", metric.name);
        assert!(
            spelt.insert(prometheus_name(metric)),
            "{} spelt twice",
            metric.name
        );
        let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._".contains(c);
        assert!(metric.name.chars().all(known), "{}", metric.name);
        let words: Vec<&str> = metric.name.split(['.', '_']).collect();
        for word in ["total", "seconds", "bytes", "ms", "ns"] {
            assert!(!words.contains(&word), "{} has {word}", metric.name);
        }
        assert!(
            !metric.meaning.is_empty() && !metric.meaning.ends_with('.'),
            "{}",
            metric.name
        );
        let ucum = matches!(metric.unit, "s" | "By" | "1" | "Hz" | "Cel" | "W")
            || metric.unit.starts_with('{') && metric.unit.ends_with('}');
        assert!(ucum, "{}: {}", metric.name, metric.unit);
        let is_histogram = metric.instrument == Instrument::Histogram;
        assert_eq!(is_histogram, !metric.bounds.is_empty(), "{}", metric.name);
        assert!(
            metric.bounds.windows(2).all(|two| two[0] < two[1]),
            "{}",
            metric.name
        );
    }
    // No metric is a namespace of another one, but where OpenTelemetry has it so itself.
    for (a, b) in metric::ALL
        .iter()
        .flat_map(|a| metric::ALL.iter().map(move |b| (a, b)))
    {
        let inside = b
            .name
            .strip_prefix(a.name)
            .is_some_and(|rest| rest.starts_with('.'));
        assert!(!inside, "{} is within {}", b.name, a.name);
    }
}

#[test]
fn what_is_derived_fits_what_it_is_derived_from() {
    let mut names = HashSet::new();
    for (metric, ingero) in metric::ALL
        .iter()
        .flat_map(|m| m.ingero.iter().map(move |i| (m, i)))
    {
        let name = ingero.name.or(ingero.prometheus).unwrap();
        assert!(names.insert(name), "{name} twice");
        let from_histogram = metric.instrument == Instrument::Histogram;
        assert_eq!(
            !matches!(ingero.derived, Derived::Times(_)),
            from_histogram && ingero.shape != Shape::Histogram,
            "{name}"
        );
        assert_eq!(
            ingero.shape == Shape::Histogram,
            !ingero.bounds.is_empty(),
            "{name}"
        );
        if let (Shape::Histogram, Derived::Times(factor)) = (ingero.shape, ingero.derived) {
            assert_eq!(metric.bounds.len(), ingero.bounds.len(), "{name}");
            for (ours, theirs) in metric.bounds.iter().zip(ingero.bounds) {
                assert!(
                    (ours * factor / theirs - 1.0).abs() < 1e-9,
                    "{name}: {ours} {theirs}"
                );
            }
        }
        for attribute in ingero.attributes {
            let named = (ingero.name.is_none() || attribute.ingero.is_some())
                && (ingero.prometheus.is_none() || attribute.label.is_some());
            assert!(named, "{name}: {}", attribute.name);
        }
    }
}

#[test]
fn attributes_are_unique_and_each_is_of_some_metric() {
    let mut seen = HashSet::new();
    let mut used: HashSet<&str> = HashSet::new();
    for metric in metric::ALL {
        used.extend(metric.attributes.iter().map(|a| a.name));
        for ingero in metric.ingero {
            used.extend(ingero.attributes.iter().map(|a| a.name));
            used.extend(ingero.only.map(|(a, _)| a.name));
        }
    }
    for attribute in attribute::ALL {
        assert!(seen.insert(attribute.name), "{} twice", attribute.name);
        assert!(
            used.contains(attribute.name),
            "{} is of no metric",
            attribute.name
        );
    }
}

#[test]
fn prometheus_spells_units_out() {
    let spelt = |metric: &Metric| prometheus_name(metric).0;
    assert_eq!(spelt(&metric::GPU_UTILIZATION), "hw_gpu_utilization_ratio");
    assert_eq!(
        spelt(&metric::GPU_MEMORY_USAGE),
        "hw_gpu_memory_usage_bytes"
    );
    assert_eq!(spelt(&metric::CONTEXT_SWITCHES), "process_context_switches");
    assert_eq!(
        spelt(&metric::CUDA_CALL_DURATION),
        "warptrace_cuda_call_duration_seconds"
    );
    assert_eq!(
        spelt(&metric::INFERENCE_SAMPLER_DEGRADED),
        "warptrace_inference_sampler_degraded"
    );
}

#[test]
fn what_engines_measure_is_in_the_table_under_the_same_names() {
    use crate::serving::{ServingKind, ServingMetric};

    for serving in ServingMetric::ALL {
        let metric = metric::ALL.iter().find(|m| m.name == serving.name());
        let metric = metric.unwrap_or_else(|| panic!("{} is not in the table", serving.name()));
        let instrument = match serving.kind() {
            ServingKind::Histogram => Instrument::Histogram,
            ServingKind::Counter => Instrument::Counter,
            ServingKind::UpDownCounter => Instrument::UpDownCounter,
            ServingKind::Gauge => Instrument::Gauge,
        };
        assert_eq!(
            (metric.instrument, metric.unit),
            (instrument, serving.unit()),
            "{}",
            metric.name
        );
        let elsewhere = metric.ingero.first().and_then(|ingero| ingero.name);
        assert_eq!(elsewhere, serving.compat_name(), "{}", metric.name);
    }
}
