//! Allocation, copies, fills.
//!
//! A copy's direction comes from its addresses. Copies between device and pageable host memory keep the host until they are done,
//! as do all synchronous ones between host and device; the rest only queues work.

use std::ffi::{c_int, c_uint, c_ushort, c_void};

use simgpu_device::{
    Driver, Status,
    driver::{Place, Result, StreamRef, Wait},
};

use crate::state::*;

// ---- Device memory ----

export!(cuMemGetInfo_v2 => (free: *mut usize, total: *mut usize) {
    let (available, all) = with(|driver| driver.memory_info(current()?))?;
    put(free, available as usize)?;
    put(total, all as usize)
});

fn allocate(bytes: usize) -> Result<CUdeviceptr> {
    let (address, wait) = with(|driver| driver.allocate(current()?, bytes as u64))?;
    wait.run();
    Ok(address)
}

export!(cuMemAlloc_v2 => (address: *mut CUdeviceptr, bytes: usize) {
    if address.is_null() {
        return Err(Status::InvalidValue);
    }
    put(address, allocate(bytes)?)
});

export!(cuMemAllocPitch_v2 => (
    address: *mut CUdeviceptr,
    pitch: *mut usize,
    width: usize,
    height: usize,
    _element: c_uint,
) {
    let row = width.checked_next_multiple_of(512).ok_or(Status::InvalidValue)?;
    let bytes = row.checked_mul(height).ok_or(Status::InvalidValue)?;
    put(pitch, row)?;
    put(address, allocate(bytes)?)
});

export!(cuMemFree_v2 => (address: CUdeviceptr) {
    with_wait(|driver, context| driver.free(context, address))
});

export!(cuMemGetAddressRange_v2 => (base: *mut CUdeviceptr, bytes: *mut usize, address: CUdeviceptr) {
    match with(|driver| driver.place(address))? {
        Place::Device { base: start, bytes: size, .. } | Place::Managed { base: start, bytes: size, .. } => {
            put_optional(base, start);
            put_optional(bytes, size as usize);
            Ok(())
        }
        _ => Err(Status::NotFound),
    }
});

/// Maps ordinary host memory; null when there is none.
fn map_host(bytes: usize) -> Result<*mut c_void> {
    if bytes == 0 {
        return Err(Status::InvalidValue);
    }
    // SAFETY: a fresh private mapping, at no address that anyone has.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(Status::OutOfMemory);
    }
    Ok(address)
}

// Managed memory is host memory that a device may use too; it takes nothing of the device's.
export!(cuMemAllocManaged => (address: *mut CUdeviceptr, bytes: usize, flags: c_uint) {
    if address.is_null() || !(1..=4).contains(&flags) {
        return Err(Status::InvalidValue);
    }
    let context = current()?;
    let host = map_host(bytes)? as u64;
    with(|driver| driver.add_managed(context, host, bytes as u64))?;
    put(address, host)
});

// ---- Page-locked host memory ----

fn allocate_pinned(bytes: usize) -> Result<*mut c_void> {
    current()?;
    let host = map_host(bytes)?;
    with(|driver| {
        driver.add_pinned(host as u64, bytes as u64);
        Ok(host)
    })
}

export!(cuMemAllocHost_v2 => (address: *mut *mut c_void, bytes: usize) {
    if address.is_null() {
        return Err(Status::InvalidValue);
    }
    put(address, allocate_pinned(bytes)?)
});

export!(cuMemHostAlloc => (address: *mut *mut c_void, bytes: usize, flags: c_uint) {
    if address.is_null() || flags & !7 != 0 {
        return Err(Status::InvalidValue);
    }
    put(address, allocate_pinned(bytes)?)
});

export!(cuMemFreeHost => (address: *mut c_void) {
    let bytes = with(|driver| driver.remove_pinned(address as u64))?;
    // The driver made this mapping, with this size, and just forgot it.
    libc::munmap(address, bytes as usize);
    Ok(())
});

export!(cuMemHostRegister_v2 => (address: *mut c_void, bytes: usize, flags: c_uint) {
    if address.is_null() || bytes == 0 || flags & !0xf != 0 {
        return Err(Status::InvalidValue);
    }
    current()?;
    with(|driver| {
        driver.add_pinned(address as u64, bytes as u64);
        Ok(())
    })
});

export!(cuMemHostUnregister => (address: *mut c_void) {
    with(|driver| driver.remove_pinned(address as u64).map(drop))
});

