/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Frames that the host agent answers, and how many of them a guest may send. */
#ifndef TRAP_H
#define TRAP_H

#include "maps.h"
#include "parse.h"

/* DHCP passes before any address check: a guest that must renew has none, or an old one. */
static __always_inline bool is_dhcp(const struct frame *f)
{
	return f->ip->protocol == IPPROTO_UDP && f->sport == bpf_htons(68) &&
	       f->dport == bpf_htons(67);
}

/*
 * Takes a token (GCRA: the bucket holds when the next frame is due). Two CPUs
 * that spend at once may share a token; no lock is worth that.
 */
static __always_inline bool spend(__u32 id, enum bucket kind, __u64 interval, __u64 burst)
{
	__u64 now = bpf_ktime_get_ns(), *due, next;
	__u32 slot = id * BUCKETS + kind;

	due = bpf_map_lookup_elem(&buckets, &slot);
	if (!due)
		return false;
	next = *due > now ? *due : now;
	if (next - now > burst)
		return false;
	*due = next + interval;
	return true;
}

/* Opens a trap record; the hook copies the frame into it. */
static __always_inline enum drop_reason open_trap(__u32 id, const struct port *port, enum trap_kind kind,
						  __u32 len, struct trap **out)
{
	struct trap *t;

	if (len > TRAP_FRAME)
		return DROP_TRAP_SIZE;
	if (!spend(id, BUCKET_TRAP, config.trap_interval, config.trap_burst))
		return DROP_TRAP_RATE;
	t = bpf_ringbuf_reserve(&traps, sizeof(*t), 0);
	if (!t)
		return DROP_TRAP_FULL;
	t->port_id = id;
	t->kind = kind;
	t->epoch = port->epoch;
	t->len = len;
	*out = t;
	return DROP_NONE;
}

#endif
