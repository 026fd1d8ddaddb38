//! Whatever a process calls itself, and whatever the tables of its namespace say, is read without a panic: a model's name is
//! short and printable, a port is one.
#![no_main]

use libfuzzer_sys::fuzz_target;

// Pure modules of a crate that links libbpf, which is not to be fuzzed.
#[path = "../../crates/capture/src/engines/command.rs"]
#[allow(dead_code, unreachable_pub)]
mod command;
#[path = "../../crates/capture/src/engines/listening.rs"]
#[allow(dead_code, unreachable_pub)]
mod listening;

use command::{Via, classify};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let argv: Vec<&str> = text.split('\0').collect();
    for port in [None, Some("80"), Some(&*text)] {
        let variable = |name: &str| port.filter(|_| name == "PORT").map(str::to_owned);
        let Some(found) = classify(&argv, &variable) else {
            continue;
        };
        if let Some(model) = &found.model {
            assert!(!model.is_empty() && model.len() <= 256);
            assert!(!model.contains(char::is_control));
        }
        if let Via::Http { ports } = &found.via {
            assert!(!ports.is_empty() && !ports.contains(&0));
        }
    }
    let sockets = listening::listening(data);
    if let Some(first) = sockets.first() {
        let to = listening::where_to(&sockets, &[first.port()], None).unwrap();
        assert_eq!(to.port(), first.port());
    }
});
