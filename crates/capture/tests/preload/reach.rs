//! The ways in which a program can reach an entry point, and that each leads to the right copy of it.

use std::path::Path;
use std::process::Command;

use warptrace_capture::preload::Mechanism;

use crate::lab::*;

/// A runtime whose `cudaMalloc` returns `answer`.
fn runtime(folder: &str, answer: i32, soname: &str) -> std::path::PathBuf {
    compile(
        &format!("{folder}/{soname}"),
        &format!(
            "{PRELUDE} int cudaMalloc(u64 *p, size_t n) {{ return {answer}; }} int cudaLaunchKernel(void) {{ return 0; }}"
        ),
        &["-shared", "-fPIC", &format!("-Wl,-soname,{soname}")],
    )
}

/// A plugin `go()` that is linked to `runtime` and calls it through its linkage table, or as `flags` say.
fn plugin(name: &str, runtime: &Path, flags: &[&str]) -> std::path::PathBuf {
    let rpath = format!("-Wl,-rpath,{}", runtime.parent().unwrap().display());
    let mut all = vec!["-shared", "-fPIC", runtime.to_str().unwrap(), &rpath];
    all.extend(flags);
    compile(
        name,
        &format!(
            "{PRELUDE} int cudaMalloc(u64 *, size_t); int go(size_t n) {{ u64 p; return cudaMalloc(&p, n); }}"
        ),
        &all,
    )
}

/// Opens plugins with flags and calls `go`, or looks `cudaMalloc` up itself: `HOW FILE` pairs.
fn opener() -> &'static Path {
    static OPENER: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
    OPENER.get_or_init(|| compile(
        "opener",
        &format!(
            "{PRELUDE} int main(int c, char **v) {{ u64 p; for (int i = 1; i + 1 < c; i += 2) {{ char *how = v[i]; int r = -1;\
             int flags = strchr(how, 'n') ? RTLD_NOW : RTLD_LAZY; if (strchr(how, 'd')) flags |= RTLD_DEEPBIND; if (strchr(how, 'g')) flags |= RTLD_GLOBAL;\
             void *l = dlopen(v[i + 1], flags); if (!l) {{ puts(dlerror()); return 1; }}\
             int (*go)(size_t) = dlsym(l, \"go\"); int (*m)(u64 *, size_t);\
             if (strchr(how, 's')) {{ m = dlsym(l, \"cudaMalloc\"); r = m(&p, i); }}\
             else if (strchr(how, 'v')) {{ m = dlvsym(l, \"cudaMalloc\", \"VERS_1\"); r = m(&p, i); }}\
             else if (strchr(how, 'D')) {{ m = dlsym(RTLD_DEFAULT, \"cudaMalloc\"); r = m(&p, i); }}\
             else r = go(i); printf(\"%d\\n\", r); }} return 0; }}"
        ),
        &["-ldl"],
    ))
}

/// Records the opener, and compares with what it does when nobody looks.
#[track_caller]
fn check(arguments: &[&str], mechanism: Mechanism, want: &[i32]) {
    let alone = Command::new(opener())
        .args(arguments)
        .output()
        .unwrap()
        .stdout;
    let got = record(Command::new(opener()).args(arguments), mechanism).succeeded();
    let answers: Vec<i32> = got.stdout.lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(answers, want, "{mechanism:?} {arguments:?}");
    assert_eq!(got.stdout.as_bytes(), alone, "{mechanism:?} {arguments:?}");
    let recorded: Vec<i32> = got.calls().iter().map(|r| r.ret).collect();
    assert_eq!(recorded, want, "{mechanism:?} {arguments:?}");
}

