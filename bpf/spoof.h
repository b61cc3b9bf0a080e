/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Who sent it: the port behind a tap, and whether it speaks as itself. */
#ifndef SPOOF_H
#define SPOOF_H

#include "maps.h"
#include "parse.h"

/* Returns the row that is in force. Never NULL for an id below MAX_PORTS. */
static __always_inline const struct port *find_port(__u32 id)
{
	const struct port_slot *slot = bpf_map_lookup_elem(&ports, &id);

	if (!slot)
		return NULL;
	/* Read once: Go flips it at any time, and both reads must agree. */
	return &slot->row[*(const volatile __u32 *)&slot->active & 1];
}

static __always_inline bool has_ca(const struct port *port, const struct addr *ca)
{
#pragma unroll
	for (int i = 0; i < MAX_CAS; i++)
		if (same_addr(&port->ca[i], ca))
			return !is_none(ca);
	return false;
}

static __always_inline bool owns_tap(const struct port *port, __u32 tap)
{
	return port && port->ifindex == tap;
}

static __always_inline enum drop_reason find_owner(struct packet *p, __u32 tap,
						   const struct port **port)
{
	__u32 slot = tap % MAX_PORTS, *found, *shortcut = bpf_map_lookup_elem(&shortcuts, &slot);

	if (shortcut) {
		p->id = *shortcut;
		*port = find_port(p->id);
		if (owns_tap(*port, tap))
			return DROP_NONE;
	}
	p->id = 0;
	found = bpf_map_lookup_elem(&taps, &tap);
	if (!found)
		return DROP_NO_PORT;
	p->id = *found;
	*port = find_port(p->id);
	if (!owns_tap(*port, tap))
		return DROP_NO_PORT;
	if (shortcut)
		*shortcut = p->id;
	return DROP_NONE;
}

static __always_inline enum drop_reason find_sender(struct packet *p, __u32 tap,
						    const struct port **port)
{
	enum drop_reason why = find_owner(p, tap, port);

	if (why)
		return why;
	if (!((*port)->flags & PORT_OPEN))
		return DROP_CLOSED;
	return DROP_NONE;
}

static __always_inline enum drop_reason check_source_mac(const struct frame *f,
							 const struct port *port)
{
	return same_mac(f->eth->h_source, port->mac) ? DROP_NONE : DROP_SPOOFED_MAC;
}

/* A link-local address is its VM's own affair, but only towards the gateway. */
static __always_inline enum drop_reason check_source_ca(struct packet *p, const struct port *port)
{
	if (p->v6 && is_link_scope(&p->src))
		return same_addr(&p->dst, &port->gateway6) ? DROP_NONE : DROP_LINK_SCOPE;
	p->owned = has_ca(port, &p->src);
	return p->owned || port->flags & PORT_ROUTER ? DROP_NONE : DROP_SPOOFED_CA;
}

#endif
