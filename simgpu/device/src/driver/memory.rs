//! Device memory, what an address is, what a copy takes; and mapping physical memory at reserved addresses.

use super::*;

impl Driver {
    /// Allocates device memory for a context. The wait is the host time that it takes.
    ///
    /// # Errors
    /// `OutOfMemory`; `InvalidValue` for 0 bytes; `InvalidContext`.
    pub fn allocate(&mut self, context: Handle, bytes: u64) -> Result<(u64, Wait)> {
        let (device, _) = self.context(context)?;
        if bytes == 0 {
            return Err(Status::InvalidValue);
        }
        let first_try = self.allocate_on(device, bytes);
        if first_try != Err(Status::OutOfMemory) || self.pool.is_empty() {
            return first_try;
        }
        // What the pool kept is given back before an allocation fails.
        let last = self.pool.values().copied().max().unwrap_or(0);
        self.trim_pool(last);
        self.allocate_on(device, bytes)
    }

    fn allocate_on(&mut self, device: usize, bytes: u64) -> Result<(u64, Wait)> {
        let (address, backing, pages) = if bytes <= SMALL_BYTES {
            self.take_small(device, bytes.next_multiple_of(SMALL_ALIGN))?
        } else {
            let count = bytes.div_ceil(PAGE_BYTES as u64) as usize;
            let first = self
                .machine
                .take_run(device, count)
                .ok_or(Status::OutOfMemory)?;
            (
                page_address(device, first),
                Backing::Pages { first, count },
                count,
            )
        };
        let allocation = Allocation {
            device,
            bytes,
            backing,
            shadow: None,
        };
        self.allocations.insert(address, allocation);
        Ok((address, self.page_cost(pages)))
    }

    fn page_cost(&self, pages: usize) -> Wait {
        let spend = match pages {
            0 => 0,
            _ => self.config.malloc_nanos + self.config.malloc_nanos_per_page * pages as u64,
        };
        Wait {
            spend,
            ..Wait::default()
        }
    }

    fn take_small(&mut self, device: usize, bytes: u64) -> Result<(u64, Backing, usize)> {
        let fits = self.small.iter().find_map(|((on, page), parts)| {
            let part = parts.iter().find(|(_, size)| **size >= bytes);
            part.filter(|_| *on == device)
                .map(|(offset, size)| (*page, *offset, *size))
        });
        let (page, offset, size, new_pages) = match fits {
            Some((page, offset, size)) => (page, offset, size, 0),
            None => {
                let page = self
                    .machine
                    .take_run(device, 1)
                    .ok_or(Status::OutOfMemory)?;
                (page, 0, PAGE_BYTES as u64, 1)
            }
        };
        let parts = self.small.entry((device, page)).or_default();
        parts.remove(&offset);
        if size > bytes {
            parts.insert(offset + bytes, size - bytes);
        }
        Ok((
            page_address(device, page) + offset,
            Backing::Small { page },
            new_pages,
        ))
    }

    /// Frees device memory. As the real call, it waits for all work of the device's contexts first. Address 0 is nothing to free.
    ///
    /// # Errors
    /// `InvalidValue` for what is no allocation's start.
    pub fn free(&mut self, context: Handle, address: u64) -> Result<Wait> {
        if address == 0 {
            return Ok(Wait::default());
        }
        let allocation = self.allocations.get(&address).ok_or(Status::InvalidValue)?;
        if self.pool.contains_key(&address) {
            return Err(Status::InvalidValue);
        }
        let device = allocation.device;
        let contexts = self.contexts.values().filter(|c| c.device == device);
        let until = contexts.map(|c| c.tail).max().unwrap_or(0);
        let pages = self.release(address);
        let mut wait = self.wait(context, until);
        wait.spend = self.page_cost(pages).spend;
        Ok(wait)
    }

