/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* How long the row of a flow is worth something. */
#ifndef FLOW_AGE_H
#define FLOW_AGE_H

#include "maps.h"
#include "parse.h"

/*
 * Ticks since a row was written. Another CPU may have written it after this one
 * looked at the clock: that is no time, not all there is.
 */
static __always_inline __u32 since_tick(__u32 now, __u32 then)
{
	return (__s32)(now - then) > 0 ? now - then : 0;
}

static __always_inline __u32 timeout_of(const struct flow *flow, __u8 proto)
{
	if (proto != IPPROTO_TCP)
		return flow->flags & FLOW_ANSWERED ? OTHER_ANSWERED : OTHER_OPENING;
	if (flow->flags & FLOW_RESET)
		return TCP_GONE;
	if (flow->flags & FLOW_CLOSING)
		return TCP_CLOSING;
	return flow->flags & FLOW_ANSWERED ? TCP_OPEN : TCP_OPENING;
}

/* A SYN on a connection that has ended begins another one. */
static __always_inline bool is_alive(const struct flow *flow, const struct port *port,
				     const struct packet *p, __u32 now)
{
	if (flow->epoch != port->epoch || since_tick(now, flow->seen) > timeout_of(flow, p->proto) * (__u32)config.second)
		return false;
	return !((p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN &&
		 flow->flags & (FLOW_CLOSING | FLOW_RESET));
}

#endif
