//! Annotations that a job sends to a recorder.

use std::cell::Cell;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use pyo3::conversion::FromPyObjectOwned;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyInt, PyString, PyTuple};
use warptrace_model::number_text::Decimal;
use warptrace_model::{LabelError, Labels};
use warptrace_sdk::annotation::{Dropped, Fate, Line, Refusal, Writer};

use crate::said::{Once, swallow};

/// Adds this subject's names to the native module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<AnnotationWriter>()?;
    module.add_class::<AnnotationCounts>()?;
    module.add_function(wrap_pyfunction!(encode_annotation, module)?)
}

/// Sends labels to whoever records this job: a step, an epoch, a request.
///
/// A writer is for the whole program and all of its threads, and a forked child may go on with it. It never waits and never
/// raises: what cannot be delivered is dropped and counted. Without a recorder a call costs a microsecond.
///
/// Without `socket_path`: the socket that WARPTRACE_ANNOTATE_SOCKET names (`warptrace record --annotate` sets it), else the
/// first of the usual places where somebody listens. Connects with the first line.
#[pyclass(module = "warptrace", frozen)]
struct AnnotationWriter {
    writer: Writer,
    /// Refused before the writer saw them: no labels, or numbers out of range.
    unsaid: AtomicU64,
    refused: Once,
    full: Once,
}

/// What became of a writer's lines, in this process and in those that it was forked from.
#[pyclass(module = "warptrace", frozen, get_all, eq)]
#[derive(PartialEq, Eq)]
struct AnnotationCounts {
    /// Lines that the kernel took; those that the recorder had not read when it died are among them.
    sent: u64,
    /// Lines against the protocol.
    refused: u64,
    /// Lines while nobody listened.
    no_agent: u64,
    /// Lines that the recorder was too slow for.
    full: u64,
    /// Lines after `close`.
    closed: u64,
    /// Connections that were made.
    connections: u64,
}

#[pymethods]
impl AnnotationCounts {
    fn __repr__(&self) -> String {
        let AnnotationCounts {
            sent,
            refused,
            no_agent,
            full,
            closed,
            connections,
        } = self;
        format!(
            "AnnotationCounts(sent={sent}, refused={refused}, no_agent={no_agent}, full={full}, closed={closed}, \
             connections={connections})"
        )
    }
}

#[pymethods]
impl AnnotationWriter {
    #[new]
    #[pyo3(signature = (socket_path=None))]
    fn new(socket_path: Option<PathBuf>) -> AnnotationWriter {
        AnnotationWriter {
            writer: match socket_path {
                Some(path) => Writer::to(path),
                None => Writer::new(),
            },
            unsaid: AtomicU64::new(0),
            refused: Once::new(),
            full: Once::new(),
        }
    }

    /// Labels this process from now on, until it says the same keys again. Returns whether the line was taken.
    ///
    /// labels: 1 to 32; keys of 1 to 64 characters of `A-Z a-z 0-9 _ . -`; values go as their `str()`, up to 256 bytes of
    /// UTF-8 without control characters.
    /// pid: of another process of the same user; 0 is everything that is recorded.
    /// ts_ns: Unix nanoseconds; now, when it is not given.
    #[pyo3(signature = (labels, *, pid=None, ts_ns=None))]
    fn write(
        &self,
        labels: &Bound<'_, PyAny>,
        pid: Option<&Bound<'_, PyAny>>,
        ts_ns: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let line = line(labels, pid, || Ok((ts_ns.map(integer).transpose()?, None)));
        self.send(labels.py(), line)
    }

    /// Labels an interval of this process that is over, such as a request; otherwise as `write`.
    ///
    /// start_ns, end_ns: its first and last Unix nanosecond (`time.time_ns()`), neither of them 0.
    #[pyo3(signature = (labels, *, start_ns, end_ns, pid=None))]
    fn span(
        &self,
        labels: &Bound<'_, PyAny>,
        start_ns: &Bound<'_, PyAny>,
        end_ns: &Bound<'_, PyAny>,
        pid: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let span = || Ok((None, Some((integer(start_ns)?, integer(end_ns)?))));
        self.send(labels.py(), line(labels, pid, span))
    }

    /// Sends a line that is encoded already, with its line feed, as it is: the recorder judges what it says.
    fn write_encoded(&self, py: Python<'_>, line: &[u8]) -> bool {
        let fate = self.writer.write_encoded(line);
        self.took(py, fate)
    }

