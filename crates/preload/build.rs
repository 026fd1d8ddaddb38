//! Writes the symbol table, the stubs and the exported names from the op table of `warptrace-record`, and sets the soname.
//!
//! A stub loads its own number and jumps to `warptrace_call_W`, which saves the argument registers in a `call::Frame`, asks
//! `call::enter` for the real function, calls it with the same registers and the same `W` words of stack arguments, and hands the
//! result to `call::leave`. So one stub serves any signature of integers and pointers, and the real function sees exactly what
//! the caller passed. A stub exists [`COPIES`] times, for as many copies of a library in one process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use warptrace_record::op::OPS;

/// Copies of one library in one process that are told apart.
const COPIES: usize = 4;
/// Bytes of `call::Frame`; `call.rs` checks it.
const FRAME_BYTES: usize = 128;

/// Functions that hand out pointers to other functions.
const LOOKUPS: [(&str, &str); 8] = [
    ("cuGetProcAddress", "Kind::GetProc"),
    ("cuGetProcAddress_v2", "Kind::GetProc"),
    ("cudaGetDriverEntryPoint", "Kind::GetProc"),
    ("cudaGetDriverEntryPoint_ptsz", "Kind::GetProc"),
    ("cudaGetDriverEntryPointByVersion", "Kind::GetProc"),
    ("cudaGetDriverEntryPointByVersion_ptsz", "Kind::GetProc"),
    ("dlsym", "Kind::Dlsym"),
    ("dlvsym", "Kind::Dlsym"),
];

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-nostartfiles");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libwarptrace_preload.so");

    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let out = std::env::var("OUT_DIR").unwrap_or_default();
    let out = Path::new(&out);

    let mut symbols: BTreeMap<&str, (String, u8)> = LOOKUPS
        .iter()
        .map(|&(name, kind)| (name, (kind.to_owned(), 6)))
        .collect();
    for (index, op) in OPS.iter().enumerate() {
        for &name in op.symbols {
            let one = symbols.insert(name, (format!("Kind::Op({index})"), op.params));
            assert!(one.is_none(), "{name} is there twice");
        }
    }

    let mut table = format!(
        "pub(crate) const COPIES: usize = {COPIES};\npub(crate) const FRAME_BYTES: usize = {FRAME_BYTES};\n\
         pub(crate) static SYMBOLS: [Symbol; {}] = [\n",
        symbols.len()
    );
    let mut exports = String::new();
    for (i, (name, (kind, params))) in symbols.iter().enumerate() {
        let _ = writeln!(table, "    Symbol {{ name: c{name:?}, kind: {kind} }},");
        let linked = symbols.len() * COPIES + i;
        let _ = writeln!(exports, "stub!({name} {linked} {});", words(&arch, *params));
    }
    table.push_str("];\n");

    let mut stubs = String::from(".text\n");
    let mut shapes: Vec<usize> = symbols.values().map(|(_, p)| words(&arch, *p)).collect();
    shapes.sort_unstable();
    shapes.dedup();
    for &w in &shapes {
        match arch.as_str() {
            "x86_64" => x86_64_call(&mut stubs, w),
            "aarch64" => aarch64_call(&mut stubs, w),
            other => panic!("no stubs for {other}"),
        }
    }
    stubs.push_str(
        ".p2align 4\n.globl warptrace_stubs\n.hidden warptrace_stubs\nwarptrace_stubs:\n",
    );
    for copy in 0..COPIES {
        for (i, (_, params)) in symbols.values().enumerate() {
            let (number, w) = (copy * symbols.len() + i, words(&arch, *params));
            let _ = match arch.as_str() {
                "x86_64" => writeln!(
                    stubs,
                    ".p2align 4, 0xcc\nmov r11d, {number}\njmp warptrace_call_{w}"
                ),
                _ => writeln!(
                    stubs,
                    ".p2align 4\nmov w16, #{number}\nb warptrace_call_{w}"
                ),
            };
        }
    }
    stubs.push_str(".p2align 4\n.globl warptrace_stubs_end\n.hidden warptrace_stubs_end\nwarptrace_stubs_end:\n");

    std::fs::write(out.join("symbols.rs"), table)?;
    std::fs::write(out.join("exports.rs"), exports)?;
    std::fs::write(out.join("stubs.s"), stubs)
}

