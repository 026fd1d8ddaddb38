// SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
/* One object, so that the programs share their maps without names in a file system. */
#include "calls.bpf.c"
#include "sched.bpf.c"
#include "io.bpf.c"
