//! The tables: what a row of each is, and how the words of `model` become rows and come back.
//!
//! Everything is stored as it was said: 64-bit integers as `u64`, times as `boot_ns` (CLOCK_BOOTTIME) and `dur_ns`,
//! absence as null. A row that this version cannot read back (an op or a cause that came later) is `None`, one row lost.

mod judged;
mod known;
mod recorded;

use arrow::array::ArrayRef;
use arrow::datatypes::{Field, Fields};
use warptrace_model::{Pid, Window};

use crate::column::{Cell, ColumnError, Row, find, rows};

/// How the rows of a table are ordered in a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// By `boot_ns`, equal ones as they came.
    Time,
    /// As they came: the last row about a thing is the valid one.
    Arrival,
}

pub(crate) trait Table: Row + 'static {
    const NAME: &'static str;
    const ORDER: Order;
}

macro_rules! tables {
    ($($row:ident $name:literal $order:ident;)*) => {
        $(impl Table for $row {
            const NAME: &'static str = $name;
            const ORDER: Order = Order::$order;
        })*

        /// The names of all tables.
        pub const TABLES: &[&str] = &[$($name),*];

        /// The columns of a table; `None` for a name that is none of [`TABLES`].
        pub fn table_schema(name: &str) -> Option<arrow::datatypes::SchemaRef> {
            match name {
                $($name => Some($row::schema()),)*
                _ => None,
            }
        }
    };
}

tables! {
    EventRow "events" Time;
    OffCpuRow "offcpu" Time;
    UnitRow "units" Time;
    AnnotationRow "annotations" Time;
    MemoryRow "memory" Time;
    RequestRow "requests" Time;
    ServingRow "serving" Time;
    OpsRow "ops" Time;
    SystemRow "system" Time;
    OutlierRow "outliers" Time;
    FindingRow "findings" Arrival;
    ProcessRow "processes" Arrival;
    ThreadRow "threads" Arrival;
    FileRow "files" Arrival;
    StackRow "stacks" Arrival;
    DropRow "drops" Arrival;
    GapRow "gaps" Arrival;
}

