//! A recorder as a service: what the service manager is told, and what a reload changes.
//!
//! Knows nothing of what is recorded: `record` calls it at the moments that matter.

mod notify;
mod reload;

pub(crate) use notify::{Manager, alone};
pub(crate) use reload::Change;
