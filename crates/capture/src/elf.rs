//! The functions that a shared library exports, and where they are in its file.
//!
//! Uprobes are placed by file offset. This reads the dynamic symbols through the program headers alone (`PT_DYNAMIC`,
//! `PT_LOAD`), so a library without section headers is no different from another. It knows 64-bit little-endian ELF and
//! nothing of CUDA. Input is hostile: every size has a cap, and reads go through `pread`, never a mapping that a
//! truncation could turn into a signal.
//!
//! Layouts: System V ABI, "Dynamic Section" and "Hash Table"; the GNU hash table as glibc's `dl-lookup.c` reads it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PF_X: u32 = 1;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_STRSZ: u64 = 10;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const STT_FUNC: u8 = 2;
const SYMBOL_BYTES: u64 = 24;

/// The largest table that is read, bytes; libtorch's are below 100 MB.
const MAX_TABLE: u64 = 256 << 20;

/// Why a file's functions are not known.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    #[error("not a 64-bit little-endian ELF file")]
    NotElf,
    /// Static, or stripped of its dynamic symbols too.
    #[error("no dynamic symbols")]
    NoSymbols,
    #[error("damaged: {0}")]
    Damaged(&'static str),
    #[error("cannot read")]
    Read(#[from] io::Error),
}

#[derive(Clone, Copy)]
struct Segment {
    flags: u32,
    offset: u64,
    address: u64,
    bytes: u64,
}

/// Offsets in `file` of the functions that it defines and exports, by name.
///
/// Cost: reads the dynamic symbol and string tables, 30 MB for the largest libraries.
///
/// # Errors
/// [`ElfError`]; nothing is returned of a file that is damaged in part.
pub(crate) fn exported_functions(file: &File) -> Result<HashMap<String, u64>, ElfError> {
    let head = bytes(file, 0, 64).map_err(|_| ElfError::NotElf)?;
    if head.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err(ElfError::NotElf);
    }
    let (at, each, count) = (u64_at(&head, 32), u16_at(&head, 54), u16_at(&head, 56));
    if each < 56 {
        return Err(ElfError::Damaged("program headers"));
    }
    let headers = bytes(file, at, u64::from(each) * u64::from(count))?;
    let (mut loads, mut dynamic) = (Vec::new(), None);
    for h in headers.chunks_exact(usize::from(each)) {
        let segment = Segment {
            flags: u32_at(h, 4),
            offset: u64_at(h, 8),
            address: u64_at(h, 16),
            bytes: u64_at(h, 32),
        };
        match u32_at(h, 0) {
            PT_LOAD => loads.push(segment),
            PT_DYNAMIC => dynamic = Some(segment),
            _ => {}
        }
    }
    let dynamic = dynamic.ok_or(ElfError::NoSymbols)?;
    let entries = bytes(file, dynamic.offset, dynamic.bytes)?;
    let tag = |wanted: u64| {
        entries
            .chunks_exact(16)
            .take_while(|e| u64_at(e, 0) != 0)
            .find(|e| u64_at(e, 0) == wanted)
            .map(|e| u64_at(e, 8))
    };
    let place = |address: u64| {
        file_offset(&loads, address).ok_or(ElfError::Damaged("an address outside of it"))
    };
    let (Some(symbols), Some(strings), Some(string_bytes)) =
        (tag(DT_SYMTAB), tag(DT_STRTAB), tag(DT_STRSZ))
    else {
        return Err(ElfError::NoSymbols);
    };
    let count = if let Some(hash) = tag(DT_GNU_HASH) {
        gnu_hash_symbols(file, place(hash)?)?
    } else if let Some(hash) = tag(DT_HASH) {
        u64::from(u32_at(&bytes(file, place(hash)?, 8)?, 4))
    } else {
        return Err(ElfError::NoSymbols);
    };
    let strings = bytes(file, place(strings)?, string_bytes)?;
    let symbols = bytes(file, place(symbols)?, count.saturating_mul(SYMBOL_BYTES))?;
    let mut functions = HashMap::new();
    for s in symbols.chunks_exact(SYMBOL_BYTES as usize) {
        let (name, kind, section, value) = (u32_at(s, 0), s[4] & 15, u16_at(s, 6), u64_at(s, 8));
        if kind != STT_FUNC || section == 0 {
            continue;
        }
        let Some(name) = text(&strings, name as usize) else {
            return Err(ElfError::Damaged("a symbol's name"));
        };
        let code = loads.iter().copied().filter(|l| l.flags & PF_X != 0);
        if let Some(offset) = file_offset(&code.collect::<Vec<_>>(), value) {
            functions.insert(name.to_owned(), offset);
        }
    }
    if functions.is_empty() {
        return Err(ElfError::NoSymbols);
    }
    Ok(functions)
}

