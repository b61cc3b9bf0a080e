/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The news of flows, for the flow log of a port's network. */
#ifndef FLOW_LOG_H
#define FLOW_LOG_H

#include "flow_age.h"
#include "maps.h"
#include "packet.h"
#include "rate.h"

#define NSEC_PER_SEC 1000000000ULL

/* Room to tell of the packet's flow; NULL if there is none, or it isn't told. */
static __always_inline struct flow_event *tell(const struct packet *p, const struct port *port,
					       enum flow_event_kind kind)
{
	struct flow_event *e = NULL;
	__u32 zero = 0;
	struct lost *lost;
	__u64 now;

	if (!(port->flags & PORT_FLOW_LOG) || p->trace)
		return NULL;
	now = bpf_ktime_get_ns();
	if (kind != FLOW_DENIED || spend_denied(p->key.port_id, now))
		e = bpf_ringbuf_reserve(&flow_events, sizeof(*e), 0);
	if (!e) {
		lost = bpf_map_lookup_elem(&losses, &zero);
		if (lost)
			lost->flow_events++;
		return NULL;
	}
	e->time = now;
	e->key = p->key;
	e->kind = kind;
	return e;
}

/* Tells that a flow has begun, or why it may not. */
static __always_inline void tell_start(const struct packet *p, const struct port *port,
				       bool inbound, enum drop_reason why, __s32 rule)
{
	struct flow_event *e = tell(p, port, why ? FLOW_DENIED : FLOW_STARTED);

	if (!e)
		return;
	e->epoch = port->epoch;
	e->reason = why;
	e->rule = rule;
	e->inbound = inbound;
	e->began = e->time;
	e->passed = (struct flow_count){ 1, p->len };
	bpf_ringbuf_submit(e, 0);
}

/* Tells of a row that no sweep will find. Of a service's two rows the client's counts. */
static __noinline void tell_end(const struct packet *p, const struct port *port,
				     const struct flow *flow, __u32 now)
{
	struct flow_event *e = flow->flags & FLOW_BACKEND ? NULL : tell(p, port, FLOW_ENDED);

	if (!e)
		return;
	e->time -= (__u64)since_tick(now, flow->seen) * (NSEC_PER_SEC / config.second);
	e->epoch = flow->epoch;
	e->reason = DROP_NONE;
	e->rule = flow->rule;
	e->inbound = flow->flags & FLOW_INBOUND;
	e->began = flow->began;
	e->passed.packets = flow->from.packets + flow->to.packets;
	e->passed.bytes = flow->from.bytes + flow->to.bytes;
	bpf_ringbuf_submit(e, 0);
}

#endif
