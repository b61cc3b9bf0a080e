/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The one place where a frame's end is counted: once, under one name. */
#ifndef DROP_H
#define DROP_H

#include "maps.h"

/* id: the port that sent the frame or was to get it; 0 if none is known. */
static __always_inline void count(enum drop_reason why, __u32 id)
{
	struct tally *port;
	__u64 *n = bpf_map_lookup_elem(&drops, &why);

	if (n)
		(*n)++;
	if (!why || !id)
		return;
	port = bpf_map_lookup_elem(&port_counters, &id);
	if (port)
		port->drops++;
}

#endif
