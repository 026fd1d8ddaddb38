//! As much of HTTP/1.1 as scrapers and exporters speak: one request, one answer, and the connection ends.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::otlp::gzip;

/// Bytes of a request's line and headers.
const HEAD_LIMIT_BYTES: usize = 16 << 10;

/// Of a request that is refused before its body was read, as much is read all the same: else the connection breaks under who still
/// sends, and the answer is lost.
const LINGER_BYTES: u64 = 16 << 20;

/// Bodies below this are not worth compressing.
const GZIP_FROM_BYTES: usize = 1 << 10;

/// A socket that gives up at a deadline, however slowly the other side reads or writes.
pub(super) struct Timed<S> {
    stream: S,
    deadline: Instant,
}

impl<S> Timed<S> {
    pub(super) fn new(stream: S, deadline: Instant) -> Timed<S> {
        Timed { stream, deadline }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(left),
        }
    }
}

impl Read for Timed<TcpStream> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(to)
    }
}

impl Write for Timed<TcpStream> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Says that there are too many connections, without waiting for anything.
pub(super) fn turn_away(stream: Timed<TcpStream>) {
    let mut stream = stream.stream;
    if stream.set_nonblocking(true).is_ok() {
        let _ = stream.write(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n",
        );
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Post,
    Other,
}

/// A request's head.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    method: Method,
    /// As it was asked, with a query if there is one.
    target: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    /// What came with the head of what follows it.
    ahead: Vec<u8>,
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Bytes(u64),
    Chunked,
}

impl Request {
    /// Reads up to the empty line.
    ///
    /// # Errors
    /// What to answer instead; `None` when the connection is broken, and nothing can be.
    pub(super) fn read(stream: &mut (impl Read + ?Sized)) -> Result<Request, Option<Answer>> {
        let mut head = Vec::with_capacity(512);
        let mut chunk = [0; 1024];
        loop {
            if let Some(end) = end_of_head(&head) {
                let mut request = Request::parse(&head[..end]).map_err(Some)?;
                request.ahead = head.split_off(end + 4);
                return Ok(request);
            }
            if head.len() >= HEAD_LIMIT_BYTES {
                return Err(Some(Answer::text(431, "too many headers\n")));
            }
            match stream.read(&mut chunk) {
                Ok(0) => return Err(Some(Answer::text(400, "not a request\n"))),
                Ok(n) => head.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(&error)),
            }
        }
    }

    fn parse(head: &[u8]) -> Result<Request, Answer> {
        let wrong = || Answer::text(400, "not a request\n");
        let head = std::str::from_utf8(head).map_err(|_| wrong())?;
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(wrong());
        };
        if !matches!(version, "HTTP/1.1" | "HTTP/1.0") || !target.starts_with('/') {
            return Err(wrong());
        }
        let headers = lines.filter(|line| !line.is_empty()).map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_token = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
            is_token.then(|| (name.to_ascii_lowercase(), value.trim().to_owned()))
        });
        let headers = headers.collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
        let method = match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            _ => Method::Other,
        };
        Ok(Request {
            method,
            target: target.to_owned(),
            headers,
            ahead: Vec::new(),
        })
    }

    pub(crate) fn method(&self) -> Method {
        self.method
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The first header of this name, in lower case; empty when there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    /// Whether `token` is said as `Authorization: Bearer TOKEN`.
    pub(crate) fn has_token(&self, token: &str) -> bool {
        let said = match self.header("authorization").split_once(' ') {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer") => rest.trim(),
            _ => "",
        };
        same(said.as_bytes(), token.as_bytes())
    }

    /// Whether something follows the head.
    pub(super) fn has_body(&self) -> bool {
        !matches!(self.length(), Ok(Some(Length::Bytes(0)) | None))
    }

    /// The body, of `limit` bytes at most.
    ///
    /// # Errors
    /// What to answer instead; `None` when the connection is broken, and nothing can be.
    pub(crate) fn body(
        &self,
        stream: &mut (impl Read + Write + ?Sized),
        limit: usize,
    ) -> Result<Vec<u8>, Option<Answer>> {
        let too_large = || Some(Answer::text(413, "too large\n"));
        let length = self.length().map_err(Some)?;
        let length = length.ok_or_else(|| Some(Answer::text(411, "a length is needed\n")))?;
        if matches!(length, Length::Bytes(length) if length > limit as u64) {
            return Err(too_large());
        }
        if self.header("expect").eq_ignore_ascii_case("100-continue") {
            let go_on = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
            go_on.and_then(|()| stream.flush()).map_err(|_| None)?;
        }
        let mut input = BufReader::new(self.ahead.as_slice().chain(stream));
        let mut body = Vec::new();
        let read = match length {
            Length::Bytes(length) => take(&mut input, length, &mut body).map(|()| true),
            Length::Chunked => take_chunks(&mut input, limit, &mut body),
        };
        match read {
            Ok(true) => Ok(body),
            Ok(false) => Err(too_large()),
            Err(error) => Err(broken(&error)),
        }
    }

    /// How long the body is; `None` when it is not said.
    ///
    /// Both lengths, or one said twice, is how two servers are made to disagree about where a request ends (RFC 9112, 6.3): refused.
    fn length(&self) -> Result<Option<Length>, Answer> {
        let wrong = || Answer::text(400, "no such length of a body\n");
        let of = |name: &str| {
            let mut all = self.headers.iter().filter(|(key, _)| key == name);
            match (all.next(), all.next()) {
                (_, Some(_)) => Err(wrong()),
                (one, None) => Ok(one.map(|(_, value)| value.as_str())),
            }
        };
        match (of("content-length")?, of("transfer-encoding")?) {
            (None, None) => Ok(None),
            (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => {
                Ok(Some(Length::Chunked))
            }
            (Some(digits), None) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                let length = digits.parse().map_err(|_| wrong())?;
                Ok(Some(Length::Bytes(length)))
            }
            _ => Err(wrong()),
        }
    }

    fn takes_gzip(&self) -> bool {
        let codings = self.header("accept-encoding").split(',');
        codings.into_iter().any(|coding| {
            let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
            let quality = quality.trim().trim_start_matches("q=");
            name.trim().eq_ignore_ascii_case("gzip") && quality.parse() != Ok(0.0)
        })
    }
}

