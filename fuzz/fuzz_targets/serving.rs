//! Whatever an inference server publishes is read without a panic, and what comes out can be: finite, sorted, one of each metric
//! and model, histograms whose parts fit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warptrace_formats::serving::decode_scrape;
use warptrace_model::serving::{Engine, ServingKind, ServingValue};

fuzz_target!(|body: &[u8]| {
    for engine in Engine::ALL {
        let scrape = decode_scrape(engine, body);
        for pair in scrape.readings.windows(2) {
            assert!((pair[0].metric, &pair[0].model) < (pair[1].metric, &pair[1].model));
        }
        for reading in &scrape.readings {
            match &reading.value {
                ServingValue::Number(n) => {
                    assert!(n.is_finite());
                    let is_fraction = reading.metric.kind() == ServingKind::Gauge;
                    assert!(!is_fraction || (0.0..=1.0).contains(n));
                }
                ServingValue::Histogram(h) => {
                    assert_eq!(reading.metric.kind(), ServingKind::Histogram);
                    assert!(h.sum.is_finite());
                    assert!(h.bounds.windows(2).all(|b| b[0] < b[1]));
                    let parts = h.counts.len();
                    assert!(parts == 0 || parts == h.bounds.len() + 1);
                    assert!(parts == 0 || h.counts.iter().sum::<u64>() == h.count);
                    let _ = (h.mean(), h.quantile(0.95), h.since(h));
                }
            }
        }
    }
});
