/* SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause */
/* The buckets of durations; the same function as `bucket` of the record crate's histogram, whose comment describes them. */
#ifndef WARPTRACE_HISTOGRAM_H
#define WARPTRACE_HISTOGRAM_H

#include "ops.h"

/* Floor of the binary logarithm; `v` is not 0. */
static __always_inline u32 log2_floor(u64 v)
{
	u32 r = 0;

	if (v >> 32) {
		v >>= 32;
		r += 32;
	}
	if (v >> 16) {
		v >>= 16;
		r += 16;
	}
	if (v >> 8) {
		v >>= 8;
		r += 8;
	}
	if (v >> 4) {
		v >>= 4;
		r += 4;
	}
	if (v >> 2) {
		v >>= 2;
		r += 2;
	}
	return r + (v >> 1);
}

static __always_inline u32 bucket(u64 nanos)
{
	u32 exponent;

	if (nanos < 8)
		return nanos;
	exponent = log2_floor(nanos);
	if (exponent >= 40)
		return BUCKETS - 1;
	return 8 * (exponent - 3) + 8 + ((nanos >> (exponent - 3)) & 7);
}

#endif
