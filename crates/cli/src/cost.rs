//! What GPUs cost: a price list from flags, settings and files.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use warptrace_model::Value;
use warptrace_model::cost::{Prices, Rates};
use warptrace_sdk::exporter::config::parse_yaml;

use crate::config::Settings;

/// A larger file is no price list.
const MAX_BYTES: u64 = 1 << 20;

/// The built-in prices with those of `file` before them, and before those `own`; null is none.
///
/// # Errors
/// The file cannot be read, or something in it is wrong; then all of it is.
pub(crate) fn prices(
    provider: Option<&str>,
    file: Option<&Path>,
    own: &Value,
) -> anyhow::Result<Prices> {
    let mut rates = Rates::built_in();
    if let Some(path) = file {
        let content = read(path).with_context(|| format!("cannot read the prices {path:?}"))?;
        let value = parse_yaml(&content).with_context(|| path.display().to_string())?;
        rates = rates
            .with_file(&value)
            .with_context(|| path.display().to_string())?;
    }
    if !own.is_null() {
        rates = rates.with_file(own).context("cost.prices")?;
    }
    Ok(Prices {
        rates,
        provider: provider.map(str::to_owned),
    })
}

/// As a recorder's settings have them.
pub(crate) fn of_settings(settings: &Settings) -> anyhow::Result<Prices> {
    let cost = &settings.cost;
    prices(
        cost.provider.as_deref(),
        cost.rates.as_deref(),
        &cost.prices.0,
    )
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut limited = std::fs::File::open(path)?.take(MAX_BYTES + 1);
    limited.read_to_end(&mut content)?;
    if content.len() as u64 > MAX_BYTES {
        bail!("more than {MAX_BYTES} bytes");
    }
    Ok(content)
}
