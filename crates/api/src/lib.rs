//! The questions that every surface may ask, and their answers.
