/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The way of a packet: where what is sent goes, and whether what arrives came from
 * where its source is. Found for the first packet of a flow, and kept in its row
 * until the directory changes.
 */
#ifndef WAY_H
#define WAY_H

#include "imds.h"
#include "rate.h"
#include "route.h"
#include "spoof.h"

static __always_inline bool is_registered(const struct addr *pa)
{
	struct host_key key = { .prefixlen = 128 };

	__builtin_memcpy(key.pa, pa, sizeof(key.pa));
	return bpf_map_lookup_elem(&hosts, &key);
}

/* Whether the host that the packet comes from is one that says truly which port sent it. */
static __always_inline bool is_vouched(const struct packet *p)
{
	return p->way == WAY_LOCAL || is_registered(&p->outer_src);
}

/* Where the host itself, or the port, speaks from: no other port does. */
static __always_inline bool is_reserved(const struct packet *p, const struct port *port)
{
	return is_metadata(&p->src, p->v6) || has_ca(port, &p->src) ||
	       same_addr(&p->src, p->v6 ? &port->gateway6 : &port->gateway);
}

/* Whether a host itself speaks, for a VM that it knows: no VM can send by that MAC. */
static __always_inline bool is_from_gateway(const struct packet *p)
{
	__u8 mac[6];

	copy_const_mac(mac, config.gateway_mac);
	return same_mac(mac, p->from_mac);
}

/*
 * Whether the way that was found leads to who sent the packet. Ports may share their
 * host's address: then the MAC tells them apart. That of a VTEP, which is no host of
 * ours, may be any: it may get by one and send by another.
 */
static __always_inline bool leads_back(const struct packet *p)
{
	return same_addr(&p->pa, &p->outer_src) &&
	       (same_mac(p->mac, p->from_mac) || is_from_gateway(p) || !is_vouched(p));
}

/*
 * The way back must lead to where the frame came from: of all that a router may send,
 * what somebody else speaks from is refused here. A source that nobody has told us of
 * yet is believed for a while if a registered host vouches for it.
 */
static __always_inline enum drop_reason check_source(struct packet *p, const struct port *port)
{
	__u32 carried = p->vni, receiver = p->way == WAY_LOCAL ? p->to_id : p->id;
	struct tally *n;

	if (is_reserved(p, port))
		return DROP_WRONG_SOURCE;
	p->next = p->src;
	p->known = !find_way(port);
	if (p->known)
		return leads_back(p) ? DROP_NONE : DROP_WRONG_SOURCE;
	p->vni = carried;
	if (!is_vouched(p))
		return DROP_UNKNOWN_SOURCE;
	if (!spend(p, receiver, BUCKET_UNRESOLVED, config.unresolved_interval, config.unresolved_burst))
		return DROP_UNRESOLVED_RATE;
	n = bpf_map_lookup_elem(&port_counters, &receiver);
	if (n && !p->trace)
		n->unresolved++;
	return DROP_NONE;
}

/*
 * Finds the way of a packet that is sent, or checks the one by which a packet has
 * come. What a port of this host sends from its own address has been checked.
 */
static __always_inline enum drop_reason find_way_of(struct packet *p, const struct port *port,
						    bool inbound)
{
	if (inbound)
		return p->owned ? DROP_NONE : check_source(p, port);
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
		return p->owned ||
		       (is_way_of(flow, true) && same_addr(&flow->pa, &p->outer_src) &&
			same_mac(flow->mac, p->from_mac));
	}
	p->pa = flow->pa;
	copy_mac(p->mac, flow->mac);
	p->vni = flow->vni;
	p->next_hop = flow->next_hop;
	p->here = flow->here;
	return true;
}

/* Nobody hears from its own address: a flow of a port with itself is looked at each time. */
static __always_inline bool leads_home(const struct packet *p, const struct port *port, bool inbound)
{
	return !inbound && p->here && same_mac(p->mac, port->mac);
}

/* A source that is only believed for a while is asked for again. */
static __always_inline void keep_way(struct flow *flow, const struct packet *p,
				     const struct port *port, bool inbound, __u32 since)
{
	if (p->trace || (inbound && !p->known) || !is_way_of(flow, inbound) ||
	    leads_home(p, port, inbound))
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
