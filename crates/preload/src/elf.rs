//! Objects that the dynamic linker has loaded, read from memory: which symbols they define, which libraries they need.
//!
//! Source: System V ABI, gABI chapter 5; the GNU hash table as binutils writes it.

use core::ffi::{CStr, c_char, c_int};

use crate::sys;

/// The public head of glibc's `struct link_map` (`<link.h>`).
#[repr(C)]
pub struct LinkMap {
    base: usize,
    name: *const c_char,
    dynamic: *const Dynamic,
    next: *const LinkMap,
    previous: *const LinkMap,
}

#[repr(C)]
struct Dynamic {
    tag: i64,
    value: usize,
}

/// `Elf64_Sym`.
#[repr(C)]
pub struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    pub(crate) value: u64,
    size: u64,
}

#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    address: usize,
    physical: usize,
    file_size: usize,
    memory_size: usize,
    align: usize,
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_NEEDED: i64 = 1;
const DT_HASH: i64 = 4;
const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_SONAME: i64 = 14;
const DT_GNU_HASH: i64 = 0x6fff_fef5;
const DT_VERSYM: i64 = 0x6fff_fff0;
const STT_FUNC: u8 = 2;
/// A version that is not the default one.
const VERSION_HIDDEN: u16 = 0x8000;

/// A loaded object.
pub(crate) struct Object {
    base: usize,
    dynamic: *const Dynamic,
    strings: *const c_char,
    symbols: *const Symbol,
    gnu_hash: *const u32,
    hash: *const u32,
    versions: *const u16,
}

impl Object {
    /// # Safety
    /// `map` is null or a link map whose object stays loaded as long as the value is used.
    pub(crate) unsafe fn of_link_map(map: *const LinkMap) -> Option<Object> {
        // SAFETY: the caller's promise.
        unsafe {
            let map = map.as_ref()?;
            Object::of_dynamic(map.base, map.dynamic)
        }
    }

    /// # Safety
    /// `base` is the load address and `dynamic` the dynamic section of an object that stays loaded.
    unsafe fn of_dynamic(base: usize, dynamic: *const Dynamic) -> Option<Object> {
        let mut object = Object {
            base,
            dynamic,
            strings: core::ptr::null(),
            symbols: core::ptr::null(),
            gnu_hash: core::ptr::null(),
            hash: core::ptr::null(),
            versions: core::ptr::null(),
        };
        if dynamic.is_null() {
            return None;
        }
        let mut at = dynamic;
        // SAFETY: a dynamic section ends with a zero tag.
        while let Dynamic { tag, value } = unsafe { &*at }
            && *tag != 0
        {
            // glibc has made these absolute, but not for the vDSO and not on every architecture.
            let address = if *value < base { base + value } else { *value };
            match *tag {
                DT_STRTAB => object.strings = address as *const c_char,
                DT_SYMTAB => object.symbols = address as *const Symbol,
                DT_GNU_HASH => object.gnu_hash = address as *const u32,
                DT_HASH => object.hash = address as *const u32,
                DT_VERSYM => object.versions = address as *const u16,
                _ => {}
            }
            // SAFETY: not the last entry.
            at = unsafe { at.add(1) };
        }
        (!object.strings.is_null() && !object.symbols.is_null()).then_some(object)
    }

    /// The object that the kernel maps into every process, whose ELF header is at `at`.
    ///
    /// # Safety
    /// `at` is AT_SYSINFO_EHDR of the auxiliary vector.
    pub(crate) unsafe fn of_vdso(at: usize) -> Option<Object> {
        // SAFETY: a complete ELF header and its program headers are mapped there (e_phoff at 32, e_phnum at 56).
        let headers = unsafe {
            let offset = *((at + 32) as *const usize);
            let count = *((at + 56) as *const u16);
            core::slice::from_raw_parts((at + offset) as *const ProgramHeader, count as usize)
        };
        let load = headers.iter().find(|h| h.kind == PT_LOAD)?;
        let dynamic = headers.iter().find(|h| h.kind == PT_DYNAMIC)?;
        let base = at.wrapping_sub(load.address);
        // SAFETY: as said by the headers of a mapped object.
        unsafe { Object::of_dynamic(base, (base + dynamic.address) as *const Dynamic) }
    }

    /// Address of the function `name`, if the object defines it: its default version, or else any. Not one that is chosen at run time
    /// (`STT_GNU_IFUNC`).
    pub(crate) fn function(&self, name: &CStr) -> Option<usize> {
        let mut hidden = None;
        let mut found = None;
        self.each(name, |index, symbol| {
            let address = self.base.wrapping_add(symbol.value as usize);
            if self.is_hidden(index) {
                hidden = Some(address);
            } else {
                found = Some(address);
            }
            found.is_none()
        });
        found.or(hidden)
    }

