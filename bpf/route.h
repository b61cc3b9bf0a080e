/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* From a destination to the mapping that reaches it. */
#ifndef ROUTE_H
#define ROUTE_H

#include "maps.h"
#include "parse.h"

static __always_inline __be32 subnet_mask(const struct port *port)
{
	return bpf_htonl(~0ULL << (32 - (port->bits & 63)));
}

static __always_inline bool on_subnet(const struct port *port, __be32 a)
{
	return !((a ^ as_v4(&port->ca[0])) & subnet_mask(port));
}

static __always_inline enum drop_reason check_unicast(const struct frame *f,
						      const struct port *port)
{
	__be32 dst = f->ip->daddr;

	if (dst == IPV4(255, 255, 255, 255) ||
	    (port->bits < 31 && on_subnet(port, dst) && !(~dst & ~subnet_mask(port))))
		return DROP_BROADCAST;
	if ((dst & IPV4(240, 0, 0, 0)) == IPV4(224, 0, 0, 0))
		return DROP_MULTICAST;
	/* An Ethernet group address around a unicast packet. */
	if (f->eth->h_dest[0] & 1)
		return f->eth->h_dest[0] == 0xff ? DROP_BROADCAST : DROP_MULTICAST;
	return DROP_NONE;
}

/* Finds the CA that a packet for dst goes to: dst itself, or a next hop. */
static __always_inline enum drop_reason find_route(const struct port *port, __be32 dst,
						   struct addr *next)
{
	struct route_key key = { .prefixlen = 32 + 128, .vni = port->vni };
	const struct route *route;

	set_v4(next, dst);
	if (on_subnet(port, dst))
		return DROP_NONE;
	set_v4(&key.dst, dst);
	route = bpf_map_lookup_elem(&routes, &key);
	if (!route)
		return DROP_NO_ROUTE;
	if (as_v4(&route->next_hop))
		*next = route->next_hop;
	return DROP_NONE;
}

/* Copies the mapping of ca: see struct mapping for why key is compared last. */
static __always_inline enum drop_reason find_mapping(__u32 vni, const struct addr *ca,
						     struct mapping *out)
{
	struct mapping_key key = { .vni = vni, .ca = *ca };
	const struct mapping *m = bpf_map_lookup_elem(&mappings, &key);

	if (!m)
		return DROP_NO_MAPPING;
	out->pa = m->pa;
	out->next_hop = m->next_hop;
	copy_mac(out->mac, m->mac);
	barrier();
	if (m->key.vni != vni || !same_addr(&m->key.ca, ca))
		return DROP_NO_MAPPING;
	return DROP_NONE;
}

/* Whether pa is one of this host's: then the peer is a neighbour. */
static __always_inline bool is_own_pa(__be32 pa)
{
	return (pa & config.pa_mask) == config.pa_net || pa == config.host;
}

#endif
