/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Copies of frames for an operator who looks. Who doesn't look pays for a flag
 * in a row that is read anyway; who does pays for at most SNAP bytes a frame,
 * and what the ring has no room for is counted.
 */
#ifndef CAPTURE_H
#define CAPTURE_H

#include "maps.h"
#include "parse.h"

static __always_inline void capture(struct __sk_buff *skb, const struct packet *p, __u32 id,
				    enum capture_point point, enum drop_reason why)
{
	__u64 snap = skb->len < SNAP ? skb->len : SNAP;
	__u32 zero = 0;
	struct captured *c;
	struct lost *lost;

	c = bpf_ringbuf_reserve(&captures, sizeof(*c), 0);
	if (!c) {
		lost = bpf_map_lookup_elem(&losses, &zero);
		if (lost)
			lost->captures++;
		return;
	}
	c->time = bpf_ktime_get_ns();
	c->port_id = id;
	c->sender = point == POINT_DROP_TO ? p->id : 0;
	c->reason = why;
	c->point = point;
	c->len = skb->len;
	c->snapped = snap;
	if (!WITHIN(snap, ETH_HLEN, SNAP) || bpf_skb_load_bytes(skb, 0, c->frame, snap)) {
		bpf_ringbuf_discard(c, 0);
		return;
	}
	bpf_ringbuf_submit(c, 0);
}

static __always_inline bool is_captured(const struct packet *p, const struct port *port)
{
	return port && port->flags & PORT_CAPTURED && !p->trace;
}

/* Whether anybody wants to see what was dropped. */
static __always_inline bool is_watched(const struct packet *p, const struct port *port)
{
	__u32 zero = 0, *watch;

	if (p->trace)
		return false;
	if (port && port->flags & PORT_CAPTURED)
		return true;
	watch = bpf_map_lookup_elem(&drop_watch, &zero);
	return watch && *watch;
}

#endif