export!(cuMemHostGetDevicePointer_v2 => (address: *mut CUdeviceptr, host: *mut c_void, flags: c_uint) {
    if flags != 0 {
        return Err(Status::InvalidValue);
    }
    match with(|driver| driver.place(host as u64))? {
        Place::Pinned { .. } | Place::Managed { .. } => put(address, host as u64),
        _ => Err(Status::InvalidValue),
    }
});

export!(cuMemHostGetFlags => (flags: *mut c_uint, host: *mut c_void) {
    match with(|driver| driver.place(host as u64))? {
        Place::Pinned { .. } => put(flags, 2),
        _ => Err(Status::InvalidValue),
    }
});

// ---- What a pointer is ----

/// One attribute of a pointer, as `CUpointer_attribute` numbers it.
///
/// # Safety
/// `data` is null or has room for the attribute's type.
unsafe fn pointer_attribute(data: *mut c_void, number: c_int, address: u64) -> Result<()> {
    let place = with(|driver| driver.place(address))?;
    let (base, bytes) = match place {
        Place::Device { base, bytes, .. }
        | Place::Managed { base, bytes, .. }
        | Place::Pinned { base, bytes } => (base, bytes),
        Place::Pageable => return Err(Status::InvalidValue),
    };
    let on_device = matches!(place, Place::Device { .. } | Place::Managed { .. });
    // SAFETY: the types are those that cuda.h gives for each number; the caller promises the room.
    unsafe {
        match number {
            1 => put(data.cast::<u64>(), current_or_none()),
            2 => put(data.cast::<c_uint>(), if on_device { 2 } else { 1 }),
            3 => put(data.cast::<u64>(), address),
            4 if matches!(place, Place::Device { .. }) => Err(Status::InvalidValue),
            4 => put(data.cast::<u64>(), address),
            7 => put(data.cast::<u64>(), base >> 9),
            8 => put(data.cast::<bool>(), matches!(place, Place::Managed { .. })),
            9 => put(data.cast::<c_int>(), place.device().unwrap_or(0) as c_int),
            11 => put(data.cast::<u64>(), base),
            12 => put(data.cast::<u64>(), bytes),
            13 => put(data.cast::<bool>(), true),
            _ => Err(Status::NotSupported),
        }
    }
}

export!(cuPointerGetAttribute => (data: *mut c_void, number: c_int, address: CUdeviceptr) {
    pointer_attribute(data, number, address)
});

export!(cuPointerGetAttributes => (
    count: c_uint,
    numbers: *const c_int,
    data: *mut *mut c_void,
    address: CUdeviceptr,
) {
    if count == 0 || numbers.is_null() || data.is_null() {
        return Err(Status::InvalidValue);
    }
    for index in 0..count as usize {
        // As in the real call, what does not apply is left as it is.
        let _ = pointer_attribute(*data.add(index), *numbers.add(index), address);
    }
    Ok(())
});

// ---- Copies ----

/// A rectangle of bytes to copy; a plain copy is one row.
#[derive(Clone, Copy)]
struct Rectangle {
    to: u64,
    to_pitch: u64,
    from: u64,
    from_pitch: u64,
    width: u64,
    height: u64,
}

fn line(to: u64, from: u64, bytes: usize) -> Rectangle {
    let width = bytes as u64;
    Rectangle {
        to,
        to_pitch: width,
        from,
        from_pitch: width,
        width,
        height: 1,
    }
}

/// Whether the host waits for the copy whatever memory it is between.
#[derive(Clone, Copy, PartialEq)]
enum Host {
    Waits,
    GoesOn,
}

/// What every copy comes to.
///
/// # Safety
/// Where an address is the host's, the rectangle's rows are valid there.
unsafe fn copy(rectangle: Rectangle, on: StreamRef, host: Host) -> Result<()> {
    let context = current()?;
    if rectangle.width == 0 || rectangle.height == 0 {
        return Ok(());
    }
    let (to_last, from_last) = last_bytes(rectangle).ok_or(Status::InvalidValue)?;
    let wait = with(|driver| {
        let (to, from) = (driver.place(rectangle.to)?, driver.place(rectangle.from)?);
        if driver.place(to_last)? != to || driver.place(from_last)? != from {
            return Err(Status::InvalidValue);
        }
        if driver.capturing(context, on)?.is_none() {
            // SAFETY: by the caller's promise.
            unsafe { move_bytes(driver, rectangle, to, from) };
        }
        let bytes = rectangle.width * rectangle.height;
        let Some(work) = driver.copy_work(to, from, bytes) else {
            return Ok(Wait::default());
        };
        let (span, _) = driver.enqueue(context, on, work)?;
        let between_devices = to.device().is_some() && from.device().is_some();
        let pageable = to.is_pageable() || from.is_pageable();
        if pageable || (host == Host::Waits && !between_devices) {
            return Ok(driver.wait_for(context, span));
        }
        Ok(Wait::default())
    })?;
    wait.run();
    Ok(())
}