/// Words of stack that a call with `params` integer arguments can have, even so that the stack stays aligned.
fn words(arch: &str, params: u8) -> usize {
    let registers = if arch == "x86_64" { 6 } else { 8 };
    usize::from(params)
        .saturating_sub(registers)
        .next_multiple_of(2)
}

fn x86_64_call(out: &mut String, words: usize) {
    let registers = ["rdi", "rsi", "rdx", "rcx", "r8", "r9"];
    let _ = write!(
        out,
        ".p2align 5\n.globl warptrace_call_{words}\n.hidden warptrace_call_{words}\n.type warptrace_call_{words}, @function\n\
         warptrace_call_{words}:\n.cfi_startproc\n\
         push rbp\n.cfi_def_cfa_offset 16\n.cfi_offset rbp, -16\nmov rbp, rsp\n.cfi_def_cfa_register rbp\nsub rsp, {FRAME_BYTES}\n"
    );
    for (i, r) in registers.iter().enumerate() {
        let _ = writeln!(out, "mov [rsp + {}], {r}", 8 * i);
    }
    out.push_str("mov rdi, rsp\nmov esi, r11d\ncall {enter}\nmov r11, rax\n");
    for (i, r) in registers.iter().enumerate() {
        let _ = writeln!(out, "mov {r}, [rsp + {}]", 8 * i);
    }
    out.push_str("cmp dword ptr [rsp + 64], 0\nje 2f\n");
    for i in (0..words).rev() {
        let _ = writeln!(out, "push qword ptr [rbp + {}]", 16 + 8 * i);
    }
    let _ = write!(
        out,
        "call r11\nlea rdi, [rbp - {FRAME_BYTES}]\nmov rsi, rax\n{}call {{leave}}\nleave\n\
         .cfi_remember_state\n.cfi_def_cfa rsp, 8\nret\n.cfi_restore_state\n\
         2:\nleave\n.cfi_def_cfa rsp, 8\njmp r11\n.cfi_endproc\n.size warptrace_call_{words}, . - warptrace_call_{words}\n",
        if words > 0 { "mov rsp, rdi\n" } else { "" }
    );
}

fn aarch64_call(out: &mut String, words: usize) {
    let _ = write!(
        out,
        ".p2align 4\n.globl warptrace_call_{words}\n.hidden warptrace_call_{words}\n.type warptrace_call_{words}, %function\n\
         warptrace_call_{words}:\n.cfi_startproc\n\
         stp x29, x30, [sp, #-16]!\n.cfi_def_cfa_offset 16\n.cfi_offset x29, -16\n.cfi_offset x30, -8\nmov x29, sp\n\
         .cfi_def_cfa_register x29\nsub sp, sp, #{FRAME_BYTES}\n"
    );
    for i in (0..8).step_by(2) {
        let _ = writeln!(out, "stp x{i}, x{}, [sp, #{}]", i + 1, 8 * i);
    }
    out.push_str("mov x0, sp\nmov w1, w16\nbl {enter}\nmov x16, x0\nldr w9, [sp, #64]\n");
    for i in (0..8).step_by(2) {
        let _ = writeln!(out, "ldp x{i}, x{}, [sp, #{}]", i + 1, 8 * i);
    }
    out.push_str("cbz w9, 2f\n");
    if words > 0 {
        let _ = writeln!(out, "sub sp, sp, #{}", 8 * words);
        for i in (0..words).step_by(2) {
            let _ = writeln!(
                out,
                "ldp x9, x10, [x29, #{}]\nstp x9, x10, [sp, #{}]",
                16 + 8 * i,
                8 * i
            );
        }
    }
    let _ = write!(
        out,
        "blr x16\nsub sp, x29, #{FRAME_BYTES}\nmov x1, x0\nmov x0, sp\nbl {{leave}}\nmov sp, x29\n.cfi_remember_state\n\
         ldp x29, x30, [sp], #16\n.cfi_def_cfa sp, 0\nret\n.cfi_restore_state\n\
         2:\nmov sp, x29\nldp x29, x30, [sp], #16\n.cfi_def_cfa sp, 0\nbr x16\n.cfi_endproc\n\
         .size warptrace_call_{words}, . - warptrace_call_{words}\n"
    );
}
