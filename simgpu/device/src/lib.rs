//! simgpu: device
