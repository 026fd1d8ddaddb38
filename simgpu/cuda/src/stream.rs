//! Streams and events.

use std::ffi::{c_int, c_uint, c_ulonglong};

use simgpu_device::Status;

use crate::state::*;

export!(cuStreamCreate => (handle: *mut Opaque, flags: c_uint) {
    let made = with(|driver| driver.create_stream(current()?, flags, 0))?;
    put(handle, made)
});

export!(cuStreamCreateWithPriority => (handle: *mut Opaque, flags: c_uint, priority: c_int) {
    let made = with(|driver| driver.create_stream(current()?, flags, priority))?;
    put(handle, made)
});

export!(cuStreamDestroy_v2 => (handle: Opaque) {
    with(|driver| driver.destroy_stream(handle))
});

export!(cuStreamSynchronize | cuStreamSynchronize_ptsz, DEFAULT => (handle: Opaque) {
    with_wait(|driver, context| driver.synchronize_stream(context, stream(handle, DEFAULT)))
});

export!(cuStreamQuery | cuStreamQuery_ptsz, DEFAULT => (handle: Opaque) {
    with(|driver| driver.query_stream(current()?, stream(handle, DEFAULT)))
});

export!(cuStreamWaitEvent | cuStreamWaitEvent_ptsz, DEFAULT => (handle: Opaque, event: Opaque, flags: c_uint) {
    if flags & !1 != 0 {
        return Err(Status::InvalidValue);
    }
    with(|driver| driver.stream_wait_event(current()?, stream(handle, DEFAULT), event))
});

export!(cuStreamGetFlags | cuStreamGetFlags_ptsz, DEFAULT => (handle: Opaque, flags: *mut c_uint) {
    let info = with(|driver| driver.stream_info(current()?, stream(handle, DEFAULT)))?;
    put(flags, info.0)
});

export!(cuStreamGetPriority | cuStreamGetPriority_ptsz, DEFAULT => (handle: Opaque, priority: *mut c_int) {
    let info = with(|driver| driver.stream_info(current()?, stream(handle, DEFAULT)))?;
    put(priority, info.1)
});

export!(cuStreamGetCtx | cuStreamGetCtx_ptsz, DEFAULT => (handle: Opaque, context: *mut Opaque) {
    let info = with(|driver| driver.stream_info(current()?, stream(handle, DEFAULT)))?;
    put(context, info.2)
});

export!(cuStreamGetId | cuStreamGetId_ptsz, DEFAULT => (handle: Opaque, id: *mut c_ulonglong) {
    let info = with(|driver| driver.stream_info(current()?, stream(handle, DEFAULT)))?;
    put(id, info.3)
});

export!(cuEventCreate => (event: *mut Opaque, flags: c_uint) {
    let made = with(|driver| driver.create_event(current()?, flags))?;
    put(event, made)
});

export!(cuEventDestroy_v2 => (event: Opaque) {
    with(|driver| driver.destroy_event(event))
});

export!(cuEventRecord | cuEventRecord_ptsz, DEFAULT => (event: Opaque, handle: Opaque) {
    with(|driver| driver.record_event(current()?, event, stream(handle, DEFAULT)))
});

export!(cuEventRecordWithFlags | cuEventRecordWithFlags_ptsz, DEFAULT => (event: Opaque, handle: Opaque, flags: c_uint) {
    if flags & !1 != 0 {
        return Err(Status::InvalidValue);
    }
    with(|driver| driver.record_event(current()?, event, stream(handle, DEFAULT)))
});

export!(cuEventQuery => (event: Opaque) {
    with(|driver| driver.query_event(event))
});

export!(cuEventSynchronize => (event: Opaque) {
    let wait = with(|driver| driver.synchronize_event(event))?;
    wait.run();
    Ok(())
});

export!(cuEventElapsedTime => (milliseconds: *mut f32, from: Opaque, to: Opaque) {
    let elapsed = with(|driver| driver.elapsed_ms(from, to))?;
    put(milliseconds, elapsed)
});

export!(cuEventElapsedTime_v2 => (milliseconds: *mut f32, from: Opaque, to: Opaque) {
    let elapsed = with(|driver| {
        driver.query_event(to)?;
        driver.elapsed_ms(from, to)
    })?;
    put(milliseconds, elapsed)
});
