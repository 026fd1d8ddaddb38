//! Modules, kernels and their launches.

use super::*;

impl Driver {
    /// A module from any image: what is in it is not looked at.
    ///
    /// # Errors
    /// `InvalidContext`.
    pub fn load_module(&mut self, context: Handle) -> Result<(Handle, Wait)> {
        self.context(context)?;
        let handle = self.handle();
        self.modules.insert(handle, Module { context });
        let cold = std::mem::take(&mut self.cold_module_pending);
        Ok((handle, self.cold(if cold { 20 } else { 0 })))
    }

    /// Ends a module and its functions.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn unload_module(&mut self, module: Handle) -> Result<()> {
        self.modules.remove(&module).ok_or(Status::InvalidHandle)?;
        self.functions
            .retain(|_, function| function.module != module);
        Ok(())
    }

    /// The function of this name in a module. Every name but the empty one is there.
    ///
    /// # Errors
    /// `InvalidHandle`, `NotFound`.
    pub fn function(&mut self, module: Handle, name: &str) -> Result<Handle> {
        if !self.modules.contains_key(&module) {
            return Err(Status::InvalidHandle);
        }
        if name.is_empty() {
            return Err(Status::NotFound);
        }
        let known = self
            .functions
            .iter()
            .find(|(_, f)| f.module == module && f.name == name);
        if let Some((handle, _)) = known {
            return Ok(*handle);
        }
        let handle = self.handle();
        let function = Function {
            module,
            name: name.to_owned(),
            loaded: false,
        };
        self.functions.insert(handle, function);
        Ok(handle)
    }

    /// A function's module and name.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn function_info(&self, function: Handle) -> Result<(Handle, &str)> {
        let function = self.functions.get(&function).ok_or(Status::InvalidHandle)?;
        Ok((function.module, &function.name))
    }

    /// The context that a module was loaded in.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn module_context(&self, module: Handle) -> Result<Handle> {
        let module = self.modules.get(&module).ok_or(Status::InvalidHandle)?;
        Ok(module.context)
    }

    /// Launches a kernel of `blocks` blocks. `sleep_nanos` is the parameter of [`SLEEP_KERNEL`], for that one.
    ///
    /// It takes `SIMGPU_KERNEL_NS + blocks × SIMGPU_NS_PER_BLOCK`; [`SLEEP_KERNEL`] takes what its parameter says.
    ///
    /// # Errors
    /// `InvalidHandle`, `InvalidContext`; `InvalidValue` for [`SLEEP_KERNEL`] without its parameter.
    pub fn launch(
        &mut self,
        context: Handle,
        stream: StreamRef,
        function: Handle,
        blocks: u64,
        sleep_nanos: impl FnOnce() -> Option<u64>,
    ) -> Result<Wait> {
        let known = self
            .functions
            .get_mut(&function)
            .ok_or(Status::InvalidHandle)?;
        let duration = if known.name == SLEEP_KERNEL {
            sleep_nanos().ok_or(Status::InvalidValue)?
        } else {
            let by_blocks = blocks.saturating_mul(self.config.nanos_per_block);
            self.config.kernel_nanos.saturating_add(by_blocks)
        };
        let first = !std::mem::replace(&mut known.loaded, true);
        let work = Work {
            engine: Engine::Compute,
            // A week: beyond it a sum of deadlines might overflow.
            duration: duration.min(7 * 24 * 3600 * 1_000_000_000),
            launch: true,
        };
        let mut wait = Wait::default();
        if first && self.cold_launches_left > 0 {
            self.cold_launches_left -= 1;
            wait = self.cold(5);
        }
        let (_, queue) = self.enqueue(context, stream, work)?;
        Ok(Wait {
            spend: wait.spend,
            ..queue
        })
    }
}
