//! Attributes of metrics: their names here and there, and how their values are written.

/// An attribute of metrics.
#[derive(Debug)]
pub struct Attribute {
    /// OpenTelemetry's name where there is one.
    pub name: &'static str,
    pub form: Form,
    /// One sentence without its full stop.
    pub meaning: &'static str,
    /// That of the tracer `ingero` in OTLP; `None` where it has none.
    pub ingero: Option<&'static str>,
    /// And in Prometheus.
    pub label: Option<&'static str>,
}

impl PartialEq for Attribute {
    /// Names are unique.
    fn eq(&self, other: &Attribute) -> bool {
        self.name == other.name
    }
}

impl Eq for Attribute {}

/// What the values of an attribute are, and how they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Int,
    Double,
    /// 64 bits that mean nothing as a number: 16 hexadecimal digits.
    Hash,
    /// The same, which `ingero` writes without leading zeros in OTLP.
    Fingerprint,
    /// An address or a number that stands for one: `0x` and hexadecimal digits; for `ingero` decimal digits. Text in both.
    Handle,
    /// A command of an ioctl: `0x` and upper-case hexadecimal digits.
    Command,
}

impl Form {
    /// Of the value in OTLP, as the documentation has it.
    pub const fn name(self) -> &'static str {
        match self {
            Form::Int => "int",
            Form::Double => "double",
            _ => "string",
        }
    }
}