fn file_offset(loads: &[Segment], address: u64) -> Option<u64> {
    let load = loads
        .iter()
        .find(|l| address >= l.address && address - l.address < l.bytes)?;
    load.offset.checked_add(address - load.address)
}

/// Number of symbols by a GNU hash table, which does not say it: one past the end of the longest chain.
fn gnu_hash_symbols(file: &File, at: u64) -> Result<u64, ElfError> {
    let head = bytes(file, at, 16)?;
    let (buckets, first, bloom) = (
        u32_at(&head, 0),
        u64::from(u32_at(&head, 4)),
        u64::from(u32_at(&head, 8)),
    );
    let buckets_at = at.saturating_add(16 + bloom * 8);
    let table = bytes(file, buckets_at, u64::from(buckets) * 4)?;
    let last = table
        .chunks_exact(4)
        .map(|b| u64::from(u32_at(b, 0)))
        .max()
        .unwrap_or(0);
    if last < first {
        return Ok(first);
    }
    let chains_at = buckets_at.saturating_add(u64::from(buckets) * 4);
    for i in 0.. {
        let link = bytes(file, chains_at.saturating_add((last - first + i) * 4), 4)?;
        if u32_at(&link, 0) & 1 == 1 {
            return Ok(last + i + 1);
        }
    }
    Err(ElfError::Damaged("an endless chain"))
}

fn bytes(file: &File, at: u64, count: u64) -> Result<Vec<u8>, ElfError> {
    if count > MAX_TABLE {
        return Err(ElfError::Damaged("a table too large"));
    }
    // Before the memory is taken: a damaged size must not cost what the file cannot hold.
    let end = at
        .checked_add(count)
        .ok_or(ElfError::Damaged("a table outside of it"))?;
    if end > file.metadata()?.len() {
        return Err(ElfError::Damaged("a table outside of it"));
    }
    let mut out = vec![0; count as usize];
    file.read_exact_at(&mut out, at)?;
    Ok(out)
}

fn text(strings: &[u8], at: usize) -> Option<&str> {
    let rest = strings.get(at..)?;
    let end = rest.iter().position(|b| *b == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

fn array<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    b.get(at..)
        .and_then(|b| b.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(b, at))
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(b, at))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(b, at))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn own_libc() -> String {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|l| l.contains("/libc.so.6")).unwrap();
        line[line.find('/').unwrap()..].to_owned()
    }

    #[test]
    fn functions_of_libc_are_found_where_their_code_begins() {
        let path = own_libc();
        let functions = exported_functions(&File::open(&path).unwrap()).unwrap();
        assert!(functions.len() > 1_000);
        // What the loader resolved, against the file: the same bytes.
        let loaded = libc::getpid as *const () as u64;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let (mapped_at, file_at) = maps
            .lines()
            .filter(|l| l.ends_with(&path))
            .find_map(|l| {
                let mut words = l.split_whitespace();
                let (from, to) = words.next()?.split_once('-')?;
                let from = u64::from_str_radix(from, 16).ok()?;
                let to = u64::from_str_radix(to, 16).ok()?;
                let offset = u64::from_str_radix(words.nth(1)?, 16).ok()?;
                (from <= loaded && loaded < to).then_some((from, offset))
            })
            .unwrap();
        assert_eq!(functions["getpid"], loaded - mapped_at + file_at);
    }

    #[test]
    fn any_damage_is_an_error_or_a_smaller_answer_and_never_a_panic() {
        let whole = std::fs::read(own_libc()).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&whole[..4096.min(whole.len())]).unwrap();
        assert!(exported_functions(&file).is_err(), "cut after a page");
        // Every byte of the header and the program headers, turned around.
        for at in 0..64 + 56 * 12 {
            let mut bytes = whole[..65_536].to_vec();
            bytes[at] ^= 0xff;
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            let _ = exported_functions(&file);
        }
        let empty = tempfile::tempfile().unwrap();
        assert!(matches!(exported_functions(&empty), Err(ElfError::NotElf)));
    }
}
