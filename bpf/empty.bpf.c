// SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
/* Programs that do nothing: what a pair of probes costs by itself, for the benchmark to compare with. */
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("uprobe.multi")
int empty_entry(void *ctx)
{
	return 0;
}

SEC("uretprobe.multi")
int empty_return(void *ctx)
{
	return 0;
}
