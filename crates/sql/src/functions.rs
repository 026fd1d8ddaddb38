//! What the views compute: names for numbers, Unix time for boot time. Each session has its own functions, since clocks
//! and thread names differ.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, StringViewBuilder, TimestampNanosecondArray, UInt8Array, UInt16Array, UInt64Array,
    UInt64Builder,
};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::cast::{as_uint8_array, as_uint16_array, as_uint32_array, as_uint64_array};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarUDF, Volatility, create_udf};
use warptrace_model::record::op::{Bytes, OPS};
use warptrace_model::record::{Kind, OpId, Source, process};
use warptrace_model::{BootNanos, ClockAnchor, UnixNanos};
use warptrace_store::{FLAG_THREAD, Session, SessionMeta, StoreError};

/// UTC, as an offset: named zones need a database.
pub(crate) const UTC: &str = "+00:00";

/// The functions of one session's views.
pub(crate) struct Functions {
    unix: ScalarUDF,
    utc: ScalarUDF,
    layer: ScalarUDF,
    kind: ScalarUDF,
    op: ScalarUDF,
    call: ScalarUDF,
    bytes: ScalarUDF,
    comm: ScalarUDF,
    hex: ScalarUDF,
    file_type: ScalarUDF,
}

impl Functions {
    pub(crate) fn new(session: &Session) -> std::result::Result<Functions, StoreError> {
        use DataType::{UInt8, UInt16, UInt32, UInt64, Utf8View};
        let names = thread_names(session)?;
        let clock = Clock::new(session.meta());
        let utc_clock = clock.clone();
        let utc_type = DataType::Timestamp(TimeUnit::Nanosecond, Some(UTC.into()));
        Ok(Functions {
            unix: udf("unix_ns", vec![UInt64], UInt64, move |a| {
                let boot = as_uint64_array(&a[0])?;
                let unix: UInt64Array = boot.iter().map(|b| Some(clock.unix(b?))).collect();
                Ok(Arc::new(unix))
            }),
            utc: udf("utc", vec![UInt64], utc_type, move |a| {
                let boot = as_uint64_array(&a[0])?;
                let utc = boot.iter().map(|b| i64::try_from(utc_clock.unix(b?)).ok());
                let utc: TimestampNanosecondArray = utc.collect();
                Ok(Arc::new(utc.with_timezone(UTC)))
            }),
            layer: udf("layer", vec![UInt8], Utf8View, |a| {
                let sources = as_uint8_array(&a[0])?;
                let names: Vec<&str> = (0..=u8::MAX)
                    .map(|s| Source::from_u8(s).map_or("unknown", Source::name))
                    .collect();
                named(&names, sources.iter().map(|s| Some(usize::from(s?))))
            }),
            kind: udf("kind", vec![UInt8], Utf8View, |a| {
                let kinds = as_uint8_array(&a[0])?;
                named(
                    &KINDS,
                    kinds
                        .iter()
                        .map(|k| Some(usize::from(k?).min(KINDS.len() - 1))),
                )
            }),
            op: udf(
                "op",
                vec![UInt8, UInt8, UInt16, UInt16],
                Utf8View,
                event_ops,
            ),
            call: udf("op_of", vec![UInt8, UInt16], Utf8View, |a| {
                let (sources, ops) = (as_uint8_array(&a[0])?, as_uint16_array(&a[1])?);
                let names = op_names();
                let rows = sources.values().iter().zip(ops.values());
                named(&names, rows.map(|(s, o)| Some(call_name(*s, *o))))
            }),
            bytes: udf("bytes", vec![UInt8, UInt8, UInt16, UInt64], UInt64, bytes),
            comm: udf("comm", vec![UInt32, UInt32], Utf8View, move |a| {
                let (pids, tids) = (as_uint32_array(&a[0])?, as_uint32_array(&a[1])?);
                let texts: Vec<&str> = names.texts.iter().map(String::as_str).collect();
                let rows = pids.iter().zip(tids.iter());
                named(
                    &texts,
                    rows.map(|(p, t)| names.places.get(&(p?, t?)).copied()),
                )
            }),
            hex: udf("hex64", vec![UInt64], Utf8View, |a| {
                let ids = as_uint64_array(&a[0])?;
                let mut texts = StringViewBuilder::with_capacity(ids.len());
                for id in ids {
                    texts.append_option(id.map(|id| format!("{id:016x}")));
                }
                Ok(Arc::new(texts.finish()))
            }),
            file_type: udf("file_type", vec![UInt8], Utf8View, |a| {
                let types = as_uint8_array(&a[0])?;
                named(&FILE_TYPES, types.iter().map(|t| file_type(t?)))
            }),
        })
    }

