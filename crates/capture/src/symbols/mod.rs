//! From the addresses of a user stack to functions, files and lines.
//!
//! Another program's files are read for that, by a parser of formats that are large and come from anybody. So it is done
//! by a helper process ([`serve`]) with a limit on its memory, which may be slow, be killed by a file that shrinks under
//! its mapping, or fail, and costs the recorder nothing but the lines: [`Symbols`] gives each stack a time, and a process
//! whose files were too much is asked for by names alone, then not at all. Needs what reading `/proc/PID/maps` and the
//! mapped files needs. A process that has ended cannot be looked into any more.
//!
//! It does not know which calls or findings a stack belongs to.

mod helper;
mod own;
mod soundness;

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::helper::serve;

/// A user stack as it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserStack {
    /// As records name it; never 0.
    pub id: u32,
    pub pid: u32,
    /// Return addresses, innermost first. The first is where the traced call returned to.
    pub addresses: Vec<u64>,
}

/// One frame, as far as it could be resolved.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Frame {
    /// Return address. A function that was inlined has that of the one it was inlined into.
    pub ip: u64,
    /// Path of the mapped file, as the process names it.
    pub module: Option<String>,
    /// Of `ip`, from where the file's first byte is mapped: what `addr2line` takes for a shared library.
    pub module_offset: Option<u64>,
    /// Demangled.
    pub function: Option<String>,
    /// Source file; where there is debug information.
    pub file: Option<String>,
    pub line: Option<u32>,
}

impl Frame {
    /// File name of the module.
    pub fn module_name(&self) -> Option<&str> {
        self.module
            .as_deref()
            .map(|path| path.rsplit('/').next().unwrap_or(path))
    }
}

/// A stack whose frames were looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedStack {
    pub id: u32,
    /// Innermost first; more than addresses where functions were inlined.
    pub frames: Vec<Frame>,
}

impl ResolvedStack {
    /// The innermost frame that is the program's own code: not that of CUDA's, the C library's or an interpreter's. Where
    /// there is none, the innermost of a framework (PyTorch) that has a name; else `None`.
    pub fn own_frame(&self) -> Option<&Frame> {
        own::own_frame(&self.frames)
    }
}

/// Why a stack stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum SymbolError {
    #[error("cannot start the symbolizer")]
    Start(#[source] io::Error),
    /// It will be started anew for the next stack.
    #[error("the symbolizer ended")]
    Ended,
    #[error("the symbolizer took too long")]
    TooLong,
    #[error("the symbolizer's answer is damaged")]
    Damaged,
    /// Its files were too much before.
    #[error("process {0} is not looked into any more")]
    GivenUp(u32),
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    pid: u32,
    /// Names alone, without debug information.
    plain: bool,
    addresses: Vec<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    frames: Vec<Frame>,
}

/// How often one who waits is asked for patience.
const GLANCE: Duration = Duration::from_millis(50);

/// The longest answer that is read, bytes.
const MAX_REPLY: usize = 4 << 20;

/// Failures after which a process's files are read without debug information, and after which not at all.
const PLAIN_AFTER: u32 = 1;
const GIVE_UP_AFTER: u32 = 3;

/// Most processes whose failures are remembered: then the memory is emptied.
const MAX_FAILED: usize = 1024;

/// The helper process, started when it is needed.
pub struct Symbols {
    command: Box<dyn Fn() -> Command + Send>,
    helper: Option<Helper>,
    /// Killed ones that have not ended yet: one that waits for a disk cannot be waited for.
    ending: Vec<Child>,
    failures: HashMap<u32, u32>,
}

struct Helper {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    read: Vec<u8>,
}

impl Symbols {
    /// `command` makes the command that runs [`serve`] on its standard input and output. Nothing is started yet.
    pub fn new(command: impl Fn() -> Command + Send + 'static) -> Symbols {
        Symbols {
            command: Box::new(command),
            helper: None,
            ending: Vec::new(),
            failures: HashMap::new(),
        }
    }

    /// Looks a stack up, while `patience` gives time; it is asked anew several times a second.
    ///
    /// Cost: for the caller, the wait; the helper reads a file's symbols when it first meets it, from a millisecond to
    /// seconds for gigabytes of debug information, and then some 100 µs a stack.
    ///
    /// # Errors
    /// [`SymbolError`]; the next stack may fare better.
    pub fn resolve(
        &mut self,
        stack: &UserStack,
        patience: impl Fn() -> Duration,
    ) -> Result<ResolvedStack, SymbolError> {
        let failures = self.failures.get(&stack.pid).copied().unwrap_or(0);
        if failures >= GIVE_UP_AFTER {
            return Err(SymbolError::GivenUp(stack.pid));
        }
        let request = Request {
            pid: stack.pid,
            plain: failures >= PLAIN_AFTER,
            addresses: stack.addresses.clone(),
        };
        let answer = self.ask(&request, &patience);
        if let Err(e) = &answer {
            self.kill();
            if !matches!(e, SymbolError::Start(_)) {
                if self.failures.len() >= MAX_FAILED {
                    self.failures.clear();
                }
                *self.failures.entry(stack.pid).or_default() += 1;
            }
        }
        answer.map(|reply| ResolvedStack {
            id: stack.id,
            frames: reply.frames,
        })
    }

