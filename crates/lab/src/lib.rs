//! Fault injectors that know the truth of what they injected.
