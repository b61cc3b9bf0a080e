/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* From a destination to the mapping that reaches it. */
#ifndef ROUTE_H
#define ROUTE_H

#include "hash.h"
#include "maps.h"
#include "parse.h"

static __always_inline bool shares_subnet(const struct port *port, int i, const struct addr *a)
{
	return !((high(a) ^ high(&port->ca[i])) & high(&port->mask[i])) &&
	       !((low(a) ^ low(&port->ca[i])) & low(&port->mask[i])) && !is_none(&port->ca[i]);
}

/* Whether a is in the subnet of one of the port's CAs. */
static __always_inline bool on_subnet(const struct port *port, const struct addr *a)
{
#pragma unroll
	for (int i = 0; i < MAX_CAS; i++)
		if (shares_subnet(port, i, a))
			return true;
	return false;
}

/* The last address of an IPv4 subnet that has more than two (RFC 919, RFC 3021). */
static __always_inline bool is_broadcast(const struct port *port, const struct addr *a)
{
	if (as_v4(a) == 0xffffffff)
		return true;
#pragma unroll
	for (int i = 0; i < MAX_CAS; i++)
		if (shares_subnet(port, i, a) && !~(low(a) | low(&port->mask[i])) &&
		    !(as_v4(&port->mask[i]) & bpf_htonl(2)))
			return true;
	return false;
}

static __always_inline enum drop_reason check_unicast(const struct frame *f, const struct port *port)
{
	const struct addr *dst = &f->p->dst;

	if (f->p->v6) {
		if (dst->b[0] == 0xff)
			return DROP_MULTICAST;
	} else {
		if (is_broadcast(port, dst))
			return DROP_BROADCAST;
		if ((as_v4(dst) & IPV4(240, 0, 0, 0)) == IPV4(224, 0, 0, 0))
			return DROP_MULTICAST;
	}
	/* An Ethernet group address around a unicast packet. */
	if (f->eth->h_dest[0] & 1)
		return f->eth->h_dest[0] == 0xff ? DROP_BROADCAST : DROP_MULTICAST;
	if (f->p->v6 && is_link_scope(dst) && !same_addr(dst, &port->gateway6))
		return DROP_LINK_SCOPE;
	return DROP_NONE;
}

/* Makes p->next and p->vni the CA and the network that p->next is reached by. */
static __always_inline enum drop_reason find_route(struct packet *p, const struct port *port)
{
	struct route_key key = { .prefixlen = 32 + 128, .vni = port->vni };
	const struct route *route;

	p->vni = port->vni;
	if (on_subnet(port, &p->next))
		return DROP_NONE;
	key.dst = p->next;
	route = bpf_map_lookup_elem(&routes, &key);
	if (!route)
		return DROP_NO_ROUTE;
	if (!is_none(&route->next_hop))
		p->next = route->next_hop;
	if (route->vni)
		p->vni = route->vni;
	return DROP_NONE;
}

/* The hash that a mapping keeps of its key; Go computes the same in mapping.go. */
static __always_inline __u32 mapping_check(__u32 vni, const struct addr *ca)
{
	return hash_addr(mix(0, vni), ca);
}

static __always_inline void add_offset(struct addr *a, __u32 offset)
{
	__be32 *last = (__be32 *)(a->b + 12);

	*last = bpf_htonl(bpf_ntohl(*last) + offset);
}

/* Finds where p->next is: its PA, MAC and next hop. */
static __always_inline enum drop_reason find_mapping(struct packet *p)
{
	struct mapping_key key = { .vni = p->vni, .ca = p->next };
	const struct mapping *m = bpf_map_lookup_elem(&mappings, &key);
	const struct peer *peer;
	__u32 index, offset;

	if (!m)
		return DROP_NO_MAPPING;
	copy_mac(p->mac, m->mac);
	index = m->peer;
	barrier();
	offset = m->offset;
	if (m->check != mapping_check(p->vni, &p->next))
		return DROP_NO_MAPPING;
	peer = bpf_map_lookup_elem(&peers, &index);
	if (!peer)
		return DROP_NO_MAPPING;
	p->pa = peer->base;
	add_offset(&p->pa, offset);
	p->next_hop = peer->next_hop;
	p->here = !index;
	return DROP_NONE;
}

/*
 * Finds the way of the packet at hand from a port to its next CA: p->vni, pa, mac, next_hop and here.
 * Returns an enum drop_reason. A function of its own: see judge.
 */
__noinline int find_way(const struct port *port)
{
	struct packet *p = packet_at_hand();
	enum drop_reason why;

	if (!p || !port)
		return DROP_NO_ROUTE;
	why = find_route(p, port);
	return why ? why : find_mapping(p);
}

/* Whether pa is one of this host's. */
static __always_inline bool is_own_pa(const struct addr *pa)
{
	struct addr net, mask, host;

	copy_const_addr(&net, &config.pa_net);
	copy_const_addr(&mask, &config.pa_mask);
	copy_const_addr(&host, &config.host);
	return (!((high(pa) ^ high(&net)) & high(&mask)) && !((low(pa) ^ low(&net)) & low(&mask))) ||
	       same_addr(pa, &host);
}

#endif
