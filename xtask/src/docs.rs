//! Lists in `docs/` that the code owns.

use warptrace_model::{Category, Cause, FindingKind, GapCode, Severity, UnitKind};

#[test]
fn the_page_on_json_names_every_word_that_a_field_can_hold() {
    let page = std::fs::read_to_string(crate::root().join("docs/json.md")).unwrap();
    let kinds = [
        FindingKind::Incident,
        FindingKind::Steady,
        FindingKind::Rule,
    ];
    let severities = [
        Severity::Low,
        Severity::Medium,
        Severity::High,
        Severity::Critical,
    ];
    let words = (Cause::ALL.map(Cause::name).into_iter())
        .chain(Category::ALL.map(Category::name))
        .chain(GapCode::ALL.map(GapCode::name))
        .chain(UnitKind::ALL.map(UnitKind::name))
        .chain(kinds.map(FindingKind::name))
        .chain(severities.map(Severity::name));
    let missing: Vec<&str> = words
        .filter(|word| !page.contains(&format!("`{word}`")))
        .collect();
    assert_eq!(missing, [] as [&str; 0]);
}
