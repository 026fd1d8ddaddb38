//! Printing, and exit codes. A reader who has seen enough (a closed pipe) is no failure.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use crate::args::{Color, Global};
use crate::show::Paint;

/// Writes `text` to stdout.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Writes `value` as one line of JSON.
pub(crate) fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_string(value)?;
    text.push('\n');
    print(&text)
}

/// The exit code of a command whose own failure is 2.
pub(crate) fn finish(result: anyhow::Result<u8>) -> ExitCode {
    finish_as(2, result)
}

/// The exit code of a command whose own failure is `failed`; the error's chain is printed once.
pub(crate) fn finish_as(failed: u8, result: anyhow::Result<u8>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("warptrace: {e:#}");
            ExitCode::from(failed)
        }
    }
}

/// Colours for stdout, by flag, `NO_COLOR` and terminal.
pub(crate) fn paint(global: &Global) -> Paint {
    let on = match global.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            std::io::stdout().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        }
    };
    Paint { on }
}
