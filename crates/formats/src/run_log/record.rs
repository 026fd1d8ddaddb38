//! One line to one record: what is routed on, and what requests and runs say. Everything else stays in the text.

use warptrace_model::{Request, RequestOutcome, UnixNanos};

use super::{MAX_COUNT, parse_utc};
use crate::json::{Error, ErrorKind, Invalid, Number, Reader, Str, Token};

/// What a record is, by its `kind`, `phase` and `name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    RunStart,
    RunEnd,
    /// `eval` of phase `serve` named `request`: a request that was served.
    Request,
    /// `error` of phase `serve`: a request that failed.
    RequestError,
    /// `inference` with flat keys, as servers wrote until May 2026. Kept, and not counted as a request.
    RetiredRequest,
    /// Any other `eval`: a held-out evaluation.
    Eval,
    Step,
    Tap,
    Grad,
    OpTiming,
    Drift,
    Sample,
    Compare,
    RegionEnter,
    RegionExit,
    Note,
    /// A kind that is not known here, or none. The schema is open: such records are passed on.
    Other,
}

impl Kind {
    /// Its `kind` in the log; empty for [`Kind::Other`].
    pub const fn name(self) -> &'static str {
        match self {
            Kind::RunStart => "run_start",
            Kind::RunEnd => "run_end",
            Kind::Request | Kind::Eval => "eval",
            Kind::RequestError => "error",
            Kind::RetiredRequest => "inference",
            Kind::Step => "step",
            Kind::Tap => "tap",
            Kind::Grad => "grad",
            Kind::OpTiming => "op_timing",
            Kind::Drift => "drift",
            Kind::Sample => "sample",
            Kind::Compare => "compare",
            Kind::RegionEnter => "region_enter",
            Kind::RegionExit => "region_exit",
            Kind::Note => "note",
            Kind::Other => "",
        }
    }
}

/// A record. Strings are as they stand in the log ([`Str::decode`]); `None` is absent or of another type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record<'a> {
    pub kind: Kind,
    /// The whole record as it stands in the log, without whitespace around it: what to forward.
    pub text: &'a [u8],
    /// `kind` as written.
    pub kind_name: Option<Str<'a>>,
    pub phase: Option<Str<'a>>,
    pub name: Option<Str<'a>>,
    /// Seconds since the run's start, at least 0.
    pub t_secs: Option<f64>,
    /// Of a `run_start`, UTC.
    pub started_at: Option<Str<'a>>,
    /// Of a `run_start`: `host.name`, or `host` where it is a string (a retired shape).
    pub host: Option<Str<'a>>,
    /// Of a `run_start`: `backend.kind`.
    pub backend: Option<Str<'a>>,
    /// Of a `run_end`.
    pub reason: Option<Str<'a>>,
    /// `requests`, `errors` and `tokens_out` of a `run_end`'s `stats`.
    pub stats: [Option<u64>; 3],
    /// Of a `run_start`: `toy/v1`.
    pub schema: Option<Str<'a>>,
    /// `extra.model` of a request, `model.name` of a `run_start`, `model` of a retired request.
    pub model: Option<Str<'a>>,
    pub principal: Option<Str<'a>>,
    pub request_id: Option<Str<'a>>,
    /// Counts are integers of `0..=`[`MAX_COUNT`], however they are written.
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub latency_micros: Option<u64>,
    /// HTTP status of an error.
    pub status: Option<u64>,
    pub code: Option<Str<'a>>,
    pub message: Option<Str<'a>>,
}

/// Whether a line has spaces, tabs and carriage returns alone: it counts for nothing.
pub fn is_blank(line: &[u8]) -> bool {
    line.iter().all(|b| matches!(b, b' ' | b'\t' | b'\r'))
}