/// The last byte of each side; `None` when it is beyond all addresses.
fn last_bytes(r: Rectangle) -> Option<(u64, u64)> {
    let last = |start: u64, pitch: u64| {
        let rows = pitch.checked_mul(r.height - 1)?;
        start.checked_add(rows)?.checked_add(r.width - 1)
    };
    Some((last(r.to, r.to_pitch)?, last(r.from, r.from_pitch)?))
}

/// Moves what real bytes there are: host memory's, and those of small allocations.
///
/// # Safety
/// As [`copy`].
unsafe fn move_bytes(driver: &mut Driver, r: Rectangle, to: Place, from: Place) {
    let (to_host, from_host) = (
        !matches!(to, Place::Device { .. }),
        !matches!(from, Place::Device { .. }),
    );
    let width = r.width as usize;
    for row in 0..r.height {
        let (to, from) = (r.to + row * r.to_pitch, r.from + row * r.from_pitch);
        match (to_host, from_host) {
            // SAFETY: both rows are host memory that the caller promises.
            (true, true) => unsafe {
                std::ptr::copy(from as *const u8, to as *mut u8, width);
            },
            (false, true) => match driver.shadow(to, r.width) {
                // SAFETY: the row is host memory that the caller promises; the shadow is `width` bytes and nobody else's.
                Some(shadow) => unsafe {
                    std::ptr::copy_nonoverlapping(from as *const u8, shadow.as_mut_ptr(), width);
                },
                None => return,
            },
            (true, false) => match driver.shadow(from, r.width) {
                // SAFETY: as above, the other way.
                Some(shadow) => unsafe {
                    std::ptr::copy_nonoverlapping(shadow.as_ptr(), to as *mut u8, width);
                },
                None => return,
            },
            (false, false) => {
                let bytes = driver.shadow(from, r.width).map(|shadow| shadow.to_vec());
                match (bytes, driver.shadow(to, r.width)) {
                    (Some(bytes), Some(shadow)) => shadow.copy_from_slice(&bytes),
                    _ => return,
                }
            }
        }
    }
}

export!(cuMemcpy | cuMemcpy_ptds, DEFAULT => (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) {
    copy(line(to, from, bytes), stream(0, DEFAULT), Host::Waits)
});

export!(cuMemcpyAsync | cuMemcpyAsync_ptsz, DEFAULT => (
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: usize,
    handle: Opaque,
) {
    copy(line(to, from, bytes), stream(handle, DEFAULT), Host::GoesOn)
});

export!(cuMemcpyHtoD_v2 | cuMemcpyHtoD_v2_ptds, DEFAULT => (to: CUdeviceptr, from: *const c_void, bytes: usize) {
    copy(line(to, from as u64, bytes), stream(0, DEFAULT), Host::Waits)
});

export!(cuMemcpyDtoH_v2 | cuMemcpyDtoH_v2_ptds, DEFAULT => (to: *mut c_void, from: CUdeviceptr, bytes: usize) {
    copy(line(to as u64, from, bytes), stream(0, DEFAULT), Host::Waits)
});

export!(cuMemcpyDtoD_v2 | cuMemcpyDtoD_v2_ptds, DEFAULT => (to: CUdeviceptr, from: CUdeviceptr, bytes: usize) {
    copy(line(to, from, bytes), stream(0, DEFAULT), Host::Waits)
});

export!(cuMemcpyHtoDAsync_v2 | cuMemcpyHtoDAsync_v2_ptsz, DEFAULT => (
    to: CUdeviceptr,
    from: *const c_void,
    bytes: usize,
    handle: Opaque,
) {
    copy(line(to, from as u64, bytes), stream(handle, DEFAULT), Host::GoesOn)
});

export!(cuMemcpyDtoHAsync_v2 | cuMemcpyDtoHAsync_v2_ptsz, DEFAULT => (
    to: *mut c_void,
    from: CUdeviceptr,
    bytes: usize,
    handle: Opaque,
) {
    copy(line(to as u64, from, bytes), stream(handle, DEFAULT), Host::GoesOn)
});

export!(cuMemcpyDtoDAsync_v2 | cuMemcpyDtoDAsync_v2_ptsz, DEFAULT => (
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: usize,
    handle: Opaque,
) {
    copy(line(to, from, bytes), stream(handle, DEFAULT), Host::GoesOn)
});