    /// Forgets an allocation; the number of pages that went back to the device.
    pub(super) fn release(&mut self, address: u64) -> usize {
        let Some(allocation) = self.allocations.remove(&address) else {
            return 0;
        };
        self.pool.remove(&address);
        let device = allocation.device;
        match allocation.backing {
            Backing::Managed => 0,
            Backing::Pages { first, count } => {
                self.machine.give_back(device, first, count);
                count
            }
            Backing::Small { page } => {
                let Some(parts) = self.small.get_mut(&(device, page)) else {
                    return 0;
                };
                let mut offset = address - page_address(device, page);
                let mut size = allocation.bytes.next_multiple_of(SMALL_ALIGN);
                if let Some(after) = parts.remove(&(offset + size)) {
                    size += after;
                }
                if let Some((before, length)) = parts.range(..offset).next_back()
                    && before + length == offset
                {
                    (offset, size) = (*before, size + length);
                }
                parts.insert(offset, size);
                if size == PAGE_BYTES as u64 {
                    self.small.remove(&(device, page));
                    self.machine.give_back(device, page, 1);
                    return 1;
                }
                0
            }
        }
    }

    /// Allocates in stream order, from what [`Self::free_async`] left when a block of the same size is there.
    ///
    /// # Errors
    /// As [`Self::allocate`]; `InvalidHandle`.
    pub fn allocate_async(
        &mut self,
        context: Handle,
        bytes: u64,
        stream: StreamRef,
    ) -> Result<(u64, Wait)> {
        let handle = self.resolve(context, stream)?;
        let (device, _) = self.context(context)?;
        let kept = self.pool.iter().find(|(address, _)| {
            let block = self.allocations.get(address);
            block.is_some_and(|a| a.device == device && a.bytes == bytes)
        });
        if let Some((address, at)) = kept.map(|(a, at)| (*a, *at)) {
            self.pool.remove(&address);
            self.set_tail(handle, at);
            return Ok((address, Wait::default()));
        }
        self.allocate(context, bytes)
    }

    /// Gives memory back to the pool in stream order. It returns to the device at the next synchronisation that covers it.
    ///
    /// # Errors
    /// `InvalidValue` for what is no allocation's start; `InvalidHandle`.
    pub fn free_async(&mut self, context: Handle, address: u64, stream: StreamRef) -> Result<()> {
        let handle = self.resolve(context, stream)?;
        if !self.allocations.contains_key(&address) || self.pool.contains_key(&address) {
            return Err(Status::InvalidValue);
        }
        let at = self.ready_at(handle);
        self.pool.insert(address, at);
        Ok(())
    }

    pub(super) fn trim_pool(&mut self, until: u64) {
        let done: Vec<u64> = self
            .pool
            .iter()
            .filter(|(_, at)| **at <= until)
            .map(|(a, _)| *a)
            .collect();
        for address in done {
            self.release(address);
        }
    }

    /// Notes host memory that the caller mapped as managed memory of a context's device.
    ///
    /// # Errors
    /// `InvalidContext`.
    pub fn add_managed(&mut self, context: Handle, address: u64, bytes: u64) -> Result<()> {
        let (device, _) = self.context(context)?;
        let allocation = Allocation {
            device,
            bytes,
            backing: Backing::Managed,
            shadow: None,
        };
        self.allocations.insert(address, allocation);
        Ok(())
    }

    /// Notes page-locked host memory.
    pub fn add_pinned(&mut self, address: u64, bytes: u64) {
        self.pinned.insert(address, bytes);
    }

    /// Forgets page-locked host memory; its size.
    ///
    /// # Errors
    /// `InvalidValue` for what is no start of it.
    pub fn remove_pinned(&mut self, address: u64) -> Result<u64> {
        self.pinned.remove(&address).ok_or(Status::InvalidValue)
    }