impl<'a> Record<'a> {
    /// The record on a line.
    ///
    /// # Errors
    /// Why the line is not one JSON object in valid UTF-8, nested up to 512 levels.
    pub fn parse(line: &'a [u8]) -> Result<Record<'a>, Error> {
        Scan::new(line).record()
    }
}

/// A value that may be wanted.
#[derive(Clone, Copy)]
enum Scalar<'a> {
    Str(Str<'a>),
    Number(Number<'a>),
    Other,
}

impl<'a> Scalar<'a> {
    fn str(self) -> Option<Str<'a>> {
        match self {
            Scalar::Str(s) => Some(s),
            _ => None,
        }
    }

    fn count(self) -> Option<u64> {
        match self {
            Scalar::Number(n) => n.integral_u64().filter(|&n| n <= MAX_COUNT),
            _ => None,
        }
    }
}

/// Where keys are wanted from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Top,
    Extra,
    Host,
    Backend,
    Model,
    Stats,
}

/// Of equal keys the first wins, whatever its type; so a slot remembers that its key was there.
type Slot<'a> = Option<Scalar<'a>>;

#[derive(Default)]
struct Slots<'a> {
    kind: Slot<'a>,
    phase: Slot<'a>,
    name: Slot<'a>,
    t: Slot<'a>,
    started_at: Slot<'a>,
    reason: Slot<'a>,
    schema: Slot<'a>,
    stats: Slot<'a>,
    stats_requests: Slot<'a>,
    stats_errors: Slot<'a>,
    stats_tokens_out: Slot<'a>,
    host: Slot<'a>,
    host_name: Slot<'a>,
    backend: Slot<'a>,
    backend_kind: Slot<'a>,
    model: Slot<'a>,
    model_name: Slot<'a>,
    prompt_tokens: Slot<'a>,
    completion_tokens: Slot<'a>,
    wall_us: Slot<'a>,
    extra: Slot<'a>,
    extra_model: Slot<'a>,
    extra_prompt_tokens: Slot<'a>,
    extra_completion_tokens: Slot<'a>,
    extra_latency_us: Slot<'a>,
    extra_request_id: Slot<'a>,
    extra_principal_id: Slot<'a>,
    extra_status: Slot<'a>,
    extra_code: Slot<'a>,
    extra_message: Slot<'a>,
}

impl<'a> Slots<'a> {
    /// The slot of a key, and where its own keys go when its value is an object.
    fn of(&mut self, level: Level, key: &[u8]) -> Option<(&mut Slot<'a>, Option<Level>)> {
        let leaf = |slot| Some((slot, None));
        match level {
            Level::Top => match key {
                b"kind" => leaf(&mut self.kind),
                b"phase" => leaf(&mut self.phase),
                b"name" => leaf(&mut self.name),
                b"t" => leaf(&mut self.t),
                b"extra" => Some((&mut self.extra, Some(Level::Extra))),
                b"started_at" => leaf(&mut self.started_at),
                b"reason" => leaf(&mut self.reason),
                b"schema" => leaf(&mut self.schema),
                b"stats" => Some((&mut self.stats, Some(Level::Stats))),
                b"host" => Some((&mut self.host, Some(Level::Host))),
                b"backend" => Some((&mut self.backend, Some(Level::Backend))),
                b"model" => Some((&mut self.model, Some(Level::Model))),
                b"prompt_tokens" => leaf(&mut self.prompt_tokens),
                b"completion_tokens" => leaf(&mut self.completion_tokens),
                b"wall_us" => leaf(&mut self.wall_us),
                _ => None,
            },
            Level::Extra => leaf(match key {
                b"model" => &mut self.extra_model,
                b"prompt_tokens" => &mut self.extra_prompt_tokens,
                b"completion_tokens" => &mut self.extra_completion_tokens,
                b"latency_us" => &mut self.extra_latency_us,
                b"request_id" => &mut self.extra_request_id,
                b"principal_id" => &mut self.extra_principal_id,
                b"status" => &mut self.extra_status,
                b"code" => &mut self.extra_code,
                b"message" => &mut self.extra_message,
                _ => return None,
            }),
            Level::Stats => leaf(match key {
                b"requests" => &mut self.stats_requests,
                b"errors" => &mut self.stats_errors,
                b"tokens_out" => &mut self.stats_tokens_out,
                _ => return None,
            }),
            Level::Host if key == b"name" => leaf(&mut self.host_name),
            Level::Backend if key == b"kind" => leaf(&mut self.backend_kind),
            Level::Model if key == b"name" => leaf(&mut self.model_name),
            _ => None,
        }
    }
}

struct Scan<'a> {
    line: &'a [u8],
    reader: Reader<'a>,
    slots: Slots<'a>,
}

