use super::*;
use warptrace_formats::memory::{MANIFEST, Manifest, Upgrade, open_json};

fn record(text: &str) -> Object {
    match open_json::parse(text.as_bytes()).unwrap() {
        Value::Object(object) => object,
        other => panic!("{other:?}"),
    }
}

fn event(session: &str, at: u64) -> MemoryEvent {
    let text =
        format!(r#"{{"session_id": {session:?}, "timestamp_ns": {at}, "memory_allocated": 7}}"#);
    Upgrade::default()
        .event(Value::Object(record(&text)))
        .unwrap()
}

fn config() -> SinkConfig {
    SinkConfig {
        flush_every_events: 1,
        ..SinkConfig::default()
    }
}

fn manifest(folder: &Path) -> Manifest {
    Manifest::parse(&std::fs::read(folder.join(MANIFEST)).unwrap()).unwrap()
}

#[test]
fn a_folder_has_one_writer_and_the_next_one_goes_on_from_where_it_was_left() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = MemorySink::open(folder.path(), config()).unwrap();
    first.append(&event("a", 1)).unwrap();
    let second = MemorySink::open(folder.path(), config());
    assert!(matches!(second, Err(SinkError::Locked)));
    first.append(&event("a", 2)).unwrap();
    drop(first);

    let mut second = MemorySink::open(folder.path(), config()).unwrap();
    assert_eq!(
        manifest(folder.path()).sessions[0].status,
        SessionStatus::Interrupted
    );
    second.append(&event("b", 3)).unwrap();
    second.close(SessionStatus::Completed).unwrap();
    let manifest = manifest(folder.path());
    let counts: Vec<_> = manifest
        .segments
        .iter()
        .map(|s| (s.event_count, s.closed))
        .collect();
    assert_eq!(counts, [(2, true), (1, true)]);
    assert!(folder.path().join("rollups.json").exists());
    assert!(!folder.path().join("manifest.tmp").exists());
}

#[test]
fn a_file_that_somebody_else_put_there_is_neither_written_nor_removed() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = MemorySink::open(folder.path(), config()).unwrap();
    let theirs = folder.path().join("segment-000001.jsonl");
    std::fs::write(&theirs, "theirs\n").unwrap();
    sink.append(&event("a", 1)).unwrap();
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "theirs\n");
    assert_eq!(
        &*manifest(folder.path()).segments[0].filename,
        "segment-000002.jsonl"
    );
}

#[test]
fn no_link_is_followed_and_no_name_of_a_manifest_leaves_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("precious");
    std::fs::write(&precious, "x\n").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("segment-000001.jsonl");
    std::os::unix::fs::symlink(&precious, &link).unwrap();
    let name = precious.to_str().unwrap();
    let text = format!(
        r#"{{"schema_version": 2, "sessions": [], "segments": [
            {{"filename": {name:?}, "closed": true, "size_bytes": 1}},
            {{"filename": "segment-000001.jsonl", "closed": false, "session_id": null}}]}}"#
    );
    std::fs::write(folder.path().join(MANIFEST), text).unwrap();
    let config = SinkConfig {
        retention_max_files: 1,
        rollover_max_events: 1,
        ..config()
    };
    let mut sink = MemorySink::open(folder.path(), config).unwrap();
    for at in 0..4 {
        sink.append(&event("a", at)).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "x\n");
}

#[test]
fn a_background_sink_writes_in_order_and_refuses_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let sink = BackgroundMemorySink::open(folder.path(), SinkConfig::default()).unwrap();
    for at in 0..500 {
        sink.append(event("a", at));
    }
    sink.append(event("b", 0));
    sink.append_record(record(r#"{"session_id": "a", "timestamp_ns": 500}"#));
    let counts = sink
        .close(SessionStatus::Completed, Duration::from_secs(60))
        .unwrap();
    assert_eq!((counts.refused, counts.dropped), (1, 0));
    assert_eq!(counts.sink.retained_segments, 1);
    let text = std::fs::read_to_string(folder.path().join("segment-000001.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 501);
    drop(sink);
    assert_eq!(
        manifest(folder.path()).sessions[0].status,
        SessionStatus::Completed
    );
}

#[test]
fn dropping_a_background_sink_ends_its_session_as_incomplete() {
    let folder = tempfile::tempdir().unwrap();
    let sink = BackgroundMemorySink::open(folder.path(), SinkConfig::default()).unwrap();
    sink.append(event("a", 1));
    drop(sink);
    let manifest = manifest(folder.path());
    assert_eq!(manifest.sessions[0].status, SessionStatus::Incomplete);
    assert_eq!(manifest.segments[0].event_count, 1);
}

#[test]
fn ids_are_random_uuids_of_version_4() {
    let (a, b) = (fresh_id(), fresh_id());
    assert_ne!(a, b);
    assert_eq!(a.len(), 36);
    assert_eq!(&a[14..15], "4");
    assert!("89ab".contains(&a[19..20]));
}
