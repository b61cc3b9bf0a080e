/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What a port's host says to a sender on another host: that its packet is too big
 * for the port, or that its connection leads nowhere.
 */
#ifndef ANSWER_WIRE_H
#define ANSWER_WIRE_H

#include "received.h"
#include "reset.h"
#include "wrap.h"

/*
 * Turns a refused frame without outer headers into the answer with its own. It
 * comes from the port's address and not from the gateway's: the other host finds
 * in its directory who may speak by that one, and refuses a forged answer.
 */
static __always_inline bool write_answer(struct __sk_buff *skb, struct received *r, const __u8 *mac,
					 struct ethhdr **eth)
{
	struct packet *p = r->f.p;

	if (!(p->mtu ? turn_too_big(skb, &p->dst) : turn_reset(skb)))
		return false;
	p->pa = p->outer_src;
	p->tos = 0;
	copy_mac(p->mac, mac);
	return make_room(skb, 0) &&
	       !write_outer(skb, r->port, p, skb->len - OVERHEAD, flow_hash(p), eth);
}

#endif