    /// Free and total bytes of a context's device.
    ///
    /// # Errors
    /// `InvalidContext`.
    pub fn memory_info(&self, context: Handle) -> Result<(u64, u64)> {
        let (device, _) = self.context(context)?;
        Ok((
            self.machine.free_bytes(device),
            self.machine.total_bytes(device),
        ))
    }

    /// What an address is.
    ///
    /// # Errors
    /// `InvalidValue` for an address of the device's range that nothing has.
    pub fn place(&self, address: u64) -> Result<Place> {
        let near = self.allocations.range(..=address).next_back();
        if let Some((base, allocation)) = near
            && address - base < allocation.bytes
        {
            let (device, base, bytes) = (allocation.device, *base, allocation.bytes);
            return Ok(match allocation.backing {
                Backing::Managed => Place::Managed {
                    device,
                    base,
                    bytes,
                },
                _ => Place::Device {
                    device,
                    base,
                    bytes,
                },
            });
        }
        if let Some((base, (bytes, handle))) = self.mapped.range(..=address).next_back()
            && address - base < *bytes
        {
            let device = self.physical.get(handle).map_or(0, |p| p.device);
            let (base, bytes) = (*base, *bytes);
            return Ok(Place::Device {
                device,
                base,
                bytes,
            });
        }
        if (DEVICE_BASE..RESERVE_END).contains(&address) {
            return Err(Status::InvalidValue);
        }
        Ok(match self.pinned.range(..=address).next_back() {
            Some((base, bytes)) if address - base < *bytes => Place::Pinned {
                base: *base,
                bytes: *bytes,
            },
            _ => Place::Pageable,
        })
    }

    /// The real bytes behind `[address, address + bytes)`, made on first use; `None` when the allocation is too large to have any.
    pub fn shadow(&mut self, address: u64, bytes: u64) -> Option<&mut [u8]> {
        let (base, allocation) = self.allocations.range_mut(..=address).next_back()?;
        let from = (address - base) as usize;
        let to = from.checked_add(bytes as usize)?;
        if matches!(allocation.backing, Backing::Managed)
            || allocation.bytes > SHADOW_BYTES
            || to as u64 > allocation.bytes
        {
            return None;
        }
        let size = allocation.bytes as usize;
        let shadow = allocation
            .shadow
            .get_or_insert_with(|| vec![0; size].into_boxed_slice());
        shadow.get_mut(from..to)
    }

    /// What a copy of `bytes` between two places is for the device; `None` when the device has no part in it.
    #[must_use]
    pub fn copy_work(&self, to: Place, from: Place, bytes: u64) -> Option<Work> {
        let pageable = to.is_pageable() || from.is_pageable();
        let on_host = |gbps| {
            if pageable {
                self.config.pageable_gbps
            } else {
                gbps
            }
        };
        let (engine, gbps) = match (to.device().is_some(), from.device().is_some()) {
            (true, true) => (Engine::Compute, self.config.d2d_gbps),
            (true, false) => (Engine::HostToDevice, on_host(self.config.h2d_gbps)),
            (false, true) => (Engine::DeviceToHost, on_host(self.config.d2h_gbps)),
            (false, false) => return None,
        };
        Some(self.transfer(engine, bytes, gbps))
    }

    /// What filling `bytes` of device memory is for the device.
    #[must_use]
    pub fn fill_work(&self, bytes: u64) -> Work {
        self.transfer(Engine::Compute, bytes, self.config.d2d_gbps)
    }

    fn transfer(&self, engine: Engine, bytes: u64, gbps: f64) -> Work {
        Work {
            engine,
            duration: self.config.copy_nanos + (bytes as f64 / gbps) as u64,
            launch: false,
        }
    }

    /// Waits until `span`, which a copy got, is over.
    #[must_use]
    pub fn wait_for(&self, context: Handle, span: Span) -> Wait {
        self.wait(context, span.end)
    }

