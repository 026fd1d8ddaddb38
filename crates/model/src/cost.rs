//! What a GPU costs an hour, and so what a stall does.
//!
//! A table of public list prices is built in, each with where and when it was read; a file of one's own prices comes before it.
//! A GPU, or a provider, that no row names has no cost: there is no price for "any other".
//!
//! It reads no file and no syntax: callers bring the file as open data ([`Value`]), from YAML or JSON.

mod file;
mod list;

use std::collections::BTreeMap;
use std::fmt;

use crate::{Finding, Window};

pub use self::file::RatesError;

/// An amount, or a price an hour, in millionths of a currency's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Micros(pub u64);

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    /// Of one GPU, an hour.
    pub per_hour: Micros,
    /// Where the price was read: a public page and what of it, or what the file says.
    pub source: String,
    /// When it was read: `YYYY-MM` or `YYYY-MM-DD`; empty where a file does not say.
    pub as_of: String,
    /// A public list price, as it is built in; else one's own.
    pub is_list: bool,
}

/// Why there is no price. Neither is an error; no cost is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NoRate {
    /// Nobody said whose GPU it is, so no price is its.
    ProviderNotKnown,
    NoSuchProvider,
    NoSuchGpu,
}

impl fmt::Display for NoRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoRate::ProviderNotKnown => "the provider is not known",
            NoRate::NoSuchProvider => "no prices of this provider",
            NoRate::NoSuchGpu => "no price of this GPU",
        })
    }
}

impl std::error::Error for NoRate {}

/// Prices an hour, by provider and GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rates {
    /// As `USD`.
    pub currency: String,
    /// As `$`; stands before amounts. May be empty.
    pub symbol: String,
    /// Whose GPUs they are when nobody says otherwise.
    pub default_provider: Option<String>,
    /// By provider in lower case, then by [`gpu_key`].
    rows: BTreeMap<String, BTreeMap<String, Rate>>,
}

impl Rates {
    /// The list prices that are built in, in US dollars.
    pub fn built_in() -> Rates {
        let mut rates = Rates {
            currency: "USD".to_owned(),
            symbol: "$".to_owned(),
            default_provider: None,
            rows: BTreeMap::new(),
        };
        for row in &list::ROWS {
            let rate = Rate {
                per_hour: Micros(row.micros_per_hour),
                source: row.source.to_owned(),
                as_of: row.as_of.to_owned(),
                is_list: true,
            };
            rates.insert(row.provider, row.gpu, rate);
        }
        rates
    }

    /// The price of `gpu`, as NVML names it (`NVIDIA H100 80GB HBM3`), at `provider` (`aws`), or at the default one.
    ///
    /// # Errors
    /// [`NoRate`]: there is none, and none is made up.
    pub fn rate(&self, provider: Option<&str>, gpu: &str) -> Result<&Rate, NoRate> {
        let provider = provider.or(self.default_provider.as_deref());
        let provider = provider.ok_or(NoRate::ProviderNotKnown)?;
        let rows = self.rows.get(&provider.to_lowercase());
        let rows = rows.ok_or(NoRate::NoSuchProvider)?;
        rows.get(&gpu_key(gpu)).ok_or(NoRate::NoSuchGpu)
    }

    /// All rows: provider, GPU as [`gpu_key`] has it, price; sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &Rate)> {
        self.rows.iter().flat_map(|(provider, gpus)| {
            gpus.iter()
                .map(move |(gpu, rate)| (provider.as_str(), gpu.as_str(), rate))
        })
    }

    fn insert(&mut self, provider: &str, gpu: &str, rate: Rate) {
        let gpus = self.rows.entry(provider.to_lowercase()).or_default();
        gpus.insert(gpu_key(gpu), rate);
    }

    /// An amount for people: `$12.30`, and `$0.0042` for what is less than a tenth.
    pub fn show(&self, amount: Micros) -> String {
        show_amount(amount, &self.symbol, &self.currency)
    }
}

/// An amount for people, as [`Rates::show`] has it: the currency's name comes after it where there is no symbol.
pub fn show_amount(amount: Micros, symbol: &str, currency: &str) -> String {
    let (units, micros) = (amount.0 / 1_000_000, amount.0 % 1_000_000);
    let text = match amount.0 {
        0 => format!("{symbol}0.00"),
        1..100_000 => format!("{symbol}0.{:04}", micros.div_ceil(100)),
        // To the nearest cent; what is rounded up to 100 of them is one more unit.
        _ => {
            let cents = (micros + 5_000) / 10_000;
            let (units, cents) = (units + cents / 100, cents % 100);
            format!("{symbol}{units}.{cents:02}")
        }
    };
    match symbol.is_empty() {
        true => format!("{text} {currency}"),
        false => text,
    }
}

