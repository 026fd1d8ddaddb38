//! simgpu: cuda
