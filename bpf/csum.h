/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The Internet checksum (RFC 1071), whole and by difference (RFC 1624). */
#ifndef CSUM_H
#define CSUM_H

#include <linux/types.h>

#include "vnet.h"

static __always_inline __u16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The sum of bytes at words, len even and known at compile time; folded by csum_fold. */
static __always_inline __u32 csum_add(__u32 sum, const void *words, __u32 len)
{
	const __u16 *w = words;

#pragma unroll
	for (__u32 i = 0; i < len / 2; i++)
		sum += w[i];
	return sum;
}

/* Their own checksum field must be 0. */
static __always_inline __u16 csum(const void *words, __u32 len)
{
	return csum_fold(csum_add(0, words, len));
}

static __always_inline void csum_replace16(__u16 *check, __u16 from, __u16 to)
{
	*check = csum_fold((__u16)~*check + (__u16)~from + to);
}

static __always_inline void csum_replace32(__u16 *check, __u32 from, __u32 to)
{
	csum_replace16(check, from, to);
	csum_replace16(check, from >> 16, to >> 16);
}

#endif