    /// Encodes and sends in one call what `encode_annotation` takes; None for what that does not take, which is not sent.
    #[pyo3(signature = (labels, pid=None, ts_ns=None))]
    fn write_plain(
        &self,
        labels: &Bound<'_, PyAny>,
        pid: Option<&Bound<'_, PyAny>>,
        ts_ns: Option<&Bound<'_, PyAny>>,
    ) -> Option<bool> {
        let line = plain_line(labels, pid, ts_ns)?;
        match self.writer.write_unstamped(&line) {
            Fate::Dropped(Dropped::Refused(_)) => None,
            fate => Some(self.took(labels.py(), fate)),
        }
    }

    /// Connects now if there is no connection; says whether there is one.
    fn connect(&self) -> bool {
        self.writer.connect()
    }

    /// Whether there is a connection; that it is still good shows with the next line.
    #[getter]
    fn is_connected(&self) -> bool {
        self.writer.is_connected()
    }

    /// What became of the lines so far.
    #[getter]
    fn counts(&self) -> AnnotationCounts {
        let counts = self.writer.counts();
        AnnotationCounts {
            sent: counts.sent,
            refused: counts.refused + self.unsaid.load(Ordering::Relaxed),
            no_agent: counts.no_agent,
            full: counts.full,
            closed: counts.closed,
            connections: counts.connections,
        }
    }

    /// Ends the connection for good. Later lines are dropped and counted.
    fn close(&self) {
        self.writer.close();
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) {
        self.writer.close();
    }
}

impl AnnotationWriter {
    fn send(&self, py: Python<'_>, line: PyResult<Result<Line, Refusal>>) -> PyResult<bool> {
        let fate = match swallow(py, line)? {
            Some(Ok(line)) => self.writer.write(&line),
            Some(Err(why)) => {
                self.unsaid.fetch_add(1, Ordering::Relaxed);
                Fate::Dropped(Dropped::Refused(why))
            }
            None => {
                self.unsaid.fetch_add(1, Ordering::Relaxed);
                Fate::Dropped(Dropped::Refused(Refusal::Type))
            }
        };
        Ok(self.took(py, fate))
    }

    fn took(&self, py: Python<'_>, fate: Fate) -> bool {
        match fate {
            Fate::Sent | Fate::Held => return true,
            Fate::Dropped(Dropped::NoAgent | Dropped::Closed) => {}
            Fate::Dropped(Dropped::Refused(why)) => self.refused.warn(
                py,
                format_args!(
                    "an annotation was dropped: {why} (said once; AnnotationWriter.counts has the number)"
                ),
            ),
            Fate::Dropped(Dropped::Full) => self.full.warn(
                py,
                "annotations are dropped: the recorder does not keep up (said once; AnnotationWriter.counts has the number)",
            ),
        }
        false
    }
}

/// The line that says so, with its line feed, for `AnnotationWriter.write_encoded`; None for what is against the protocol or
/// no plain dict of strings and integers.
///
/// pid: None and 0 are everything that is recorded. ts_ns: without it, the moment when the line is read.
#[pyfunction]
#[pyo3(signature = (labels, *, pid=None, ts_ns=None))]
fn encode_annotation<'py>(
    labels: &Bound<'py, PyAny>,
    pid: Option<&Bound<'py, PyAny>>,
    ts_ns: Option<&Bound<'py, PyAny>>,
) -> Option<Bound<'py, PyBytes>> {
    let mut bytes = Vec::with_capacity(128);
    plain_line(labels, pid, ts_ns)?.encode(&mut bytes).ok()?;
    Some(PyBytes::new(labels.py(), &bytes))
}

/// The line that says so; None for what is no plain dict of strings and integers, or against the protocol.
fn plain_line(
    labels: &Bound<'_, PyAny>,
    pid: Option<&Bound<'_, PyAny>>,
    ts_ns: Option<&Bound<'_, PyAny>>,
) -> Option<Line> {
    fn plain<'py, T: FromPyObjectOwned<'py>>(
        value: Option<&Bound<'py, PyAny>>,
    ) -> Option<Option<T>> {
        let Some(value) = value else {
            return Some(None);
        };
        let number = value.cast_exact::<PyInt>().ok()?;
        number.extract().ok().map(Some)
    }
    let texts = Texts::of_plain(labels.cast_exact::<PyDict>().ok()?)?;
    let labels = texts.labels();
    texts.keep();
    Some(Line {
        labels: labels.ok()?,
        ts: plain(ts_ns)?,
        pid: plain(pid)?,
        ..Line::default()
    })
}

