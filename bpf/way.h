/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The way of a packet: where what is sent goes, and whether what comes from the
 * wire came from where its source is. Found for the first packet of a flow, and
 * kept in its row until the directory changes.
 */
#ifndef WAY_H
#define WAY_H

#include "rate.h"
#include "route.h"

static __always_inline bool is_registered(const struct addr *pa)
{
	struct host_key key = { .prefixlen = 128 };

	__builtin_memcpy(key.pa, pa, sizeof(key.pa));
	return bpf_map_lookup_elem(&hosts, &key);
}

/*
 * The way back must lead to where the frame came from. A source that nobody has
 * told us of yet is believed for a while if a registered host vouches for it.
 */
static __always_inline enum drop_reason check_source(struct packet *p, const struct port *port)
{
	__u32 carried = p->vni;
	struct tally *n;

	p->next = p->src;
	p->known = !find_way(port);
	if (p->known)
		return same_addr(&p->pa, &p->outer_src) ? DROP_NONE : DROP_WRONG_SOURCE;
	p->vni = carried;
	if (!is_registered(&p->outer_src))
		return DROP_UNKNOWN_SOURCE;
	if (!spend(p, p->id, BUCKET_UNRESOLVED, config.unresolved_interval, config.unresolved_burst))
		return DROP_UNRESOLVED_RATE;
	n = bpf_map_lookup_elem(&port_counters, &p->id);
	if (n && !p->trace)
		n->unresolved++;
	return DROP_NONE;
}

/*
 * Finds the way of a packet that is sent, or checks the one by which a packet
 * has come from the wire. A packet of this host's own has been checked.
 */
static __always_inline enum drop_reason find_way_of(struct packet *p, const struct port *port,
						    bool inbound)
{
	if (inbound)
		return p->way == WAY_LOCAL ? DROP_NONE : check_source(p, port);
	p->next = p->natted ? p->nat : p->dst;
	return find_way(port);
}

/* The low half: a row that isn't seen for 2^32 changes has long ended. 0 is no time. */
static __always_inline __u32 directory_now(void)
{
	__u32 zero = 0;
	const __u64 *now = bpf_map_lookup_elem(&directory, &zero);

	return now ? *now : 0;
}

/*
 * Whether the row's way is the packet's. A flow to a service knows the way to its
 * backend, which comes back by another row: what comes from the service's own
 * address is judged by the way to that.
 */
static __always_inline bool is_way_of(const struct flow *flow, bool inbound)
{
	return !(inbound && flow->flags & FLOW_SERVICE);
}

/* Whether the flow knows its way; then p has it, too. */
static __always_inline bool knows_way(struct packet *p, const struct flow *flow, bool inbound,
				      __u32 since)
{
	if (!since || flow->way_since != since || p->trace)
		return false;
	if (inbound) {
		p->known = 1;
		return p->way == WAY_LOCAL ||
		       (is_way_of(flow, true) && same_addr(&flow->pa, &p->outer_src));
	}
	p->pa = flow->pa;
	copy_mac(p->mac, flow->mac);
	p->vni = flow->vni;
	p->next_hop = flow->next_hop;
	p->here = flow->here;
	return true;
}

/* A source that is only believed for a while is asked for again. */
static __always_inline void keep_way(struct flow *flow, const struct packet *p, bool inbound,
				     __u32 since)
{
	if (p->trace || (inbound && (p->way == WAY_LOCAL || !p->known)) || !is_way_of(flow, inbound))
		return;
	flow->way_since = 0;
	barrier();
	flow->pa = p->pa;
	copy_mac(flow->mac, p->mac);
	flow->vni = p->vni;
	flow->next_hop = p->next_hop;
	flow->here = p->here;
	barrier();
	flow->way_since = since;
}

#endif
