//! Read-only SQL over sessions.
