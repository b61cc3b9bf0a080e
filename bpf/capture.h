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

/* Takes room for a copy and says what it is of; NULL if there is none. */
static __always_inline struct captured *begin_copy(const struct packet *p, __u32 id,
						   enum capture_point point,
						   enum drop_reason why, __u32 len)
{
	struct captured *c = bpf_ringbuf_reserve(&captures, sizeof(*c), 0);
	struct lost *lost;
	__u32 zero = 0;

	if (!c) {
		lost = bpf_map_lookup_elem(&losses, &zero);
		if (lost)
			lost->captures++;
		return NULL;
	}
	c->time = bpf_ktime_get_ns();
	c->port_id = id;
	c->sender = point == POINT_DROP_TO ? p->id : 0;
	c->reason = why;
	c->point = point;
	c->len = len;
	c->snapped = len < SNAP ? len : SNAP;
	return c;
}

static __always_inline void end_copy(struct captured *c, long failed)
{
	if (failed)
		bpf_ringbuf_discard(c, 0);
	else
		bpf_ringbuf_submit(c, 0);
}

/*
 * Copies a frame of port id for who looks. why: an enum drop_reason; always 0. A
 * function of its own, so that the verifier walks it once a program and not once for
 * each way that leads here.
 */
__noinline int capture(struct __sk_buff *skb, __u32 id, __u32 point, __u32 why)
{
	struct packet *p = packet_at_hand();
	struct captured *c;
	__u32 len = skb->len;
	__u64 snap = len < SNAP ? len : SNAP;

	c = p ? begin_copy(p, id, point, why, len) : NULL;
	if (c)
		end_copy(c, !WITHIN(snap, ETH_HLEN, SNAP) || bpf_skb_load_bytes(skb, 0, c->frame, snap));
	return 0;
}

/* The same before there is an skb. */
static __always_inline void capture_xdp(struct xdp_md *ctx, const struct packet *p,
					enum drop_reason why)
{
	__u32 len = bpf_xdp_get_buff_len(ctx);
	__u64 snap = len < SNAP ? len : SNAP;
	struct captured *c = begin_copy(p, p->id, POINT_DROP, why, len);

	if (c)
		end_copy(c, !WITHIN(snap, ETH_HLEN, SNAP) || bpf_xdp_load_bytes(ctx, 0, c->frame, snap));
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

/* Copies a frame that was dropped, if anybody wants to see it; always 0. port: its own, or NULL. */
__noinline int show_drop(struct __sk_buff *skb, const struct port *port, __u32 point, __u32 why)
{
	struct packet *p = packet_at_hand();

	if (p && is_watched(p, port))
		capture(skb, point == POINT_DROP_TO ? p->to_id : p->id, point, why);
	return 0;
}

#endif
