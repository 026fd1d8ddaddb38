//! Writes the run log of an inference server.
