//! Alerts to servers on this machine that behave as receivers do, well and badly.

mod support;

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use support::{Collector, Reply, Request, soon};
use warptrace_export::alert::{
    Alert, AlertConfig, Alerter, Delivery, Receiver, ReceiverKind, Rules, Secret, Template,
};
use warptrace_export::otlp::Retry;
use warptrace_model::{Severity, UnixNanos};

const KEY: &str = "0123456789abcdef0123456789abcdef";

fn alert(key: &str) -> Alert {
    Alert {
        key: key.to_owned(),
        severity: Severity::High,
        summary: "Waiting for a CPU: steps 412-538 took 21.4 ms longer".to_owned(),
        source: String::new(),
        component: "train.py (pid 4711)".to_owned(),
        group: "a100".to_owned(),
        class: "run_queue_wait".to_owned(),
        details: vec![("finding".to_owned(), "f3a1".to_owned())],
        at: UnixNanos(1_750_000_000_250_000_000),
        needs: 1,
    }
}

fn slack() -> ReceiverKind {
    ReceiverKind::Slack {
        channel: "#gpu".to_owned(),
        username: String::new(),
    }
}

fn pagerduty() -> ReceiverKind {
    ReceiverKind::PagerDuty {
        routing_key: Secret::new(KEY),
        severity: None,
    }
}

fn webhook() -> ReceiverKind {
    ReceiverKind::Webhook {
        token: Some(Secret::new("t0ken")),
    }
}

fn config(receivers: Vec<(ReceiverKind, String)>) -> AlertConfig {
    let receivers = receivers.into_iter().map(|(kind, url)| Receiver {
        url: Secret::new(url),
        min_severity: Severity::Low,
        template: Template::parse("{action} {severity} {summary} {details.finding}").unwrap(),
        kind,
    });
    AlertConfig {
        source: "node-7".to_owned(),
        rules: Rules::default(),
        delivery: Delivery {
            retry: Retry {
                first: Duration::from_millis(1),
                longest: Duration::from_millis(20),
                total: Duration::from_secs(600),
            },
            ..Delivery::default()
        },
        timeout: Duration::from_secs(60),
        receivers: receivers.collect(),
    }
}

fn json(request: &Request) -> Value {
    assert_eq!(request.headers["content-type"], "application/json");
    serde_json::from_slice(&request.body).unwrap()
}

fn accepted(_: &Request) -> Reply {
    Reply::Status(
        202,
        "",
        br#"{"status":"success","message":"Event processed"}"#.to_vec(),
    )
}

#[test]
fn each_receiver_is_told_in_its_own_way_that_it_begins_and_that_it_is_over() {
    let [to_slack, to_webhook] = [(); 2].map(|()| Collector::taking_all());
    let to_pagerduty = Collector::start(accepted);
    let alerter = Alerter::start(config(vec![
        (slack(), format!("{}/services/T0/B0/x", to_slack.base())),
        (pagerduty(), format!("{}/v2/enqueue", to_pagerduty.base())),
        (webhook(), to_webhook.base()),
    ]))
    .unwrap();
    alerter.raise(Alert {
        summary: "<!channel> & \"quotes\"\nnext".to_owned(),
        ..alert("k")
    });

    let request = to_slack.request();
    assert_eq!(request.path, "/services/T0/B0/x");
    assert_eq!(
        json(&request),
        serde_json::json!({
            "channel": "#gpu",
            "text": "FIRING HIGH &lt;!channel&gt; &amp; \"quotes\" next f3a1",
        })
    );
    assert_eq!(
        json(&to_pagerduty.request()),
        serde_json::json!({
            "routing_key": KEY,
            "event_action": "trigger",
            "dedup_key": "k",
            "client": "warptrace",
            "payload": {
                "summary": "FIRING HIGH <!channel> & \"quotes\" next f3a1",
                "source": "node-7",
                "severity": "error",
                "timestamp": "2025-06-15T15:06:40.250000000Z",
                "component": "train.py (pid 4711)",
                "group": "a100",
                "class": "run_queue_wait",
                "custom_details": {"finding": "f3a1", "count": 1},
            },
        })
    );
    let request = to_webhook.request();
    assert_eq!(request.headers["authorization"], "Bearer t0ken");
    let said = json(&request);
    assert_eq!(
        (&said["version"], &said["action"]),
        (&1.into(), &"trigger".into())
    );
    assert_eq!(
        (&said["key"], &said["source"]),
        (&"k".into(), &"node-7".into())
    );

    alerter.raise(alert("k"));
    alerter.over("k");
    assert!(alerter.close(soon()));
    assert!(
        json(&to_slack.request())["text"]
            .as_str()
            .unwrap()
            .starts_with("RESOLVED HIGH")
    );
    assert_eq!(
        json(&to_pagerduty.request()),
        serde_json::json!({"routing_key": KEY, "event_action": "resolve", "dedup_key": "k"})
    );
    let said = json(&to_webhook.request());
    assert_eq!(
        (&said["action"], &said["count"]),
        (&"resolve".into(), &2.into())
    );
    for receiver in [&to_slack, &to_pagerduty, &to_webhook] {
        assert_eq!(receiver.so_far().len(), 0);
    }
    let counts = alerter.counts();
    assert_eq!((counts.raised, counts.open), (2, 0));
    assert!(
        counts.receivers.iter().all(|r| r.counts.sent == 2),
        "{counts:?}"
    );
}

