/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What a frame from the underlay must be, whichever hook takes it off the wire. */
#ifndef RECEIVED_H
#define RECEIVED_H

#include "deliver.h"
#include "vxlan.h"

struct received {
	struct frame f;
	struct outer outer;
	const struct port *port;
};

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
static __always_inline enum drop_reason check_source(struct received *r)
{
	struct packet *p = r->f.p;
	__u32 carried = p->vni;
	struct tally *n;

	p->next = p->src;
	p->known = !find_way(r->port);
	p->vni = carried;
	if (p->known)
		return same_addr(&p->pa, &p->outer_src) ? DROP_NONE : DROP_WRONG_SOURCE;
	if (!is_registered(&p->outer_src))
		return DROP_UNKNOWN_SOURCE;
	if (!spend(p, p->id, BUCKET_UNRESOLVED, config.unresolved_interval, config.unresolved_burst))
		return DROP_UNRESOLVED_RATE;
	n = bpf_map_lookup_elem(&port_counters, &p->id);
	if (n && !p->trace)
		n->unresolved++;
	return DROP_NONE;
}

/* Nothing of the link is carried between hosts: each guest's link ends at its own gateway. */
static __always_inline enum drop_reason check_scope(const struct packet *p)
{
	return p->v6 && (is_link_scope(&p->src) || is_nd(p)) ? DROP_LINK_SCOPE : DROP_NONE;
}

static __always_inline enum drop_reason examine(struct received *r)
{
	struct packet *p = r->f.p;
	enum drop_reason why = read_outer(&r->f, &r->outer);

	if (why)
		return why;
	why = as_inner(parse_ip(&r->f));
	if (why)
		return why;
	why = find_local(p->vni, r->f.eth->h_dest, &p->id, &r->port);
	if (why)
		return why;
	if (!same_addr(&r->port->pa, &p->outer_dst))
		return DROP_WRONG_PA;
	why = admit(&r->f, r->port);
	if (why)
		return why;
	why = check_size(&r->f, r->port->mtu, DROP_TO_TOO_BIG);
	p->mtu = 0; /* the sender's own host tells it, not this one */
	if (why)
		return why;
	why = check_scope(p);
	if (why)
		return why;
	why = check_source(r);
	if (why)
		return why;
	return as_inner(permit(&r->f, p->id, r->port, true));
}

#endif
