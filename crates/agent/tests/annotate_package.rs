//! The unmodified Python package `ingero-annotate` against us: what it encodes, and what reaches us through its writer, over
//! inputs that no list of cases holds. The numbers are the same each time.

use std::path::Path;
use std::process::{Command, Stdio};

use warptrace_agent::{AnnotationSocket, SocketLimits, SocketOptions};
use warptrace_formats::annotation::{Line, Refusal};
use warptrace_model::{Annotation, Labels};

const CASES: usize = 3_000;

/// Encodes each case, sends what could be encoded, and prints what it encoded.
const SCRIPT: &str = r#"
import json, sys
from ingero_annotate import AnnotationError, AnnotationWriter, encode_annotation
answers = []
writer = AnnotationWriter(socket_path=sys.argv[2] or None)
assert writer.active, writer.socket_path
for labels, pid, ts in json.load(open(sys.argv[1])):
    labels = dict(labels)
    try:
        encoded = encode_annotation(labels, pid=pid, ts_ns=ts)
    except AnnotationError as error:
        answers.append(None)
        continue
    answers.append(encoded.decode("ascii"))
    assert writer.write(labels, pid=None, ts_ns=ts)
writer.close()
json.dump(answers, sys.stdout)
"#;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn key(&mut self) -> String {
        let alphabet = b"abcxyzABCXYZ0189_.-";
        let length = match self.below(8) {
            0 => 62 + self.below(4),
            _ => 1 + self.below(12),
        };
        let mut key: String = (0..length)
            .map(|_| char::from(alphabet[self.below(alphabet.len() as u64) as usize]))
            .collect();
        if self.one_in(60) {
            key.push(['é', ' ', '/', '"', '\u{212a}'][self.below(5) as usize]);
        }
        key
    }

    fn value(&mut self) -> String {
        let length = match self.below(8) {
            0 => 80 + self.below(180),
            _ => self.below(20),
        };
        (0..length).map(|_| self.character()).collect()
    }

    fn character(&mut self) -> char {
        let c = match self.below(40) {
            0..30 => 0x20 + self.below(0x5f),
            30..33 => 0x80 + self.below(0x780),
            33..36 => 0x800 + self.below(0xf800),
            36..39 => 0x1_0000 + self.below(0x10_0000),
            _ if self.one_in(8) => self.below(0x20),
            _ => 0x7e + self.below(4),
        };
        char::from_u32(c as u32).unwrap_or('\u{2028}')
    }

    fn case(&mut self) -> Case {
        let labels = match self.below(30) {
            0 => 30 + self.below(5),
            1 => 0,
            _ => 1 + self.below(6),
        };
        Case {
            labels: (0..labels).map(|_| (self.key(), self.value())).collect(),
            pid: (!self.one_in(3)).then(|| self.below(1 << 31) as u32 * 2),
            ts: (!self.one_in(3))
                .then(|| (self.below(1 << 31) << 32 | self.below(1 << 31)) as i64 - (1 << 61)),
        }
    }
}

#[derive(Debug)]
struct Case {
    labels: Vec<(String, String)>,
    pid: Option<u32>,
    ts: Option<i64>,
}

impl Case {
    /// Our bytes for it.
    fn encode(&self) -> Result<String, Refusal> {
        let line = Line {
            labels: Labels::from_pairs(&self.labels)?,
            pid: self.pid,
            ts: self.ts,
            ..Line::default()
        };
        let mut bytes = Vec::new();
        line.encode(&mut bytes)?;
        Ok(String::from_utf8(bytes).unwrap())
    }
}

fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../skipped");
    let _ = std::fs::create_dir_all(&folder);
    let _ = std::fs::write(folder.join(format!("{test}.txt")), reason);
}

#[test]
fn what_the_package_encodes_and_sends_is_what_we_encode_and_take() {
    let import = Command::new("python3")
        .args(["-c", "import ingero_annotate"])
        .stderr(Stdio::null())
        .status();
    if !import.is_ok_and(|status| status.success()) {
        return skip("annotate_package", "python3 has no ingero-annotate");
    }
    let home = tempfile::tempdir().unwrap();
    let mut random = Random(42);
    let cases: Vec<Case> = (0..CASES).map(|_| random.case()).collect();
    let input: Vec<_> = cases
        .iter()
        .map(|c| serde_json::json!([c.labels, c.pid, c.ts]))
        .collect();
    let file = home.path().join("cases.json");
    std::fs::write(&file, serde_json::to_vec(&input).unwrap()).unwrap();

    let peer_path = home.path().join(".ingero/annotate/annotate.sock");
    let options = SocketOptions {
        path: home.path().join("run/annotate.sock"),
        peer_path: Some(peer_path.clone()),
        limits: SocketLimits {
            lines_per_sec: None,
            ..SocketLimits::default()
        },
    };
    let (socket, receiver) = AnnotationSocket::start(options).unwrap();
    let counts = socket.counts();
    // It looks in its home by itself, unless another agent of this machine is at the place that comes first.
    let system = Path::new("/run/ingero/annotate.sock").exists();
    let out = Command::new("python3")
        .args(["-c", SCRIPT])
        .arg(&file)
        .arg(if system {
            peer_path.as_path()
        } else {
            Path::new("")
        })
        .env("HOME", home.path())
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    socket.stop();
    let mut got: Vec<Annotation> = Vec::new();
    receiver.drain(&mut got);

    let answers: Vec<Option<String>> = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(answers.len(), CASES);
    for (case, theirs) in cases.iter().zip(&answers) {
        let ours = case.encode();
        assert_eq!(ours.as_ref().ok(), theirs.as_ref(), "{ours:?} for {case:?}");
    }
    let sent = cases
        .iter()
        .zip(&answers)
        .filter(|(_, answer)| answer.is_some());
    let sent: Vec<_> = sent
        .map(|(case, _)| Labels::from_pairs(&case.labels).unwrap())
        .collect();
    assert_eq!(counts.losses(), []);
    assert!(
        sent.len() > CASES / 4 && sent.len() < CASES,
        "{}",
        sent.len()
    );
    assert!(got.iter().map(|a| &a.labels).eq(&sent));
}
