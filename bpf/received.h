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
	return as_inner(permit(&r->f, p->id, r->port, true));
}

#endif
