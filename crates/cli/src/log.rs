//! Our own log: where it goes, what it tells, and how a line looks there.
//!
//! Lines go to stderr unless a file is named. In the journal a line begins with its priority (`<4>`, `sd-daemon(3)`) and has no time:
//! the journal has its own. A file is reopened when a log rotation asks for it ([`Log::reopen`]).

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, bail};
use nix::fcntl::OFlag;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, reload};

use crate::args::Global;
use crate::config::{LogLevel, Settings};

/// The program's log; made once, by [`start`].
static LOG: OnceLock<Log> = OnceLock::new();

type Filter = reload::Handle<Targets, Registry>;

struct Log {
    filter: Option<Filter>,
    to: Output,
    /// A setting names the file.
    is_named: AtomicBool,
    /// `WARPTRACE_LOG` says what is told: no setting does then.
    by_variable: bool,
}

/// Where lines go now.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Option<LogFile>>>);

struct LogFile {
    path: PathBuf,
    file: File,
}

/// Begins to log to stderr: `-v` and `-vv` tell more. `WARPTRACE_LOG` (a level, or `target=level`, with commas between) says it all by itself.
pub(crate) fn start(verbose: u8) {
    let usual = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    let variable = std::env::var("WARPTRACE_LOG").ok();
    let variable = variable.filter(|filter| !filter.is_empty());
    let variable = variable.map(|filter| filter.parse::<Targets>());
    let (by_variable, filter, refused) = match variable {
        Some(Ok(filter)) => (true, filter, None),
        Some(Err(e)) => (false, Targets::new().with_default(usual), Some(e)),
        None => (false, Targets::new().with_default(usual), None),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let to = Output::default();
    let writer = to.clone();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .event_format(Lines {
            to: to.clone(),
            usual: tracing_subscriber::fmt::format().with_target(false),
            in_journal: is_journal(),
        })
        .with_filter(filter);
    let began = tracing_subscriber::registry().with(lines).try_init();
    let filter = began.is_ok().then_some(handle);
    let _ = LOG.set(Log {
        filter,
        to,
        is_named: AtomicBool::new(false),
        by_variable,
    });
    if let Some(e) = refused {
        tracing::warn!(
            "WARPTRACE_LOG is not followed: {e}; write a level, or target=level, with commas between"
        );
    }
}

/// As the settings say, from now on. Flags for more (`-v`) and `WARPTRACE_LOG` come before the level.
///
/// # Errors
/// The file cannot be used: lines go on where they went.
pub(crate) fn set(global: &Global, settings: &Settings) -> anyhow::Result<()> {
    let place = LOG
        .get()
        .and_then(|log| Some(log.to.lock().as_ref()?.path.clone()));
    let file = settings.log.file.as_deref();
    // Without one it stays where it went when nobody had named a file.
    let was_named = LOG
        .get()
        .is_some_and(|log| log.is_named.load(Ordering::Relaxed));
    if file != place.as_deref() && (file.is_some() || was_named) {
        to(file)?;
    }
    if let Some(log) = LOG.get() {
        log.is_named.store(file.is_some(), Ordering::Relaxed);
    }
    if global.verbose == 0 {
        set_level(settings.log.level);
    }
    Ok(())
}

fn set_level(level: LogLevel) {
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    if let Some(log) = LOG.get()
        && let Some(filter) = &log.filter
        && !log.by_variable
    {
        let _ = filter.reload(Targets::new().with_default(level));
    }
}

/// Lines go to the end of this file from now on, or to stderr.
///
/// # Errors
/// It cannot be opened, or might be somebody else's: lines go on where they went.
pub(crate) fn to(path: Option<&Path>) -> anyhow::Result<()> {
    let to = path.map(|path| {
        let path = path.to_owned();
        open(&path).map(|file| LogFile { path, file })
    });
    let to = to.transpose()?;
    if let Some(log) = LOG.get() {
        *log.to.lock() = to;
    }
    Ok(())
}

/// Opens the file again, which may have been moved away meanwhile.
///
/// # Errors
/// As of [`to`].
pub(crate) fn reopen() -> anyhow::Result<()> {
    let place = LOG
        .get()
        .and_then(|log| Some(log.to.lock().as_ref()?.path.clone()));
    place.map_or(Ok(()), |path| to(Some(&path)))
}

/// For its user alone, and not through a link: whoever may write to the folder could have us write elsewhere.
fn open(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    // A FIFO that nobody reads must not hold us up.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = options.custom_flags(flags.bits()).open(path);
    let file = file.with_context(|| format!("cannot write the log to {path:?}"))?;
    let is = file
        .metadata()
        .with_context(|| format!("cannot look at {path:?}"))?;
    let us = nix::unistd::geteuid().as_raw();
    if !is.is_file() || is.uid() != us || is.nlink() > 1 {
        bail!("the log {path:?} is not a file of our own (user {us}), or has another name");
    }
    Ok(file)
}

/// Whether stderr is the journal's.
pub(crate) fn is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stderr = std::fs::metadata("/proc/self/fd/2");
    let same = |is: std::fs::Metadata| stream == format!("{}:{}", is.dev(), is.ino());
    stderr.is_ok_and(same)
}

/// Whether nobody can read stderr: it is closed, or `/dev/null`.
pub(crate) fn is_stderr_lost() -> bool {
    let null = std::fs::metadata("/dev/null").map(|null| null.rdev());
    match std::fs::metadata("/proc/self/fd/2") {
        Ok(stderr) => null.is_ok_and(|null| null != 0 && stderr.rdev() == null),
        Err(_) => true,
    }
}

impl Output {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<LogFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut *self.lock() {
            // One write a line at the end: lines of several recorders never mix. A full disk costs the line.
            Some(log) => log.file.write_all(line).map(|()| line.len()),
            None => io::stderr().lock().write_all(line).map(|()| line.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Output;

    fn make_writer(&'a self) -> Output {
        self.clone()
    }
}

/// A line in the journal, or anywhere else.
struct Lines {
    to: Output,
    usual: tracing_subscriber::fmt::format::Format,
    in_journal: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !self.in_journal || self.to.lock().is_some() {
            return self.usual.format_event(context, writer, event);
        }
        let mut line = String::new();
        context.format_fields(Writer::new(&mut line), event)?;
        // A second line would have no priority.
        writeln!(
            writer,
            "<{}>{}",
            priority(*event.metadata().level()),
            line.replace('\n', " ")
        )
    }
}

/// As `syslog(3)` counts.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_log_is_a_file_of_our_own_and_grows_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        open(&path).unwrap().write_all(b"one\n").unwrap();
        open(&path).unwrap().write_all(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(open(&link).is_err());
        std::fs::hard_link(&path, folder.path().join("name")).unwrap();
        let wrong = open(&path).unwrap_err().to_string();
        assert!(wrong.contains("another name"), "{wrong}");
        let wrong = open(folder.path()).unwrap_err().to_string();
        assert!(wrong.contains("cannot write the log"), "{wrong}");
        assert!(open(Path::new("/dev/null")).is_err());
    }
}