export!(cuMemcpyPeer | cuMemcpyPeer_ptds, DEFAULT => (
    to: CUdeviceptr,
    _to_context: Opaque,
    from: CUdeviceptr,
    _from_context: Opaque,
    bytes: usize,
) {
    copy(line(to, from, bytes), stream(0, DEFAULT), Host::Waits)
});

export!(cuMemcpyPeerAsync | cuMemcpyPeerAsync_ptsz, DEFAULT => (
    to: CUdeviceptr,
    _to_context: Opaque,
    from: CUdeviceptr,
    _from_context: Opaque,
    bytes: usize,
    handle: Opaque,
) {
    copy(line(to, from, bytes), stream(handle, DEFAULT), Host::GoesOn)
});

/// `CUDA_MEMCPY2D`, one side.
#[repr(C)]
pub struct Side2D {
    x: usize,
    y: usize,
    /// `CUmemorytype`: 1 host, 2 device, 3 array, 4 unified.
    kind: c_uint,
    host: u64,
    device: CUdeviceptr,
    array: u64,
    pitch: usize,
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
pub struct Copy2D {
    from: Side2D,
    to: Side2D,
    width: usize,
    height: usize,
}

/// Start and pitch of a side.
fn side(side: &Side2D, width: usize) -> Result<(u64, u64)> {
    let base = match side.kind {
        1 => side.host,
        2 | 4 => side.device,
        _ => return Err(Status::NotSupported),
    };
    let pitch = if side.pitch == 0 { width } else { side.pitch };
    if pitch < width {
        return Err(Status::InvalidValue);
    }
    Ok((base + (side.y * pitch + side.x) as u64, pitch as u64))
}

fn rectangle(copy: &Copy2D) -> Result<Rectangle> {
    let (to, to_pitch) = side(&copy.to, copy.width)?;
    let (from, from_pitch) = side(&copy.from, copy.width)?;
    Ok(Rectangle {
        to,
        to_pitch,
        from,
        from_pitch,
        width: copy.width as u64,
        height: copy.height as u64,
    })
}

export!(cuMemcpy2D_v2 | cuMemcpy2D_v2_ptds, DEFAULT => (what: *const Copy2D) {
    let what = what.as_ref().ok_or(Status::InvalidValue)?;
    copy(rectangle(what)?, stream(0, DEFAULT), Host::Waits)
});

export!(cuMemcpy2DUnaligned_v2 | cuMemcpy2DUnaligned_v2_ptds, DEFAULT => (what: *const Copy2D) {
    let what = what.as_ref().ok_or(Status::InvalidValue)?;
    copy(rectangle(what)?, stream(0, DEFAULT), Host::Waits)
});

export!(cuMemcpy2DAsync_v2 | cuMemcpy2DAsync_v2_ptsz, DEFAULT => (what: *const Copy2D, handle: Opaque) {
    let what = what.as_ref().ok_or(Status::InvalidValue)?;
    copy(rectangle(what)?, stream(handle, DEFAULT), Host::GoesOn)
});

// ---- Fills ----

/// Fills a rectangle of device memory with one element again and again.
///
/// # Safety
/// Where the address is managed memory, the rows are valid there.
unsafe fn fill(
    address: u64,
    pitch: u64,
    element: &[u8],
    width: usize,
    height: usize,
    on: StreamRef,
) -> Result<()> {
    let context = current()?;
    let row = (width * element.len()) as u64;
    if row == 0 || height == 0 {
        return Ok(());
    }
    let rows = pitch.checked_mul(height as u64 - 1);
    let last = rows.and_then(|rows| address.checked_add(rows)?.checked_add(row - 1));
    let last = last.ok_or(Status::InvalidValue)?;
    with(|driver| {
        let place = driver.place(address)?;
        if place.device().is_none() || driver.place(last)? != place {
            return Err(Status::InvalidValue);
        }
        if driver.capturing(context, on)?.is_none() {
            for number in 0..height as u64 {
                let start = address + number * pitch;
                let bytes = match place {
                    // SAFETY: managed memory is host memory, and the row lies in its allocation.
                    Place::Managed { .. } => unsafe {
                        Some(std::slice::from_raw_parts_mut(
                            start as *mut u8,
                            row as usize,
                        ))
                    },
                    _ => driver.shadow(start, row),
                };
                let Some(bytes) = bytes else { break };
                for part in bytes.chunks_exact_mut(element.len()) {
                    part.copy_from_slice(element);
                }
            }
        }
        let work = driver.fill_work(row * height as u64);
        driver.enqueue(context, on, work).map(drop)
    })
}

macro_rules! fills {
    ($($plain:ident, $plain_ptds:ident, $async_:ident, $async_ptsz:ident,
       $flat:ident, $flat_ptds:ident, $flat_async:ident, $flat_async_ptsz:ident: $element:ty;)*) => {$(
        export!($plain | $plain_ptds, DEFAULT => (address: CUdeviceptr, value: $element, count: usize) {
            fill(address, 0, &value.to_ne_bytes(), count, 1, stream(0, DEFAULT))
        });
        export!($async_ | $async_ptsz, DEFAULT => (address: CUdeviceptr, value: $element, count: usize, handle: Opaque) {
            fill(address, 0, &value.to_ne_bytes(), count, 1, stream(handle, DEFAULT))
        });
        export!($flat | $flat_ptds, DEFAULT => (
            address: CUdeviceptr, pitch: usize, value: $element, width: usize, height: usize,
        ) {
            fill(address, pitch as u64, &value.to_ne_bytes(), width, height, stream(0, DEFAULT))
        });
        export!($flat_async | $flat_async_ptsz, DEFAULT => (
            address: CUdeviceptr, pitch: usize, value: $element, width: usize, height: usize, handle: Opaque,
        ) {
            fill(address, pitch as u64, &value.to_ne_bytes(), width, height, stream(handle, DEFAULT))
        });
    )*};
}

fills! {
    cuMemsetD8_v2, cuMemsetD8_v2_ptds, cuMemsetD8Async, cuMemsetD8Async_ptsz,
    cuMemsetD2D8_v2, cuMemsetD2D8_v2_ptds, cuMemsetD2D8Async, cuMemsetD2D8Async_ptsz: u8;
    cuMemsetD16_v2, cuMemsetD16_v2_ptds, cuMemsetD16Async, cuMemsetD16Async_ptsz,
    cuMemsetD2D16_v2, cuMemsetD2D16_v2_ptds, cuMemsetD2D16Async, cuMemsetD2D16Async_ptsz: c_ushort;
    cuMemsetD32_v2, cuMemsetD32_v2_ptds, cuMemsetD32Async, cuMemsetD32Async_ptsz,
    cuMemsetD2D32_v2, cuMemsetD2D32_v2_ptds, cuMemsetD2D32Async, cuMemsetD2D32Async_ptsz: c_uint;
}

// ---- Stream-ordered allocation ----

export!(cuMemAllocAsync | cuMemAllocAsync_ptsz, DEFAULT => (address: *mut CUdeviceptr, bytes: usize, handle: Opaque) {
    if address.is_null() {
        return Err(Status::InvalidValue);
    }
    let on = stream(handle, DEFAULT);
    let (made, wait) = with(|driver| driver.allocate_async(current()?, bytes as u64, on))?;
    wait.run();
    put(address, made)
});

// The pool is not looked at: a device has one here.
export!(cuMemAllocFromPoolAsync | cuMemAllocFromPoolAsync_ptsz, DEFAULT => (
    address: *mut CUdeviceptr,
    bytes: usize,
    _pool: Opaque,
    handle: Opaque,
) {
    if address.is_null() {
        return Err(Status::InvalidValue);
    }
    let on = stream(handle, DEFAULT);
    let (made, wait) = with(|driver| driver.allocate_async(current()?, bytes as u64, on))?;
    wait.run();
    put(address, made)
});

export!(cuMemFreeAsync | cuMemFreeAsync_ptsz, DEFAULT => (address: CUdeviceptr, handle: Opaque) {
    with(|driver| driver.free_async(current()?, address, stream(handle, DEFAULT)))
});

/// The handle of a device's only pool.
fn pool(device: CUdevice) -> Result<Opaque> {
    let device = device_index(device)?;
    with(|driver| {
        driver.primary_state(device)?;
        Ok(0x6b56_0000_0040 + 0x40 * device as u64)
    })
}

export!(cuDeviceGetDefaultMemPool => (handle: *mut Opaque, device: CUdevice) {
    put(handle, pool(device)?)
});

export!(cuDeviceGetMemPool => (handle: *mut Opaque, device: CUdevice) {
    let only = pool(device)?;
    put(handle, only)
});

export!(cuMemPoolTrimTo => (handle: Opaque, _keep: usize) {
    if handle == 0 {
        return Err(Status::InvalidValue);
    }
    with_wait(|driver, context| driver.synchronize_context(context))
});
