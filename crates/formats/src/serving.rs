//! What inference servers publish at `/metrics`, in our words: their names of metrics and labels to
//! [`warptrace_model::serving`].
//!
//! One reading of each metric and model comes out. Series that differ only by a rank within tensor or pipeline parallelism are
//! the same thing told several times, so the largest is taken; all others (engines of a data-parallel server, reasons, versions
//! of a model) are added, but for fractions, of which the largest is taken. Durations become seconds. Of a name and its
//! successor, which some versions publish both, the newer one counts.
//!
//! What an engine says may be wrong: values that its kind of metric cannot have, histograms whose buckets shrink, and what is
//! beyond the limits is left out and counted.

mod table;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use warptrace_model::serving::{
    Engine, ServingHistogram, ServingKind, ServingMetric, ServingReading, ServingValue,
};

use self::table::{Row, Shape, rows};
use crate::prometheus_text::{Sample, Samples};

/// Series that are kept of one scrape.
const MAX_SERIES: usize = 20_000;
/// Models of one scrape.
const MAX_MODELS: usize = 64;
/// Longest name of a model, bytes.
const MAX_MODEL: usize = 256;
/// Buckets of a histogram.
const MAX_BUCKETS: usize = 512;
/// More of anything is a mistake: so sums over all series fit.
const MOST: f64 = 1e14;

/// What a scrape says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scrape {
    /// Sorted by metric and model.
    pub readings: Vec<ServingReading>,
    /// Samples and histograms of metrics that we know, with values that cannot be.
    pub wrong: u64,
    /// Samples beyond the limits.
    pub beyond: u64,
    /// Lines that are no samples.
    pub bad_lines: u64,
    /// Samples in all. With none of `readings`, it was not the engine that answered, or one that counts nothing.
    pub samples: u64,
}

/// Reads what `engine` answered at `/metrics`, in the text format of Prometheus.
///
/// Cost: one pass, and memory for the series that we know, of which at most 20,000 are kept.
pub fn decode_scrape(engine: Engine, body: &[u8]) -> Scrape {
    let (mut bad_lines, mut count) = (0, 0);
    let samples = Samples::new(body).filter_map(|line| match line {
        Ok(sample) => {
            count += 1;
            Some(sample)
        }
        Err(_) => {
            bad_lines += 1;
            None
        }
    });
    let scrape = readings(engine, samples);
    Scrape {
        bad_lines,
        samples: count,
        ..scrape
    }
}

fn readings<'a>(engine: Engine, samples: impl IntoIterator<Item = Sample<'a>>) -> Scrape {
    let rows = rows(engine);
    let mut by_name: HashMap<&str, Vec<(usize, &Row)>> = HashMap::new();
    for (rank, row) in rows.iter().enumerate() {
        by_name.entry(row.name).or_default().push((rank, row));
    }
    let mut reader = Reader::default();
    for sample in samples {
        let name = sample.name.replacen(':', "_", 1);
        for (base, part) in parts(&name) {
            for (rank, row) in by_name.get(base).into_iter().flatten() {
                if row.shape.has(part) && row.only.is_none_or(|only| only.holds(&sample)) {
                    reader.take(*rank, row, part, &sample);
                }
            }
        }
    }
    reader.finish(&rows)
}

/// Which part of a metric a sample is, by its name's ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Value,
    Total,
    Bucket,
    Sum,
    Count,
}

/// A name may be a metric's, or that of a part of one.
fn parts(name: &str) -> impl Iterator<Item = (&str, Part)> {
    let endings = [
        ("_total", Part::Total),
        ("_bucket", Part::Bucket),
        ("_sum", Part::Sum),
        ("_count", Part::Count),
    ];
    let ending = endings
        .into_iter()
        .find_map(|(ending, part)| Some((name.strip_suffix(ending)?, part)));
    [Some((name, Part::Value)), ending].into_iter().flatten()
}

impl Shape {
    fn has(self, part: Part) -> bool {
        match self {
            Shape::Gauge => part == Part::Value,
            Shape::Counter | Shape::SumWithCount(_) => matches!(part, Part::Value | Part::Total),
            Shape::Histogram => matches!(part, Part::Bucket | Part::Sum | Part::Count),
            Shape::SumOfHistogram => part == Part::Sum,
        }
    }
}