/// A line about this process, unless `pid` says otherwise, with its time.
///
/// The inner error is the protocol's; the outer one is of values that are not what they should be.
fn line(
    labels: &Bound<'_, PyAny>,
    pid: Option<&Bound<'_, PyAny>>,
    times: impl FnOnce() -> PyResult<(Option<i64>, Option<(i64, i64)>)>,
) -> PyResult<Result<Line, Refusal>> {
    let pid: u32 = match pid {
        Some(pid) => pid.extract()?,
        None => warptrace_sdk::process_id(),
    };
    let (ts, span) = times()?;
    let texts = Texts::of(labels)?;
    let labels = texts.labels();
    texts.keep();
    let labels = match labels {
        Ok(labels) => labels,
        Err(e) => return Ok(Err(e.into())),
    };
    Ok(Ok(Line {
        labels,
        ts: ts.or_else(unix_now),
        pid: (pid != 0).then_some(pid),
        start_time: None,
        span,
    }))
}

fn integer(value: &Bound<'_, PyAny>) -> PyResult<i64> {
    value.extract()
}

fn unix_now() -> Option<i64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.ok()?.as_nanos()).ok()
}

thread_local! {
    static SCRATCH: Cell<Option<Texts>> = const { Cell::new(None) };
}

/// Labels as text: one buffer, and where each key and value lies in it.
struct Texts {
    text: String,
    places: Vec<(Range<usize>, Range<usize>)>,
}

impl Texts {
    /// The buffers of this thread. While a value's `__str__` says something itself, it finds none and gets its own.
    fn with_room() -> Texts {
        SCRATCH
            .try_with(Cell::take)
            .ok()
            .flatten()
            .unwrap_or_else(|| Texts {
                text: String::with_capacity(128),
                places: Vec::with_capacity(4),
            })
    }

    /// Gives the buffers back, unless they have become large.
    fn keep(mut self) {
        if self.text.capacity() <= 4096 {
            self.text.clear();
            self.places.clear();
            // A thread that is about to end has none.
            let _ = SCRATCH.try_with(|scratch| scratch.set(Some(self)));
        }
    }

    fn of(labels: &Bound<'_, PyAny>) -> PyResult<Texts> {
        let mut texts = Texts::with_room();
        if let Ok(dict) = labels.cast::<PyDict>() {
            for (key, value) in dict.iter() {
                texts.push(&key, &value)?;
            }
        } else {
            for pair in labels.call_method0("items")?.try_iter()? {
                let (key, value) = pair?.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
                texts.push(&key, &value)?;
            }
        }
        Ok(texts)
    }

    /// Those of a dict of strings alone.
    fn of_plain(labels: &Bound<'_, PyDict>) -> Option<Texts> {
        let mut texts = Texts::with_room();
        for (key, value) in labels.iter() {
            let plain =
                key.is_exact_instance_of::<PyString>() && value.is_exact_instance_of::<PyString>();
            if !plain {
                return None;
            }
            texts.push(&key, &value).ok()?;
        }
        Some(texts)
    }

    fn push(&mut self, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let pair = (self.append(key)?, self.append(value)?);
        self.places.push(pair);
        Ok(())
    }

    fn append(&mut self, value: &Bound<'_, PyAny>) -> PyResult<Range<usize>> {
        let start = self.text.len();
        if let Ok(text) = value.cast::<PyString>() {
            self.text.push_str(text.to_str()?);
        } else if let Some(n) = value
            .cast_exact::<PyInt>()
            .ok()
            .and_then(|n| n.extract::<i64>().ok())
        {
            self.text.push_str(Decimal::from(n).as_str());
        } else {
            self.text.push_str(value.str()?.to_str()?);
        }
        Ok(start..self.text.len())
    }

    /// The labels that these are.
    fn labels(&self) -> Result<Labels, LabelError> {
        const FEW: usize = 8;
        let text = |place: &Range<usize>| &self.text[place.clone()];
        let pairs = self
            .places
            .iter()
            .map(|(key, value)| (text(key), text(value)));
        if self.places.len() > FEW {
            return Labels::from_pairs(&pairs.collect::<Vec<_>>());
        }
        let mut few = [("", ""); FEW];
        few.iter_mut().zip(pairs).for_each(|(to, pair)| *to = pair);
        // In order they are taken as they are. The sort is stable: of equal keys the last one holds.
        let few = &mut few[..self.places.len()];
        few.sort_by_key(|(key, _)| *key);
        Labels::from_pairs(few)
    }
}
