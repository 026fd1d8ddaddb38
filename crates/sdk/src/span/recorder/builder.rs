//! How a recorder is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::{Filter, Open, Recorder, Rules, Shared, Strategy, Way};
use crate::fork::ForkMutex;
use crate::span::current::Contexts;
use crate::span::exporter::Outlet;
use crate::span::queue::{QUEUE_ITEMS, Queue};
use crate::span::scopes::Scopes;
use crate::span::{Clock, Current, Error, Exporter, FailureLimit, Interest, SystemClock};

/// Settings of a [`Recorder`].
#[derive(Default)]
pub struct Builder {
    clock: Option<Arc<dyn Clock>>,
    current: Option<Box<dyn Current>>,
    rules: Option<Arc<dyn Rules>>,
    filter: Option<Filter>,
    strategy: Strategy,
    failure_limit: FailureLimit,
    queue_items: Option<usize>,
    exporters: Vec<(Box<str>, Box<dyn Exporter>, bool)>,
    off: bool,
}

impl Builder {
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Builder {
        self.clock = Some(clock);
        self
    }

    #[must_use]
    pub fn current(mut self, current: Box<dyn Current>) -> Builder {
        self.current = Some(current);
        self
    }

    #[must_use]
    pub fn rules(mut self, rules: Arc<dyn Rules>) -> Builder {
        self.rules = Some(rules);
        self
    }

    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Builder {
        self.filter = Some(filter);
        self
    }

    pub(crate) fn filter_unless_set(mut self, filter: impl FnOnce() -> Filter) -> Builder {
        self.filter.get_or_insert_with(filter);
        self
    }

    #[must_use]
    pub fn strategy(mut self, strategy: Strategy) -> Builder {
        self.strategy = strategy;
        self
    }

    #[must_use]
    pub fn failure_limit(mut self, limit: FailureLimit) -> Builder {
        self.failure_limit = limit;
        self
    }

    /// Records that may wait for an exporter; [`QUEUE_ITEMS`] unless said.
    #[must_use]
    pub fn queue_items(mut self, items: usize) -> Builder {
        self.queue_items = Some(items);
        self
    }

    /// Adds an exporter with a queue and a thread of its own: recording never waits for it.
    #[must_use]
    pub fn exporter(mut self, name: &str, exporter: Box<dyn Exporter>) -> Builder {
        self.exporters.push((name.into(), exporter, false));
        self
    }

    /// Adds an exporter that is called in the thread that records, which waits for it.
    #[must_use]
    pub fn direct_exporter(mut self, name: &str, exporter: Box<dyn Exporter>) -> Builder {
        self.exporters.push((name.into(), exporter, true));
        self
    }

    /// Whether it records at all: a rank that does not report says `false` here and pays one branch a call.
    #[must_use]
    pub fn on(mut self, on: bool) -> Builder {
        self.off = !on;
        self
    }

    /// Makes the exporters ready, in order, and the recorder.
    ///
    /// # Errors
    /// [`Error::InvalidFilter`], or [`Error::Initialize`] for the first exporter that is not ready; those before it are dropped.
    pub fn build(self) -> Result<Recorder, Error> {
        let filter = self.filter.unwrap_or_default();
        if matches!(&filter, Filter::Only(names) | Filter::AllBut(names) if names.is_empty()) {
            return Err(Error::InvalidFilter);
        }
        let own_clock = self.clock.clone();
        let clock = self.clock.unwrap_or_else(|| Arc::new(SystemClock));
        let items = self.queue_items.unwrap_or(QUEUE_ITEMS);
        let mut outlets: Vec<Way> = Vec::with_capacity(self.exporters.len());
        if !self.off {
            for (name, exporter, direct) in self.exporters {
                if let Err(source) = exporter.initialize() {
                    return Err(Error::Initialize {
                        exporter: name,
                        source,
                    });
                }
                let outlet = Outlet::new(exporter, &name, self.failure_limit);
                outlets.push(match direct {
                    true => Way::Direct(outlet),
                    false => Way::Queued(Queue::new(outlet, Arc::clone(&clock), items)),
                });
            }
        }
        let queues = outlets.iter().filter_map(|way| match way {
            Way::Queued(queue) if queue.outlet().interest == Interest::Finished => {
                Some(queue.clone())
            }
            _ => None,
        });
        let queues: Vec<Queue> = queues.collect();
        let plain = self.current.is_none() && self.rules.is_none() && queues.len() == outlets.len();
        let contexts = match self.current {
            Some(current) => Contexts::Own(current),
            None => Contexts::Threads(Scopes::new(if plain { queues } else { Vec::new() })),
        };
        Ok(Recorder(Arc::new(Shared {
            on: AtomicBool::new(!self.off),
            closed: AtomicBool::new(false),
            strategy: self.strategy,
            filter,
            own_clock,
            contexts,
            rules: self.rules,
            outlets,
            open: ForkMutex::new(Open::default()),
            plain,
            failed_calls: AtomicU64::new(0),
            from_exporters: AtomicU64::new(0),
        })))
    }
}
