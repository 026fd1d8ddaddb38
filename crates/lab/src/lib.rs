//! Fault injectors that know the truth of what they injected.
//!
//! A [`Scenario`] is a workload on simgpu, the faults that hit it and when, and the cause that an honest explanation
//! must name first. The faults are real: a hog really takes the CPU, a file is really read from disk. What an injector
//! knows of its own effect (who, when, how long the workload's thread really waited) it writes down as [`Truth`], from
//! sources that no capture backend uses, so that answers can be scored against it.
//!
//! This crate knows nothing of records, units or findings.

mod hog;
mod scenario;
mod truth;

pub use hog::{HOG_NAME, Hog, run_hog};
pub use scenario::{Fault, Plan, Scenario, Workload, find, scenarios};
pub use truth::{Injected, RunDelay, Truth, Watch};
