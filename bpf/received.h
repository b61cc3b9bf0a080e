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

/* Nothing of the link is carried between hosts: each guest's link ends at its own gateway. */
static __always_inline enum drop_reason check_scope(const struct packet *p)
{
	return p->v6 && (is_link_scope(&p->src) || is_nd(p)) ? DROP_LINK_SCOPE : DROP_NONE;
}

/*
 * Whether the frame comes from where its source is, so that an answer reaches who
 * asked for it. A function of its own: few frames ask, and finding a way is long.
 */
__noinline int vouch(const struct port *port)
{
	struct packet *p = packet_at_hand();

	return p && port && !check_source(p, port);
}

/* The sender's own host doesn't know the port's size: what is too big is told over the wire. */
static __always_inline enum drop_reason check_port_size(struct received *r)
{
	struct packet *p = r->f.p;
	enum drop_reason why = check_size(&r->f, r->port->mtu, DROP_TO_TOO_BIG);

	if (why && p->mtu &&
	    (!vouch(r->port) ||
	     !spend(p, p->id, BUCKET_TOO_BIG, config.answer_interval, config.answer_burst)))
		p->mtu = 0;
	return why;
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
	why = check_port_size(r);
	if (why)
		return why;
	why = check_scope(p);
	if (why)
		return why;
	why = as_inner(permit(&r->f, p->id, r->port, true));
	/* The VXLAN device would drop it without a name. */
	return !why && p->climbs && is_congested(p, r->outer.tos) ? DROP_ECN : why;
}

#endif