#[test]
fn every_way_of_linking_and_opening_is_seen() {
    let one = runtime("reach", 11, "libcudart.so.12");
    let version = folder().join("vers.map");
    std::fs::write(&version, "VERS_1 { global: *; };").unwrap();
    let versioned = compile(
        "reach/versioned/libcudart.so.12",
        &format!(
            "{PRELUDE} int cudaMalloc(u64 *p, size_t n) {{ return 12; }} int cudaLaunchKernel(void) {{ return 0; }}"
        ),
        &[
            "-shared",
            "-fPIC",
            "-Wl,-soname,libcudart.so.12",
            &format!("-Wl,--version-script,{}", version.display()),
        ],
    );
    let lazy = plugin("reach/lazy.so", &one, &["-Wl,-z,lazy"]);
    let now = plugin("reach/now.so", &one, &["-Wl,-z,now"]);
    let no_plt = plugin("reach/noplt.so", &one, &["-fno-plt"]);
    let (one, versioned) = (one.to_str().unwrap(), versioned.to_str().unwrap());
    for mechanism in BOTH {
        for plugin in [&lazy, &now, &no_plt].map(|p| p.to_str().unwrap()) {
            for how in ["l", "n", "ng"] {
                check(&[how, plugin], mechanism, &[11]);
            }
        }
        check(&["s", one, "ns", one, "gD", one], mechanism, &[11, 11, 11]);
        check(&["v", versioned], mechanism, &[12]);
    }
    for plugin in [&lazy, &now, &no_plt].map(|p| p.to_str().unwrap()) {
        check(&["nd", plugin], Mechanism::Audit, &[11]);
    }
    check(&["nds", one], Mechanism::Audit, &[11]);
}

#[test]
fn two_copies_of_a_library_in_one_process_each_get_their_own_calls() {
    let twelve = runtime("copies/a", 21, "libcudart.so.12");
    let other_twelve = runtime("copies/b", 22, "libcudart.so.12");
    let eleven = runtime("copies/c", 23, "libcudart.so.11.0");
    let linked_12 = plugin("copies/p12.so", &twelve, &[]);
    let linked_11 = plugin("copies/p11.so", &eleven, &["-fno-plt"]);
    let [twelve, other_twelve, eleven, linked_12, linked_11] =
        [&twelve, &other_twelve, &eleven, &linked_12, &linked_11].map(|p| p.to_str().unwrap());
    for mechanism in BOTH {
        check(
            &["s", twelve, "s", other_twelve, "s", eleven, "s", twelve],
            mechanism,
            &[21, 22, 23, 21],
        );
        check(
            &["l", linked_12, "l", linked_11, "l", linked_12],
            mechanism,
            &[21, 23, 21],
        );
        check(
            &["n", linked_11, "s", other_twelve, "n", linked_12],
            mechanism,
            // The plugin is given the copy that is there, whose soname is the same.
            &[23, 22, 22],
        );
    }
}

#[test]
fn more_copies_than_stubs_are_called_all_the_same_and_counted() {
    let copies: Vec<_> = (0..6)
        .map(|i| runtime(&format!("many/{i}"), 30 + i, "libcudart.so.12"))
        .collect();
    let arguments: Vec<&str> = copies
        .iter()
        .flat_map(|p| ["s", p.to_str().unwrap()])
        .collect();
    for mechanism in BOTH {
        let got = record(Command::new(opener()).args(&arguments), mechanism).succeeded();
        let answers: Vec<i32> = got.stdout.lines().map(|l| l.parse().unwrap()).collect();
        assert_eq!(answers, [30, 31, 32, 33, 34, 35]);
        let recorded: Vec<i32> = got.calls().iter().map(|r| r.ret).collect();
        assert_eq!(recorded, [30, 31, 32, 33], "{mechanism:?}");
    }
}