impl<'a> Scan<'a> {
    fn new(line: &'a [u8]) -> Scan<'a> {
        Scan {
            line,
            reader: Reader::new(line),
            slots: Slots::default(),
        }
    }

    fn record(mut self) -> Result<Record<'a>, Error> {
        let first = self.reader.next()?;
        let start = self.reader.range().start;
        if first != Some(Token::ObjectStart) {
            return Err(Error {
                kind: ErrorKind::ExpectedValue,
                at: start,
            });
        }
        self.object(Level::Top)?;
        let end = self.reader.position();
        self.reader.next()?;
        let slots = &self.slots;
        let text = |slot: Slot<'a>| slot.and_then(Scalar::str);
        let count = |slot: Slot<'a>| slot.and_then(Scalar::count);
        let (kind_name, phase, name) = (text(slots.kind), text(slots.phase), text(slots.name));
        let kind = route(kind_name, phase, name);
        let mut record = Record {
            kind,
            text: &self.line[start..end],
            kind_name,
            phase,
            name,
            t_secs: match slots.t {
                Some(Scalar::Number(n)) => Some(n.as_f64()).filter(|t| t.is_finite() && *t >= 0.0),
                _ => None,
            },
            started_at: text(slots.started_at),
            host: text(slots.host).or(text(slots.host_name)),
            backend: text(slots.backend_kind),
            reason: text(slots.reason),
            stats: [
                count(slots.stats_requests),
                count(slots.stats_errors),
                count(slots.stats_tokens_out),
            ],
            schema: text(slots.schema),
            model: text(slots.extra_model),
            principal: text(slots.extra_principal_id),
            request_id: text(slots.extra_request_id),
            prompt_tokens: count(slots.extra_prompt_tokens),
            completion_tokens: count(slots.extra_completion_tokens),
            latency_micros: count(slots.extra_latency_us),
            status: count(slots.extra_status),
            code: text(slots.extra_code),
            message: text(slots.extra_message),
        };
        match kind {
            Kind::RunStart => record.model = text(slots.model_name),
            Kind::RetiredRequest => {
                record.model = text(slots.model);
                record.prompt_tokens = count(slots.prompt_tokens);
                record.completion_tokens = count(slots.completion_tokens);
                record.latency_micros = count(slots.wall_us);
            }
            _ => {}
        }
        Ok(record)
    }

    /// The members of an object whose start has been taken. Goes at most one level down.
    fn object(&mut self, level: Level) -> Result<(), Error> {
        while let Some(Token::Key(key)) = self.reader.next()? {
            let name = key.decode_wtf8();
            let wanted = match self.slots.of(level, &name) {
                Some((slot @ None, inner)) => {
                    *slot = Some(Scalar::Other);
                    Some(inner)
                }
                _ => None,
            };
            let depth = self.reader.depth();
            let scalar = match self.reader.next()? {
                Some(Token::String(s)) => Scalar::Str(s),
                Some(Token::Number(n)) => Scalar::Number(n),
                Some(Token::ObjectStart) => {
                    match wanted {
                        Some(Some(inner)) => self.object(inner)?,
                        _ => self.reader.skip_to(depth)?,
                    }
                    continue;
                }
                Some(Token::ArrayStart) => {
                    self.reader.skip_to(depth)?;
                    continue;
                }
                _ => continue,
            };
            if wanted.is_some()
                && let Some((slot, _)) = self.slots.of(level, &name)
            {
                *slot = Some(scalar);
            }
        }
        Ok(())
    }
}

fn route<'a>(kind: Option<Str<'a>>, phase: Option<Str<'a>>, name: Option<Str<'a>>) -> Kind {
    let Some(kind) = kind else { return Kind::Other };
    let serves = || phase.is_some_and(|p| p.is("serve"));
    match &*kind.decode_wtf8() {
        b"eval" if serves() && name.is_some_and(|n| n.is("request")) => Kind::Request,
        b"eval" => Kind::Eval,
        b"error" if serves() => Kind::RequestError,
        b"run_start" => Kind::RunStart,
        b"run_end" => Kind::RunEnd,
        b"inference" => Kind::RetiredRequest,
        b"step" => Kind::Step,
        b"tap" => Kind::Tap,
        b"grad" => Kind::Grad,
        b"op_timing" => Kind::OpTiming,
        b"drift" => Kind::Drift,
        b"sample" => Kind::Sample,
        b"compare" => Kind::Compare,
        b"region_enter" => Kind::RegionEnter,
        b"region_exit" => Kind::RegionExit,
        b"note" => Kind::Note,
        _ => Kind::Other,
    }
}