/// A GPU's name without its maker's, in lower case: drivers of different ages say `A100-SXM4-40GB`, `NVIDIA A100-SXM4-40GB`,
/// `Tesla T4` and `NVIDIA T4`.
pub fn gpu_key(name: &str) -> String {
    let mut rest = name.trim().to_lowercase();
    for maker in ["nvidia ", "tesla "] {
        if let Some(shorter) = rest.strip_prefix(maker) {
            rest = shorter.trim_start().to_owned();
        }
    }
    rest
}

/// What a stall costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StallCost {
    /// In all.
    pub total: Micros,
    /// For each hour that it goes on like that; `None` for a stall without a length.
    pub per_hour: Option<Micros>,
}

/// The cost of GPU time that was lost: `lost_ns` of `window` on each of `devices` GPUs at `rate`.
///
/// A GPU cannot lose more than all of the window, so more is as much. A finding's cost is that of its `excess_ns` and `window`.
pub fn stall_cost(rate: &Rate, devices: u32, lost_ns: u64, window: Window) -> StallCost {
    const HOUR_NS: u128 = 3_600_000_000_000;
    let length = window.end.since(window.start);
    let lost = u128::from(lost_ns.min(length));
    let rate = u128::from(rate.per_hour.0) * u128::from(devices);
    // Prices within a file's limit, a million GPUs and a century fit in 128 bits; what does not is the most there is.
    let part = |of: u128| {
        let micros = rate.saturating_mul(lost).saturating_add(of / 2) / of;
        Micros(u64::try_from(micros).unwrap_or(u64::MAX))
    };
    StallCost {
        total: part(HOUR_NS),
        per_hour: (length > 0).then(|| part(u128::from(length))),
    }
}

/// The price list that findings are priced by, and whose GPUs they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prices {
    pub rates: Rates,
    /// What somebody said; it comes before what the machine says.
    pub provider: Option<String>,
}

impl Default for Prices {
    /// The built-in list.
    fn default() -> Prices {
        Prices {
            rates: Rates::built_in(),
            provider: None,
        }
    }
}

/// A device as it is priced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PricedDevice<'a> {
    /// As NVML has it; empty when it is not known.
    pub name: &'a str,
    /// Whether the process that a cost is of was seen on it.
    pub is_used: bool,
}

/// The cost of a finding, and what it was reckoned by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FindingCost<'a> {
    pub cost: StallCost,
    pub rate: &'a Rate,
    pub provider: &'a str,
    pub gpu: &'a str,
    pub gpus: u32,
}

