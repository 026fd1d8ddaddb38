//! The model's behaviour, without time deciding anything: what must not be over takes an hour.

use super::*;

const MS: u64 = 1_000_000;
/// Longer than any test, in ms: work that is not done yet, however slow the machine is.
const HOUR: u64 = 3_600_000;

struct Fixture {
    driver: Driver,
    context: Handle,
    path: std::path::PathBuf,
}

impl Fixture {
    /// A driver on a machine of its own: 64 MiB, kernels of 1 ms a block, nothing else taking time.
    fn new(name: &str) -> Self {
        Self::with(name, &[])
    }
    fn with(name: &str, more: &[(&str, &str)]) -> Self {
        let path =
            std::env::temp_dir().join(format!("simgpu-driver-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let config = Config::from_lookup(|variable| {
            let given = more.iter().find(|(name, _)| *name == variable);
            let value = match (given, variable) {
                (Some((_, value)), _) => value,
                (_, "SIMGPU_SHM") => return path.to_str().map(str::to_owned),
                (_, "SIMGPU_MEMORY_MIB") => "64",
                (_, "SIMGPU_NS_PER_BLOCK") => "1000000",
                (_, "SIMGPU_KERNEL_NS" | "SIMGPU_COPY_NS") => "0",
                (_, "SIMGPU_PAGEABLE_GBPS") => "1",
                (_, "SIMGPU_H2D_GBPS" | "SIMGPU_D2H_GBPS") => "2",
                _ => return None,
            };
            Some((*value).to_owned())
        })
        .unwrap();
        let mut driver = Driver::new(Machine::open(&config).unwrap(), config);
        let (context, _) = driver.retain_primary(0).unwrap();
        Self {
            driver,
            context,
            path,
        }
    }
    fn stream(&mut self, flags: u32) -> StreamRef {
        StreamRef::Created(self.driver.create_stream(self.context, flags, 0).unwrap())
    }
    /// Queues a kernel of `ms` on a stream.
    fn kernel(&mut self, stream: StreamRef, ms: u64) -> Span {
        let work = Work {
            engine: Engine::Compute,
            duration: ms * MS,
            launch: true,
        };
        self.driver.enqueue(self.context, stream, work).unwrap().0
    }
    fn copy(&mut self, stream: StreamRef, ms: u64) -> Span {
        let work = Work {
            engine: Engine::HostToDevice,
            duration: ms * MS,
            launch: false,
        };
        self.driver.enqueue(self.context, stream, work).unwrap().0
    }
    fn alloc(&mut self, bytes: u64) -> Result<u64> {
        self.driver.allocate(self.context, bytes).map(|a| a.0)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn work_of_one_stream_runs_in_order_on_whatever_engine() {
    let mut f = Fixture::new("order");
    let stream = f.stream(1);
    let first = f.copy(stream, HOUR);
    let second = f.kernel(stream, 50);
    let third = f.copy(stream, 10);
    assert_eq!(second.start, first.end);
    assert_eq!(third.start, second.end);
}

#[test]
fn streams_overlap_where_their_engines_differ() {
    let mut f = Fixture::new("overlap");
    let (a, b) = (f.stream(1), f.stream(1));
    let kernel = f.kernel(a, HOUR);
    let copy = f.copy(b, 100);
    assert!(copy.start < kernel.end);
}

#[test]
fn the_legacy_stream_and_blocking_streams_wait_for_each_other_and_others_do_not() {
    let mut f = Fixture::new("legacy");
    let (blocking, free) = (f.stream(0), f.stream(1));
    let before = f.kernel(blocking, HOUR);
    let legacy = f.copy(StreamRef::Legacy, 100);
    assert_eq!(legacy.start, before.end);
    let after = f.kernel(blocking, 1);
    assert_eq!(after.start, legacy.end);
    let (driver, context) = (&mut f.driver, f.context);
    assert_eq!(driver.query_stream(context, free), Ok(()));
    let aside = Work {
        engine: Engine::DeviceToHost,
        duration: MS,
        launch: false,
    };
    let (span, _) = driver.enqueue(context, free, aside).unwrap();
    assert!(span.end < before.end);
}

#[test]
fn each_thread_has_a_default_stream_of_its_own() {
    let mut f = Fixture::new("per-thread");
    f.kernel(StreamRef::PerThread(1), HOUR);
    let (driver, context) = (&mut f.driver, f.context);
    assert_eq!(
        driver.query_stream(context, StreamRef::PerThread(1)),
        Err(Status::NotReady)
    );
    assert_eq!(
        driver.query_stream(context, StreamRef::PerThread(2)),
        Ok(())
    );
}

#[test]
fn threads_that_come_and_go_leave_no_streams_behind() {
    let mut f = Fixture::new("threads");
    for thread in 0..5000 {
        let stream = StreamRef::PerThread(thread);
        f.driver.query_stream(f.context, stream).unwrap();
    }
    assert!(f.driver.streams.len() <= PER_THREAD_STREAMS + 1);
}

#[test]
fn an_event_holds_a_stream_back_and_tells_the_time_between_two_points() {
    let mut f = Fixture::new("event");
    let (a, b) = (f.stream(1), f.stream(1));
    let event = f.driver.create_event(f.context, 0).unwrap();
    let done = f.driver.create_event(f.context, 0).unwrap();
    let kernel = f.kernel(a, 20);
    f.driver.record_event(f.context, event, a).unwrap();
    f.driver.stream_wait_event(f.context, b, event).unwrap();
    let copy = f.copy(b, 5);
    assert_eq!(copy.start, kernel.end);
    f.driver.record_event(f.context, done, b).unwrap();
    f.driver.synchronize_event(done).unwrap().run();
    assert_eq!(f.driver.query_event(done), Ok(()));
    assert_eq!(f.driver.elapsed_ms(event, done), Ok(5.0));
    f.kernel(b, HOUR);
    f.driver.record_event(f.context, done, b).unwrap();
    assert_eq!(f.driver.query_event(done), Err(Status::NotReady));
    assert_eq!(f.driver.elapsed_ms(event, done), Err(Status::NotReady));
}

#[test]
fn an_event_without_timing_or_never_recorded_has_no_elapsed_time() {
    let mut f = Fixture::new("no-timing");
    let (driver, context) = (&mut f.driver, f.context);
    let timed = driver.create_event(context, 0).unwrap();
    let untimed = driver.create_event(context, 2).unwrap();
    assert_eq!(driver.query_event(timed), Ok(()));
    assert_eq!(driver.elapsed_ms(timed, timed), Err(Status::InvalidHandle));
    for event in [timed, untimed] {
        driver
            .record_event(context, event, StreamRef::Legacy)
            .unwrap();
    }
    assert_eq!(
        driver.elapsed_ms(timed, untimed),
        Err(Status::InvalidHandle)
    );
}

#[test]
fn synchronising_waits_for_the_work_it_covers_in_the_way_the_flags_say() {
    for (flags, sync, want) in [
        (0, "", SyncMode::Spin),
        (1, "", SyncMode::Spin),
        (2, "", SyncMode::Yield),
        (4, "", SyncMode::Block),
        (4, "spin", SyncMode::Spin),
        (0, "block", SyncMode::Block),
    ] {
        let mut f = Fixture::with("sync", &[("SIMGPU_SYNC", sync)]);
        f.driver.set_context_flags(f.context, flags).unwrap();
        let (a, b) = (f.stream(1), f.stream(1));
        let short = f.copy(a, 1);
        let long = f.kernel(b, 30);
        let wait = f.driver.synchronize_stream(f.context, a).unwrap();
        assert_eq!((wait.until, wait.mode), (short.end, Some(want)));
        let wait = f.driver.synchronize_context(f.context).unwrap();
        assert_eq!((wait.until, wait.mode), (long.end, Some(want)));
    }
}

#[test]
fn a_launch_waits_when_the_queue_is_full() {
    let mut f = Fixture::with("depth", &[("SIMGPU_LAUNCH_DEPTH", "3")]);
    let stream = f.stream(1);
    let module = f.driver.load_module(f.context).unwrap().0;
    let function = f.driver.function(module, "k").unwrap();
    let mut launch = || {
        let (driver, context) = (&mut f.driver, f.context);
        driver
            .launch(context, stream, function, HOUR, || None)
            .unwrap()
    };
    let free: Vec<u64> = (0..3).map(|_| launch().until).collect();
    assert_eq!(free, [0, 0, 0]);
    let fourth = launch().until;
    assert!(fourth > boot_ns(), "waits for the first one's end");
    assert_eq!(launch().until, fourth + HOUR * MS);
}

#[test]
fn a_kernel_takes_as_long_as_its_grid_is_large_or_as_its_parameter_says() {
    let mut f = Fixture::new("duration");
    let stream = f.stream(1);
    let module = f.driver.load_module(f.context).unwrap().0;
    // Behind an hour of work, so that a length is the difference of two ends.
    f.kernel(stream, HOUR);
    let mut length = |name: &str, blocks, sleep| {
        let before = f.driver.contexts[&f.context].tail;
        let function = f.driver.function(module, name).unwrap();
        let (driver, context) = (&mut f.driver, f.context);
        driver
            .launch(context, stream, function, blocks, || sleep)
            .map(|_| f.driver.contexts[&f.context].tail - before)
    };
    assert_eq!(length("gemm", 7, Some(1)), Ok(7 * MS));
    assert_eq!(length(SLEEP_KERNEL, 7, Some(3 * MS)), Ok(3 * MS));
    assert_eq!(length(SLEEP_KERNEL, 7, None), Err(Status::InvalidValue));
}

#[test]
fn cold_start_is_spent_in_the_first_calls_and_never_again() {
    let mut f = Fixture::with("cold", &[("SIMGPU_COLD_START_MS", "100")]);
    let (_, again) = f.driver.retain_primary(0).unwrap();
    assert_eq!(again.spend, 0, "the fixture's was the first");
    let (module, first) = f.driver.load_module(f.context).unwrap();
    let (_, second) = f.driver.load_module(f.context).unwrap();
    assert_eq!((first.spend, second.spend), (20 * MS, 0));
    let stream = f.stream(1);
    let mut spent = Vec::new();
    for name in ["a", "b", "a", "c", "d", "e"] {
        let function = f.driver.function(module, name).unwrap();
        let (driver, context) = (&mut f.driver, f.context);
        let wait = driver
            .launch(context, stream, function, 1, || None)
            .unwrap();
        spent.push(wait.spend / MS);
    }
    assert_eq!(spent, [5, 5, 0, 5, 5, 0]);
}

#[test]
fn memory_runs_out_and_comes_back() {
    let mut f = Fixture::new("oom");
    let most = f.alloc(60 << 20).unwrap();
    assert_eq!(f.alloc(6 << 20), Err(Status::OutOfMemory));
    assert_eq!(f.alloc(0), Err(Status::InvalidValue));
    assert_eq!(f.alloc(u64::MAX), Err(Status::OutOfMemory));
    f.driver.free(f.context, most).unwrap();
    assert_eq!(
        f.driver.free(f.context, most).map(drop),
        Err(Status::InvalidValue),
        "twice"
    );
    assert!(f.alloc(6 << 20).is_ok());
}

#[test]
fn fragmented_memory_refuses_a_large_block_but_can_be_mapped() {
    let mut f = Fixture::new("fragments");
    let blocks: Vec<u64> = (0..16).map(|_| f.alloc(4 << 20).unwrap()).collect();
    for block in blocks.iter().step_by(2) {
        f.driver.free(f.context, *block).unwrap();
    }
    let free = f.driver.memory_info(f.context).unwrap().0;
    assert_eq!(free, 32 << 20);
    assert_eq!(f.alloc(8 << 20), Err(Status::OutOfMemory));
    let (physical, _) = f.driver.create_physical(0, 8 << 20).unwrap();
    let address = f.driver.reserve(16 << 20).unwrap();
    f.driver.map(address, 8 << 20, physical).unwrap();
    assert_eq!(
        f.driver.map(address + (4 << 20), 8 << 20, physical),
        Err(Status::InvalidValue),
        "overlaps"
    );
    assert!(matches!(
        f.driver.place(address + (8 << 20) - 1),
        Ok(Place::Device { .. })
    ));
    assert_eq!(
        f.driver.place(address + (8 << 20)),
        Err(Status::InvalidValue)
    );
    f.driver.release_physical(physical).unwrap();
    assert_eq!(f.driver.memory_info(f.context).unwrap().0, 24 << 20);
    f.driver.unmap(address, 8 << 20).unwrap();
    assert_eq!(f.driver.memory_info(f.context).unwrap().0, 32 << 20);
    f.driver.free_reserved(address, 16 << 20).unwrap();
}

#[test]
fn small_blocks_share_pages_never_overlap_and_give_all_back() {
    let mut f = Fixture::new("small");
    let all = f.driver.memory_info(f.context).unwrap().0;
    let mut random = 88172645463325252u64;
    let mut live: Vec<(u64, u64)> = Vec::new();
    for _ in 0..2000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if live.len() > 40 || (random.is_multiple_of(3) && !live.is_empty()) {
            let (address, _) = live.swap_remove(random as usize % live.len());
            f.driver.free(f.context, address).unwrap();
        } else {
            let bytes = 1 + random % (SMALL_BYTES - 1);
            let address = f.alloc(bytes).unwrap();
            assert!(address.is_multiple_of(SMALL_ALIGN));
            let apart =
                |(other, size): &(u64, u64)| address + bytes <= *other || other + size <= address;
            assert!(live.iter().all(apart));
            live.push((address, bytes));
        }
    }
    for (address, _) in live {
        f.driver.free(f.context, address).unwrap();
    }
    assert_eq!(f.driver.memory_info(f.context).unwrap().0, all);
}

#[test]
fn freeing_waits_for_the_device() {
    let mut f = Fixture::new("free");
    let block = f.alloc(4 << 20).unwrap();
    let stream = f.stream(1);
    let kernel = f.kernel(stream, 20);
    let wait = f.driver.free(f.context, block).unwrap();
    assert_eq!(wait.until, kernel.end);
}

#[test]
fn stream_ordered_memory_is_used_again_without_the_device_and_returned_by_a_wait() {
    let mut f = Fixture::new("pool");
    let stream = f.stream(1);
    let (driver, context) = (&mut f.driver, f.context);
    let (block, first) = driver.allocate_async(context, 8 << 20, stream).unwrap();
    driver.free_async(context, block, stream).unwrap();
    assert_eq!(
        driver.free_async(context, block, stream),
        Err(Status::InvalidValue)
    );
    let (again, second) = driver.allocate_async(context, 8 << 20, stream).unwrap();
    assert_eq!((again, second.spend), (block, 0));
    assert!(first.spend > 0);
    driver.free_async(context, again, stream).unwrap();
    assert_eq!(driver.memory_info(context).unwrap().0, 56 << 20);
    driver.synchronize_stream(context, stream).unwrap();
    assert_eq!(driver.memory_info(context).unwrap().0, 64 << 20);
}

#[test]
fn a_block_in_the_pool_is_given_up_before_an_allocation_fails() {
    let mut f = Fixture::new("pool-oom");
    let stream = f.stream(1);
    let (driver, context) = (&mut f.driver, f.context);
    let (block, _) = driver.allocate_async(context, 40 << 20, stream).unwrap();
    driver.free_async(context, block, stream).unwrap();
    assert!(f.alloc(50 << 20).is_ok());
}

#[test]
fn copies_take_what_their_memory_and_direction_allow() {
    let mut f = Fixture::new("copies");
    let block = f.alloc(4 << 20).unwrap();
    let device = f.driver.place(block).unwrap();
    f.driver.add_pinned(0x1000, 0x1000);
    let pinned = f.driver.place(0x1800).unwrap();
    let pageable = f.driver.place(0x2000).unwrap();
    assert_eq!(pageable, Place::Pageable);
    let work = |to, from| f.driver.copy_work(to, from, 1_000_000);
    let timed = |work: Option<Work>| work.map(|w| (w.engine, w.duration));
    assert_eq!(
        timed(work(device, pinned)),
        Some((Engine::HostToDevice, 500_000))
    );
    assert_eq!(
        timed(work(device, pageable)),
        Some((Engine::HostToDevice, 1_000_000))
    );
    assert_eq!(
        timed(work(pinned, device)),
        Some((Engine::DeviceToHost, 500_000))
    );
    assert_eq!(work(pinned, pageable), None);
    assert!(f.driver.place(block + (4 << 20)).is_err());
}

#[test]
fn small_allocations_keep_what_is_written_and_large_ones_do_not() {
    let mut f = Fixture::new("shadow");
    let small = f.alloc(1024).unwrap();
    f.driver
        .shadow(small + 8, 4)
        .unwrap()
        .copy_from_slice(b"loss");
    assert_eq!(f.driver.shadow(small + 8, 4).unwrap(), b"loss");
    assert!(f.driver.shadow(small + 1022, 4).is_none(), "beyond its end");
    let large = f.alloc(4 << 20).unwrap();
    assert!(f.driver.shadow(large, 4).is_none());
}

#[test]
fn a_capture_records_across_streams_and_its_graph_runs_as_often_as_asked() {
    let mut f = Fixture::new("graph");
    let (a, b) = (f.stream(1), f.stream(1));
    let (driver, context) = (&mut f.driver, f.context);
    let fork = driver.create_event(context, 2).unwrap();
    assert_eq!(
        driver.begin_capture(context, StreamRef::Legacy),
        Err(Status::CaptureUnsupported)
    );
    driver.begin_capture(context, a).unwrap();
    f.kernel(a, 5);
    let (driver, context) = (&mut f.driver, f.context);
    driver.record_event(context, fork, a).unwrap();
    driver.stream_wait_event(context, b, fork).unwrap();
    f.kernel(b, 7);
    let (driver, context) = (&mut f.driver, f.context);
    assert_eq!(
        driver.synchronize_stream(context, a),
        Err(Status::CaptureUnsupported)
    );
    assert_eq!(
        driver.end_capture(context, b),
        Err(Status::CaptureUnmatched)
    );
    let graph = driver.end_capture(context, a).unwrap();
    assert_eq!(driver.graph_nodes(graph), Ok(2));
    assert_eq!(driver.query_stream(context, a), Ok(()), "nothing ran");
    assert_eq!(driver.query_stream(context, b), Ok(()), "b left it too");
    let (executable, _) = driver.instantiate(graph).unwrap();
    driver.destroy_graph(graph).unwrap();
    let before = f.kernel(a, HOUR).end;
    let (driver, context) = (&mut f.driver, f.context);
    for _ in 0..2 {
        driver.launch_graph(context, a, executable).unwrap();
    }
    let end = driver.synchronize_stream(context, a).unwrap().until;
    assert_eq!(end - before, 24 * MS);
    driver.destroy_executable(executable).unwrap();
    assert_eq!(
        driver.launch_graph(context, a, executable),
        Err(Status::InvalidHandle)
    );
}

#[test]
fn a_stale_handle_is_an_error() {
    let mut f = Fixture::new("stale");
    let (driver, context) = (&mut f.driver, f.context);
    let stream = driver.create_stream(context, 0, 0).unwrap();
    driver.destroy_stream(stream).unwrap();
    let other = driver.create_stream(context, 0, 0).unwrap();
    assert_ne!(stream, other);
    assert_eq!(
        driver.query_stream(context, StreamRef::Created(stream)),
        Err(Status::InvalidHandle)
    );
    assert_eq!(driver.destroy_stream(stream), Err(Status::InvalidHandle));
    assert_eq!(driver.destroy_event(other), Err(Status::InvalidHandle));
    assert_eq!(driver.create_stream(1, 0, 0), Err(Status::InvalidContext));
}

#[test]
fn resetting_a_device_frees_its_memory() {
    let mut f = Fixture::new("reset");
    f.alloc(8 << 20).unwrap();
    f.alloc(100).unwrap();
    f.driver.reset_primary(0).unwrap();
    assert_eq!(f.driver.memory_info(f.context).unwrap().0, 64 << 20);
}
