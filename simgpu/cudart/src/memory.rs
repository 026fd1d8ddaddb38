//! Allocation, copies, fills.

use std::ffi::{c_int, c_uint, c_void};

use crate::state::*;

export!(cudaMalloc => (pointer: *mut Pointer, bytes: usize) {
    check((ready()?.alloc)(pointer, bytes))
});

// A null pointer is nothing to free, but the call still makes the context: programs use `cudaFree(0)` for that.
export!(cudaFree => (pointer: Pointer) {
    let driver = ready()?;
    if pointer.is_null() {
        return Ok(());
    }
    check((driver.free)(pointer))
});

export!(cudaMallocManaged / alloc_managed =>
    (pointer: *mut Pointer, bytes: usize, flags: c_uint) -> (pointer, bytes, flags));

export!(cudaMallocPitch => (pointer: *mut Pointer, pitch: *mut usize, width: usize, height: usize) {
    check((ready()?.alloc_pitch)(pointer, pitch, width, height, 4))
});

export!(cudaMallocAsync / alloc_async, cudaMallocAsync_ptsz / alloc_async_ptsz =>
    (pointer: *mut Pointer, bytes: usize, stream: Handle) -> (pointer, bytes, stream));

export!(cudaMallocFromPoolAsync / alloc_from_pool, cudaMallocFromPoolAsync_ptsz / alloc_from_pool_ptsz =>
    (pointer: *mut Pointer, bytes: usize, pool: Handle, stream: Handle) -> (pointer, bytes, pool, stream));

export!(cudaFreeAsync / free_async, cudaFreeAsync_ptsz / free_async_ptsz =>
    (pointer: Pointer, stream: Handle) -> (pointer, stream));

export!(cudaDeviceGetDefaultMemPool => (pool: *mut Handle, device: c_int) {
    check((initialised()?.device_pool)(pool, device))
});

export!(cudaMemPoolTrimTo / pool_trim => (pool: Handle, keep: usize) -> (pool, keep));

export!(cudaMallocHost => (pointer: *mut Pointer, bytes: usize) {
    check((ready()?.host_alloc)(pointer, bytes, 0))
});

export!(cudaHostAlloc / host_alloc => (pointer: *mut Pointer, bytes: usize, flags: c_uint) -> (pointer, bytes, flags));

export!(cudaFreeHost => (pointer: Pointer) {
    let driver = ready()?;
    if pointer.is_null() {
        return Ok(());
    }
    check((driver.host_free)(pointer))
});

export!(cudaHostRegister / host_register => (pointer: Pointer, bytes: usize, flags: c_uint) -> (pointer, bytes, flags));

export!(cudaHostUnregister / host_unregister => (pointer: Pointer) -> (pointer));

export!(cudaHostGetDevicePointer / host_device_pointer =>
    (pointer: *mut Pointer, host: Pointer, flags: c_uint) -> (pointer, host, flags));

export!(cudaHostGetFlags / host_flags => (flags: *mut c_uint, host: Pointer) -> (flags, host));

export!(cudaMemGetInfo / memory_info => (free: *mut usize, total: *mut usize) -> (free, total));

/// `cudaPointerAttributes`.
#[repr(C)]
pub struct PointerAttributes {
    /// 0 unregistered, 1 host, 2 device, 3 managed.
    kind: c_int,
    device: c_int,
    device_pointer: Pointer,
    host_pointer: Pointer,
}

export!(cudaPointerGetAttributes => (to: *mut PointerAttributes, pointer: *const c_void) {
    let driver = ready()?;
    let pointer = pointer.cast_mut();
    let (mut kind, mut managed, mut on) = (0 as c_uint, false, 0 as c_int);
    if (driver.pointer_attribute)((&raw mut kind).cast(), 2, pointer) != 0 {
        return put(to, PointerAttributes { kind: 0, device: -2, device_pointer: std::ptr::null_mut(), host_pointer: pointer });
    }
    check((driver.pointer_attribute)((&raw mut managed).cast(), 8, pointer))?;
    check((driver.pointer_attribute)((&raw mut on).cast(), 9, pointer))?;
    let kind = match (managed, kind) {
        (true, _) => 3,
        (false, 1) => 1,
        _ => 2,
    };
    let host_pointer = if kind == 2 { std::ptr::null_mut() } else { pointer };
    put(to, PointerAttributes { kind, device: on, device_pointer: pointer, host_pointer })
});

// ---- Copies ----

/// The driver's function for a direction (`cudaMemcpyKind`): host to host and "default" leave it to the addresses.
macro_rules! by_kind {
    ($driver:expr, $kind:expr, $any:ident, $h2d:ident, $d2h:ident, $d2d:ident) => {
        match $kind {
            0 | 4 => $driver.$any,
            1 => $driver.$h2d,
            2 => $driver.$d2h,
            3 => $driver.$d2d,
            _ => return Err(error::INVALID_MEMCPY_DIRECTION),
        }
    };
}

