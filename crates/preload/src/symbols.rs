//! Every name that is interposed, in order, and what is done with it.

use core::ffi::CStr;

use warptrace_record::op::{OPS, Op};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Row of the op table.
    Op(u8),
    /// A function `(name, void **out, …)` that hands out a pointer to the function called `name`.
    GetProc,
    /// `dlsym` or `dlvsym`: `(handle, name, …)`, gives a pointer.
    Dlsym,
}

pub(crate) struct Symbol {
    pub(crate) name: &'static CStr,
    pub(crate) kind: Kind,
}

const _: () = assert!(OPS.len() < LOOKUP as usize);

include!(concat!(env!("OUT_DIR"), "/symbols.rs"));

/// Number of names.
pub(crate) const COUNT: usize = SYMBOLS.len();

/// [`ROWS`] of a name that hands out pointers.
pub(crate) const LOOKUP: u8 = u8::MAX;

/// The row of the op table of every stub, exported ones too.
pub(crate) static ROWS: [u8; COUNT * (COPIES + 1)] = {
    let mut rows = [LOOKUP; COUNT * (COPIES + 1)];
    let mut stub = 0;
    while stub < rows.len() {
        if let Kind::Op(row) = SYMBOLS[stub % COUNT].kind {
            rows[stub] = row;
        }
        stub += 1;
    }
    rows
};

/// The number of the name, if it is interposed. Cost: about nine comparisons.
pub(crate) fn find(name: &CStr) -> Option<usize> {
    SYMBOLS
        .binary_search_by(|s| s.name.to_bytes().cmp(name.to_bytes()))
        .ok()
}

/// The op of a row.
#[inline]
pub(crate) fn op(row: u8) -> &'static Op {
    &OPS[row as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_symbol_of_the_op_table_is_found_with_its_op() {
        for (row, op) in OPS.iter().enumerate() {
            for name in op.symbols {
                let name = std::ffi::CString::new(*name).unwrap();
                let found = find(&name).unwrap();
                assert!(SYMBOLS[found].kind == Kind::Op(row as u8), "{name:?}");
            }
        }
        assert!(find(c"dlsym").is_some());
        assert!(find(c"cudaMallo").is_none());
        assert!(find(c"cudaMallocZ").is_none());
        assert!(find(c"").is_none());
    }
}
