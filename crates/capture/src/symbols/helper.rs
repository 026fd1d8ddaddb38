//! The helper process: reads what a process has mapped and the files' symbols, and answers for one stack at a time.
//!
//! One JSON object a line, in and out. It ends with its input, with its parent, or when what it has cached grows too
//! large, and then a new one is started.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, Read as _, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Symbolized, Symbolizer};

use super::{Frame, Reply, Request, own, soundness};
use crate::maps::{self, Region};
use crate::sys;

/// The longest request, bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// Text of `/proc/PID/maps` beyond this is not read, bytes.
const MAX_MAPS: u64 = 16 << 20;
/// The longest name or path that is given, bytes: C++ knows no limit.
const MAX_NAME: usize = 1024;
/// Memory that can be taken at all, and that is kept between two stacks, bytes.
const MAX_DATA: u64 = 1 << 30;
const MAX_KEPT: u64 = 256 << 20;
/// Places whose functions are remembered: then the memory is emptied.
const MAX_PLACES: usize = 1 << 14;

/// Answers requests on the standard input until it ends. To be called first thing in a process of its own.
///
/// # Errors
/// What reading the input or writing the output said.
pub fn serve() -> io::Result<()> {
    sys::become_helper(MAX_DATA);
    answer_all(io::stdin().lock(), io::stdout().lock())
}

fn answer_all(mut input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let mut resolver = Resolver::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if input
            .by_ref()
            .take(MAX_REQUEST)
            .read_until(b'\n', &mut line)?
            == 0
        {
            return Ok(());
        }
        let request: Request = serde_json::from_slice(&line)?;
        let reply = Reply {
            frames: resolver.resolve(request.pid, &request.addresses, request.plain),
        };
        let mut text = serde_json::to_vec(&reply)?;
        text.push(b'\n');
        output.write_all(&text)?;
        output.flush()?;
        if resident_bytes() > MAX_KEPT {
            return Ok(());
        }
    }
}

fn resident_bytes() -> u64 {
    let own = |line: &str| {
        let rest = line.strip_prefix("RssAnon:")?;
        rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(own).unwrap_or(0) << 10
}

/// A file as it was when it was read: another one of this name is another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FileId {
    path: PathBuf,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// A function that holds an address; several for one when some are inlined, innermost first.
#[derive(Debug, Clone, Default)]
struct Function {
    name: String,
    file: Option<String>,
    line: Option<u32>,
}

#[derive(Default)]
pub(super) struct Resolver {
    symbolizer: Option<Symbolizer>,
    /// By file, offset, and whether names alone were asked for.
    places: HashMap<(FileId, u64, bool), Vec<Function>>,
}

impl Resolver {
    /// Frames of a stack of process `pid`, as far as they can be known. Those below one that no call precedes are addresses
    /// alone.
    pub(super) fn resolve(&mut self, pid: u32, addresses: &[u64], plain: bool) -> Vec<Frame> {
        let regions = read_maps(pid)
            .map(|text| maps::regions(&text))
            .unwrap_or_default();
        let mut frames = Vec::with_capacity(addresses.len());
        let mut files: HashMap<&Path, Option<(File, FileId)>> = HashMap::new();
        let mut sound = true;
        for (depth, ip) in addresses.iter().enumerate() {
            let unknown = Frame {
                ip: *ip,
                ..Frame::default()
            };
            // The call is before where it returns to, maybe in another function than what follows it.
            let region = ip
                .checked_sub(1)
                .and_then(|call| maps::region_of(&regions, call))
                .filter(|_| sound);
            let Some(region) = region else {
                sound = false;
                frames.push(unknown);
                continue;
            };
            let frame = Frame {
                module: Some(cut(&region.path.to_string_lossy())),
                module_offset: Some(ip - region.base),
                ..unknown.clone()
            };
            // What the kernel put there: the vdso, or the way back of an outer call that is traced too.
            if !region.path.is_absolute() {
                frames.push(frame);
                continue;
            }
            let file = files
                .entry(&region.path)
                .or_insert_with(|| open(pid, region));
            let Some((file, id)) = file else {
                // It can be neither named nor believed, but for the first, which a register said.
                sound = depth == 0;
                frames.push(if sound { frame } else { unknown });
                continue;
            };
            let offset = ip - region.start + region.offset;
            if depth > 0 && !follows_call(file, offset) {
                sound = false;
                frames.push(unknown);
                continue;
            }
            // The C library's debug information takes half a second to read, for lines that nobody asks for.
            let plain = plain || frame.module_name().is_some_and(own::is_runtime);
            let functions = self.functions(pid, region, id, offset - 1, plain);
            if functions.is_empty() {
                frames.push(frame);
                continue;
            }
            frames.extend(functions.iter().map(|f| Frame {
                function: Some(f.name.clone()),
                file: f.file.clone(),
                line: f.line,
                ..frame.clone()
            }));
        }
        frames
    }

    fn functions(
        &mut self,
        pid: u32,
        region: &Region,
        id: &FileId,
        offset: u64,
        plain: bool,
    ) -> &[Function] {
        if self.places.len() >= MAX_PLACES {
            self.places.clear();
        }
        let symbolizer = self.symbolizer.get_or_insert_with(Symbolizer::new);
        self.places
            .entry((id.clone(), offset, plain))
            .or_insert_with(|| {
                let mut elf = Elf::new(region.reach(pid));
                elf.debug_syms = !plain;
                let found = symbolizer
                    .symbolize_single(&Source::Elf(elf), Input::FileOffset(offset))
                    .ok();
                found.map(|s| functions_of(&s)).unwrap_or_default()
            })
    }
}

fn functions_of(found: &Symbolized<'_>) -> Vec<Function> {
    let Some(symbol) = found.as_sym() else {
        return Vec::new();
    };
    let function = |name: &str, code: Option<&CodeInfo<'_>>| Function {
        name: cut(name),
        file: code.map(|c| cut(&c.to_path().to_string_lossy())),
        line: code.and_then(|c| c.line),
    };
    let inlined = symbol
        .inlined
        .iter()
        .rev()
        .map(|f| function(&f.name, f.code_info.as_ref()));
    inlined
        .chain([function(&symbol.name, symbol.code_info.as_deref())])
        .collect()
}

