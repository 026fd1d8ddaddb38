//! The name by which programs ask for the library, and the version of its symbols.
//!
//! The real libcudart.so.12 gives each symbol the version `libcudart.so.12`; a program linked to it asks for that version. Only GNU
//! ld makes such versions by itself (`--default-symver`) beside the list of symbols that rustc gives.

fn main() {
    for argument in [
        "-fuse-ld=bfd",
        "-Wl,--default-symver",
        "-Wl,-soname,libcudart.so.12",
        "-Wl,-Bsymbolic",
        // It opens libcuda.so.1 by dlopen: first where the loader looks by itself, then beside this library.
        "-Wl,--enable-new-dtags,-rpath,$ORIGIN",
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