/// What is answered when reading failed; `None` when nothing can be.
fn broken(error: &io::Error) -> Option<Answer> {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            Some(Answer::text(408, "too slow\n"))
        }
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            Some(Answer::text(400, "not a whole body\n"))
        }
        _ => None,
    }
}

/// Adds `length` bytes to `to`.
fn take(from: &mut impl Read, length: u64, to: &mut Vec<u8>) -> io::Result<()> {
    match from.take(length).read_to_end(to)? as u64 == length {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A line up to its end, without it.
fn take_line(from: &mut (impl io::BufRead + ?Sized)) -> io::Result<String> {
    const LIMIT: u64 = 1 << 10;
    let mut line = Vec::new();
    from.take(LIMIT).read_until(b'\n', &mut line)?;
    let line = line.strip_suffix(b"\r\n").unwrap_or(b"\xff");
    let line = std::str::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(line.to_owned())
}

/// Adds chunks to `to` up to the last one; false when there are more than `limit` bytes. Trailers are left out.
///
/// Source: RFC 9112, 7.1.
fn take_chunks(from: &mut impl io::BufRead, limit: usize, to: &mut Vec<u8>) -> io::Result<bool> {
    /// Of trailers, and of chunks that each hold a byte, which would cost a line each.
    const LINES: usize = 1 << 16;
    for _ in 0..LINES {
        let line = take_line(from)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let is_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let size = is_hex.then(|| u64::from_str_radix(digits, 16).ok());
        let size = size.flatten().ok_or(io::ErrorKind::InvalidData)?;
        if size == 0 {
            for _ in 0..64 {
                if take_line(from)?.is_empty() {
                    return Ok(true);
                }
            }
            break;
        }
        if size > (limit - to.len()) as u64 {
            return Ok(false);
        }
        take(from, size, to)?;
        if !take_line(from)?.is_empty() {
            break;
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Reads what the other side still sends, until it has read the answer and ends.
pub(super) fn linger(stream: &mut (impl Read + ?Sized)) {
    let _ = io::copy(&mut stream.take(LINGER_BYTES), &mut io::sink());
}

/// Compares in a time that does not say where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(differences) == 0 && a.len() == b.len()
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n")
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    without_body: bool,
}

impl Answer {
    pub(crate) fn new(status: u16, content_type: &'static str, body: Vec<u8>) -> Answer {
        Answer {
            status,
            headers: vec![("Content-Type", content_type)],
            body,
            without_body: false,
        }
    }

    pub(crate) fn text(status: u16, text: &str) -> Answer {
        Answer::new(
            status,
            "text/plain; charset=utf-8",
            text.as_bytes().to_vec(),
        )
    }

    pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Answer {
        self.headers.push((name, value));
        self
    }

    /// In the coding that the request takes, and without a body for a HEAD.
    pub(super) fn to(mut self, request: &Request) -> Answer {
        if self.body.len() >= GZIP_FROM_BYTES && request.takes_gzip() {
            self.body = gzip(&self.body);
            self.headers.push(("Content-Encoding", "gzip"));
        }
        self.without_body = request.method == Method::Head;
        self
    }

    pub(super) fn is_refusal(&self) -> bool {
        self.status >= 400
    }

    /// As it is, with other words.
    pub(crate) fn said_as(mut self, content_type: &'static str, body: Vec<u8>) -> Answer {
        self.headers.retain(|(name, _)| *name != "Content-Type");
        self.headers.push(("Content-Type", content_type));
        self.body = body;
        self
    }

    /// What it says.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// Sends it; the other side may be gone, or too slow, which is its own loss.
    pub(super) fn send(&self, stream: &mut (impl Write + ?Sized)) {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            401 => "Unauthorized",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            411 => "Length Required",
            413 => "Content Too Large",
            415 => "Unsupported Media Type",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!(
            "Vary: Accept, Accept-Encoding\r\nX-Content-Type-Options: nosniff\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.body.len()
        );
        let mut bytes = head.into_bytes();
        if !self.without_body {
            bytes.extend_from_slice(&self.body);
        }
        let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Request, Option<Answer>> {
        Request::read(&mut io::Cursor::new(bytes))
    }

    #[track_caller]
    fn status(bytes: &[u8]) -> u16 {
        read(bytes).unwrap_err().unwrap().status
    }

    #[test]
    fn a_request_is_a_line_and_headers() {
        let request =
            read(b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept:  text/plain \r\n\r\nmore")
                .unwrap();
        assert_eq!(
            (request.path(), request.header("accept")),
            ("/metrics", "text/plain")
        );
        assert_eq!(request.header("cookie"), "");
        assert!(read(b"HEAD / HTTP/1.0\r\n\r\n").unwrap().method == Method::Head);
    }

    #[test]
    fn what_is_none_is_refused_and_never_waited_for() {
        assert_eq!(status(b""), 400);
        assert_eq!(status(b"GET /\r\n\r\n"), 400);
        assert_eq!(status(b"GET http://a/ HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status(b"GET / HTTP/2\r\n\r\n"), 400);
        assert_eq!(status(b"GET / HTTP/1.1\r\nno colon\r\n\r\n"), 400);
        assert_eq!(status(b"GET / HTTP/1.1\r\n: x\r\n\r\n"), 400);
        assert_eq!(status(b"GET /\xff HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status(&vec![b'a'; HEAD_LIMIT_BYTES * 2]), 431);
    }

    #[test]
    fn gzip_is_taken_unless_it_is_refused() {
        let takes = |value: &str| {
            let head = format!("GET / HTTP/1.1\r\nAccept-Encoding: {value}\r\n\r\n");
            read(head.as_bytes()).unwrap().takes_gzip()
        };
        assert!(takes("gzip") && takes("deflate, GZIP;q=0.5"));
        assert!(!takes("identity") && !takes("gzip;q=0") && !takes(""));
    }

    #[test]
    fn a_head_has_the_length_and_no_body() {
        let request = read(b"HEAD /x HTTP/1.1\r\nAccept-Encoding: gzip\r\n\r\n").unwrap();
        let mut out = Vec::new();
        Answer::text(200, &"x".repeat(GZIP_FROM_BYTES))
            .to(&request)
            .send(&mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n"),
            "{text}"
        );
        assert!(text.contains("Content-Encoding: gzip\r\n"));
    }
}
