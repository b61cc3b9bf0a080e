/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Spreading: a step of MurmurHash3's finalizer, word by word. */
#ifndef HASH_H
#define HASH_H

#include "vnet.h"

static __always_inline __u32 mix(__u32 h, __u32 w)
{
	h = (h ^ w) * 0x85ebca6b;
	return h ^ h >> 13;
}

static __always_inline __u32 hash_addr(__u32 h, const struct addr *a)
{
	const __u32 *w = (const __u32 *)a->b;

#pragma unroll
	for (int i = 0; i < 4; i++)
		h = mix(h, w[i]);
	return h;
}

#endif