export!(cudaMemcpy => (to: Pointer, from: Pointer, bytes: usize, kind: c_int) {
    let copy = by_kind!(ready()?, kind, copy, copy_h2d, copy_d2h, copy_d2d);
    check(copy(to, from, bytes))
});

export!(cudaMemcpy_ptds => (to: Pointer, from: Pointer, bytes: usize, kind: c_int) {
    let copy = by_kind!(ready()?, kind, copy_ptds, copy_h2d_ptds, copy_d2h_ptds, copy_d2d_ptds);
    check(copy(to, from, bytes))
});

export!(cudaMemcpyAsync => (to: Pointer, from: Pointer, bytes: usize, kind: c_int, stream: Handle) {
    let copy = by_kind!(ready()?, kind, copy_async, copy_h2d_async, copy_d2h_async, copy_d2d_async);
    check(copy(to, from, bytes, stream))
});

export!(cudaMemcpyAsync_ptsz => (to: Pointer, from: Pointer, bytes: usize, kind: c_int, stream: Handle) {
    let copy = by_kind!(ready()?, kind, copy_async_ptsz, copy_h2d_async_ptsz, copy_d2h_async_ptsz, copy_d2d_async_ptsz);
    check(copy(to, from, bytes, stream))
});

export!(cudaMemcpyPeer => (to: Pointer, _to_device: c_int, from: Pointer, _from_device: c_int, bytes: usize) {
    check((ready()?.copy_peer)(to, 0, from, 0, bytes))
});

export!(cudaMemcpyPeerAsync => (
    to: Pointer,
    _to_device: c_int,
    from: Pointer,
    _from_device: c_int,
    bytes: usize,
    stream: Handle,
) {
    check((ready()?.copy_peer_async)(to, 0, from, 0, bytes, stream))
});

/// `CUDA_MEMCPY2D` with both sides as unified addresses.
#[repr(C)]
struct Copy2D {
    from: Side2D,
    to: Side2D,
    width: usize,
    height: usize,
}

#[repr(C)]
struct Side2D {
    x: usize,
    y: usize,
    kind: c_uint,
    host: Pointer,
    device: Pointer,
    array: Handle,
    pitch: usize,
}

fn rectangle(
    to: Pointer,
    to_pitch: usize,
    from: Pointer,
    from_pitch: usize,
    width: usize,
    height: usize,
    kind: c_int,
) -> Result<Copy2D> {
    if !(0..=4).contains(&kind) {
        return Err(error::INVALID_MEMCPY_DIRECTION);
    }
    // CU_MEMORYTYPE_UNIFIED: the driver tells the host's addresses from the device's.
    let side = |device, pitch| Side2D {
        x: 0,
        y: 0,
        kind: 4,
        host: std::ptr::null_mut(),
        device,
        array: 0,
        pitch,
    };
    Ok(Copy2D {
        from: side(from, from_pitch),
        to: side(to, to_pitch),
        width,
        height,
    })
}

macro_rules! copies_2d {
    ($($name:ident / $field:ident ($($stream:ident)?);)*) => {$(
        export!($name => (
            to: Pointer,
            to_pitch: usize,
            from: Pointer,
            from_pitch: usize,
            width: usize,
            height: usize,
            kind: c_int,
            $($stream: Handle,)?
        ) {
            let what = rectangle(to, to_pitch, from, from_pitch, width, height, kind)?;
            check((ready()?.$field)((&raw const what).cast(), $($stream)?))
        });
    )*};
}

copies_2d! {
    cudaMemcpy2D / copy_2d ();
    cudaMemcpy2D_ptds / copy_2d_ptds ();
    cudaMemcpy2DAsync / copy_2d_async (stream);
    cudaMemcpy2DAsync_ptsz / copy_2d_async_ptsz (stream);
}

// ---- Fills ----

export!(cudaMemset / fill, cudaMemset_ptds / fill_ptds =>
    (pointer: Pointer, value: c_int, bytes: usize) -> (pointer, value as u8, bytes));

export!(cudaMemsetAsync / fill_async, cudaMemsetAsync_ptsz / fill_async_ptsz =>
    (pointer: Pointer, value: c_int, bytes: usize, stream: Handle) -> (pointer, value as u8, bytes, stream));

export!(cudaMemset2D / fill_2d, cudaMemset2D_ptds / fill_2d_ptds =>
    (pointer: Pointer, pitch: usize, value: c_int, width: usize, height: usize)
    -> (pointer, pitch, value as u8, width, height));

export!(cudaMemset2DAsync / fill_2d_async, cudaMemset2DAsync_ptsz / fill_2d_async_ptsz =>
    (pointer: Pointer, pitch: usize, value: c_int, width: usize, height: usize, stream: Handle)
    -> (pointer, pitch, value as u8, width, height, stream));
