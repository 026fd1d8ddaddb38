//! The table `serving`: what inference servers said of themselves, each time that they were asked.

use warptrace_model::serving::{
    Engine, ServingHistogram, ServingMetric, ServingReading, ServingValue,
};
use warptrace_model::{BootNanos, Incarnation, Pid};

use crate::rows::{ServingBucketRow, ServingRow};

/// A row of `serving`: one measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredReading {
    /// When the server answered.
    pub at: BootNanos,
    pub process: Incarnation,
    pub engine: Engine,
    pub reading: ServingReading,
}

impl ServingRow {
    pub(crate) fn new(
        at: BootNanos,
        process: Incarnation,
        engine: Engine,
        reading: &ServingReading,
    ) -> ServingRow {
        let mut row = ServingRow {
            boot_ns: at.0,
            pid: process.pid.0,
            start_ticks: process.start_ticks,
            engine: engine.name().to_owned(),
            model: reading.model.clone(),
            metric: reading.metric.name().to_owned(),
            value: None,
            count: None,
            sum: None,
            buckets: Vec::new(),
        };
        match &reading.value {
            ServingValue::Number(x) => row.value = Some(*x),
            ServingValue::Histogram(h) => {
                (row.count, row.sum) = (Some(h.count), Some(h.sum));
                let bounds = h.bounds.iter().map(|le| Some(*le)).chain([None]);
                let buckets = bounds.zip(&h.counts);
                row.buckets = buckets
                    .map(|(le, count)| ServingBucketRow { le, count: *count })
                    .collect();
            }
        }
        row
    }

    pub(crate) fn reading(self) -> Option<StoredReading> {
        let metrics = ServingMetric::ALL.into_iter();
        let value = match (self.value, self.count) {
            (Some(value), _) => ServingValue::Number(value),
            (None, count) => ServingValue::Histogram(ServingHistogram {
                sum: self.sum?,
                count: count?,
                bounds: self.buckets.iter().filter_map(|b| b.le).collect(),
                counts: self.buckets.iter().map(|b| b.count).collect(),
            }),
        };
        Some(StoredReading {
            at: BootNanos(self.boot_ns),
            process: Incarnation {
                pid: Pid(self.pid),
                start_ticks: self.start_ticks,
            },
            engine: Engine::by_name(&self.engine)?,
            reading: ServingReading {
                metric: metrics.into_iter().find(|m| m.name() == self.metric)?,
                model: self.model,
                value,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use warptrace_model::serving::ServingKind;
    use warptrace_model::{ClockAnchor, UnixNanos};

    use super::*;
    use crate::fs::{Fs, MemFs};
    use crate::{DataDir, Session, SessionMeta, SessionWriter};

    #[test]
    fn every_reading_of_every_metric_comes_back_as_it_was_said() {
        let fs: Arc<dyn Fs> = Arc::new(MemFs::new());
        let mut meta = SessionMeta::new(ClockAnchor {
            boot: BootNanos(0),
            unix: UnixNanos(1_000),
        });
        meta.id = "s".to_owned();
        let mut writer = SessionWriter::create(fs.clone(), &DataDir::at("/data"), meta).unwrap();
        let process = Incarnation {
            pid: Pid(7),
            start_ticks: 9,
        };
        let readings: Vec<ServingReading> = ServingMetric::ALL
            .into_iter()
            .enumerate()
            .map(|(i, metric)| ServingReading {
                metric,
                model: (i % 2 == 0).then(|| "meta-llama/Llama-3.1-8B".to_owned()),
                value: match metric.kind() {
                    // One without buckets, as Triton's are.
                    ServingKind::Histogram if i % 3 == 0 => {
                        ServingValue::Histogram(ServingHistogram {
                            sum: 0.1,
                            count: 3,
                            ..ServingHistogram::default()
                        })
                    }
                    ServingKind::Histogram => ServingValue::Histogram(ServingHistogram {
                        sum: 1.25,
                        count: 6,
                        bounds: vec![0.1, 1.0],
                        counts: vec![1, 2, 3],
                    }),
                    _ => ServingValue::Number(i as f64 / 7.0),
                },
            })
            .collect();
        for secs in [20, 10] {
            let at = BootNanos(secs * 1_000_000_000);
            writer.serving(at, process, Engine::Vllm, &readings);
        }
        writer.seal().unwrap();

        let session = Session::open(fs, Path::new("/data/sessions/s")).unwrap();
        let stored = session.serving().unwrap();
        assert!(
            stored
                .iter()
                .all(|s| (s.process, s.engine) == (process, Engine::Vllm))
        );
        for (half, secs) in stored.chunks(readings.len()).zip([10, 20]) {
            assert!(half.iter().all(|s| s.at == BootNanos(secs * 1_000_000_000)));
            let again: Vec<ServingReading> = half.iter().map(|s| s.reading.clone()).collect();
            assert_eq!(again, readings);
        }
        assert_eq!(stored.len(), 2 * readings.len());
        assert!(session.gaps().unwrap().is_empty());
    }
}
