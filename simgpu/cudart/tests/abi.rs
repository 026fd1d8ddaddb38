//! `libcudart.so.12` as the dynamic linker and probes see it.

#[path = "../../fixtures/testing.rs"]
mod testing;

use object::{Endianness, read::elf::ElfFile64};
use testing::{check_entry_points, libraries};

/// Every runtime entry point that is traced, and what the smallest programs call besides.
const NEEDED: &[&str] = &[
    "cudaMalloc",
    "cudaFree",
    "cudaLaunchKernel",
    "cudaLaunchKernel_ptsz",
    "cudaLaunchKernelExC",
    "cudaLaunchKernelExC_ptsz",
    "cudaLaunchCooperativeKernel",
    "cudaLaunchCooperativeKernel_ptsz",
    "cudaMemcpy",
    "cudaMemcpy_ptds",
    "cudaMemcpyAsync",
    "cudaMemcpyAsync_ptsz",
    "cudaMemcpy2D",
    "cudaMemcpy2D_ptds",
    "cudaMemcpy2DAsync",
    "cudaMemcpy2DAsync_ptsz",
    "cudaMemcpyPeer",
    "cudaMemcpyPeerAsync",
    "cudaMemset",
    "cudaMemset_ptds",
    "cudaMemsetAsync",
    "cudaMemsetAsync_ptsz",
    "cudaMemset2D",
    "cudaMemset2DAsync",
    "cudaMallocManaged",
    "cudaMallocAsync",
    "cudaMallocAsync_ptsz",
    "cudaFreeAsync",
    "cudaFreeAsync_ptsz",
    "cudaMallocHost",
    "cudaHostAlloc",
    "cudaFreeHost",
    "cudaStreamSynchronize",
    "cudaStreamSynchronize_ptsz",
    "cudaStreamQuery",
    "cudaStreamWaitEvent",
    "cudaStreamWaitEvent_ptsz",
    "cudaStreamCreate",
    "cudaStreamCreateWithFlags",
    "cudaStreamCreateWithPriority",
    "cudaStreamDestroy",
    "cudaDeviceSynchronize",
    "cudaEventCreate",
    "cudaEventCreateWithFlags",
    "cudaEventDestroy",
    "cudaEventRecord",
    "cudaEventRecord_ptsz",
    "cudaEventRecordWithFlags",
    "cudaEventSynchronize",
    "cudaEventQuery",
    "cudaEventElapsedTime",
    "cudaStreamBeginCapture",
    "cudaStreamBeginCapture_ptsz",
    "cudaStreamEndCapture",
    "cudaStreamEndCapture_ptsz",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaGraphLaunch_ptsz",
    "cudaSetDevice",
    "cudaGetDevice",
    "cudaGetDeviceCount",
    "cudaGetLastError",
    "cudaPeekAtLastError",
    "cudaGetErrorString",
    "cudaGetErrorName",
    "cudaDeviceGetAttribute",
    "cudaGetDeviceProperties_v2",
    "cudaMemGetInfo",
    "cudaFuncGetAttributes",
    "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
    "__cudaRegisterFatBinary",
    "__cudaRegisterFatBinaryEnd",
    "__cudaRegisterFunction",
    "__cudaUnregisterFatBinary",
    "__cudaPushCallConfiguration",
    "__cudaPopCallConfiguration",
];

#[test]
fn every_traced_entry_point_is_there_apart_from_others_and_begins_with_push() {
    let library = libraries().join("libcudart.so.12");
    check_entry_points(&library, &["cuda", "__cuda"], NEEDED);
}

#[test]
fn symbols_have_the_version_that_programs_linked_to_the_real_library_ask_for() {
    let data = std::fs::read(libraries().join("libcudart.so.12")).unwrap();
    let file = ElfFile64::<Endianness>::parse(&*data).unwrap();
    let endian = file.endian();
    let sections = file.elf_section_table();
    let versions = sections.versions(endian, &*data).unwrap().unwrap();
    let symbols = sections
        .symbols(endian, &*data, object::elf::SHT_DYNSYM)
        .unwrap();
    let mut seen = 0;
    for (index, symbol) in symbols.enumerate() {
        let name = symbols.symbol_name(endian, symbol).unwrap();
        if !name.starts_with(b"cuda") {
            continue;
        }
        let version = versions.version_index(endian, index);
        let version = versions.version(version.into()).unwrap().unwrap();
        assert_eq!(version.name(), b"libcudart.so.12");
        seen += 1;
    }
    assert!(seen >= 100, "{seen}");
}

#[test]
fn it_has_the_real_name_and_finds_the_driver_beside_itself() {
    let data = std::fs::read(libraries().join("libcudart.so.12")).unwrap();
    let file = ElfFile64::<Endianness>::parse(&*data).unwrap();
    let sections = file.elf_section_table();
    let entries = sections.dynamic_table(file.endian(), &*data).unwrap();
    let text = |tag| {
        let entry = entries.iter().find(|entry| entry.tag == tag).unwrap();
        entries.string(entry).unwrap()
    };
    assert_eq!(text(object::elf::DT_SONAME), b"libcudart.so.12");
    assert_eq!(text(object::elf::DT_RUNPATH), b"$ORIGIN");
}
