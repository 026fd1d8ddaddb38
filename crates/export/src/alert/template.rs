//! Texts with places for an alert's facts: `{severity} {summary}`.
//!
//! A place is a name in braces; `{{` and `}}` are braces. What is filled in is never read again, so that no fact of an alert can
//! name another one. (minijinja would do as well; loops and filters over what a process calls itself are more than is wanted.)

use warptrace_model::nearest;

/// Longest template, bytes.
const MAX_TEMPLATE: usize = 4096;

/// Names of places.
pub(super) const NAMES: [&str; 12] = [
    "action",
    "severity",
    "summary",
    "source",
    "component",
    "group",
    "class",
    "key",
    "count",
    "lasted",
    "began",
    "details",
];

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("no place is named {name:?}{}", near.map(|n| format!(" (nearest: {n})")).unwrap_or_default())]
    UnknownName {
        name: String,
        near: Option<&'static str>,
    },
    #[error("a brace at byte {0} is not closed, or not opened (a brace itself is two)")]
    Brace(usize),
    #[error("longer than {MAX_TEMPLATE} bytes")]
    TooLong,
}

/// A template that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// Of [`NAMES`].
    Place(&'static str),
    /// `{details.NAME}`: of one detail, empty where the alert has none of that name.
    Detail(String),
}

impl Template {
    /// # Errors
    /// [`TemplateError`].
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        if text.len() > MAX_TEMPLATE {
            return Err(TemplateError::TooLong);
        }
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut at = 0;
        while let Some(found) = text[at..].find(['{', '}']) {
            let brace = at + found;
            plain.push_str(&text[at..brace]);
            let rest = &text[brace..];
            if rest.starts_with("{{") || rest.starts_with("}}") {
                plain.push_str(&rest[..1]);
                at = brace + 2;
                continue;
            }
            let end = rest.find('}').filter(|end| *end > 0);
            let end = end.ok_or(TemplateError::Brace(brace))?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(place(rest[1..end].trim())?);
            at = brace + end + 1;
        }
        plain.push_str(&text[at..]);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Template { parts })
    }

    /// The text with `fact(name)` in each place; a detail's name is `details.NAME`.
    pub(super) fn fill(&self, fact: impl Fn(&str) -> String) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Place(name) => text.push_str(&fact(name)),
                Part::Detail(name) => text.push_str(&fact(&format!("details.{name}"))),
            }
        }
        text
    }
}

fn place(name: &str) -> Result<Part, TemplateError> {
    if let Some(known) = NAMES.into_iter().find(|n| *n == name) {
        return Ok(Part::Place(known));
    }
    if let Some(detail) = name.strip_prefix("details.")
        && !detail.is_empty()
    {
        return Ok(Part::Detail(detail.to_owned()));
    }
    Err(TemplateError::UnknownName {
        name: name.to_owned(),
        near: nearest(name, NAMES),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> String {
        let template = Template::parse(text).unwrap();
        template.fill(|name| format!("<{name}>"))
    }

    #[test]
    fn places_are_filled_and_doubled_braces_are_braces() {
        assert_eq!(filled("{severity}: {summary}"), "<severity>: <summary>");
        assert_eq!(
            filled("{{}} { key }{details.rank}é"),
            "{} <key><details.rank>é"
        );
        assert_eq!(filled(""), "");
    }

    #[test]
    fn what_is_filled_in_is_not_read_again() {
        let template = Template::parse("{summary}").unwrap();
        assert_eq!(template.fill(|_| "{key} {{".to_owned()), "{key} {{");
    }

    #[test]
    fn what_is_no_template_is_refused_with_its_place_or_the_nearest_name() {
        for (text, message) in [
            (
                "a {sumary}",
                "no place is named \"sumary\" (nearest: summary)",
            ),
            ("{}", "no place is named \"\""),
            (
                "{details.}",
                "no place is named \"details.\" (nearest: details)",
            ),
            (
                "a {key",
                "a brace at byte 2 is not closed, or not opened (a brace itself is two)",
            ),
            (
                "é} {key}",
                "a brace at byte 2 is not closed, or not opened (a brace itself is two)",
            ),
        ] {
            assert_eq!(Template::parse(text).unwrap_err().to_string(), message);
        }
        let long = "x".repeat(MAX_TEMPLATE + 1);
        assert_eq!(Template::parse(&long), Err(TemplateError::TooLong));
    }
}
