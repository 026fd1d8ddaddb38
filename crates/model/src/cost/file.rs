//! A file of prices, as open data.
//!
//! ```yaml
//! currency_name: EUR          # USD unless said; with another currency the built-in prices are left out
//! currency_symbol: "€"
//! source: our contract        # of the prices that do not say their own
//! as_of: 2026-05-01
//! default_provider: ours      # whose GPUs they are when nobody says otherwise
//! providers:
//!   ours:
//!     NVIDIA H100 80GB HBM3: 2.10
//!     NVIDIA L4: {per_hour: 0.40, source: invoice 17, as_of: 2026-06}
//! ```
//!
//! The catalogue `gpu_rates.yaml` of ingero 0.17.0 is such a file; its `fallback_rate`, a price for GPUs that it does not name,
//! must be 0.

use std::fmt;

use super::{Micros, Rate, Rates};
use crate::{Object, Value, nearest};

/// Most prices in a file.
const MAX_ROWS: usize = 4096;
/// Longest name, source or currency, bytes.
const MAX_TEXT: usize = 256;
/// Above this much an hour, one GPU's price is a mistake.
const MAX_PER_HOUR: f64 = 10_000.0;

/// Why a file of prices is refused, all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RatesError {
    NotAnObject(String),
    UnknownKey {
        place: String,
        key: String,
        near: Option<&'static str>,
    },
    NotAText(String),
    NotADate(String),
    NotAPrice(String),
    Fallback,
    NoSuchProvider(String),
    TooMany,
}

impl fmt::Display for RatesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RatesError::NotAnObject(place) => write!(f, "{place} is not an object"),
            RatesError::UnknownKey { place, key, near } => {
                write!(f, "{place} has no key {key:?}")?;
                match near {
                    Some(near) => write!(f, " (nearest: {near})"),
                    None => Ok(()),
                }
            }
            RatesError::NotAText(place) => write!(
                f,
                "{place} is not a text of 1 to {MAX_TEXT} bytes without control characters"
            ),
            RatesError::NotADate(place) => {
                write!(f, "{place} is not a date as 2026-05 or 2026-05-01")
            }
            RatesError::NotAPrice(place) => write!(
                f,
                "{place} is not a price: a number above 0, at most {MAX_PER_HOUR} an hour"
            ),
            RatesError::Fallback => f.write_str(
                "fallback_rate is not 0: a GPU that is not named has no cost, so name it",
            ),
            RatesError::NoSuchProvider(name) => {
                write!(f, "default_provider {name:?} has no prices")
            }
            RatesError::TooMany => write!(f, "more than {MAX_ROWS} prices"),
        }
    }
}

impl std::error::Error for RatesError {}

impl Rates {
    /// These prices with a file's before them.
    ///
    /// # Errors
    /// What is wrong first; nothing of the file is used then.
    pub fn with_file(mut self, file: &Value) -> Result<Rates, RatesError> {
        const KEYS: [&str; 7] = [
            "currency_name",
            "currency_symbol",
            "source",
            "as_of",
            "default_provider",
            "providers",
            "fallback_rate",
        ];
        let top = object(file, "the file")?;
        known(top, "the file", &KEYS)?;
        if let Some(rate) = top.get("fallback_rate")
            && number(rate) != Some(0.0)
        {
            return Err(RatesError::Fallback);
        }
        let currency = text(top, "currency_name")?.unwrap_or_else(|| "USD".to_owned());
        let symbol = match top.get("currency_symbol") {
            Some(Value::String(empty)) if empty.is_empty() => Some(String::new()),
            _ => text(top, "currency_symbol")?,
        };
        if currency != self.currency {
            self.rows.clear();
            self.symbol.clear();
            self.currency = currency;
        }
        self.symbol = symbol.unwrap_or(self.symbol);
        let source = text(top, "source")?.unwrap_or_else(|| "file".to_owned());
        let as_of = date(top, "as_of", "as_of")?.unwrap_or_default();
        let mut rows = 0_usize;
        if let Some(providers) = top.get("providers") {
            for (provider, gpus) in object(providers, "providers")?.iter() {
                let place = format!("provider {provider:?}");
                if !is_text(provider) {
                    return Err(RatesError::NotAText(place));
                }
                for (gpu, price) in object(gpus, &place)?.iter() {
                    rows += 1;
                    if rows > MAX_ROWS {
                        return Err(RatesError::TooMany);
                    }
                    let place = format!("{place} {gpu:?}");
                    if !is_text(gpu) {
                        return Err(RatesError::NotAText(place));
                    }
                    let rate = rate(price, &place, &source, &as_of)?;
                    self.insert(provider, gpu, rate);
                }
            }
        }
        if let Some(provider) = text(top, "default_provider")? {
            if !self.rows.contains_key(&provider.to_lowercase()) {
                return Err(RatesError::NoSuchProvider(provider));
            }
            self.default_provider = Some(provider);
        }
        Ok(self)
    }
}