    /// Gives the helper's memory back until the next stack.
    pub fn rest(&mut self) {
        self.kill();
        self.ending
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    fn ask(
        &mut self,
        request: &Request,
        patience: &dyn Fn() -> Duration,
    ) -> Result<Reply, SymbolError> {
        let mut line = serde_json::to_vec(request).map_err(|_| SymbolError::Damaged)?;
        line.push(b'\n');
        // One that ended of itself, to give memory back, is started once more.
        let reused = self.helper.is_some();
        match self.ask_once(&line, patience) {
            Err(SymbolError::Ended) if reused => {
                self.kill();
                self.ask_once(&line, patience)
            }
            other => other,
        }
    }

    fn ask_once(
        &mut self,
        line: &[u8],
        patience: &dyn Fn() -> Duration,
    ) -> Result<Reply, SymbolError> {
        let helper = match &mut self.helper {
            Some(helper) => helper,
            none => none.insert(Helper::start((self.command)())?),
        };
        // A request is smaller than a pipe, and the helper has none before it: this does not wait.
        helper
            .input
            .write_all(line)
            .map_err(|_| SymbolError::Ended)?;
        let reply = helper.line(patience)?;
        serde_json::from_slice(&reply).map_err(|_| SymbolError::Damaged)
    }

    fn kill(&mut self) {
        if let Some(Helper { mut child, .. }) = self.helper.take() {
            let _ = child.kill();
            if matches!(child.try_wait(), Ok(None)) {
                self.ending.push(child);
            }
        }
    }
}

impl Drop for Symbols {
    fn drop(&mut self) {
        self.rest();
    }
}

impl Helper {
    fn start(mut command: Command) -> Result<Helper, SymbolError> {
        use std::os::unix::process::CommandExt as _;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A Ctrl-C is for us alone.
            .process_group(0)
            .spawn()
            .map_err(SymbolError::Start)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Helper {
                child,
                input,
                output,
                read: Vec::new(),
            }),
            _ => Err(SymbolError::Ended),
        }
    }

    fn line(&mut self, patience: &dyn Fn() -> Duration) -> Result<Vec<u8>, SymbolError> {
        let mut buffer = [0; 16 << 10];
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let rest = self.read.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.read, rest));
            }
            if self.read.len() > MAX_REPLY {
                return Err(SymbolError::Damaged);
            }
            let left = patience().min(GLANCE);
            if left.is_zero() {
                return Err(SymbolError::TooLong);
            }
            if !crate::sys::wait_readable(self.output.as_raw_fd(), left) {
                continue;
            }
            match self.output.read(&mut buffer) {
                Ok(0) => return Err(SymbolError::Ended),
                Ok(n) => self.read.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(SymbolError::Ended),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &'static str) -> Symbols {
        Symbols::new(move || {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        })
    }

    fn stack(pid: u32) -> UserStack {
        UserStack {
            id: 5,
            pid,
            addresses: vec![1, 2],
        }
    }

    fn long() -> Duration {
        Duration::from_secs(20)
    }

    #[test]
    fn an_answer_is_that_of_its_stack() {
        let mut symbols =
            shell(r#"while read x; do echo '{"frames":[{"ip":1,"function":"f"}]}'; done"#);
        for _ in 0..3 {
            let got = symbols.resolve(&stack(1), long).unwrap();
            assert_eq!(got.id, 5);
            assert_eq!(got.frames[0].function.as_deref(), Some("f"));
        }
    }

    #[test]
    fn a_process_whose_files_are_too_much_is_given_up_and_others_are_not() {
        // Fails for process 7, and says whether names alone were asked for.
        let mut symbols = shell(
            r#"while read x; do case $x in *'"pid":7,'*) exit 1;; *true*) echo '{"frames":[{"ip":1}]}';; *) echo '{"frames":[]}';; esac; done"#,
        );
        for _ in 0..GIVE_UP_AFTER {
            let error = symbols.resolve(&stack(7), long).unwrap_err();
            assert!(matches!(error, SymbolError::Ended), "{error}");
        }
        let error = symbols.resolve(&stack(7), long).unwrap_err();
        assert!(matches!(error, SymbolError::GivenUp(7)), "{error}");
        assert!(
            symbols.resolve(&stack(8), long).unwrap().frames.is_empty(),
            "another one is asked for with all there is"
        );
    }

    #[test]
    fn after_a_failure_names_alone_are_asked_for() {
        let mut symbols = shell(
            r#"read x; case $x in *'"plain":true'*) echo '{"frames":[{"ip":1}]}';; *) exit 1;; esac"#,
        );
        symbols.resolve(&stack(7), long).unwrap_err();
        assert_eq!(symbols.resolve(&stack(7), long).unwrap().frames.len(), 1);
    }

    #[test]
    fn a_helper_that_says_nothing_or_nonsense_is_ended() {
        let mut silent = shell("sleep 1000");
        let asked = std::cell::Cell::new(0);
        let patience = || {
            asked.set(asked.get() + 1);
            Duration::from_millis(if asked.get() < 3 { 1 } else { 0 })
        };
        let error = silent.resolve(&stack(1), patience).unwrap_err();
        assert!(matches!(error, SymbolError::TooLong), "{error}");
        assert!(silent.helper.is_none());
        let mut nonsense = shell("echo hello; sleep 1000");
        let error = nonsense.resolve(&stack(1), long).unwrap_err();
        assert!(matches!(error, SymbolError::Damaged), "{error}");
        assert!(nonsense.helper.is_none());
        let mut absent = Symbols::new(|| Command::new("/nowhere/warptrace"));
        let error = absent.resolve(&stack(1), long).unwrap_err();
        assert!(matches!(error, SymbolError::Start(_)), "{error}");
    }

    #[test]
    fn a_helper_that_ended_to_give_memory_back_is_started_again() {
        let mut symbols = shell(r#"read x; echo '{"frames":[]}'"#);
        for _ in 0..4 {
            symbols.resolve(&stack(1), long).unwrap();
        }
    }
}