#[test]
fn entry_points_that_the_driver_hands_out_lead_to_the_variant_that_was_handed_out() {
    // As the true ones do: cuGetProcAddress gives a later variant of the name, some of which nobody exports.
    let driver = format!(
        "{PRELUDE} int cuMemAlloc(u64 *p, size_t n) {{ return 41; }} int cuMemAlloc_v2(u64 *p, size_t n) {{ return 42; }}\
         static int hidden(u64 *p, size_t n, int kind) {{ return 43; }} int cuLaunchKernel(void) {{ return 0; }} static int untraced(void) {{ return 44; }}\
         int cuGetProcAddress_v2(const char *name, void **f, int version, u64 flags, int *status) {{\
         if (!strcmp(name, \"cuMemAlloc\")) *f = version >= 3020 ? cuMemAlloc_v2 : cuMemAlloc; else if (!strcmp(name, \"cuMemAllocManaged\")) *f = hidden;\
         else if (!strcmp(name, \"cuTensorMapEncode\")) *f = untraced; else if (!strcmp(name, \"cuMemFree\")) *f = 0; else return 500; return 0; }}\
         int cuGetProcAddress(const char *name, void **f, int version, u64 flags) {{ return cuGetProcAddress_v2(name, f, version, flags, 0); }}"
    );
    let driver = compile(
        "handed/libcuda.so.1",
        &driver,
        &["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"],
    );
    let main = format!(
        "{PRELUDE} int main(int c, char **v) {{ void *l = dlopen(v[1], 2), *f = 0; u64 p; int (*get)() = dlsym(l, \"cuGetProcAddress_v2\");\
         int (*old)() = dlsym(l, \"cuGetProcAddress\"); int r[8];\
         get(\"cuMemAlloc\", &f, 12000, 0ull, 0); r[0] = ((int (*)())f)(&p, 1); old(\"cuMemAlloc\", &f, 2000, 0ull); r[1] = ((int (*)())f)(&p, 2);\
         get(\"cuMemAllocManaged\", &f, 12000, 0ull, 0); r[2] = ((int (*)())f)(&p, 3, 1); get(\"cuTensorMapEncode\", &f, 12000, 0ull, 0); r[3] = ((int (*)())f)();\
         r[4] = get(\"cuMemFree\", &f, 12000, 0ull, 0); r[5] = f == 0; r[6] = get(\"cuNoSuchThing\", &f, 12000, 0ull, 0); r[7] = get(\"cuMemAlloc\", 0 ? &f : &f, 12000, 0ull, 0);\
         for (int i = 0; i < 8; i++) printf(\"%d \", r[i]); return 0; }}"
    );
    let program = compile("handed/main", &main, &["-ldl"]);
    for mechanism in BOTH {
        let got = record(Command::new(&program).arg(&driver), mechanism).succeeded();
        assert_eq!(got.stdout.trim(), "42 41 43 44 0 1 500 0", "{mechanism:?}");
        let calls: Vec<_> = got
            .calls()
            .iter()
            .map(|r| (r.call_op().unwrap().name(), r.ret, r.arg0))
            .collect();
        assert_eq!(
            calls,
            [
                ("cuMemAlloc", 42, 1),
                ("cuMemAlloc", 41, 2),
                ("cuMemAllocManaged", 43, 3)
            ],
            "{mechanism:?}"
        );
    }
}

#[test]
fn a_name_that_no_library_has_is_not_found_and_never_called_as_null() {
    let main = format!(
        "{PRELUDE} __attribute__((weak)) int cudaMalloc(u64 *, size_t); int main() {{ u64 p; printf(\"%d %d \", dlsym(RTLD_DEFAULT, \"cudaFree\") == 0,\
         dlsym(RTLD_NEXT, \"cudaFree\") == 0); if (cudaMalloc) printf(\"%d\", cudaMalloc(&p, 1)); return 0; }}"
    );
    let program = compile("absent", &main, &["-ldl"]);
    for (mechanism, want) in [(Mechanism::Audit, "1 1"), (Mechanism::Preload, "1 1 999")] {
        let got = record(&mut Command::new(&program), mechanism).succeeded();
        assert_eq!(got.stdout.trim(), want);
        assert!(got.calls().is_empty());
    }
}
