//! Public list prices, on demand, of one GPU an hour with its share of the machine around it.
//!
//! AWS: EC2 On-Demand, Linux, us-east-1; of the smallest instance with the GPU, divided by its GPUs, since larger ones with more
//! processors a GPU cost more. Google Cloud: accelerator-optimised machines, us-central1, likewise. Lambda: instances with one
//! GPU. Discounts, reservations and spot prices are one's own, and so for a file.

pub(super) struct Row {
    pub(super) provider: &'static str,
    /// As NVML names it.
    pub(super) gpu: &'static str,
    pub(super) micros_per_hour: u64,
    pub(super) source: &'static str,
    pub(super) as_of: &'static str,
}

const fn aws(gpu: &'static str, micros_per_hour: u64, source: &'static str) -> Row {
    Row {
        provider: "aws",
        gpu,
        micros_per_hour,
        source,
        as_of: "2026-03",
    }
}

const fn gcp(gpu: &'static str, micros_per_hour: u64, source: &'static str) -> Row {
    Row {
        provider: "gcp",
        gpu,
        micros_per_hour,
        source,
        as_of: "2025-09",
    }
}

const fn lambda(gpu: &'static str, micros_per_hour: u64, source: &'static str) -> Row {
    Row {
        provider: "lambda",
        gpu,
        micros_per_hour,
        source,
        as_of: "2026-05",
    }
}

pub(super) const ROWS: [Row; 18] = [
    aws(
        "NVIDIA B200",
        14_241_600,
        "https://aws.amazon.com/ec2/pricing/on-demand/ p6-b200.48xlarge, 113.9328 / 8",
    ),
    aws(
        "NVIDIA H200",
        7_912_000,
        "https://aws.amazon.com/ec2/pricing/on-demand/ p5en.48xlarge, 63.296 / 8",
    ),
    aws(
        "NVIDIA H100 80GB HBM3",
        6_880_000,
        "https://aws.amazon.com/ec2/pricing/on-demand/ p5.48xlarge, 55.04 / 8",
    ),
    aws(
        "NVIDIA A100-SXM4-80GB",
        3_430_881,
        "https://aws.amazon.com/ec2/pricing/on-demand/ p4de.24xlarge, 27.44705 / 8",
    ),
    aws(
        "NVIDIA A100-SXM4-40GB",
        2_744_705,
        "https://aws.amazon.com/ec2/pricing/on-demand/ p4d.24xlarge, 21.957642 / 8",
    ),
    aws(
        "Tesla V100-SXM2-16GB",
        3_060_000,
        "https://aws.amazon.com/ec2/pricing/on-demand/ p3.2xlarge",
    ),
    aws(
        "NVIDIA L40S",
        1_861_000,
        "https://aws.amazon.com/ec2/pricing/on-demand/ g6e.xlarge",
    ),
    aws(
        "NVIDIA A10G",
        1_006_000,
        "https://aws.amazon.com/ec2/pricing/on-demand/ g5.xlarge",
    ),
    aws(
        "NVIDIA L4",
        804_800,
        "https://aws.amazon.com/ec2/pricing/on-demand/ g6.xlarge",
    ),
    aws(
        "Tesla T4",
        526_000,
        "https://aws.amazon.com/ec2/pricing/on-demand/ g4dn.xlarge",
    ),
    gcp(
        "NVIDIA H100 80GB HBM3",
        11_061_250,
        "https://cloud.google.com/compute/vm-instance-pricing a3-highgpu-8g, 88.49 / 8",
    ),
    gcp(
        "NVIDIA A100-SXM4-80GB",
        5_068_798,
        "https://cloud.google.com/compute/vm-instance-pricing a2-ultragpu-1g",
    ),
    gcp(
        "NVIDIA A100-SXM4-40GB",
        3_673_385,
        "https://cloud.google.com/compute/vm-instance-pricing a2-highgpu-1g",
    ),
    gcp(
        "NVIDIA L4",
        706_832,
        "https://cloud.google.com/compute/vm-instance-pricing g2-standard-4",
    ),
    lambda(
        "NVIDIA H100 80GB HBM3",
        3_780_000,
        "https://lambda.ai/pricing 1x H100 SXM",
    ),
    lambda(
        "NVIDIA H100 PCIe",
        2_860_000,
        "https://lambda.ai/pricing 1x H100 PCIe",
    ),
    lambda(
        "NVIDIA A100-SXM4-40GB",
        1_480_000,
        "https://lambda.ai/pricing 1x A100",
    ),
    lambda("NVIDIA A10", 860_000, "https://lambda.ai/pricing 1x A10"),
];
