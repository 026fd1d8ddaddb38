//! A sink's folder: a manifest and segments from anywhere. It is loaded in two ways that must agree, and then written to by a
//! sink that takes it over.
//!
//! The input is files: the name's length in a byte, the name, the content's length in two bytes, the content.

#![no_main]

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use warptrace_formats::memory::{
    Folder, LoadOptions, Now, Place, Sink, SinkConfig, SinkFolder, SinkWriter, is_segment_file,
    list_sessions, load_events, load_sessions, open_json,
};
use warptrace_model::{SessionStatus, Value};

#[derive(Clone, Default)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    fn file(&self, name: &str) -> io::Result<&Vec<u8>> {
        assert!(is_segment_file(name), "{name:?} leads out");
        self.0
            .get(name)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Folder for Files {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(&self.file(name)?[..]))
    }
}

impl SinkFolder for Files {
    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(self.file(name)?.len() as u64)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        match self.0.contains_key(name) {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => self.append(name, &[]),
        }
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        assert!(is_segment_file(name), "{name:?} leads out");
        self.0
            .entry(name.into())
            .or_default()
            .extend_from_slice(bytes);
        Ok(())
    }

    fn truncate(&mut self, name: &str, size: u64) -> io::Result<()> {
        let file = self.0.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        assert!(file.len() as u64 >= size, "made longer");
        file.truncate(size as usize);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        assert!(is_segment_file(name), "{name:?} leads out");
        self.0.remove(name);
        Ok(())
    }

    fn replace(&mut self, name: &str, text: &str) -> io::Result<()> {
        self.0.insert(name.into(), text.into());
        Ok(())
    }
}

fn files(mut bytes: &[u8]) -> Files {
    let mut files = Files::default();
    let take = |bytes: &mut &[u8], length: usize| {
        let (taken, rest) = bytes.split_at(length.min(bytes.len()));
        *bytes = rest;
        taken.to_vec()
    };
    while let Some((&length, rest)) = bytes.split_first() {
        bytes = rest;
        let name = String::from_utf8_lossy(&take(&mut bytes, usize::from(length))).into_owned();
        let length = take(&mut bytes, 2);
        let length = length.iter().fold(0, |n, b| n << 8 | usize::from(*b));
        let content = take(&mut bytes, length);
        if is_segment_file(&name) {
            files.0.insert(name, content);
        }
    }
    files
}

fuzz_target!(|bytes: &[u8]| {
    let files = files(bytes);
    let place = Place {
        path: "/sink",
        resolved: "/sink",
        folder: &files,
        file: None,
    };
    let options = LoadOptions::default();
    if let Ok((sessions, skipped)) = load_sessions(&place, &options) {
        let (listed, again) = list_sessions(&place, &options).expect("loads as before");
        assert_eq!(skipped, again);
        assert_eq!(listed.len(), sessions.len());
        for (info, session) in listed.iter().zip(&sessions) {
            assert_eq!(info.events, session.events.len() as u64);
            assert!(
                session
                    .events
                    .is_sorted_by(|a, b| a.timestamp_ns <= b.timestamp_ns)
            );
        }
        if let Some(first) = sessions.first() {
            let id = &first.summary.session_id;
            let (events, _) = load_events(&place, &options, Some(id)).expect("loads as before");
            assert_eq!(events.len(), first.events.len());
        }
    }
    let config = SinkConfig {
        flush_every_events: 1,
        rollover_max_events: 2,
        retention_max_files: 3,
        ..SinkConfig::default()
    };
    let writer = SinkWriter {
        host: "h".into(),
        pid: 1,
        fresh_id: || "fresh".into(),
    };
    let now = Now {
        monotonic: Duration::from_secs(1),
        unix_ns: 1_700_000_000_000_000_000,
    };
    let mut sink = Sink::open(files, config, writer, now).expect("memory does not fail");
    for n in 0..5 {
        let text = format!(r#"{{"timestamp_ns": {n}, "n": {n}}}"#);
        let Ok(Value::Object(record)) = open_json::parse(text.as_bytes()) else {
            return;
        };
        sink.append(&record, now).expect("memory does not fail");
    }
    sink.close(SessionStatus::Completed, now)
        .expect("memory does not fail");
    sink.write_rollups("/sink", "/sink", now)
        .expect("memory does not fail");
});
