//! Collectors behind TLS.
#![cfg(feature = "tls")]

mod support;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};
use support::authority::Authority;
use support::*;
use warptrace_export::otlp::{Config, Protocol, Signal};
use warptrace_export::{Batching, DropReason};

fn collector(authority: &Authority) -> (Collector, Config) {
    let server = Arc::clone(&authority.server);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let collector = Collector::behind(
        listener,
        |_| Reply::Ok,
        move |socket| {
            let session = ServerConnection::new(Arc::clone(&server)).ok()?;
            Some(StreamOwned::new(session, socket))
        },
    );
    let base = format!("https://{}", collector.address);
    let config = Config::new(Signal::Traces, Protocol::HttpProtobuf).with_base(&base);
    (collector, config)
}

/// Gives up after the first try.
fn one_try() -> Batching {
    let mut batching = Batching::default();
    batching.retry.total = Duration::from_millis(1);
    batching
}

#[test]
fn a_collector_with_a_certificate_of_the_given_authority_gets_spans() {
    let authority = Authority::new(false);
    let (collector, mut config) = collector(&authority);
    config.tls.certificate = Some(authority.file("authority.pem"));
    let sender = sender(&config, patient());
    assert!(sender.push(span(0)));
    assert!(sender.close(soon()));
    assert_eq!(sender.counts().sent, 1, "{:?}", sender.counts());
    assert_are(&collector.request().spans(), 0..1);
}

#[test]
fn a_collector_that_nobody_trusted_vouches_for_gets_none() {
    let authority = Authority::new(false);
    let (collector, config) = collector(&authority);
    let other = Authority::new(false);
    let mut with_another = config.clone();
    with_another.tls.certificate = Some(other.file("authority.pem"));
    for config in [config, with_another] {
        let sender = sender(&config, one_try());
        assert!(sender.push(span(0)));
        assert!(sender.close(soon()));
        let counts = sender.counts();
        assert_eq!(
            counts.dropped(DropReason::RetriesExhausted),
            1,
            "{counts:?}"
        );
        let why = counts.last_failure.unwrap();
        assert!(why.to_lowercase().contains("certificate"), "{why}");
    }
    assert!(collector.so_far().is_empty());
}

#[test]
fn a_collector_that_asks_for_our_certificate_gets_it() {
    let authority = Authority::new(true);
    let (collector, mut config) = collector(&authority);
    config.tls.certificate = Some(authority.file("authority.pem"));
    let nameless = sender(&config, one_try());
    assert!(nameless.push(span(0)));
    assert!(nameless.close(soon()));
    assert_eq!(nameless.counts().sent, 0);
    assert!(collector.so_far().is_empty());

    config.tls.client = Some((authority.file("client.pem"), authority.file("client.key")));
    let sender = sender(&config, patient());
    assert!(sender.push(span(1)));
    assert!(sender.close(soon()));
    assert_eq!(sender.counts().sent, 1, "{:?}", sender.counts());
    assert_are(&collector.request().spans(), 1..2);
}
