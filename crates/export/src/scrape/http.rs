//! As much of HTTP/1.1 as a scraper speaks: one request without a body, one answer, and the connection ends.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::otlp::gzip;

/// Bytes of a request's line and headers.
const HEAD_LIMIT_BYTES: usize = 16 << 10;

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

/// A request's head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    is_head: bool,
    /// As it was asked, with a query if there is one.
    target: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
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
                return Request::parse(&head[..end]).map_err(Some);
            }
            if head.len() >= HEAD_LIMIT_BYTES {
                return Err(Some(Answer::text(431, "too many headers\n")));
            }
            match stream.read(&mut chunk) {
                Ok(0) => return Err(Some(Answer::text(400, "not a request\n"))),
                Ok(n) => head.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let slow = matches!(
                        error.kind(),
                        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
                    );
                    return Err(slow.then(|| Answer::text(408, "too slow\n")));
                }
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
        let is_head = match method {
            "GET" => false,
            "HEAD" => true,
            _ => return Err(Answer::text(405, "GET or HEAD\n").with("Allow", "GET, HEAD")),
        };
        Ok(Request {
            is_head,
            target: target.to_owned(),
            headers,
        })
    }

    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The first header of this name, in lower case; empty when there is none.
    pub(super) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
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

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n")
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    without_body: bool,
}

impl Answer {
    pub(super) fn new(status: u16, content_type: &'static str, body: Vec<u8>) -> Answer {
        Answer {
            status,
            headers: vec![("Content-Type", content_type)],
            body,
            without_body: false,
        }
    }

    pub(super) fn text(status: u16, text: &str) -> Answer {
        Answer::new(
            status,
            "text/plain; charset=utf-8",
            text.as_bytes().to_vec(),
        )
    }

    pub(super) fn with(mut self, name: &'static str, value: &'static str) -> Answer {
        self.headers.push((name, value));
        self
    }

    /// In the coding that the request takes, and without a body for a HEAD.
    pub(super) fn to(mut self, request: &Request) -> Answer {
        if self.body.len() >= GZIP_FROM_BYTES && request.takes_gzip() {
            self.body = gzip(&self.body);
            self.headers.push(("Content-Encoding", "gzip"));
        }
        self.without_body = request.is_head;
        self
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
        assert!(read(b"HEAD / HTTP/1.0\r\n\r\n").unwrap().is_head);
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
        assert_eq!(status(b"POST / HTTP/1.1\r\n\r\n"), 405);
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