#[test]
fn a_receiver_that_lies_is_busy_hangs_up_or_refuses_is_treated_as_such() {
    let answers = [
        || Reply::Status(200, "", b"<html>log in</html>".to_vec()),
        || Reply::Status(429, "Retry-After: 0\r\n", Vec::new()),
        || Reply::Status(500, "", Vec::new()),
        || Reply::HangUp,
        || Reply::Status(200, "", b"{}".to_vec()),
        || Reply::Status(202, "", b"{}".to_vec()),
    ];
    let mut next = answers.into_iter();
    let receiver = Collector::start(move |_| next.next().unwrap()());
    let alerter = Alerter::start(config(vec![(pagerduty(), receiver.base())])).unwrap();
    alerter.raise(alert("k"));
    for _ in 0..6 {
        assert_eq!(json(&receiver.request())["dedup_key"], "k");
    }
    assert!(alerter.close(soon()));
    let counts = &alerter.counts().receivers[0].counts;
    assert_eq!((counts.sent, counts.retried, counts.open), (1, 5, 1));

    let gone = Collector::start(|_| Reply::Status(404, "", b"no_service".to_vec()));
    let alerter = Alerter::start(config(vec![(slack(), gone.base())])).unwrap();
    alerter.raise(alert("k"));
    gone.request();
    alerter.over("k");
    assert!(alerter.close(soon()));
    let counts = &alerter.counts().receivers[0].counts;
    assert_eq!((counts.sent, counts.refused, counts.superseded), (0, 1, 1));
    let why = counts.last_failure.as_deref().unwrap();
    assert!(why.ends_with("answered 404 Not Found: no_service"), "{why}");
    assert_eq!(gone.so_far().len(), 0);
}

#[test]
fn a_silent_receiver_holds_up_neither_the_caller_nor_the_others() {
    let silent = Collector::start(|_| Reply::Silence);
    let well = Collector::taking_all();
    let alerter = Alerter::start(config(vec![
        (slack(), silent.base()),
        (webhook(), well.base()),
    ]))
    .unwrap();
    alerter.raise(alert("first"));
    silent.request();
    // It holds its request for a minute; a hundred alerts are nothing to those who raise them.
    for i in 0..10_000 {
        alerter.raise(alert(&format!("k{}", i % 2000)));
    }
    assert_eq!(json(&well.request())["key"], "first");
    assert_eq!(json(&well.request())["key"], "k0");
    let counts = alerter.counts();
    assert_eq!((counts.raised, counts.open), (10_001, 1024));
    // k1023 and all after it, five times each.
    assert_eq!(counts.dropped, 5 * (2000 - 1023));
    let waiting = counts.receivers[0].counts.waiting;
    assert!(waiting <= 10, "{waiting}");
    assert!(!alerter.close(std::time::Instant::now()));
}

#[test]
fn a_dead_receiver_is_told_when_it_comes_to_life() {
    // A port of ours where nothing listens, until something does.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let alerter = Alerter::start(config(vec![(webhook(), format!("http://{address}"))])).unwrap();
    alerter.raise(alert("k"));
    let deadline = soon();
    while alerter.counts().receivers[0].counts.retried < 3 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    let Ok(listener) = std::net::TcpListener::bind(address) else {
        return; // Somebody else has the port now.
    };
    let receiver = Collector::on(listener, |_| Reply::Ok);
    assert_eq!(json(&receiver.request())["key"], "k");
    assert!(alerter.close(soon()));
}

#[test]
fn an_address_elsewhere_is_not_followed() {
    let elsewhere = Collector::taking_all();
    let to = Box::leak(format!("Location: {}\r\n", elsewhere.base()).into_boxed_str());
    let moved = Collector::start(|_| Reply::Status(307, to, Vec::new()));
    let alerter = Alerter::start(config(vec![(webhook(), moved.base())])).unwrap();
    alerter.raise(alert("k"));
    moved.request();
    assert!(alerter.close(soon()));
    assert_eq!(alerter.counts().receivers[0].counts.refused, 1);
    assert_eq!(elsewhere.so_far().len(), 0);
}

#[test]
fn without_receivers_there_are_no_threads_and_alerts_are_counted() {
    let alerter = Alerter::start(config(Vec::new())).unwrap();
    alerter.raise(alert("k"));
    assert_eq!(alerter.counts().raised, 1);
    assert!(alerter.close(std::time::Instant::now()));
}

#[test]
fn less_severe_alerts_are_for_some_receivers_only() {
    let [first, second] = [(); 2].map(|()| Collector::taking_all());
    let mut config = config(vec![(webhook(), first.base()), (slack(), second.base())]);
    config.receivers[1].min_severity = Severity::Critical;
    let alerter = Alerter::start(config).unwrap();
    alerter.raise(alert("a"));
    alerter.over("a");
    alerter.raise(Alert {
        severity: Severity::Critical,
        ..alert("b")
    });
    assert!(alerter.close(soon()));
    let mut kinds: HashMap<String, u32> = HashMap::new();
    for request in first.so_far() {
        let said = json(&request);
        *kinds
            .entry(format!("{} {}", said["action"], said["key"]))
            .or_default() += 1;
    }
    // What is over before it was sent is not sent at all; which of the two it was is the thread's luck.
    assert_eq!(kinds["\"trigger\" \"b\""], 1);
    assert_eq!(
        kinds.contains_key("\"trigger\" \"a\""),
        kinds.contains_key("\"resolve\" \"a\"")
    );
    let said: Vec<Value> = second.so_far().iter().map(json).collect();
    assert_eq!(said.len(), 1);
    assert!(
        said[0]["text"]
            .as_str()
            .unwrap()
            .starts_with("FIRING CRITICAL")
    );
}
