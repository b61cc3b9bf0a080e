/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Which of two ways a frame from the wire takes. GRO'd frames must go up the
 * kernel's VXLAN device: it alone takes the tunnel's GSO state off, without
 * which a tap cuts every superpacket in software. Small frames are faster when
 * this program takes the outer headers off. But the VXLAN device queues, so a
 * small frame of the same flow would overtake: a flow that was aggregated keeps
 * to that way until it has been idle for config.flow_idle.
 */
#ifndef FLOW_H
#define FLOW_H

#include "maps.h"
#include "parse.h"

static __always_inline void flow_key_of(const struct frame *f, __u32 id, struct flow_key *key)
{
	set_v4(&key->src, f->ip->saddr);
	set_v4(&key->dst, f->ip->daddr);
	key->port_id = id;
	key->sport = f->sport;
	key->dport = f->dport;
	key->proto = f->ip->protocol;
	key->pad = 0;
}

static __always_inline void stamp_flow(const struct flow_key *key, __u64 epoch, __u64 now,
				       struct flow *known)
{
	struct flow fresh = { .aggregated = now, .epoch = epoch };

	if (!known) {
		bpf_map_update_elem(&flows, key, &fresh, BPF_ANY);
		return;
	}
	known->aggregated = now;
	known->epoch = epoch;
}

/* Whether f goes up the VXLAN device. */
static __always_inline bool goes_up(const struct frame *f, __u32 id, const struct port *port)
{
	__u64 *any = bpf_map_lookup_elem(&aggregated, &id);
	struct flow_key key;
	struct flow *known;
	__u64 now;

	if (!any || (!f->gso && !*any))
		return f->gso;
	now = bpf_jiffies64();
	if (!f->gso && *any + config.flow_idle < now)
		return false;
	flow_key_of(f, id, &key);
	known = bpf_map_lookup_elem(&flows, &key);
	if (!f->gso && (!known || known->epoch != port->epoch ||
			known->aggregated + config.flow_idle < now))
		return false;
	stamp_flow(&key, port->epoch, now, known);
	*any = now;
	return true;
}

#endif
