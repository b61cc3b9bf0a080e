/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Frames that the host agent answers, and how many of them a guest may send. */
#ifndef TRAP_H
#define TRAP_H

#include "rate.h"

/* DHCP passes before any address check: a guest that must renew has none, or an old one. */
static __always_inline bool is_dhcp(const struct packet *p)
{
	return p->proto == IPPROTO_UDP && !p->v6 && p->sport == bpf_htons(68) &&
	       p->dport == bpf_htons(67);
}

/* RFC 8415, 7.2; the relays and servers are the gateway, whatever group it is sent to. */
static __always_inline bool is_dhcpv6(const struct packet *p)
{
	return p->proto == IPPROTO_UDP && p->v6 && p->sport == bpf_htons(546) &&
	       p->dport == bpf_htons(547);
}

static __always_inline bool is_rogue_dhcp(const struct packet *p)
{
	return p->proto == IPPROTO_UDP &&
	       (p->v6 ? p->sport == bpf_htons(547) && p->dport == bpf_htons(546)
		      : p->sport == bpf_htons(67) && p->dport == bpf_htons(68));
}

/* Opens a trap record; the hook copies the frame into it. */
static __always_inline enum drop_reason open_trap(const struct packet *p, const struct port *port,
						  __u32 len, struct trap **out)
{
	struct trap *t;

	if (len > TRAP_FRAME)
		return DROP_TRAP_SIZE;
	if (!spend(p, p->id, BUCKET_TRAP, config.trap_interval, config.trap_burst))
		return DROP_TRAP_RATE;
	t = bpf_ringbuf_reserve(&traps, sizeof(*t), 0);
	if (!t)
		return DROP_TRAP_FULL;
	t->port_id = p->id;
	t->kind = p->kind;
	t->epoch = port->epoch;
	t->len = len;
	*out = t;
	return DROP_NONE;
}

#endif