    fn is_hidden(&self, index: u32) -> bool {
        // SAFETY: there is one version for each symbol where there are versions at all.
        !self.versions.is_null()
            && unsafe { *self.versions.add(index as usize) } & VERSION_HIDDEN != 0
    }

    /// Gives each function `name` that the object defines until `more` is false.
    pub(crate) fn each(&self, name: &CStr, mut more: impl FnMut(u32, &Symbol) -> bool) {
        let matches = |index: u32| {
            // SAFETY: `index` comes from the object's hash table.
            let symbol = unsafe { &*self.symbols.add(index as usize) };
            // SAFETY: names are offsets into the string table.
            let own = unsafe { CStr::from_ptr(self.strings.add(symbol.name as usize)) };
            (symbol.section != 0
                && symbol.value != 0
                && symbol.info & 0xf == STT_FUNC
                && own == name)
                .then_some(symbol)
        };
        if !self.gnu_hash.is_null() {
            let hash = name.to_bytes().iter().fold(5381u32, |h, &b| {
                h.wrapping_mul(33).wrapping_add(u32::from(b))
            });
            // SAFETY: bucket count, first index, words and shift of the filter; then filter, buckets and chains, as the linker wrote them.
            unsafe {
                let table = self.gnu_hash;
                let (buckets, first, words, shift) =
                    (*table, *table.add(1), *table.add(2), *table.add(3));
                let filter = table.add(4).cast::<u64>();
                let word = *filter.add((hash as usize / 64) & (words as usize - 1));
                let both = 1u64 << (hash % 64) | 1u64 << ((hash >> shift) % 64);
                if word & both != both || buckets == 0 {
                    return;
                }
                let bucket = filter.add(words as usize).cast::<u32>();
                let chain = bucket.add(buckets as usize);
                let mut index = *bucket.add((hash % buckets) as usize);
                if index < first {
                    return;
                }
                loop {
                    let link = *chain.add((index - first) as usize);
                    if link | 1 == hash | 1
                        && let Some(symbol) = matches(index)
                        && !more(index, symbol)
                    {
                        return;
                    }
                    if link & 1 != 0 {
                        return;
                    }
                    index += 1;
                }
            }
        } else if !self.hash.is_null() {
            let hash = name.to_bytes().iter().fold(0u32, |h, &b| {
                let h = (h << 4).wrapping_add(u32::from(b));
                (h ^ (h >> 24 & 0xf0)) & 0x0fff_ffff
            });
            // SAFETY: bucket count, chain count, buckets, chains, as the linker wrote them.
            unsafe {
                let (buckets, links) = (*self.hash, *self.hash.add(1));
                if buckets == 0 {
                    return;
                }
                let bucket = self.hash.add(2);
                let chain = bucket.add(buckets as usize);
                let mut index = *bucket.add((hash % buckets) as usize);
                while index != 0 && index < links {
                    if let Some(symbol) = matches(index)
                        && !more(index, symbol)
                    {
                        return;
                    }
                    index = *chain.add(index as usize);
                }
            }
        }
    }

    /// Makes each function that `other_place` has an answer for be found there instead, by whatever kind of reference: the symbol table of the
    /// object says so from now on. Says whether it could be done; else nothing has changed. Nothing of the object may be bound yet.
    ///
    /// Cost: a few pages become private to the process.
    pub(crate) fn redirect(
        &self,
        mut other_place: impl FnMut(&CStr, usize) -> Option<usize>,
    ) -> bool {
        let table = self.symbols as usize;
        let Some((end, protection)) = self.segment_of(table) else {
            return false;
        };
        let mut writable = false;
        for name in crate::symbols::SYMBOLS.iter().map(|symbol| symbol.name) {
            let mut done = true;
            self.each(name, |index, symbol| {
                let place = table + index as usize * size_of::<Symbol>();
                let Some(other) = (place < end)
                    .then(|| other_place(name, self.base.wrapping_add(symbol.value as usize)))
                    .flatten()
                else {
                    return true;
                };
                if !writable {
                    writable = sys::protect(table, end, protection | sys::PROT_WRITE);
                    done = writable;
                }
                if done {
                    // SAFETY: inside the table, writable now; nobody else knows the object yet.
                    unsafe {
                        (*(place as *mut Symbol)).value = other.wrapping_sub(self.base) as u64
                    };
                }
                done
            });
            if !done {
                return false;
            }
        }
        if writable {
            sys::protect(table, end, protection);
        }
        true
    }

