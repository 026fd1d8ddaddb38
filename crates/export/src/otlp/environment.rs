//! The rules that all of OpenTelemetry's variables share, the two that describe the resource, and those that choose exporters.
//!
//! Source: OpenTelemetry specification 1.4x, *Environment Variable Specification*: an empty variable is as if not set; what
//! cannot be read gives a warning and is ignored; only `true`, in any case, is true.

use std::cell::RefCell;
use std::time::Duration;

use warptrace_model::{Object, Value};

/// A variable that could not be read, and so does not hold. The value is left out: it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is ignored: it should be {expected}")]
pub struct Ignored {
    pub variable: String,
    pub expected: &'static str,
}

/// Variables, and which of them were ignored.
pub(crate) struct Variables<L> {
    lookup: L,
    ignored: RefCell<Vec<Ignored>>,
}

impl<L: Fn(&str) -> Option<String>> Variables<L> {
    pub(crate) fn new(lookup: L) -> Variables<L> {
        Variables {
            lookup,
            ignored: RefCell::default(),
        }
    }

    /// What is said in a variable; `None` when it is empty or not set.
    pub(crate) fn get(&self, name: &str) -> Option<Said<'_>> {
        let text = (self.lookup)(name)?.trim().to_owned();
        (!text.is_empty()).then(|| Said {
            name: name.to_owned(),
            text,
            ignored: &self.ignored,
        })
    }

    pub(crate) fn ignored(self) -> Vec<Ignored> {
        self.ignored.into_inner()
    }
}

/// What a variable says.
pub(crate) struct Said<'a> {
    name: String,
    text: String,
    ignored: &'a RefCell<Vec<Ignored>>,
}

impl Said<'_> {
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn ignore(&self, expected: &'static str) {
        self.ignored.borrow_mut().push(Ignored {
            variable: self.name.clone(),
            expected,
        });
    }

    /// As `parse` reads it; else it is ignored.
    pub(crate) fn read<T>(
        &self,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let read = parse(&self.text);
        if read.is_none() {
            self.ignore(expected);
        }
        read
    }

    pub(crate) fn is_true(&self) -> bool {
        self.text.eq_ignore_ascii_case("true")
    }

    /// A time of at least a millisecond.
    pub(crate) fn millis(&self) -> Option<Duration> {
        let expected = "a number of milliseconds above 0";
        self.read(expected, |text| {
            let millis = text.parse().ok().filter(|millis| *millis > 0)?;
            Some(Duration::from_millis(millis))
        })
    }

    /// At least one.
    pub(crate) fn count(&self) -> Option<usize> {
        self.read("a number above 0", |text| {
            text.parse().ok().filter(|count| *count > 0)
        })
    }

    /// `key=value,key=value`, percent-decoded; if one of them is wrong, all are ignored.
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        let pairs = self.text.split(',').filter(|pair| !pair.trim().is_empty());
        let pairs = pairs.map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let key = percent_decoded(key.trim())?;
            (!key.is_empty()).then_some((key, percent_decoded(value.trim())?))
        });
        self.read(
            "key=value,key=value, with others than these characters as %20",
            |_| pairs.collect(),
        )
        .unwrap_or_default()
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The resource by `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME`, the latter before the former's `service.name`, and what
/// was ignored. All values are text.
///
/// Without either there is no `service.name`: the caller knows a better default than a library.
pub fn resource_from_env(lookup: impl Fn(&str) -> Option<String>) -> (Object, Vec<Ignored>) {
    let variables = Variables::new(lookup);
    let pairs = variables.get("OTEL_RESOURCE_ATTRIBUTES");
    let pairs = pairs.map(|said| said.pairs()).unwrap_or_default();
    let pairs = pairs
        .into_iter()
        .map(|(key, value)| (key.into(), Value::String(value.into())));
    let mut resource = Object::from_pairs(pairs.collect());
    if let Some(name) = variables.get("OTEL_SERVICE_NAME") {
        resource.insert("service.name", name.text());
    }
    (resource, variables.ignored())
}

/// Where OpenTelemetry's variables say that a signal goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exporter {
    Otlp,
    Prometheus,
}

