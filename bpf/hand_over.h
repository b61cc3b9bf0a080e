/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* A frame from the underlay that nobody refused, into its port's tap. */
#ifndef HAND_OVER_H
#define HAND_OVER_H

#include "capture.h"
#include "deliver.h"
#include "hook.h"
#include "quote.h"
#include "received.h"

/* skb->mark of a frame that from_wire has checked and sent up; the port id is in the rest. */
#define MARK_UP 0x5eb70000
#define MARK_NAT 0x8000
#define MARK_RESET 0x4000 /* not to be delivered: its sender gets a reset */
#define MARK_PORT 0x3fff

/* The answer of a backend becomes the service's. */
static __always_inline enum drop_reason translate(struct __sk_buff *skb, struct frame *f)
{
	struct packet *p = f->p;

	if (p->quotes)
		return translate_error(skb) ? DROP_INNER_TRUNCATED : DROP_NONE;
	f->rest = all_of(skb);
	if (parse_eth(f))
		return DROP_INNER_TRUNCATED;
	/* Unwrapped, it still has the outer Ethernet header: the room was made behind that. */
	f->eth->h_proto = p->v6 ? ETH_P_BE_IPV6 : ETH_P_BE_IP;
	if (parse_ip(f) || rewrite(skb, f, END_SOURCE, &p->nat, p->nat_port))
		return DROP_INNER_TRUNCATED;
	return DROP_NONE;
}

static __always_inline enum drop_reason hand_over(struct __sk_buff *skb, struct received *r,
						  int *verdict)
{
	struct packet *p = r->f.p;
	struct cursor c = all_of(skb);
	struct ethhdr *eth = take(&c, sizeof(*eth));

	if (!eth)
		return DROP_NO_ROOM;
	write_delivery(eth, r->port, p->v6);
	account_to(p, p->id, r->port, r->f.len);
	if (is_captured(p, r->port))
		capture(skb, p->id, POINT_TO_VM, DROP_NONE);
	p->to_id = p->id;
	/*
	 * Of the other family than the underlay's, only what went up could skip a veth's
	 * queue (see send_to_device): it would overtake what didn't.
	 */
	*verdict = p->v6 == config.underlay6 ? send_to_device(skb, r->port, p->v6)
					     : bpf_redirect(r->port->ifindex, 0);
	return DROP_NONE;
}

#endif