    /// Unix time, ns.
    pub(crate) fn unix(&self, boot: Expr) -> Expr {
        self.unix.call(vec![boot])
    }

    pub(crate) fn utc(&self, boot: Expr) -> Expr {
        self.utc.call(vec![boot])
    }

    pub(crate) fn layer(&self, source: Expr) -> Expr {
        self.layer.call(vec![source])
    }

    pub(crate) fn kind(&self, kind: Expr) -> Expr {
        self.kind.call(vec![kind])
    }

    /// The name of what happened, from `kind`, `source`, `op` and `flags` of the table `events`.
    pub(crate) fn op(&self, columns: Vec<Expr>) -> Expr {
        self.op.call(columns)
    }

    /// The name of a call's op.
    pub(crate) fn call(&self, source: Expr, op: Expr) -> Expr {
        self.call.call(vec![source, op])
    }

    /// Bytes moved or taken, from `kind`, `source`, `op` and `arg0` of the table `events`.
    pub(crate) fn bytes(&self, columns: Vec<Expr>) -> Expr {
        self.bytes.call(columns)
    }

    /// The last name of a thread.
    pub(crate) fn comm(&self, pid: Expr, tid: Expr) -> Expr {
        self.comm.call(vec![pid, tid])
    }

    /// Sixteen hex digits, as ids of findings are shown.
    pub(crate) fn hex(&self, id: Expr) -> Expr {
        self.hex.call(vec![id])
    }

    pub(crate) fn file_type(&self, mode: Expr) -> Expr {
        self.file_type.call(vec![mode])
    }
}

fn udf(
    name: &str,
    inputs: Vec<DataType>,
    output: DataType,
    body: impl Fn(&[ArrayRef]) -> Result<ArrayRef> + Send + Sync + 'static,
) -> ScalarUDF {
    let body = move |args: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(args)?;
        Ok(ColumnarValue::Array(body(&arrays)?))
    };
    create_udf(name, inputs, output, Volatility::Immutable, Arc::new(body))
}

/// Each row's name out of `names`, of which the array holds one copy.
fn named(names: &[&str], rows: impl Iterator<Item = Option<usize>>) -> Result<ArrayRef> {
    let mut texts = StringViewBuilder::with_capacity(rows.size_hint().0);
    let mut places = Vec::with_capacity(names.len());
    let mut bytes = Vec::new();
    for name in names {
        places.push((bytes.len() as u32, name.len() as u32));
        bytes.extend_from_slice(name.as_bytes());
    }
    let block = texts.append_block(Buffer::from_vec(bytes));
    for row in rows {
        match row {
            Some(name) => {
                let (offset, len) = places[name];
                texts.try_append_view(block, offset, len)?;
            }
            None => texts.append_null(),
        }
    }
    Ok(Arc::new(texts.finish()))
}

/// Boot time to Unix time, as the session's anchors say.
#[derive(Clone)]
struct Clock {
    anchors: Arc<[ClockAnchor]>,
}

impl Clock {
    fn new(meta: &SessionMeta) -> Clock {
        let mut anchors = meta.clock.clone();
        if anchors.is_empty() {
            anchors.push(meta.anchor_at(BootNanos(0)));
        }
        Clock {
            anchors: anchors.into(),
        }
    }

    fn unix(&self, boot: u64) -> u64 {
        let at = BootNanos(boot);
        let after = self.anchors.partition_point(|a| a.boot <= at);
        let UnixNanos(unix) = self.anchors[after.saturating_sub(1)].unix(at);
        unix
    }
}

struct ThreadNames {
    texts: Vec<String>,
    places: HashMap<(u32, u32), usize>,
}

