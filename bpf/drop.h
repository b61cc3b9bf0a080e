/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The one place where a frame's end is counted: once, under one name. */
#ifndef DROP_H
#define DROP_H

#include "maps.h"

/* p->id: the port that sent the frame or was to get it; 0 if none is known. */
static __always_inline void count(struct packet *p, enum drop_reason why)
{
	struct tally *port;
	__u64 *n;

	p->why = why;
	if (p->trace)
		return;
	n = bpf_map_lookup_elem(&drops, &why);
	if (n)
		(*n)++;
	if (!why || !p->id)
		return;
	port = bpf_map_lookup_elem(&port_counters, &p->id);
	if (port)
		port->drops++;
}

#endif