impl Prices {
    /// What `finding` cost on the machine's `devices`; `machine` is the provider that the machine says, empty if it says none.
    ///
    /// A process is on the devices where it was seen; where it was seen on none (another pid namespace), on one of the machine's, which
    /// must be alike. A unit of one device is one GPU's time, of several that of all that its process is on. `None`: nothing was lost, or
    /// there is no price.
    pub fn of<'a>(
        &'a self,
        finding: &Finding,
        machine: &'a str,
        devices: &[PricedDevice<'a>],
    ) -> Option<FindingCost<'a>> {
        if finding.excess_ns == 0 {
            return None;
        }
        let said = self.provider.as_deref();
        let machine = Some(machine).filter(|provider| !provider.is_empty());
        let provider = said
            .or(machine)
            .or(self.rates.default_provider.as_deref())?;
        let used = devices.iter().filter(|device| device.is_used).count();
        let of = devices.iter().filter(|device| used == 0 || device.is_used);
        let mut names = of.map(|device| device.name);
        let gpu = names.next()?;
        if names.any(|other| other != gpu) {
            return None;
        }
        let gpus = match finding.key.device {
            Some(_) => 1,
            None => u32::try_from(used.max(1)).unwrap_or(u32::MAX),
        };
        let rate = self.rates.rate(Some(provider), gpu).ok()?;
        Some(FindingCost {
            cost: stall_cost(rate, gpus, finding.excess_ns, finding.window),
            rate,
            provider,
            gpu,
            gpus,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BootNanos;

    const SECOND: u64 = 1_000_000_000;

    fn window(secs: u64) -> Window {
        Window {
            start: BootNanos(7),
            end: BootNanos(7 + secs * SECOND),
        }
    }

    fn rate(micros: u64) -> Rate {
        Rate {
            per_hour: Micros(micros),
            source: String::new(),
            as_of: String::new(),
            is_list: false,
        }
    }

    #[test]
    fn a_tenth_of_eight_gpus_for_half_an_hour_costs_what_it_should() {
        let cost = stall_cost(&rate(2_500_000), 8, 180 * SECOND, window(1800));
        // 8 · 2.50 an hour is 20; a tenth of it, 2 an hour; half an hour of that, 1.
        assert_eq!(cost.per_hour, Some(Micros(2_000_000)));
        assert_eq!(cost.total, Micros(1_000_000));
    }

    #[test]
    fn a_gpu_loses_no_more_than_all_its_time_and_a_moment_has_no_price_an_hour() {
        let all = stall_cost(&rate(3_600_000), 1, u64::MAX, window(10));
        assert_eq!(all.total, Micros(10_000));
        assert_eq!(all.per_hour, Some(Micros(3_600_000)));
        let none = stall_cost(&rate(3_600_000), 1, SECOND, window(0));
        assert_eq!((none.total, none.per_hour), (Micros(0), None));
        let most = stall_cost(&rate(u64::MAX), u32::MAX, u64::MAX, window(1_000_000));
        assert_eq!(most.per_hour, Some(Micros(u64::MAX)));
    }

    #[test]
    fn a_gpu_or_provider_without_a_row_has_no_cost() {
        let rates = Rates::built_in();
        let h100 = "NVIDIA H100 80GB HBM3";
        assert_eq!(rates.rate(None, h100), Err(NoRate::ProviderNotKnown));
        assert_eq!(rates.rate(Some("me"), h100), Err(NoRate::NoSuchProvider));
        for gpu in ["NVIDIA H100", "H100 80GB", "", "simgpu"] {
            assert_eq!(rates.rate(Some("aws"), gpu), Err(NoRate::NoSuchGpu));
        }
        assert!(rates.rate(Some("AWS"), h100).is_ok());
    }

    #[test]
    fn a_gpu_is_known_by_the_names_that_drivers_of_any_age_give_it() {
        let rates = Rates::built_in();
        let known = |name| rates.rate(Some("aws"), name).unwrap().per_hour;
        assert_eq!(known("Tesla T4"), known("NVIDIA T4"));
        assert_eq!(known("A100-SXM4-40GB"), known("NVIDIA A100-SXM4-40GB"));
        assert_ne!(known("A100-SXM4-80GB"), known("A100-SXM4-40GB"));
    }

    #[test]
    fn every_built_in_price_says_where_and_when_it_was_read_and_is_there_once() {
        let rates = Rates::built_in();
        assert_eq!(rates.iter().count(), list::ROWS.len());
        for (provider, gpu, rate) in rates.iter() {
            assert!(rate.source.starts_with("https://"), "{provider} {gpu}");
            assert!(file::is_date(&rate.as_of), "{provider} {gpu}");
            // A list price of one GPU is between ten cents and fifty dollars: a price of a whole machine is not.
            assert!((100_000..50_000_000).contains(&rate.per_hour.0), "{gpu}");
        }
    }

    #[test]
    fn the_documentation_has_the_same_prices() {
        let page = include_str!("../../../docs/cost.md");
        let mut listed = Vec::new();
        let mut provider = String::new();
        for line in page.lines().filter(|l| l.starts_with('|')) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [first, gpu, price, _, as_of] = cells[..] else {
                continue;
            };
            let Ok(price) = price.parse::<f64>() else {
                continue;
            };
            if let Some(name) = first.split('`').nth(1) {
                name.clone_into(&mut provider);
            }
            listed.push((
                provider.clone(),
                gpu.to_owned(),
                (price * 1e6).round() as u64,
                as_of,
            ));
        }
        let ours = list::ROWS.iter();
        let ours = ours.map(|r| {
            let provider = r.provider.to_owned();
            (provider, r.gpu.to_owned(), r.micros_per_hour, r.as_of)
        });
        assert_eq!(listed, ours.collect::<Vec<_>>());
    }

    #[test]
    fn amounts_are_shown_to_the_cent_and_small_ones_to_a_hundredth_of_it() {
        let rates = Rates::built_in();
        for (micros, shown) in [
            (0, "$0.00"),
            (42, "$0.0001"),
            (4_200, "$0.0042"),
            (100_000, "$0.10"),
            (1_995_000, "$2.00"),
            (12_300_000, "$12.30"),
            (u64::MAX, "$18446744073709.55"),
        ] {
            assert_eq!(rates.show(Micros(micros)), shown);
        }
    }
}