fn read_maps(pid: u32) -> Option<String> {
    let mut text = Vec::new();
    let file = File::open(format!("/proc/{pid}/maps")).ok()?;
    file.take(MAX_MAPS).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// The mapped file, unless another has its name now.
fn open(pid: u32, region: &Region) -> Option<(File, FileId)> {
    let path = region.reach(pid);
    // Looked at before it is opened: a pipe of this name would hold us up.
    let about = std::fs::metadata(&path).ok()?;
    if !about.is_file() || about.ino() != region.inode {
        return None;
    }
    let file = File::open(&path).ok()?;
    let id = FileId {
        path: region.path.clone(),
        inode: about.ino(),
        bytes: about.size(),
        modified: (about.mtime(), about.mtime_nsec()),
    };
    Some((file, id))
}

fn follows_call(file: &File, offset: u64) -> bool {
    let mut before = [0; soundness::BYTES];
    let start = offset.saturating_sub(before.len() as u64);
    let count = (offset - start) as usize;
    file.read_exact_at(&mut before[..count], start).is_ok()
        && soundness::ends_in_call(&before[..count])
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_NAME);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_in_turn_until_the_input_ends() {
        let own = std::process::id();
        let here = requests_are_answered_in_turn_until_the_input_ends as *const () as u64 + 1;
        let input = format!(
            "{{\"pid\":{own},\"plain\":false,\"addresses\":[{here}]}}\n{{\"pid\":{own},\"plain\":true,\"addresses\":[1]}}\n"
        );
        let mut output = Vec::new();
        answer_all(input.as_bytes(), &mut output).unwrap();
        let replies: Vec<Reply> = output
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect();
        assert_eq!(replies.len(), 2);
        let frame = &replies[0].frames[0];
        assert!(
            frame
                .function
                .as_deref()
                .is_some_and(|f| f.contains("requests_are_answered")),
            "{frame:?}"
        );
        assert!(
            frame
                .file
                .as_deref()
                .is_some_and(|f| f.ends_with("helper.rs")),
            "{frame:?}"
        );
        assert_eq!(
            replies[1].frames,
            [Frame {
                ip: 1,
                ..Frame::default()
            }]
        );
    }

    #[test]
    fn a_process_that_is_gone_leaves_addresses_alone() {
        let frames = Resolver::default().resolve(u32::MAX - 1, &[4096, 8192], false);
        assert_eq!(frames.len(), 2);
        assert!(frames.iter().all(|f| f.module.is_none()), "{frames:?}");
    }

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(cut("f"), "f");
        let long = "é".repeat(MAX_NAME);
        assert_eq!(cut(&long).len(), MAX_NAME);
        let odd = format!("x{long}");
        assert_eq!(cut(&odd).len(), MAX_NAME - 1);
    }
}
