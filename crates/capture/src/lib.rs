//! Where records come from: eBPF, preload rings, pollers.