/// What OpenTelemetry's variables say of exporting at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exporters {
    /// `OTEL_SDK_DISABLED`.
    pub disabled: bool,
    /// `OTEL_METRICS_EXPORTER`: none of them (`none`), or those that are named. `None` where it says nothing.
    pub metrics: Option<Vec<Exporter>>,
    /// `OTEL_TRACES_EXPORTER`.
    pub traces: Option<Vec<Exporter>>,
}

impl Exporters {
    /// By the variables, and which of them were ignored.
    ///
    /// Several exporters are a list with commas. `console` is ignored: stdout is for what is found.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> (Exporters, Vec<Ignored>) {
        let variables = Variables::new(lookup);
        let exporters = |name: &str, expected, known: &[(&str, Exporter)]| {
            let said = variables.get(name)?;
            said.read(expected, |text| {
                let words = text
                    .split(',')
                    .map(str::trim)
                    .filter(|word| *word != "none");
                let named = |word: &str| {
                    known
                        .iter()
                        .find(|(name, _)| *name == word)
                        .map(|(_, e)| *e)
                };
                words.map(named).collect::<Option<Vec<_>>>()
            })
        };
        let metrics = [
            ("otlp", Exporter::Otlp),
            ("prometheus", Exporter::Prometheus),
        ];
        let found = Exporters {
            disabled: variables
                .get("OTEL_SDK_DISABLED")
                .is_some_and(|said| said.is_true()),
            metrics: exporters(
                "OTEL_METRICS_EXPORTER",
                "otlp, prometheus or none",
                &metrics,
            ),
            traces: exporters("OTEL_TRACES_EXPORTER", "otlp or none", &metrics[..1]),
        };
        (found, variables.ignored())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exporters_are_chosen_by_signal_and_what_is_not_known_is_ignored() {
        use Exporter::{Otlp, Prometheus};
        let read = |metrics: &str, traces: &str, disabled: &str| {
            Exporters::from_env(|name| {
                let said = match name {
                    "OTEL_METRICS_EXPORTER" => metrics,
                    "OTEL_TRACES_EXPORTER" => traces,
                    "OTEL_SDK_DISABLED" => disabled,
                    _ => return None,
                };
                Some(said.to_owned())
            })
        };
        let (none, ignored) = read("", "", "1");
        assert_eq!((none, ignored.len()), (Exporters::default(), 0));
        let (both, _) = read("otlp, prometheus", "none", "TRUE");
        assert_eq!(both.metrics, Some(vec![Otlp, Prometheus]));
        assert_eq!((both.traces, both.disabled), (Some(Vec::new()), true));
        let (wrong, ignored) = read("console", "prometheus", "");
        assert_eq!((wrong, ignored.len()), (Exporters::default(), 2));
    }

    #[track_caller]
    fn check(attributes: &str, name: &str, expected: &[(&str, &str)], ignored: usize) {
        let (resource, said) = resource_from_env(|variable| match variable {
            "OTEL_RESOURCE_ATTRIBUTES" => Some(attributes.to_owned()),
            "OTEL_SERVICE_NAME" => Some(name.to_owned()),
            _ => None,
        });
        let pairs = expected.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        assert_eq!(resource, Object::from_pairs(pairs.collect()));
        assert_eq!(said.len(), ignored, "{said:?}");
    }

    #[test]
    fn the_resource_is_pairs_and_the_services_name_comes_first() {
        check("", "", &[], 0);
        check("a=1, b = two%20%2C ,", "", &[("a", "1"), ("b", "two ,")], 0);
        check(
            "service.name=x,a=1",
            "train",
            &[("service.name", "train"), ("a", "1")],
            0,
        );
        check("a=1,a=2", "", &[("a", "2")], 0);
        check("a=b=c", "", &[("a", "b=c")], 0);
    }

    #[test]
    fn one_wrong_pair_makes_all_of_them_ignored() {
        for wrong in ["a", "a=1,b", "=1", "a=%4", "a=%ff", "a=%g0"] {
            check(wrong, "train", &[("service.name", "train")], 1);
        }
    }
}
