//! The command warptrace.
fn main() {}
