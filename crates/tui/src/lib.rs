//! The live table of a terminal.