macro_rules! attributes {
    ($($id:ident = $name:literal, $form:ident, [$($otlp:literal)?], [$($label:literal)?], $meaning:literal;)*) => {
        /// Every attribute of the table.
        pub mod attribute {
            use super::{Attribute, Form};

            $(
                #[doc = $meaning]
                pub static $id: Attribute = Attribute {
                    name: $name,
                    form: Form::$form,
                    meaning: $meaning,
                    ingero: first(&[$($otlp)?]),
                    label: first(&[$($label)?]),
                };
            )*

            /// All, in the order of the documentation.
            pub static ALL: &[&Attribute] = &[$(&$id),*];

            const fn first(names: &[&'static str]) -> Option<&'static str> {
                match names {
                    [name, ..] => Some(name),
                    [] => None,
                }
            }
        }
    };
}

// ours; form; in ingero's OTLP; in its Prometheus labels; meaning.
attributes! {
    GPU = "hw.id", Text, ["gpu.uuid"], ["gpu_uuid"], "UUID of the device, as NVML has it";
    GPU_MODEL = "hw.model", Text, ["ingero.gpu_model"], [], "name of the device, as NVML has it";
    GPU_COUNT = "warptrace.gpu.count", Int, ["ingero.gpu_count"], [], "devices of the node";
    GPU_TASK = "hw.gpu.task", Text, [], [], "what the device was busy with";
    THROTTLE_REASON = "warptrace.gpu.throttle.reason", Text, [], [], "`power`, `thermal`, `sw` or `hw`";
    MEMORY_STATE = "system.memory.state", Text, [], [], "`used`";
    CPU_MODE = "cpu.mode", Text, [], [], "`user` or `system`";

    PID = "process.pid", Int, ["pid"], ["pid"], "process";
    COMM = "process.executable.name", Text, ["comm"], ["comm"], "name of the process, 15 bytes at most";
    CGROUP = "warptrace.cgroup.hash", Text, ["ingero.cgroup_path_hash"], ["cgroup_path_hash"],
        "hash of the path of the workload's cgroup";
    CONTEXT_SWITCH_TYPE = "process.context_switch.type", Text, [], [], "`involuntary` or `voluntary`";
    LIBRARY_PATH = "warptrace.library.path", Text, ["libnccl_path"], ["libnccl_path"], "file of the library";
    LIBRARY_VERSION = "warptrace.library.version", Text, ["libnccl_version"], ["libnccl_version"], "version of the library";

    LAYER = "warptrace.layer", Text, ["source"], ["source"], "who was called: `cuda`, the runtime, `cuda_graph`, its graphs, or `driver`";
    FUNCTION = "warptrace.cuda.function", Text, ["operation"], ["operation"], "the function that was called, without variants";
    PERCENTILE = "warptrace.percentile", Text, ["percentile"], ["percentile"], "`p50`, `p95` or `p99`; never under our own names";
    COPY_DIRECTION = "warptrace.cuda.copy.direction", Text, ["ingero.memcpy.direction"], ["direction"],
        "`h2h`, `h2d`, `d2h`, `d2d`, `default` or `unknown`";
    STREAM = "warptrace.cuda.stream", Handle, ["ingero.infer.stream_handle"], ["stream_handle"], "handle of the stream";
    DEVICE = "warptrace.cuda.device", Int, [], [], "ordinal of the device in the process";
    IOCTL_COMMAND = "warptrace.driver.command", Command, [], ["cmd"], "command of the call to the driver";

    NCCL_OPERATION = "warptrace.nccl.operation", Text, ["nccl.op_type"], ["op_type"], "the collective: `AllReduce`, …";
    NCCL_COMMUNICATOR = "warptrace.nccl.communicator", Hash, ["nccl.comm_id_hash"], [], "hash of the communicator's id";
    NCCL_RANK = "warptrace.nccl.rank", Int, ["nccl.rank"], [], "rank in the communicator";
    NCCL_RANKS = "warptrace.nccl.rank.count", Int, ["nccl.nranks"], [], "ranks of the communicator";
    NCCL_DATA_TYPE = "warptrace.nccl.data_type", Int, ["nccl.datatype"], [], "`ncclDataType_t`";
    NCCL_REDUCE_OPERATION = "warptrace.nccl.reduce_operation", Int, ["nccl.reduce_op"], [], "`ncclRedOp_t`";
    NCCL_PEER = "warptrace.nccl.peer", Int, ["nccl.peer_rank"], [], "the other rank of a point-to-point call";

    PHASE = "warptrace.inference.phase", Text, ["ingero.infer.phase"], ["phase"], "`prefill`, `decode`, `mixed`, `unknown` or empty";
    FINGERPRINT = "warptrace.inference.kernel_fingerprint", Fingerprint, ["ingero.infer.kernel_fingerprint"], ["kernel_fingerprint"],
        "which kernels the workload launches, as a hash";
    BUCKET = "warptrace.inference.outlier.bucket", Text, ["ingero.infer.outlier_bucket"], ["bucket"],
        "how far above the baseline: `1.5x`, `2x` or `3x`";
    SAMPLER_CAUSE = "warptrace.inference.sampler.cause", Text, ["ingero.infer.sampler.cause"], ["cause"], "why the sampler admits all; never under our own names";
    SAMPLER_DECISION = "warptrace.inference.sampler.decision", Text, [], [], "`admitted` or `shed`";
    GEN_AI_SYSTEM = "gen_ai.provider.name", Text, ["gen_ai.system"], ["gen_ai_system"], "engine: `vllm`, `sglang`, `tgi`, `triton`";
    GEN_AI_REQUEST_MODEL = "gen_ai.request.model", Text, ["gen_ai.request.model"], ["gen_ai_request_model"], "model that is served";
    GEN_AI_RESPONSE_MODEL = "gen_ai.response.model", Text, ["gen_ai.response.model"], [], "model that answered";
    GEN_AI_OPERATION = "gen_ai.operation.name", Text, ["gen_ai.operation.name"], [], "`chat`, `text_completion`, …";
    GEN_AI_TOKEN_TYPE = "gen_ai.token.type", Text, ["gen_ai.token.type"], [], "`input` or `output`";
    ENGINE_PID = "warptrace.engine.pid", Int, ["ingero.engine.pid"], [], "process of the engine that was scraped";

    NODE_STATE = "warptrace.node.state", Text, ["ingero.node.state"], [], "`active`, `calibrating` or `idle`";
    NODE_SIGNAL = "warptrace.node.signal", Text, [], [], "`throughput`, `compute`, `memory` or `cpu`";
    WORKLOAD_TYPE = "warptrace.workload.type", Text, ["ingero.workload_type"], [], "what the node's user says that it runs";
    DETECTION_MODE = "warptrace.detection_mode", Text, ["ingero.detection_mode"], [],
        "`fleet`, `fleet-cached`, `local-cached`, `local-baseline` or `none`";
    THRESHOLD = "warptrace.straggler.threshold", Double, ["threshold"], [], "score below which a node is a straggler";
    SCORE = "warptrace.straggler.score", Double, ["score"], [], "score of the node";
    DOMINANT_SIGNAL = "warptrace.straggler.signal", Text, ["dominant_signal"], [], "the signal that fell most";
    EVENT_ID = "warptrace.event.id", Text, ["ingero.event.id"], [], "id that the same event has wherever it is told; never under our own names";
    CLUSTER = "warptrace.cluster.id", Text, ["ingero.cluster.id"], ["cluster_id"], "cluster";

    CAUSE = "warptrace.cause", Text, [], [], "why time was lost: `run_queue_wait`, `disk_wait`, …, `unexplained`";
    SEVERITY = "warptrace.finding.severity", Text, [], [], "`low`, `medium`, `high` or `critical`";
    UNIT_KIND = "warptrace.unit.kind", Text, [], [], "`wait_interval`, `named`, `call` or `cold_start`";
    ERROR_TYPE = "error.type", Text, [], [], "why it failed or was dropped, in one word; absent on success";
    GAP = "warptrace.gap.code", Text, [], [], "what sort of thing is not known: `records_lost`, `no_nvml`, …";
    SOURCE = "warptrace.source", Text, [], [], "where what was dropped came from: a ring, a map, a queue";
}