/// Which series a sample belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Of its row in the table.
    rank: usize,
    model: Option<String>,
    /// Labels that are added over.
    group: String,
    /// Labels that tell the same thing.
    copy: String,
}

/// One series.
#[derive(Debug, Clone, Default)]
struct Series {
    value: Option<f64>,
    count: Option<f64>,
    /// Upper bound and what is up to it, as they came.
    buckets: Vec<(f64, f64)>,
}

#[derive(Default)]
struct Reader {
    series: BTreeMap<Key, Series>,
    models: Vec<String>,
    wrong: u64,
    beyond: u64,
}

/// Labels of ranks that do the same work together.
const COPIES: [&str; 3] = ["tp_rank", "pp_rank", "moe_ep_rank"];

impl Reader {
    fn take(&mut self, rank: usize, row: &Row, part: Part, sample: &Sample<'_>) {
        let value = sample.value * row.scale;
        let may_be = value.is_finite() && (value >= 0.0 || row.shape == Shape::Gauge);
        if part != Part::Bucket && !may_be {
            self.wrong += 1;
            return;
        }
        let model = ["model_name", "model"].iter().find_map(|l| sample.label(l));
        let model = model.filter(|m| !m.is_empty() && !m.contains(char::is_control));
        if model.is_some_and(|m| m.len() > MAX_MODEL) {
            self.beyond += 1;
            return;
        }
        if let Some(model) = model
            && !self.models.iter().any(|m| m == model)
        {
            if self.models.len() == MAX_MODELS {
                self.beyond += 1;
                return;
            }
            self.models.push(model.to_owned());
        }
        let mut key = Key {
            rank,
            model: model.map(str::to_owned),
            group: String::new(),
            copy: String::new(),
        };
        let mut labels: Vec<&(Cow<'_, str>, Cow<'_, str>)> = sample.labels.iter().collect();
        labels.sort_unstable();
        for (label, value) in labels {
            let label = label.as_ref();
            if ["model_name", "model", "le", "quantile"].contains(&label) {
                continue;
            }
            let to = match COPIES.contains(&label) {
                true => &mut key.copy,
                false => &mut key.group,
            };
            to.push_str(label);
            to.push('\u{0}');
            to.push_str(value);
            to.push('\u{0}');
        }
        let is_new = !self.series.contains_key(&key);
        if is_new && self.series.len() >= MAX_SERIES {
            self.beyond += 1;
            return;
        }
        let series = self.series.entry(key).or_default();
        match part {
            Part::Value | Part::Total | Part::Sum => series.value = Some(value),
            // How many is not scaled.
            Part::Count => series.count = Some(sample.value),
            Part::Bucket if series.buckets.len() >= MAX_BUCKETS => self.beyond += 1,
            Part::Bucket => match sample.label("le").and_then(bound) {
                Some(le) => series.buckets.push((le * row.scale, sample.value)),
                None => self.wrong += 1,
            },
        }
    }