/// The last name of each thread; where none is known of a main thread, that of its process.
fn thread_names(session: &Session) -> std::result::Result<Arc<ThreadNames>, StoreError> {
    let mut names: HashMap<(u32, u32), String> = HashMap::new();
    for p in session.processes()? {
        names.insert((p.incarnation.pid.0, p.incarnation.pid.0), p.name);
    }
    for t in session.threads()? {
        names.insert((t.thread.pid.0, t.thread.tid.0), t.name.into());
    }
    let mut all = ThreadNames {
        texts: Vec::with_capacity(names.len()),
        places: HashMap::with_capacity(names.len()),
    };
    for (thread, name) in names {
        all.places.insert(thread, all.texts.len());
        all.texts.push(name);
    }
    Ok(Arc::new(all))
}

/// By [`Kind`]'s number.
const KINDS: [&str; 11] = [
    "unknown",
    "call",
    "off_cpu",
    "slice",
    "block_io",
    "reclaim",
    "process",
    "stretch",
    "in_flight",
    "retransmit",
    "unknown",
];

/// Names of what is no call. Numbers of block I/O and process records are in `warptrace_record`.
const HOST_OPS: [&str; 13] = [
    "unknown",
    "block_read",
    "block_write",
    "block_discard",
    "block_flush",
    "reclaim",
    "process_fork",
    "thread_start",
    "process_exec",
    "process_exit",
    "thread_exit",
    "oom_kill",
    "tcp_retransmit",
];

/// The op table's names, then those of [`HOST_OPS`].
fn op_names() -> Vec<&'static str> {
    OPS.iter().map(|op| op.name).chain(HOST_OPS).collect()
}

/// The place of a call's op in [`op_names`].
fn call_name(source: u8, op: u16) -> usize {
    let id = Source::from_u8(source).and_then(|s| OpId::find(s, op));
    id.map_or(OPS.len(), OpId::index)
}

fn event_ops(a: &[ArrayRef]) -> Result<ArrayRef> {
    let (kinds, sources): (&UInt8Array, &UInt8Array) =
        (as_uint8_array(&a[0])?, as_uint8_array(&a[1])?);
    let (ops, flags): (&UInt16Array, &UInt16Array) =
        (as_uint16_array(&a[2])?, as_uint16_array(&a[3])?);
    let name = |i: usize| {
        let (kind, op) = (kinds.value(i), ops.value(i));
        if kind == Kind::Call as u8 || kind == Kind::InFlight as u8 {
            return call_name(sources.value(i), op);
        }
        let host = if kind == Kind::BlockIo as u8 {
            1 + usize::from(op.min(3))
        } else if kind == Kind::Reclaim as u8 {
            5
        } else if kind == Kind::Retransmit as u8 {
            12
        } else if kind == Kind::Process as u8 {
            match op {
                process::FORK if flags.value(i) & FLAG_THREAD == 0 => 6,
                process::FORK => 7,
                process::EXEC => 8,
                process::EXIT if flags.value(i) & FLAG_THREAD == 0 => 9,
                process::EXIT => 10,
                process::OOM_KILL => 11,
                _ => 0,
            }
        } else {
            0
        };
        OPS.len() + host
    };
    named(&op_names(), (0..kinds.len()).map(|i| Some(name(i))))
}

fn bytes(a: &[ArrayRef]) -> Result<ArrayRef> {
    let (kinds, sources) = (as_uint8_array(&a[0])?, as_uint8_array(&a[1])?);
    let (ops, arg0) = (as_uint16_array(&a[2])?, as_uint64_array(&a[3])?);
    let mut bytes = UInt64Builder::with_capacity(kinds.len());
    for i in 0..kinds.len() {
        let kind = kinds.value(i);
        let has = if kind == Kind::Call as u8 || kind == Kind::InFlight as u8 {
            let op = OPS.get(call_name(sources.value(i), ops.value(i)));
            op.is_some_and(|op| op.bytes == Bytes::Arg0)
        } else {
            kind == Kind::BlockIo as u8
        };
        bytes.append_option(has.then(|| arg0.value(i)));
    }
    Ok(Arc::new(bytes.finish()))
}

const FILE_TYPES: [&str; 7] = [
    "pipe",
    "char_device",
    "directory",
    "block_device",
    "regular",
    "socket",
    "anonymous",
];

/// The place of a file type (`S_IFMT >> 12`, 0xff for anonymous inodes) in [`FILE_TYPES`].
fn file_type(mode: u8) -> Option<usize> {
    Some(match mode {
        0o1 => 0,
        0o2 => 1,
        0o4 => 2,
        0o6 => 3,
        0o10 => 4,
        0o14 => 5,
        0xff => 6,
        _ => return None,
    })
}