/// A number, or an object with more about it.
fn rate(price: &Value, place: &str, source: &str, as_of: &str) -> Result<Rate, RatesError> {
    let mut rate = Rate {
        per_hour: Micros(0),
        source: source.to_owned(),
        as_of: as_of.to_owned(),
        is_list: false,
    };
    let per_hour = match price {
        Value::Object(object) => {
            known(object, place, &["per_hour", "source", "as_of"])?;
            if let Some(source) = text(object, "source")? {
                rate.source = source;
            }
            if let Some(as_of) = date(object, "as_of", place)? {
                rate.as_of = as_of;
            }
            object.get("per_hour").and_then(number)
        }
        plain => number(plain),
    };
    let micros = per_hour
        .filter(|p| p.is_finite() && *p > 0.0 && *p <= MAX_PER_HOUR)
        .map(|p| (p * 1e6).round() as u64)
        .filter(|micros| *micros > 0);
    rate.per_hour = Micros(micros.ok_or_else(|| RatesError::NotAPrice(place.to_owned()))?);
    Ok(rate)
}

fn object<'a>(value: &'a Value, place: &str) -> Result<&'a Object, RatesError> {
    let object = value.as_object();
    object.ok_or_else(|| RatesError::NotAnObject(place.to_owned()))
}

fn known(object: &Object, place: &str, keys: &[&'static str]) -> Result<(), RatesError> {
    match object.iter().find(|(key, _)| !keys.contains(key)) {
        None => Ok(()),
        Some((key, _)) => Err(RatesError::UnknownKey {
            place: place.to_owned(),
            key: key.chars().take(MAX_TEXT).collect(),
            near: nearest(key, keys.iter().copied()),
        }),
    }
}

fn text(object: &Object, key: &str) -> Result<Option<String>, RatesError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if is_text(text) => Ok(Some(text.to_string())),
        Some(_) => Err(RatesError::NotAText(key.to_owned())),
    }
}

fn is_text(text: &str) -> bool {
    let length = text.trim().len();
    length > 0 && text.len() <= MAX_TEXT && !text.contains(char::is_control)
}

fn date(object: &Object, key: &str, place: &str) -> Result<Option<String>, RatesError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if is_date(text) => Ok(Some(text.to_string())),
        Some(_) => Err(RatesError::NotADate(place.to_owned())),
    }
}

