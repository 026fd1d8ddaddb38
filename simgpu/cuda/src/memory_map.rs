//! Virtual memory management: physical memory, addresses, and mappings of one at the other (expandable segments are made of these).

use std::ffi::{c_int, c_ulonglong, c_void};

use simgpu_device::{Status, machine::PAGE_BYTES};

use crate::state::*;

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Location {
    /// 1: a device.
    kind: c_int,
    id: c_int,
}

/// `CUmemAllocationProp`, as far as it is read.
#[repr(C)]
pub struct Properties {
    kind: c_int,
    handle_types: c_int,
    location: Location,
}

export!(cuMemGetAllocationGranularity => (bytes: *mut usize, properties: *const Properties, _option: c_int) {
    if properties.is_null() {
        return Err(Status::InvalidValue);
    }
    put(bytes, PAGE_BYTES)
});

export!(cuMemCreate => (
    handle: *mut c_ulonglong,
    bytes: usize,
    properties: *const Properties,
    flags: c_ulonglong,
) {
    let properties = properties.as_ref().ok_or(Status::InvalidValue)?;
    if handle.is_null() || flags != 0 || properties.location.kind != 1 {
        return Err(Status::InvalidValue);
    }
    let device = device_index(properties.location.id)?;
    let (made, wait) = with(|driver| driver.create_physical(device, bytes as u64))?;
    wait.run();
    put(handle, made)
});

export!(cuMemRelease => (handle: c_ulonglong) {
    with(|driver| driver.release_physical(handle))
});

export!(cuMemAddressReserve => (
    address: *mut CUdeviceptr,
    bytes: usize,
    _alignment: usize,
    _wish: CUdeviceptr,
    flags: c_ulonglong,
) {
    if address.is_null() || flags != 0 {
        return Err(Status::InvalidValue);
    }
    let reserved = with(|driver| driver.reserve(bytes as u64))?;
    put(address, reserved)
});

export!(cuMemAddressFree => (address: CUdeviceptr, bytes: usize) {
    with(|driver| driver.free_reserved(address, bytes as u64))
});

export!(cuMemMap => (
    address: CUdeviceptr,
    bytes: usize,
    offset: usize,
    handle: c_ulonglong,
    flags: c_ulonglong,
) {
    if offset != 0 || flags != 0 {
        return Err(Status::InvalidValue);
    }
    with(|driver| driver.map(address, bytes as u64, handle))
});

export!(cuMemUnmap => (address: CUdeviceptr, bytes: usize) {
    with(|driver| driver.unmap(address, bytes as u64))
});

// Nothing here reads or writes by kernels, so rights are only checked to be about something mapped.
export!(cuMemSetAccess => (address: CUdeviceptr, bytes: usize, rights: *const c_void, count: usize) {
    if rights.is_null() || count == 0 || bytes == 0 {
        return Err(Status::InvalidValue);
    }
    with(|driver| {
        driver.place(address)?;
        driver.place(address + bytes as u64 - 1).map(drop)
    })
});

export!(cuMemGetAccess => (flags: *mut c_ulonglong, location: *const Location, address: CUdeviceptr) {
    if location.is_null() {
        return Err(Status::InvalidValue);
    }
    with(|driver| driver.place(address).map(drop))?;
    put(flags, 3)
});
