/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* ICMP of both families: which messages are echoes, which are errors, and about what. */
#ifndef ICMP_H
#define ICMP_H

#include "header.h"

/* Whether a type is an echo, request or reply, and so has an identifier. */
static __always_inline bool is_echo(const struct packet *p)
{
	return p->v6 ? p->icmp_type == 128 || p->icmp_type == 129
		     : p->icmp_type == 8 || p->icmp_type == 0;
}

static __always_inline bool is_icmp(const struct packet *p)
{
	return p->proto == (p->v6 ? NEXT_ICMPV6 : IPPROTO_ICMP);
}

static __always_inline bool is_echo_request(const struct packet *p)
{
	return is_icmp(p) && p->icmp_type == (p->v6 ? 128 : 8);
}

/* Whether an ICMP message is an error about another packet, which it quotes. */
static __always_inline bool is_error(const struct packet *p)
{
	if (p->proto == IPPROTO_ICMP)
		return p->icmp_type == 3 || p->icmp_type == 11 || p->icmp_type == 12;
	return p->proto == NEXT_ICMPV6 && p->icmp_type >= 1 && p->icmp_type <= 4;
}

/* Reads a quoted IP header; returns its length, 0 if the transport header isn't behind it. */
static __always_inline __u32 quote_addrs4(struct cursor *c, struct flow_key *k)
{
	struct iphdr *ip = take(c, sizeof(*ip));

	if (!ip || ip->ihl != 5)
		return 0;
	set_v4(&k->local, ip->saddr);
	set_v4(&k->remote, ip->daddr);
	k->proto = ip->protocol;
	return sizeof(*ip);
}

static __always_inline __u32 quote_addrs6(struct cursor *c, struct flow_key *k)
{
	struct ipv6hdr *ip = take(c, sizeof(*ip));
	struct fragment_header *piece;

	if (!ip)
		return 0;
	set_v6(&k->local, &ip->saddr);
	set_v6(&k->remote, &ip->daddr);
	k->proto = ip->nexthdr;
	if (k->proto != NEXT_FRAGMENT)
		return sizeof(*ip);
	piece = take(c, sizeof(*piece));
	if (!piece || piece->offset & bpf_htons(0xfff8))
		return 0;
	k->proto = piece->next;
	return sizeof(*ip) + sizeof(*piece);
}

/* Reads the packet that an error quotes, as its sender sees it; an echo's ports are its identifier. */
static __always_inline void parse_quote(struct frame *f)
{
	struct flow_key *k = &f->p->quoted;
	struct cursor c = f->rest;
	__u32 header = f->p->v6 ? quote_addrs6(&c, k) : quote_addrs4(&c, k);
	__be16 *ports = take(&c, 8);

	if (!header || !ports)
		return;
	if (k->proto == IPPROTO_ICMP || k->proto == NEXT_ICMPV6) {
		k->lport = k->rport = ports[2];
	} else {
		k->lport = ports[0];
		k->rport = ports[1];
	}
	f->p->quotes = header;
}

static __always_inline enum drop_reason parse_icmp(struct frame *f)
{
	struct icmp *icmp = take(&f->rest, sizeof(*icmp));
	struct packet *p = f->p;

	if (!icmp || p->payload < sizeof(*icmp))
		return DROP_BAD_L4;
	p->icmp_type = icmp->type;
	p->icmp_code = icmp->code;
	if (is_echo(p))
		p->sport = p->dport = icmp->id;
	if (is_error(p))
		parse_quote(f);
	return DROP_NONE;
}

#endif
