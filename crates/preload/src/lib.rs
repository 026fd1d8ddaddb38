//! The library that times CUDA calls from inside a job.
