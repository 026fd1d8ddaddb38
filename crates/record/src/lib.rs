//! The record that both capture backends write, its ring, and the op table.
