//! What the NVIDIA driver says of its devices' memory.

use std::ffi::OsStr;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml as Driver};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// NVML, the driver's own library. Each question may take some milliseconds, and other threads run meanwhile.
#[pyclass(module = "warptrace", frozen)]
pub(super) struct Nvml {
    driver: Driver,
}

#[pymethods]
impl Nvml {
    /// Loads `library`, or `libnvidia-ml.so.1` as the linker finds it.
    ///
    /// Raises RuntimeError when there is no driver.
    #[new]
    #[pyo3(signature = (library=None))]
    fn new(py: Python<'_>, library: Option<&str>) -> PyResult<Nvml> {
        let library = OsStr::new(library.unwrap_or("libnvidia-ml.so.1"));
        let driver = py.detach(|| Driver::builder().lib_path(library).init());
        match driver {
            Ok(driver) => Ok(Nvml { driver }),
            Err(NvmlError::LibloadingError(_)) => {
                let text = "no NVIDIA driver: libnvidia-ml.so.1 cannot be loaded";
                Err(PyRuntimeError::new_err(text))
            }
            Err(e) => Err(PyRuntimeError::new_err(e.to_string())),
        }
    }

    #[getter]
    fn device_count(&self, py: Python<'_>) -> u32 {
        py.detach(|| self.driver.device_count().unwrap_or(0))
    }

    /// The device's UUID, `GPU-…`; None if it does not say.
    fn uuid(&self, py: Python<'_>, index: u32) -> Option<String> {
        py.detach(|| self.device(index)?.uuid().ok())
    }

    /// Bytes in use by all processes, free, and in all; None if the device does not answer.
    fn memory(&self, py: Python<'_>, index: u32) -> Option<(u64, u64, u64)> {
        py.detach(|| {
            let memory = self.device(index)?.memory_info().ok()?;
            Some((memory.used, memory.free, memory.total))
        })
    }

    /// Bytes of the device that a process holds, its driver context included; None if it holds none or nobody says.
    fn process_memory(&self, py: Python<'_>, index: u32, pid: u32) -> Option<u64> {
        py.detach(|| {
            let processes = self.device(index)?.running_compute_processes().ok()?;
            let mut ours = processes.iter().filter(|process| process.pid == pid);
            match ours.next()?.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            }
        })
    }
}

impl Nvml {
    fn device(&self, index: u32) -> Option<Device<'_>> {
        self.driver.device_by_index(index).ok()
    }
}
