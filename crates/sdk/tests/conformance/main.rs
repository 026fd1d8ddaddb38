//! The conformance vectors of spans and training telemetry: what the packages that we are compatible with did when a script
//! drove them, and whether the SDK does the same.
//!
//! Time is the vectors' own. A case of which an operation has no meaning in Rust (a wrong type, Python's own exceptions, W&B,
//! Lightning, JSON of single objects) belongs elsewhere: the Python package's tests run all of them.

mod exporters;
mod json;
mod scenario;
#[path = "../../../formats/tests/conformance/support.rs"]
mod support;
mod training;
mod world;

use serde_json::Value;

#[test]
fn scenarios_give_what_the_vectors_say() {
    let index: Value = serde_json::from_slice(&support::read("spans/index.json")).unwrap();
    let mut report = support::Report::new("spans");
    for case in index["scenarios"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        let text = support::read(format!("spans/scenarios/{id}.json"));
        let scenario: Value = serde_json::from_slice(&text).unwrap();
        match scenario::run(&scenario) {
            Ok(differences) if differences.is_empty() => report.case(id, || Ok(())),
            Ok(differences) => report.case(id, || Err(differences.join("\n    "))),
            Err(scenario::NoMeaning(_)) => report.elsewhere(id),
        }
    }
    report.finish();
}