    /// Physical memory of `bytes`, a multiple of a page, in any pages.
    ///
    /// # Errors
    /// `InvalidValue`, `InvalidDevice`, `OutOfMemory`.
    pub fn create_physical(&mut self, device: usize, bytes: u64) -> Result<(Handle, Wait)> {
        self.check_device(device)?;
        if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(Status::InvalidValue);
        }
        let count = (bytes / PAGE_BYTES as u64) as usize;
        let pages = self
            .machine
            .take_any(device, count)
            .ok_or(Status::OutOfMemory)?;
        let handle = self.handle();
        let physical = Physical {
            device,
            pages,
            references: 1,
        };
        self.physical.insert(handle, physical);
        Ok((handle, self.page_cost(count)))
    }

    /// Lets a reference to physical memory go; the last one, mappings included, frees it.
    ///
    /// # Errors
    /// `InvalidValue`.
    pub fn release_physical(&mut self, handle: Handle) -> Result<()> {
        let physical = self.physical.get_mut(&handle).ok_or(Status::InvalidValue)?;
        physical.references -= 1;
        if physical.references == 0
            && let Some(physical) = self.physical.remove(&handle)
        {
            for page in physical.pages {
                self.machine.give_back(physical.device, page, 1);
            }
        }
        Ok(())
    }

    /// Reserves `bytes` of addresses, a multiple of a page.
    ///
    /// # Errors
    /// `InvalidValue`; `OutOfMemory` when 16 TiB have been reserved.
    pub fn reserve(&mut self, bytes: u64) -> Result<u64> {
        if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(Status::InvalidValue);
        }
        if bytes > RESERVE_END - self.next_reserved {
            return Err(Status::OutOfMemory);
        }
        let address = self.next_reserved;
        self.next_reserved += bytes;
        self.reserved.insert(address, bytes);
        Ok(address)
    }

    /// Gives reserved addresses back; nothing may be mapped there.
    ///
    /// # Errors
    /// `InvalidValue`.
    pub fn free_reserved(&mut self, address: u64, bytes: u64) -> Result<()> {
        let whole = self.reserved.get(&address) == Some(&bytes);
        let in_use = self.mapped.range(address..address + bytes).next().is_some();
        if !whole || in_use {
            return Err(Status::InvalidValue);
        }
        self.reserved.remove(&address);
        Ok(())
    }

    /// Maps all of some physical memory at a reserved address.
    ///
    /// # Errors
    /// `InvalidValue`.
    pub fn map(&mut self, address: u64, bytes: u64, handle: Handle) -> Result<()> {
        let inside = self.reserved.range(..=address).next_back();
        let inside =
            inside.is_some_and(|(base, size)| address - base + bytes <= *size && bytes > 0);
        let before = self.mapped.range(..address + bytes).next_back();
        let free = before.is_none_or(|(base, (size, _))| base + size <= address);
        let physical = self.physical.get_mut(&handle).ok_or(Status::InvalidValue)?;
        if !inside || !free || bytes != (physical.pages.len() * PAGE_BYTES) as u64 {
            return Err(Status::InvalidValue);
        }
        physical.references += 1;
        self.mapped.insert(address, (bytes, handle));
        Ok(())
    }

    /// Removes all mappings in a range of addresses, which must begin and end with one.
    ///
    /// # Errors
    /// `InvalidValue`.
    pub fn unmap(&mut self, address: u64, bytes: u64) -> Result<()> {
        let end = address.checked_add(bytes).ok_or(Status::InvalidValue)?;
        let inside: Vec<(u64, u64, Handle)> = self
            .mapped
            .range(address..end)
            .map(|(base, (size, handle))| (*base, *size, *handle))
            .collect();
        let starts = inside.first().is_some_and(|first| first.0 == address);
        let ends = inside.last().is_some_and(|last| last.0 + last.1 == end);
        if !starts || !ends {
            return Err(Status::InvalidValue);
        }
        for (base, _, handle) in inside {
            self.mapped.remove(&base);
            self.release_physical(handle)?;
        }
        Ok(())
    }
}
