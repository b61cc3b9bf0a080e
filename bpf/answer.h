/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the gateway itself says to a VM: it answers ARP, neighbour discovery and
 * pings, tells that a packet is too big, and ends a connection that leads
 * nowhere. The answer is written over the frame that asked for it.
 */
#ifndef ANSWER_H
#define ANSWER_H

#include "deliver.h"
#include "hook.h"
#include "neigh.h"
#include "reset.h"

static __always_inline bool is_ping(const struct packet *p)
{
	return !p->icmp_code && p->fragment == WHOLE &&
	       (p->v6 ? p->proto == NEXT_ICMPV6 && p->icmp_type == ICMPV6_ECHO
		      : p->proto == IPPROTO_ICMP && p->icmp_type == ICMP_ECHO);
}

/* What the VM says to the gateway itself: a ping, or the answer to the host's health probe. */
static __always_inline enum drop_reason decide_gateway(struct packet *p)
{
	if (is_ping(p)) {
		p->way = WAY_ANSWER;
		return may_answer(p);
	}
	if (p->proto == IPPROTO_TCP && p->fragment == WHOLE &&
	    (p->tcp_flags & TCP_RST || (p->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK))) {
		p->way = WAY_TRAP;
		p->kind = TRAP_PROBE;
		return DROP_NONE;
	}
	return DROP_TO_GATEWAY;
}

/* Turns an echo request into its reply: the addresses change places, which no checksum sees. */
static __always_inline enum drop_reason answer_ping(struct __sk_buff *skb, struct frame *f)
{
	struct icmp *icmp = f->l4;
	struct packet *p = f->p;

	if (!icmp || (void *)(icmp + 1) > f->rest.end)
		return DROP_TRUNCATED;
	if (p->v6) {
		struct ipv6hdr *ip = ip_header(f, sizeof(*ip));

		if (!ip)
			return DROP_TRUNCATED;
		__builtin_memcpy(&ip->saddr, &p->dst, sizeof(p->dst));
		__builtin_memcpy(&ip->daddr, &p->src, sizeof(p->src));
		icmp->type = ICMPV6_ECHO_REPLY;
		csum_replace16(&icmp->checksum, bpf_htons(ICMPV6_ECHO << 8),
			       bpf_htons(ICMPV6_ECHO_REPLY << 8));
	} else {
		struct iphdr *ip = ip_header(f, sizeof(*ip));

		if (!ip)
			return DROP_TRUNCATED;
		ip->saddr = as_v4(&p->dst);
		ip->daddr = as_v4(&p->src);
		icmp->type = ICMP_ECHO_REPLY;
		csum_replace16(&icmp->checksum, bpf_htons(ICMP_ECHO << 8),
			       bpf_htons(ICMP_ECHO_REPLY << 8));
	}
	copy_mac(f->eth->h_dest, f->eth->h_source);
	copy_const_mac(f->eth->h_source, config.gateway_mac);
	return DROP_NONE;
}

static __always_inline enum drop_reason answer_nd(struct __sk_buff *skb, const struct packet *p,
						  const struct port *port)
{
	struct nd_answer *a;
	struct cursor c;

	if (bpf_skb_change_tail(skb, sizeof(*a), 0))
		return DROP_NO_ROOM;
	c = all_of(skb);
	a = take(&c, sizeof(*a));
	if (!a)
		return DROP_NO_ROOM;
	write_nd_answer(a, p, port);
	return DROP_NONE;
}

static __always_inline enum drop_reason answer(struct __sk_buff *skb, struct frame *f,
					       const struct port *port, __u32 tap, int *verdict)
{
	struct arp *arp = f->l4;
	enum drop_reason why = DROP_NONE;

	if (f->eth->h_proto == ETH_P_BE_ARP) {
		if (!arp || (void *)(arp + 1) > f->rest.end)
			return DROP_TRUNCATED;
		answer_arp(f->eth, arp);
	} else if (is_nd(f->p)) {
		why = answer_nd(skb, f->p, port);
	} else {
		why = answer_ping(skb, f);
	}
	if (!why)
		*verdict = bpf_redirect(tap, 0);
	return why;
}

/* The gateway's word about a packet that is too big. */
static __always_inline int tell_too_big(struct __sk_buff *skb, const struct packet *p,
					const struct port *port, __u32 tap)
{
	struct cursor c;
	struct ethhdr *eth;

	if (!turn_too_big(skb, p->v6 ? &port->gateway6 : &port->gateway))
		return TC_ACT_SHOT;
	c = all_of(skb);
	eth = take(&c, sizeof(*eth));
	if (!eth)
		return TC_ACT_SHOT;
	write_delivery(eth, port, p->v6);
	return bpf_redirect(tap, 0);
}

/* Tells the VM that its connection leads nowhere any more. */
static __always_inline int answer_reset(struct __sk_buff *skb, const struct packet *p,
					const struct port *port, __u32 tap)
{
	struct cursor c;
	struct ethhdr *eth;

	if (!turn_reset(skb))
		return TC_ACT_SHOT;
	c = all_of(skb);
	eth = take(&c, sizeof(*eth));
	if (!eth)
		return TC_ACT_SHOT;
	write_delivery(eth, port, p->v6);
	return bpf_redirect(tap, 0);
}

#endif
