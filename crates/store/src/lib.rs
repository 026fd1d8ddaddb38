//! Sessions on disk: Arrow segments while written, Parquet when sealed.
