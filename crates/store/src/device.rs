//! Devices of a session's machine, as its samples tell of them.

use std::collections::{BTreeMap, BTreeSet};

use warptrace_model::Pid;

use crate::rows::SystemRow;

/// A device of the session's machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDevice {
    /// NVML's.
    pub index: u16,
    pub uuid: String,
    /// As NVML has it; empty in older sessions.
    pub name: String,
    /// Processes that were ever seen on it.
    pub processes: BTreeSet<Pid>,
}

impl StoredDevice {
    /// Takes what a sample says; one of the machine says nothing.
    pub(crate) fn see(devices: &mut BTreeMap<u16, StoredDevice>, row: SystemRow) {
        let Some(index) = row.device else {
            return;
        };
        let device = devices.entry(index).or_insert_with(|| StoredDevice {
            index,
            uuid: String::new(),
            name: String::new(),
            processes: BTreeSet::new(),
        });
        device.uuid = row.uuid.unwrap_or_default();
        device.name = row.name.unwrap_or_default();
        let pids = row.processes.iter().map(|process| Pid(process.pid));
        device.processes.extend(pids);
    }
}