    /// End and protection of the segment that holds `place`, by the program headers that follow the ELF header in memory.
    fn segment_of(&self, place: usize) -> Option<(usize, usize)> {
        if self.base == 0 || !sys::is_mapped(self.base) {
            return None;
        }
        // SAFETY: the page is there; e_phoff is at 32, e_phnum at 56.
        let headers = unsafe {
            if *(self.base as *const [u8; 4]) != *b"\x7fELF" {
                return None;
            }
            let offset = *((self.base + 32) as *const usize);
            let count = *((self.base + 56) as *const u16) as usize;
            if offset + count * size_of::<ProgramHeader>() > 4096 {
                return None;
            }
            core::slice::from_raw_parts((self.base + offset) as *const ProgramHeader, count)
        };
        let segment = headers.iter().find(|h| {
            h.kind == PT_LOAD && place.wrapping_sub(self.base + h.address) < h.file_size
        })?;
        // PF_R 4, PF_W 2, PF_X 1; PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
        let flags = segment.flags as usize;
        let protection = (flags >> 2 & 1) | (flags & 2) | (flags & 1) << 2;
        Some((self.base + segment.address + segment.file_size, protection))
    }

    /// Whether the object was linked to a library called as `other` calls itself.
    pub(crate) fn needs(&self, other: &Object) -> bool {
        let mut found = false;
        other.names(DT_SONAME, |soname| {
            self.names(DT_NEEDED, |needed| found |= needed == soname);
        });
        found
    }

    fn names(&self, wanted: i64, mut each: impl FnMut(&CStr)) {
        let mut at = self.dynamic;
        // SAFETY: a dynamic section ends with a zero tag; names are offsets into the string table.
        unsafe {
            while (*at).tag != 0 {
                if (*at).tag == wanted {
                    each(CStr::from_ptr(self.strings.add((*at).value)));
                }
                at = at.add(1);
            }
        }
    }
}

/// `struct dl_phdr_info` of `<link.h>`, its old part.
#[repr(C)]
struct ObjectInfo {
    base: usize,
    name: *const c_char,
    headers: *const ProgramHeader,
    count: u16,
}

type Callback = unsafe extern "C" fn(*const ObjectInfo, usize, *mut usize) -> c_int;
type Iterate = unsafe extern "C" fn(Callback, *mut usize) -> c_int;

core::arch::global_asm!(".weak dl_iterate_phdr");

/// glibc's `dl_iterate_phdr`, when the library is preloaded; 0 in an auditor, whose namespace has no libc.
fn iterate_address() -> usize {
    let address;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads the slot that the dynamic linker has filled.
    unsafe {
        core::arch::asm!("mov {}, qword ptr [rip + dl_iterate_phdr@GOTPCREL]", out(reg) address,
            options(nostack, preserves_flags, readonly));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: reads the slot that the dynamic linker has filled.
    unsafe {
        core::arch::asm!("adrp {0}, :got:dl_iterate_phdr", "ldr {0}, [{0}, :got_lo12:dl_iterate_phdr]",
            out(reg) address, options(nostack, preserves_flags, readonly));
    }
    address
}

/// Gives every loaded object, and whether the code at `place` is in it, until `more` is false.
pub(crate) fn each_object(place: usize, mut more: impl FnMut(&Object, bool) -> bool) {
    let address = iterate_address();
    if address == 0 {
        return;
    }
    struct Search<'a> {
        place: usize,
        more: &'a mut dyn FnMut(&Object, bool) -> bool,
    }
    unsafe extern "C" fn visit(info: *const ObjectInfo, _: usize, data: *mut usize) -> c_int {
        // SAFETY: `data` is the `Search` below; `info` describes an object that stays loaded while the list is locked.
        let (search, info, headers) = unsafe {
            let info = &*info;
            let headers = core::slice::from_raw_parts(info.headers, info.count as usize);
            (&mut *data.cast::<Search<'_>>(), info, headers)
        };
        let dynamic = headers.iter().find(|h| h.kind == PT_DYNAMIC);
        let inside = headers.iter().any(|h| {
            h.kind == PT_LOAD && search.place.wrapping_sub(info.base + h.address) < h.memory_size
        });
        // SAFETY: as its headers say.
        let object = dynamic.and_then(|d| unsafe {
            Object::of_dynamic(info.base, (info.base + d.address) as *const Dynamic)
        });
        c_int::from(object.is_some_and(|object| !(search.more)(&object, inside)))
    }
    let mut search = Search {
        place,
        more: &mut more,
    };
    // SAFETY: glibc's function, with a callback of its type.
    unsafe {
        core::mem::transmute::<usize, Iterate>(address)(visit, (&raw mut search).cast());
    }
}
