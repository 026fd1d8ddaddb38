//! What findings cost: the prices of a price list, by the session's devices and its machine's provider.

use serde::Serialize;
use warptrace_model::Finding as ModelFinding;
use warptrace_model::cost::{Micros, PricedDevice, Prices, show_amount};
use warptrace_store::{Session, StoreError, StoredDevice};

/// What a finding cost, in millionths of the currency's unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cost {
    pub total_micros: u64,
    /// For each hour that it goes on like that; `null` for a finding without a length.
    pub per_hour_micros: Option<u64>,
    /// `USD`.
    pub currency: String,
    /// `$`; may be empty.
    pub currency_symbol: String,
    /// As the driver names it.
    pub gpu: String,
    pub gpus: u32,
    pub provider: String,
    /// Of one GPU, an hour.
    pub rate_micros: u64,
    /// Where the price was read.
    pub source: String,
    /// When; empty where a file does not say.
    pub as_of: String,
    /// A public list price; else one's own.
    pub is_list: bool,
}

impl Cost {
    /// In words: `$1.23, $4.10 an hour while it goes on (NVIDIA H100 PCIe, lambda list price 2026-05)`.
    pub fn words(&self) -> String {
        let show = |micros| show_amount(Micros(micros), &self.currency_symbol, &self.currency);
        let per_hour = match self.per_hour_micros {
            Some(micros) => format!(", {} an hour while it goes on", show(micros)),
            None => String::new(),
        };
        let number = match self.gpus {
            1 => String::new(),
            n => format!("{n} × "),
        };
        let source = match self.is_list {
            true => "list price".to_owned(),
            false => format!("price of {:?}", self.source),
        };
        let as_of = match self.as_of.as_str() {
            "" => String::new(),
            date => format!(" {date}"),
        };
        format!(
            "{}{per_hour} ({number}{}, {} {source}{as_of})",
            show(self.total_micros),
            self.gpu,
            self.provider
        )
    }
}

/// Prices one session's findings.
pub(crate) struct Pricer<'a> {
    prices: &'a Prices,
    /// The provider that the session's machine says.
    machine: String,
    devices: Vec<StoredDevice>,
}

impl<'a> Pricer<'a> {
    /// Reads the session's devices, if there is a provider, and so maybe a price.
    pub(crate) fn of(session: &Session, prices: &'a Prices) -> Result<Pricer<'a>, StoreError> {
        let machine = session.meta().identity.provider.clone();
        let known = prices.provider.is_some()
            || prices.rates.default_provider.is_some()
            || !machine.is_empty();
        Ok(Pricer {
            prices,
            machine,
            devices: match known {
                true => session.devices()?,
                false => Vec::new(),
            },
        })
    }

    pub(crate) fn cost(&self, finding: &ModelFinding) -> Option<Cost> {
        let pid = finding.key.process.pid;
        let devices = self.devices.iter().map(|device| PricedDevice {
            name: &device.name,
            is_used: device.processes.contains(&pid),
        });
        let devices: Vec<_> = devices.collect();
        let priced = self.prices.of(finding, &self.machine, &devices)?;
        let rates = &self.prices.rates;
        Some(Cost {
            total_micros: priced.cost.total.0,
            per_hour_micros: priced.cost.per_hour.map(|micros| micros.0),
            currency: rates.currency.clone(),
            currency_symbol: rates.symbol.clone(),
            gpu: priced.gpu.to_owned(),
            gpus: priced.gpus,
            provider: priced.provider.to_owned(),
            rate_micros: priced.rate.per_hour.0,
            source: priced.rate.source.clone(),
            as_of: priced.rate.as_of.clone(),
            is_list: priced.rate.is_list,
        })
    }
}
