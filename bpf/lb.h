/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Services: a virtual address and port that leads to VMs of the network. The
 * sender's host chooses, once a flow, by a table that Go fills by weighted
 * rendezvous hashing: when a backend goes, only its own slots change hands. The
 * flow's row remembers the choice, and a second row turns the answers back.
 */
#ifndef LB_H
#define LB_H

#include "hash.h"
#include "maps.h"
#include "parse.h"

/* How many slots are tried for a backend that isn't the sender itself. */
#define SLOT_TRIES 8

static __always_inline __u32 slot_hash(const struct packet *p, __u32 flags)
{
	__u32 h = hash_addr(0x2545f491, &p->src);

	if (flags & SERVICE_AFFINITY)
		return mix(h, 0xc2b2ae35);
	h = hash_addr(h, &p->dst);
	return mix(mix(h, (__u32)p->sport << 16 | p->dport), p->proto);
}

/* Reads the backend in a slot of the service, unless it is dead or the sender itself. */
static __always_inline bool take_backend(struct packet *p, __u32 slot)
{
	const __u32 *index = bpf_map_lookup_elem(&service_slots, &slot);
	const struct backend *b;

	if (!index)
		return false;
	b = bpf_map_lookup_elem(&backends, index);
	if (!b || (b->flags & (BACKEND_USED | BACKEND_DEAD)) != BACKEND_USED ||
	    same_addr(&b->ca, &p->src))
		return false;
	p->backend = *index;
	p->nat = b->ca;
	p->nat_port = b->port;
	return true;
}

/* Chooses the backend of a new flow, if its destination is a service. */
static __always_inline enum drop_reason choose_backend(struct packet *p, const struct port *port)
{
	struct service_key key = { .vip = p->dst, .vni = port->vni, .port = p->dport, .proto = p->proto };
	const struct service *s = bpf_map_lookup_elem(&services, &key);
	__u32 h;

	if (!s)
		return DROP_NONE;
	h = slot_hash(p, s->flags);
	for (int i = 0; i < SLOT_TRIES; i++)
		if (take_backend(p, s->base + ((h + i * 0x9e3779b1) & s->mask))) {
			p->natted = FLOW_SERVICE;
			return DROP_NONE;
		}
	return DROP_NO_BACKEND;
}

/* Whether the backend that a flow was given is still there. */
static __always_inline bool has_backend(const struct flow *flow)
{
	__u32 index = flow->backend;
	const struct backend *b = bpf_map_lookup_elem(&backends, &index);

	return b && (b->flags & (BACKEND_USED | BACKEND_DEAD)) == BACKEND_USED &&
	       same_addr(&b->ca, &flow->nat) && b->port == flow->nat_port;
}

#endif
