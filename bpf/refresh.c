//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Go's way to the tick clock, which user space can't read: it runs this. */
#include "maps.h"

SEC("syscall")
int refresh_next_hop(struct next_hop_refresh *r)
{
	struct next_hop hop = r->hop;
	__u32 index = r->index;

	hop.refreshed = bpf_jiffies64();
	return bpf_map_update_elem(&next_hops, &index, &hop, BPF_ANY);
}

/* Tells the time in ticks, and notes that the flows have been counted just now. */
SEC("syscall")
int note_sweep(struct sweep *s)
{
	__u64 now = bpf_jiffies64();
	__u32 zero = 0;

	s->now = now;
	s->second = config.second;
	return s->done ? bpf_map_update_elem(&swept, &zero, &now, BPF_ANY) : 0;
}
