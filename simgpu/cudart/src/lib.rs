//! simgpu: cudart