/// Which run records belong to, in the order of the file: what turns them into [`Request`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Runs {
    number: u32,
    started_at: Option<UnixNanos>,
}

impl Runs {
    /// The run that the last observed record belongs to, from 1; 0 before the first `run_start`.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// When that run started, as its `run_start` says.
    pub fn started_at(&self) -> Option<UnixNanos> {
        self.started_at
    }

    /// Takes note of a record; to be called for each, in order.
    pub fn observe(&mut self, record: &Record<'_>) {
        if record.kind == Kind::RunStart {
            self.number = self.number.saturating_add(1);
            let text = record.started_at.and_then(|s| s.decode(Invalid::Refuse));
            self.started_at = text.and_then(|t| parse_utc(&t)).map(UnixNanos);
        }
    }

    /// The request that a record tells of, be it served, failed, or of the retired shape; `None` for other kinds.
    pub fn request(&self, record: &Record<'_>) -> Option<Request> {
        let text = |s: Option<Str<'_>>| Some(s?.decode(Invalid::Replace)?.into());
        let outcome = match record.kind {
            Kind::Request | Kind::RetiredRequest => RequestOutcome::Served,
            Kind::RequestError => RequestOutcome::Failed {
                status: record.status.and_then(|s| u16::try_from(s).ok()),
                code: text(record.code),
                message: text(record.message),
            },
            _ => return None,
        };
        let since_start_nanos = record.t_secs.map(|t| (t * 1e9).round() as u64);
        let latency_nanos = record.latency_micros.map(|l| l.saturating_mul(1_000));
        let end = self
            .started_at
            .zip(since_start_nanos)
            .map(|(start, t)| UnixNanos(start.0.saturating_add(t)));
        Some(Request {
            run: self.number,
            start: end
                .zip(latency_nanos)
                .map(|(end, latency)| UnixNanos(end.0.saturating_sub(latency))),
            end,
            since_start_nanos,
            latency_nanos,
            model: text(record.model),
            principal: text(record.principal),
            request_id: text(record.request_id),
            prompt_tokens: record.prompt_tokens,
            completion_tokens: record.completion_tokens,
            outcome,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn parse(line: &str) -> Record<'_> {
        Record::parse(line.as_bytes()).unwrap()
    }

    fn text(s: Option<Str<'_>>) -> Option<String> {
        Some(s?.decode(Invalid::Replace)?.into_owned())
    }

    #[test]
    fn the_first_of_equal_keys_wins_at_every_level_and_after_unescaping() {
        let record = parse(
            r#"{"kin\u0064":"eval","kind":"error","phase":"serve","phase":1,"name":"request","t":-1,"t":5,
                "extra":{"completion_tokens":8.5,"completion_tokens":9,"model":{"x":1},"model":"m","prompt_tokens":8e0},
                "extra":{"latency_us":3}}"#,
        );
        assert_eq!(record.kind, Kind::Request);
        assert_eq!(record.t_secs, None);
        assert_eq!(record.completion_tokens, None);
        assert_eq!(record.prompt_tokens, Some(8));
        assert_eq!(record.latency_micros, None);
        assert_eq!(record.model, None);
    }

    #[test]
    fn a_count_is_an_integer_from_0_to_2_to_53_less_1_however_it_is_written() {
        for (number, want) in [
            ("8", Some(8)),
            ("8.0", Some(8)),
            ("8e0", Some(8)),
            ("-0", Some(0)),
            ("9007199254740991", Some(MAX_COUNT)),
            ("9007199254740992", None),
            ("-1", None),
            ("8.5", None),
            ("\"8\"", None),
            ("null", None),
        ] {
            let line = format!(r#"{{"kind":"eval","extra":{{"completion_tokens":{number}}}}}"#);
            assert_eq!(parse(&line).completion_tokens, want, "{number}");
        }
    }

    #[test]
    fn records_are_routed_by_kind_phase_and_name() {
        for (line, kind) in [
            (
                r#"{"kind":"eval","phase":"serve","name":"request"}"#,
                Kind::Request,
            ),
            (
                r#"{"kind":"eval","phase":"eval","name":"request"}"#,
                Kind::Eval,
            ),
            (
                r#"{"kind":"eval","name":"request","extra":{"phase":"serve"}}"#,
                Kind::Eval,
            ),
            (r#"{"kind":"error","phase":"serve"}"#, Kind::RequestError),
            (r#"{"kind":"error"}"#, Kind::Other),
            (r#"{"kind":"checkpoint"}"#, Kind::Other),
            (r#"{"kind":7}"#, Kind::Other),
            ("{}", Kind::Other),
            (r#"{"kind":"op_timing","buckets":{}}"#, Kind::OpTiming),
        ] {
            assert_eq!(parse(line).kind, kind, "{line}");
        }
        for line in ["[]", "7", "", "{} {}", "{}x", "\u{feff}{}", "{\"a\":NaN}"] {
            assert!(Record::parse(line.as_bytes()).is_err(), "{line}");
        }
        assert!(Record::parse(b"{\"a\":\"\xff\"}").is_err());
    }

    #[test]
    fn nothing_of_a_record_is_lost_that_is_not_understood() {
        let line = " {\"kind\": \"odd\",\"t\":1e-3,\"x\":[1, 2.50]}\r";
        let record = parse(line);
        assert_eq!(record.text, line.trim().as_bytes());
        assert_eq!(text(record.kind_name).unwrap(), "odd");
        assert_eq!(record.t_secs, Some(0.001));
    }

    #[test]
    fn a_request_gets_its_times_from_its_run() {
        let mut runs = Runs::default();
        let request = parse(
            r#"{"kind":"eval","phase":"serve","t":2.25,"name":"request","extra":{"model":"m\n","prompt_tokens":1,
                "completion_tokens":2,"latency_us":250000,"request_id":"r","principal_id":"user:1"}}"#,
        );
        let before = runs.request(&request).unwrap();
        assert_eq!((before.run, before.start, before.end), (0, None, None));
        assert_eq!(before.since_start_nanos, Some(2_250_000_000));
        runs.observe(&parse(
            r#"{"kind":"run_start","started_at":"1970-01-01T00:01:40Z","host":"old","model":{"name":"n"}}"#,
        ));
        let got = runs.request(&request).unwrap();
        assert_eq!(got.run, 1);
        assert_eq!(got.start, Some(UnixNanos(102_000_000_000)));
        assert_eq!(got.end, Some(UnixNanos(102_250_000_000)));
        assert_eq!(got.model.as_deref(), Some("m\n"));
        assert_eq!(got.principal.as_deref(), Some("user:1"));
        assert_eq!(got.outcome, RequestOutcome::Served);
        let failed = parse(
            r#"{"kind":"error","phase":"serve","t":3,"extra":{"status":503,"code":"overloaded","message":"full"}}"#,
        );
        let failed = runs.request(&failed).unwrap();
        assert_eq!((failed.start, failed.latency_nanos), (None, None));
        assert_eq!(
            failed.outcome,
            RequestOutcome::Failed {
                status: Some(503),
                code: Some("overloaded".into()),
                message: Some("full".into())
            }
        );
    }

    #[test]
    fn retired_shapes_are_read() {
        let record = parse(
            r#"{"kind":"inference","phase":"serve","t":1,"model":"m","prompt_tokens":12,"completion_tokens":8,"wall_us":87000,"extra":{}}"#,
        );
        assert_eq!(record.kind, Kind::RetiredRequest);
        assert_eq!(text(record.model).unwrap(), "m");
        assert_eq!(
            (
                record.prompt_tokens,
                record.completion_tokens,
                record.latency_micros
            ),
            (Some(12), Some(8), Some(87_000))
        );
        let start = parse(r#"{"kind":"run_start","host":"box","backend":{"kind":"cpu"}}"#);
        assert_eq!(text(start.host).unwrap(), "box");
        assert_eq!(text(start.backend).unwrap(), "cpu");
    }
}