    fn finish(mut self, rows: &[Row]) -> Scrape {
        // Which row each metric is taken from: the first that has a series.
        let mut from: HashMap<ServingMetric, usize> = HashMap::new();
        for key in self.series.keys() {
            let rank = from.entry(rows[key.rank].metric).or_insert(key.rank);
            *rank = (*rank).min(key.rank);
        }
        let rank_of = |metric: ServingMetric| from.get(&metric).copied();
        let mut found: BTreeMap<(ServingMetric, Option<String>), ServingValue> = BTreeMap::new();
        let mut groups: BTreeMap<(usize, Option<String>, String), ServingValue> = BTreeMap::new();
        let mut wrong = 0;
        for (key, series) in &self.series {
            let row = &rows[key.rank];
            if rank_of(row.metric) != Some(key.rank) {
                continue;
            }
            let value = match row.shape {
                Shape::Histogram => series.histogram().map(ServingValue::Histogram),
                Shape::SumWithCount(of) => {
                    let count = rows.iter().position(|r| r.name == of).and_then(|rank| {
                        let key = Key {
                            rank,
                            ..key.clone()
                        };
                        whole(self.series.get(&key)?.value?)
                    });
                    let sum = series.value.zip(count);
                    sum.map(|(sum, count)| {
                        ServingValue::Histogram(ServingHistogram {
                            sum,
                            count,
                            ..ServingHistogram::default()
                        })
                    })
                }
                _ => series.value.map(ServingValue::Number),
            };
            let Some(value) = value else {
                wrong += 1;
                continue;
            };
            // A fraction cannot be more than all; what rounds to a little more is all.
            let value = match (row.metric.kind(), value) {
                (ServingKind::Gauge, ServingValue::Number(n)) if !(0.0..=1.01).contains(&n) => {
                    wrong += 1;
                    continue;
                }
                (ServingKind::Gauge, ServingValue::Number(n)) => ServingValue::Number(n.min(1.0)),
                (_, value) => value,
            };
            let group = (key.rank, key.model.clone(), key.group.clone());
            match groups.get_mut(&group) {
                Some(known) if larger(&value, known) => *known = value,
                Some(_) => {}
                None => {
                    groups.insert(group, value);
                }
            }
        }
        for ((rank, model, _), value) in groups {
            let metric = rows[rank].metric;
            match found.get_mut(&(metric, model.clone())) {
                None => {
                    found.insert((metric, model), value);
                }
                Some(ServingValue::Histogram(known)) => {
                    if let ServingValue::Histogram(more) = &value {
                        known.add(more);
                    }
                }
                Some(ServingValue::Number(known)) => {
                    if let ServingValue::Number(more) = value {
                        *known = match metric.kind() {
                            ServingKind::Gauge => known.max(more),
                            _ => *known + more,
                        };
                    }
                }
            }
        }
        // Sums of numbers may be too large for one.
        found.retain(|_, value| {
            let is_finite = match value {
                ServingValue::Histogram(h) => h.sum.is_finite(),
                ServingValue::Number(n) => n.is_finite(),
            };
            wrong += u64::from(!is_finite);
            is_finite
        });
        self.wrong += wrong;
        let readings = found
            .into_iter()
            .map(|((metric, model), value)| ServingReading {
                metric,
                model,
                value,
            });
        Scrape {
            readings: readings.collect(),
            wrong: self.wrong,
            beyond: self.beyond,
            ..Scrape::default()
        }
    }
}

fn larger(a: &ServingValue, b: &ServingValue) -> bool {
    match (a, b) {
        (ServingValue::Number(a), ServingValue::Number(b)) => a > b,
        (ServingValue::Histogram(a), ServingValue::Histogram(b)) => a.count > b.count,
        _ => false,
    }
}

impl Series {
    /// `None` when it is none: no sum or count, or buckets that shrink.
    fn histogram(&self) -> Option<ServingHistogram> {
        let mut buckets = self.buckets.clone();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let infinite = buckets.last().filter(|(le, _)| le.is_infinite());
        let count = whole(self.count.or(infinite.map(|(_, n)| *n))?)?;
        let mut made = ServingHistogram {
            sum: self.value?,
            count,
            bounds: Vec::with_capacity(buckets.len()),
            counts: Vec::with_capacity(buckets.len() + 1),
        };
        let mut below = 0;
        for (le, up_to) in buckets.iter().filter(|(le, _)| le.is_finite()) {
            let up_to = whole(*up_to)?;
            if made.bounds.last() == Some(le) {
                return None;
            }
            made.bounds.push(*le);
            made.counts.push(up_to.checked_sub(below)?);
            below = up_to;
        }
        let above = count.checked_sub(below)?;
        if !made.bounds.is_empty() {
            made.counts.push(above);
        }
        Some(made)
    }
}

/// A number of things.
fn whole(value: f64) -> Option<u64> {
    let is_whole = value >= 0.0 && value.fract() == 0.0 && value < MOST;
    is_whole.then_some(value as u64)
}

/// The value of `le`.
fn bound(text: &str) -> Option<f64> {
    let value: f64 = text.parse().ok()?;
    (!value.is_nan() && value > f64::NEG_INFINITY).then_some(value)
}

#[cfg(test)]
mod tests;
