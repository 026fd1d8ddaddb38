//! simgpu: workload
