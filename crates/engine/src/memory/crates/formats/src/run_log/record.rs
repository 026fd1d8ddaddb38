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

/// The values that are wanted, by their place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Kind,
    Phase,
    Name,
    T,
    StartedAt,
    Reason,
    Schema,
    Stats,
    StatsRequests,
    StatsErrors,
    StatsTokensOut,
    Host,
    HostName,
    Backend,
    BackendKind,
    Model,
    ModelName,
    PromptTokens,
    CompletionTokens,
    WallMicros,
    Extra,
    ExtraModel,
    ExtraPromptTokens,
    ExtraCompletionTokens,
    ExtraLatencyMicros,
    ExtraRequestId,
    ExtraPrincipalId,
    ExtraStatus,
    ExtraCode,
    ExtraMessage,
}

/// How many fields there are.
const FIELDS: usize = Field::ExtraMessage as usize + 1;

impl Field {
    /// The field of a key, and where its own keys go when its value is an object.
    fn of(level: Level, key: &[u8]) -> Option<(Field, Option<Level>)> {
        let leaf = |field| Some((field, None));
        match level {
            Level::Top => match key {
                b"kind" => leaf(Field::Kind),
                b"phase" => leaf(Field::Phase),
                b"name" => leaf(Field::Name),
                b"t" => leaf(Field::T),
                b"extra" => Some((Field::Extra, Some(Level::Extra))),
                b"started_at" => leaf(Field::StartedAt),
                b"reason" => leaf(Field::Reason),
                b"schema" => leaf(Field::Schema),
                b"stats" => Some((Field::Stats, Some(Level::Stats))),
                b"host" => Some((Field::Host, Some(Level::Host))),
                b"backend" => Some((Field::Backend, Some(Level::Backend))),
                b"model" => Some((Field::Model, Some(Level::Model))),
                b"prompt_tokens" => leaf(Field::PromptTokens),
                b"completion_tokens" => leaf(Field::CompletionTokens),
                b"wall_us" => leaf(Field::WallMicros),
                _ => None,
            },
            Level::Extra => leaf(match key {
                b"model" => Field::ExtraModel,
                b"prompt_tokens" => Field::ExtraPromptTokens,
                b"completion_tokens" => Field::ExtraCompletionTokens,
                b"latency_us" => Field::ExtraLatencyMicros,
                b"request_id" => Field::ExtraRequestId,
                b"principal_id" => Field::ExtraPrincipalId,
                b"status" => Field::ExtraStatus,
                b"code" => Field::ExtraCode,
                b"message" => Field::ExtraMessage,
                _ => return None,
            }),
            Level::Stats => leaf(match key {
                b"requests" => Field::StatsRequests,
                b"errors" => Field::StatsErrors,
                b"tokens_out" => Field::StatsTokensOut,
                _ => return None,
            }),
            Level::Host if key == b"name" => leaf(Field::HostName),
            Level::Backend if key == b"kind" => leaf(Field::BackendKind),
            Level::Model if key == b"name" => leaf(Field::ModelName),
            _ => None,
        }
    }
}

struct Scan<'a> {
    line: &'a [u8],
    reader: Reader<'a>,
    values: [Scalar<'a>; FIELDS],
    /// One bit a field: of equal keys the first wins, whatever its type.
    seen: u32,
}

impl<'a> Scan<'a> {
    fn new(line: &'a [u8]) -> Scan<'a> {
        Scan {
            line,
            reader: Reader::new(line),
            values: [Scalar::Other; FIELDS],
            seen: 0,
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
        let text = |field: Field| self.values[field as usize].str();
        let count = |field: Field| self.values[field as usize].count();
        let (kind_name, phase, name) = (text(Field::Kind), text(Field::Phase), text(Field::Name));
        let kind = route(kind_name, phase, name);
        let mut record = Record {
            kind,
            text: &self.line[start..end],
            kind_name,
            phase,
            name,
            t_secs: match self.values[Field::T as usize] {
                Scalar::Number(n) => Some(n.as_f64()).filter(|t| t.is_finite() && *t >= 0.0),
                _ => None,
            },
            started_at: text(Field::StartedAt),
            host: text(Field::Host).or(text(Field::HostName)),
            backend: text(Field::BackendKind),
            reason: text(Field::Reason),
            stats: [
                count(Field::StatsRequests),
                count(Field::StatsErrors),
                count(Field::StatsTokensOut),
            ],
            schema: text(Field::Schema),
            model: text(Field::ExtraModel),
            principal: text(Field::ExtraPrincipalId),
            request_id: text(Field::ExtraRequestId),
            prompt_tokens: count(Field::ExtraPromptTokens),
            completion_tokens: count(Field::ExtraCompletionTokens),
            latency_micros: count(Field::ExtraLatencyMicros),
            status: count(Field::ExtraStatus),
            code: text(Field::ExtraCode),
            message: text(Field::ExtraMessage),
        };
        match kind {
            Kind::RunStart => record.model = text(Field::ModelName),
            Kind::RetiredRequest => {
                record.model = text(Field::Model);
                record.prompt_tokens = count(Field::PromptTokens);
                record.completion_tokens = count(Field::CompletionTokens);
                record.latency_micros = count(Field::WallMicros);
            }
            _ => {}
        }
        Ok(record)
    }

    /// The members of an object whose start has been taken. Goes at most one level down.
    fn object(&mut self, level: Level) -> Result<(), Error> {
        while let Some(Token::Key(key)) = self.reader.next()? {
            let field = match key.is_escaped() {
                false => Field::of(level, key.raw()),
                true => Field::of(level, &key.decode_wtf8()),
            };
            let field = field.filter(|&(field, _)| self.seen & 1 << field as u32 == 0);
            if let Some((field, _)) = field {
                self.seen |= 1 << field as u32;
            }
            let depth = self.reader.depth();
            let value = match (self.reader.next()?, field) {
                (Some(Token::String(s)), _) => Scalar::Str(s),
                (Some(Token::Number(n)), _) => Scalar::Number(n),
                (Some(Token::ObjectStart), Some((_, Some(inner)))) => {
                    self.object(inner)?;
                    continue;
                }
                (Some(Token::ObjectStart | Token::ArrayStart), _) => {
                    self.reader.skip_to(depth)?;
                    continue;
                }
                _ => continue,
            };
            if let Some((field, _)) = field {
                self.values[field as usize] = value;
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
