//! The running pipeline: sources, engine, store.