rows! {
    /// A record's slots, as `warptrace_record` describes them for each kind; `flags` of process rows is [`FLAG_THREAD`] or 0.
    EventRow, EventColumns, EventReader {
        boot_ns: u64,
        dur_ns: u64,
        kind: u8,
        source: u8,
        op: u16,
        flags: u16,
        pid: u32,
        tid: u32,
        device: Option<u16>,
        stream: u64,
        ret: i32,
        arg0: u64,
        arg1: u64,
        stack_id: u32,
        cpu: u32,
        /// How many events it stands for, where some were left out; null is one, and in older sessions.
        weight: Option<u32>,
    }

    /// Where a thread was when it did not run, as far as the backend could tell. `kind` is the record's: 2 off the CPU,
    /// 3 a slice of somebody else, 7 a stretch of a thread's own account.
    OffCpuRow, OffCpuColumns, OffCpuReader {
        boot_ns: u64,
        dur_ns: u64,
        kind: u8,
        pid: u32,
        tid: u32,
        cpu: Option<u32>,
        runnable_ns: u64,
        throttled_ns: u64,
        running_ns: u64,
        flags: u16,
        syscall: Option<u16>,
        fd: Option<i32>,
        file_type: u8,
        waker_pid: Option<u32>,
        waker_tid: Option<u32>,
        last_occupant: u32,
        major_faults: u32,
        minor_faults: u32,
        /// As in `events`.
        weight: Option<u32>,
    }

    UnitRow, UnitColumns, UnitReader {
        boot_ns: u64,
        dur_ns: u64,
        pid: u32,
        start_ticks: u64,
        tid: u32,
        device: Option<u16>,
        /// Null: the unit's wait covers more than one.
        stream: Option<u64>,
        kind: String,
        class: u16,
        /// Which label named it, and with what value; null for an inferred one.
        label: Option<String>,
        value: Option<String>,
        number: u64,
        launches: u64,
        slow: bool,
        incomplete: bool,
        run_queue_wait_ns: u64,
        cpu_quota_ns: u64,
        disk_wait_ns: u64,
        page_fault_ns: u64,
        reclaim_ns: u64,
        lock_wait_ns: u64,
        network_wait_ns: u64,
        sleep_ns: u64,
        allocator_ns: u64,
        copy_ns: u64,
        launch_ns: u64,
        launch_gap_ns: u64,
        device_wait_ns: u64,
        unexplained_ns: u64,
    }

    /// `boot_ns`: when it was said. The interval is null of an instant, the process of what holds for all, the sender of what
    /// was read from a file.
    AnnotationRow, AnnotationColumns, AnnotationReader {
        boot_ns: u64,
        pid: Option<u32>,
        start_ticks: Option<u64>,
        span_start_ns: Option<u64>,
        span_dur_ns: Option<u64>,
        labels: Vec<LabelRow>,
        sender_uid: Option<u32>,
        sender_gid: Option<u32>,
        sender_pid: Option<u32>,
    }

    LabelRow, LabelColumns, LabelReader {
        key: String,
        value: String,
    }

    /// One event of a memory collector. `version` is that of the form in which it was read, 0 for forms before there were
    /// versions; `pid` and `device_id` are -1 where they are not known or not applicable; `metadata` is JSON.
    MemoryRow, MemoryColumns, MemoryReader {
        boot_ns: u64,
        /// As the collector said it.
        unix_ns: u64,
        version: u8,
        session_id: String,
        event_type: String,
        collector: String,
        sampling_interval_ms: i64,
        pid: i64,
        host: String,
        job_id: Option<String>,
        rank: i64,
        local_rank: i64,
        world_size: i64,
        device_id: i64,
        allocator_allocated_bytes: Option<i64>,
        allocator_reserved_bytes: Option<i64>,
        allocator_active_bytes: Option<i64>,
        allocator_inactive_bytes: Option<i64>,
        allocator_change_bytes: Option<i64>,
        device_used_bytes: Option<i64>,
        device_free_bytes: Option<i64>,
        device_total_bytes: Option<i64>,
        context: Option<String>,
        metadata: String,
    }

    /// One request of a run log; `boot_ns` is when it was logged, 0 when the log does not say when.
    RequestRow, RequestColumns, RequestReader {
        boot_ns: u64,
        log: String,
        run: u32,
        start_unix_ns: Option<u64>,
        end_unix_ns: Option<u64>,
        since_start_ns: Option<u64>,
        latency_ns: Option<u64>,
        model: Option<String>,
        principal: Option<String>,
        request_id: Option<String>,
        prompt_tokens: Option<u64>,
        completion_tokens: Option<u64>,
        failed: bool,
        status: Option<u16>,
        code: Option<String>,
        message: Option<String>,
    }

    /// What an inference server said of itself, by the names of the metrics. A counter or a level is a `value`; of a distribution all is
    /// cumulative since the server's start, and each bucket counts what is above the one before.
    ServingRow, ServingColumns, ServingReader {
        boot_ns: u64,
        pid: u32,
        start_ticks: u64,
        engine: String,
        /// Null where the engine names none.
        model: Option<String>,
        metric: String,
        value: Option<f64>,
        count: Option<u64>,
        sum: Option<f64>,
        buckets: Vec<ServingBucketRow>,
    }

    ServingBucketRow, ServingBucketColumns, ServingBucketReader {
        /// The upper bound, which belongs to it; null of the last bucket, which has none.
        le: Option<f64>,
        count: u64,
    }

    OpsRow, OpsColumns, OpsReader {
        boot_ns: u64,
        dur_ns: u64,
        pid: u32,
        device: Option<u16>,
        source: u8,
        op: u16,
        count: u64,
        total_ns: u64,
        buckets: Vec<BucketRow>,
    }

    BucketRow, BucketColumns, BucketReader {
        bucket: u16,
        count: u64,
    }

    /// The machine where `device` is null, else one GPU. `memory_total` is of whichever it is.
    SystemRow, SystemColumns, SystemReader {
        boot_ns: u64,
        device: Option<u16>,
        cpu: Option<f64>,
        steal: Option<f64>,
        memory_total: Option<u64>,
        memory_available: Option<u64>,
        swap_used: Option<u64>,
        load1: Option<f64>,
        load5: Option<f64>,
        major_faults: Option<f64>,
        pressure_cpu: Option<f64>,
        pressure_io: Option<f64>,
        pressure_memory: Option<f64>,
        uuid: Option<String>,
        sm_clock_mhz: Option<u32>,
        max_sm_clock_mhz: Option<u32>,
        throttle_reasons: Option<u64>,
        memory_used: Option<u64>,
        utilization: Option<f64>,
        processes: Vec<GpuProcessRow>,
        /// Null in older sessions, like those after it.
        name: Option<String>,
        memory_free: Option<u64>,
        temperature_celsius: Option<u32>,
        power_milliwatts: Option<u32>,
    }

    GpuProcessRow, GpuProcessColumns, GpuProcessReader {
        pid: u32,
        utilization: Option<f64>,
        memory_used: Option<u64>,
    }

    FindingRow, FindingColumns, FindingReader {
        id: u64,
        kind: String,
        severity: String,
        cause: String,
        second: Option<String>,
        pid: u32,
        start_ticks: u64,
        device: Option<u16>,
        stream: Option<u64>,
        unit_kind: String,
        class: u16,
        op: Option<String>,
        tid: u32,
        comm: String,
        place_file: Option<String>,
        place_line: Option<u32>,
        place_function: Option<String>,
        place_op: Option<String>,
        boot_ns: u64,
        dur_ns: u64,
        first_unit: u64,
        last_unit: u64,
        slow_units: u64,
        worst_unit: u64,
        shifted: bool,
        baseline_ns: u64,
        baseline_units: u64,
        excess_ns: u64,
        blame: Vec<BlameRow>,
        evidence: Vec<EvidenceRow>,
    }

    BlameRow, BlameColumns, BlameReader {
        cause: String,
        ns: u64,
        lost_ns: u64,
        detail: String,
    }

    EvidenceRow, EvidenceColumns, EvidenceReader {
        what: String,
        pid: Option<u32>,
        tid: Option<u32>,
        comm: Option<String>,
        path: Option<String>,
        boot_ns: u64,
        dur_ns: u64,
    }

    /// A slow step of an inference server. `boot_ns` is where the step began.
    OutlierRow, OutlierColumns, OutlierReader {
        boot_ns: u64,
        dur_ns: u64,
        /// In the form of a UUID, as in the stream and in traces.
        event_id: String,
        trace_id: String,
        span_id: String,
        /// Null where the cgroup is not known.
        cgroup_hash: Option<String>,
        pid: u32,
        start_ticks: u64,
        device: Option<u16>,
        stream: u64,
        /// Null where steps are not told apart by phase.
        phase: Option<String>,
        fingerprint: u64,
        bucket: String,
        p95_ns: u64,
        mean_ns: u64,
        tid: u32,
        op: String,
        launches: u64,
        copied_bytes: u64,
        memory_calls: u32,
        throttle_reasons: u64,
        min_sm_clock_mhz: Option<u32>,
        kv_ages: Vec<KvAgeRow>,
        first_in_minute: bool,
    }

    KvAgeRow, KvAgeColumns, KvAgeReader {
        age_ms: u64,
    }

    /// `boot_ns` is the start of the process.
    ProcessRow, ProcessColumns, ProcessReader {
        pid: u32,
        start_ticks: u64,
        boot_ns: u64,
        parent_pid: u32,
        name: String,
        command: Vec<String>,
        from_start: bool,
        in_job: bool,
        uid: u32,
        cgroup: String,
        container_id: String,
        rank: Option<u32>,
        local_rank: Option<u32>,
        world_size: Option<u32>,
    }

    /// `boot_ns`: the latest moment known to the writer when the name was learned.
    ThreadRow, ThreadColumns, ThreadReader {
        boot_ns: u64,
        pid: u32,
        tid: u32,
        name: String,
    }

    /// `boot_ns`: the latest moment known to the writer when the path was learned.
    FileRow, FileColumns, FileReader {
        boot_ns: u64,
        pid: u32,
        fd: i32,
        path: String,
    }

    StackRow, StackColumns, StackReader {
        stack_id: u32,
        frames: Vec<FrameRow>,
    }

    FrameRow, FrameColumns, FrameReader {
        ip: u64,
        module: Option<String>,
        module_offset: Option<u64>,
        function: Option<String>,
        file: Option<String>,
        line: Option<u32>,
    }

    /// Times are null where it is not known when the records were lost.
    DropRow, DropColumns, DropReader {
        source: String,
        reason: String,
        count: u64,
        boot_ns: Option<u64>,
        dur_ns: Option<u64>,
        pid: Option<u32>,
    }

    GapRow, GapColumns, GapReader {
        code: String,
        detail: String,
        count: u64,
    }
}