pub(super) fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|p| p.len()).collect();
    let number = |i: usize| parts.get(i).and_then(|p| p.parse::<u32>().ok());
    let digits = parts.iter().all(|p| p.bytes().all(|b| b.is_ascii_digit()));
    digits
        && (lengths == [4, 2] || lengths == [4, 2, 2])
        && number(1).is_some_and(|month| (1..=12).contains(&month))
        && number(2).is_none_or(|day| (1..=31).contains(&day))
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(*number),
        Value::Int(number) => Some(number.to_f64()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(pairs: &[(&str, Value)]) -> Value {
        let mut object = Object::new();
        for (key, value) in pairs {
            object.insert(key, value.clone());
        }
        Value::Object(object)
    }

    fn prices(provider: &str, pairs: &[(&str, Value)]) -> Value {
        value(&[("providers", value(&[(provider, value(pairs))]))])
    }

    const H100: &str = "NVIDIA H100 80GB HBM3";

    #[test]
    fn a_files_price_comes_before_the_list_price_and_the_others_stay() {
        let file = prices("AWS", &[(H100, Value::Float(2.1))]);
        let rates = Rates::built_in().with_file(&file).unwrap();
        let rate = rates.rate(Some("aws"), H100).unwrap();
        assert_eq!((rate.per_hour, &*rate.source), (Micros(2_100_000), "file"));
        assert!(rates.rate(Some("aws"), "NVIDIA L4").is_ok());
    }

    #[test]
    fn prices_in_another_currency_are_not_mixed_with_dollars() {
        let row = value(&[
            ("per_hour", Value::from(3_i64)),
            ("source", "invoice 17".into()),
            ("as_of", "2026-06".into()),
        ]);
        let mut file = prices("ours", &[("L4", row)]);
        if let Value::Object(object) = &mut file {
            object.insert("currency_name", "EUR");
            object.insert("default_provider", "ours");
            object.insert("fallback_rate", Value::Float(0.0));
        }
        let rates = Rates::built_in().with_file(&file).unwrap();
        assert_eq!(rates.iter().count(), 1);
        let rate = rates.rate(None, "NVIDIA L4").unwrap();
        assert_eq!((&*rate.source, &*rate.as_of), ("invoice 17", "2026-06"));
        assert_eq!(rates.show(rate.per_hour).to_string(), "3.00 EUR");
    }

    #[track_caller]
    fn refused(file: &Value, message: &str) {
        let error = Rates::built_in().with_file(file).unwrap_err();
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn what_is_wrong_is_named_and_nothing_is_taken() {
        refused(&Value::Null, "the file is not an object");
        refused(
            &value(&[("provider", Value::Null)]),
            "the file has no key \"provider\" (nearest: providers)",
        );
        refused(
            &value(&[("fallback_rate", Value::Float(1.5))]),
            "fallback_rate is not 0: a GPU that is not named has no cost, so name it",
        );
        refused(
            &value(&[("default_provider", "azure".into())]),
            "default_provider \"azure\" has no prices",
        );
        refused(
            &value(&[("as_of", "May".into())]),
            "as_of is not a date as 2026-05 or 2026-05-01",
        );
        refused(
            &prices("aws\n", &[("L4", Value::Float(1.0))]),
            "provider \"aws\\n\" is not a text of 1 to 256 bytes without control characters",
        );
        for wrong in [
            Value::Float(f64::NAN),
            Value::Float(-1.0),
            Value::Float(0.0),
            Value::Float(1e-9),
            Value::Float(1e300),
            "1.0".into(),
            Value::Null,
            value(&[]),
        ] {
            refused(
                &prices("aws", &[("L4", wrong)]),
                "provider \"aws\" \"L4\" is not a price: a number above 0, at most 10000 an hour",
            );
        }
    }

    #[test]
    fn a_file_has_a_limit() {
        let many: Vec<String> = (0..=MAX_ROWS).map(|i| format!("gpu {i}")).collect();
        let pairs: Vec<(&str, Value)> = many
            .iter()
            .map(|g| (g.as_str(), Value::Float(1.0)))
            .collect();
        refused(&prices("aws", &pairs), "more than 4096 prices");
    }

    #[test]
    fn dates_are_dates() {
        for date in ["2026-05", "2026-12-31"] {
            assert!(is_date(date));
        }
        for wrong in [
            "2026",
            "2026-13",
            "2026-05-00",
            "26-05-01",
            "2026-05-01-01",
            "+026-05",
        ] {
            assert!(!is_date(wrong), "{wrong}");
        }
    }
}
