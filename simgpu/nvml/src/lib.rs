//! simgpu: nvml