/// A user stack, innermost frame first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// What the events of the session call it; never 0.
    pub id: u32,
    pub frames: Vec<Frame>,
}

/// One frame, resolved as far as it could be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// Return address, 0 for a frame of an interpreter.
    pub ip: u64,
    /// File that is mapped there.
    pub module: Option<String>,
    /// Of `ip`, from where the first byte of the file was mapped. Null in older sessions.
    pub module_offset: Option<u64>,
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
}

/// [`Loss`](warptrace_model::Loss) as it is read back: names of who and why may be those of a later version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLoss {
    pub source: String,
    /// [`LossReason::name`](warptrace_model::LossReason::name).
    pub reason: String,
    pub count: u64,
    pub window: Option<Window>,
    pub pid: Option<Pid>,
}

/// In `flags` of a process row: a thread began or ended, not its process. Readers need no other column to tell them apart.
pub const FLAG_THREAD: u16 = 1;

#[cfg(test)]
mod tests {
    use warptrace_model::Category;

    use super::*;

    #[test]
    fn the_table_units_has_a_column_for_each_category() {
        for category in Category::ALL {
            let column = format!("{}_ns", category.name());
            let schema = table_schema("units").unwrap();
            assert!(schema.field_with_name(&column).is_ok(), "no {column}");
        }
    }
}
