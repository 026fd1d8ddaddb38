//! Streams and events.

use std::ffi::{c_int, c_uint};

use crate::state::*;

export!(cudaStreamCreate => (stream: *mut Handle) {
    check((ready()?.stream_create)(stream, 0, 0))
});

export!(cudaStreamCreateWithFlags => (stream: *mut Handle, flags: c_uint) {
    check((ready()?.stream_create)(stream, flags, 0))
});

export!(cudaStreamCreateWithPriority => (stream: *mut Handle, flags: c_uint, priority: c_int) {
    check((ready()?.stream_create)(stream, flags, priority))
});

export!(cudaStreamDestroy / stream_destroy => (stream: Handle) -> (stream));

export!(cudaStreamSynchronize / stream_synchronize, cudaStreamSynchronize_ptsz / stream_synchronize_ptsz =>
    (stream: Handle) -> (stream));

export!(cudaStreamQuery / stream_query, cudaStreamQuery_ptsz / stream_query_ptsz => (stream: Handle) -> (stream));

export!(cudaStreamWaitEvent / stream_wait, cudaStreamWaitEvent_ptsz / stream_wait_ptsz =>
    (stream: Handle, event: Handle, flags: c_uint) -> (stream, event, flags));

export!(cudaStreamGetFlags / stream_flags, cudaStreamGetFlags_ptsz / stream_flags_ptsz =>
    (stream: Handle, flags: *mut c_uint) -> (stream, flags));

export!(cudaStreamGetPriority / stream_priority, cudaStreamGetPriority_ptsz / stream_priority_ptsz =>
    (stream: Handle, priority: *mut c_int) -> (stream, priority));

export!(cudaStreamGetId / stream_id, cudaStreamGetId_ptsz / stream_id_ptsz =>
    (stream: Handle, id: *mut u64) -> (stream, id));

export!(cudaDeviceGetStreamPriorityRange / priorities => (least: *mut c_int, greatest: *mut c_int) -> (least, greatest));

export!(cudaEventCreate => (event: *mut Handle) {
    check((ready()?.event_create)(event, 0))
});

export!(cudaEventCreateWithFlags => (event: *mut Handle, flags: c_uint) {
    check((ready()?.event_create)(event, flags))
});

export!(cudaEventDestroy / event_destroy => (event: Handle) -> (event));

export!(cudaEventRecord / event_record, cudaEventRecord_ptsz / event_record_ptsz =>
    (event: Handle, stream: Handle) -> (event, stream));

export!(cudaEventRecordWithFlags / event_record_flags, cudaEventRecordWithFlags_ptsz / event_record_flags_ptsz =>
    (event: Handle, stream: Handle, flags: c_uint) -> (event, stream, flags));

export!(cudaEventQuery / event_query => (event: Handle) -> (event));

export!(cudaEventSynchronize / event_synchronize => (event: Handle) -> (event));

export!(cudaEventElapsedTime / event_elapsed =>
    (milliseconds: *mut f32, from: Handle, to: Handle) -> (milliseconds, from, to));
