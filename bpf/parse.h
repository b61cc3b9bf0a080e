/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * From bytes to headers, and from headers to what is known of a packet. Behind
 * this page there is one way for both families. Nothing trusts a length that a
 * guest wrote.
 */
#ifndef PARSE_H
#define PARSE_H

#include "icmp.h"

static __always_inline enum drop_reason parse_eth(struct frame *f)
{
	f->eth = take(&f->rest, sizeof(*f->eth));
	if (!f->eth)
		return DROP_TRUNCATED;
	if (f->eth->h_proto == bpf_htons(ETH_P_8021Q) || f->eth->h_proto == bpf_htons(ETH_P_8021AD))
		return DROP_VLAN;
	return DROP_NONE;
}

static __always_inline enum drop_reason parse_ipv4(struct frame *f)
{
	struct iphdr *ip = take(&f->rest, sizeof(*ip));
	struct packet *p = f->p;
	__u32 total;
	__u16 frag;

	if (!ip)
		return DROP_TRUNCATED;
	f->ip = ip;
	total = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || ip->ihl < 5 || total < ip->ihl * 4 || total > f->len - ETH_HLEN)
		return DROP_BAD_IP;
	p->v6 = 0;
	set_v4(&p->src, ip->saddr);
	set_v4(&p->dst, ip->daddr);
	p->proto = ip->protocol;
	p->tos = ip->tos;
	p->header = sizeof(*ip);
	p->payload = total - sizeof(*ip);
	frag = ip->frag_off;
	p->fragment = frag & IP_OFFSET_BE ? LATER_FRAGMENT : frag & IP_MORE_BE ? FIRST_FRAGMENT : WHOLE;
	p->fragment_id = ip->id;
	p->offset = (__u32)bpf_ntohs(frag & IP_OFFSET_BE) * 8;
	/* Source routes and record routes are nothing that a tenant needs (RFC 7126). */
	return ip->ihl == 5 ? DROP_NONE : DROP_IP_OPTIONS;
}

static __always_inline bool is_extension(__u8 next)
{
	return next == NEXT_HOP_BY_HOP || next == NEXT_ROUTING || next == NEXT_DESTINATION ||
	       next == NEXT_MOBILITY || next == NEXT_FRAGMENT;
}

static __always_inline enum drop_reason parse_fragment_header(struct frame *f)
{
	struct fragment_header *h = take(&f->rest, sizeof(*h));
	struct packet *p = f->p;
	__u16 offset;

	if (!h || p->payload < sizeof(*h))
		return DROP_TRUNCATED;
	offset = bpf_ntohs(h->offset);
	p->proto = h->next;
	p->header += sizeof(*h);
	p->payload -= sizeof(*h);
	p->fragment_id = h->id;
	p->offset = offset & 0xfff8;
	p->fragment = p->offset ? LATER_FRAGMENT : offset & 1 ? FIRST_FRAGMENT : WHOLE;
	return DROP_NONE;
}

static __always_inline enum drop_reason parse_ipv6(struct frame *f)
{
	struct ipv6hdr *ip = take(&f->rest, sizeof(*ip));
	struct packet *p = f->p;
	enum drop_reason why;

	if (!ip)
		return DROP_TRUNCATED;
	f->ip = ip;
	p->payload = bpf_ntohs(ip->payload_len);
	if (ip->version != 6 || p->payload + sizeof(*ip) > f->len - ETH_HLEN)
		return DROP_BAD_IP;
	p->v6 = 1;
	set_v6(&p->src, &ip->saddr);
	set_v6(&p->dst, &ip->daddr);
	/* An IPv4 address in IPv6's clothes would be taken for the IPv4 one. */
	if ((!high(&p->src) && (__u32)low(&p->src) == 0xffff0000) ||
	    (!high(&p->dst) && (__u32)low(&p->dst) == 0xffff0000))
		return DROP_BAD_IP;
	p->proto = ip->nexthdr;
	p->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	p->header = sizeof(*ip);
	p->fragment = WHOLE;
	p->fragment_id = 0;
	p->offset = 0;
	if (p->proto == NEXT_FRAGMENT) {
		why = parse_fragment_header(f);
		if (why)
			return why;
	}
	return is_extension(p->proto) ? DROP_IP_OPTIONS : DROP_NONE;
}

static __always_inline enum drop_reason parse_tcp(struct frame *f)
{
	struct tcphdr *tcp = take(&f->rest, sizeof(*tcp));
	struct packet *p = f->p;

	if (!tcp || p->payload < sizeof(*tcp) || tcp->doff < 5 ||
	    (p->fragment == WHOLE && p->payload < tcp->doff * 4))
		return DROP_BAD_L4;
	p->sport = tcp->source;
	p->dport = tcp->dest;
	p->seq = bpf_ntohl(tcp->seq);
	p->ack = bpf_ntohl(tcp->ack_seq);
	p->tcp_flags = ((__u8 *)tcp)[13];
	p->options_len = tcp->doff * 4 - sizeof(*tcp);
	return DROP_NONE;
}

static __always_inline enum drop_reason parse_udp(struct frame *f)
{
	struct udphdr *udp = take(&f->rest, sizeof(*udp));
	struct packet *p = f->p;

	if (!udp || p->payload < sizeof(*udp))
		return DROP_BAD_L4;
	/* The length of a fragmented or superpacket is of the whole. */
	if (p->fragment == WHOLE && !f->gso &&
	    (bpf_ntohs(udp->len) < sizeof(*udp) || bpf_ntohs(udp->len) > p->payload))
		return DROP_BAD_L4;
	p->sport = udp->source;
	p->dport = udp->dest;
	return DROP_NONE;
}

static __always_inline enum drop_reason parse_sctp(struct frame *f)
{
	__be16 *ports = take(&f->rest, 12);

	if (!ports || f->p->payload < 12)
		return DROP_BAD_L4;
	f->p->sport = ports[0];
	f->p->dport = ports[1];
	return DROP_NONE;
}

/* Reads the transport header, if the packet has it: a later fragment has none. */
static __always_inline enum drop_reason parse_l4(struct frame *f)
{
	struct packet *p = f->p;

	p->sport = p->dport = 0;
	p->tcp_flags = p->icmp_type = p->icmp_code = p->quotes = p->options_len = 0;
	f->l4 = NULL;
	if (p->fragment == LATER_FRAGMENT)
		return DROP_NONE;
	f->l4 = f->rest.pos;
	switch (p->proto) {
	case IPPROTO_TCP:
		return parse_tcp(f);
	case IPPROTO_UDP:
		return parse_udp(f);
	case IPPROTO_ICMP:
		return p->v6 ? DROP_BAD_L4 : parse_icmp(f);
	case NEXT_ICMPV6:
		return p->v6 ? parse_icmp(f) : DROP_BAD_L4;
	case PROTO_SCTP:
		return parse_sctp(f);
	default:
		return DROP_NONE;
	}
}

/* A first fragment must hold the whole transport header (RFC 1858, RFC 7112). */
static __always_inline enum drop_reason as_fragment(const struct packet *p, enum drop_reason why)
{
	return why && p->fragment == FIRST_FRAGMENT ? DROP_FRAGMENT_TINY : why;
}

/* Reads the IP header that the Ethernet header announces, and the transport header behind it. */
static __always_inline enum drop_reason parse_ip(struct frame *f)
{
	enum drop_reason why;

	if (f->eth->h_proto == ETH_P_BE_IP)
		why = parse_ipv4(f);
	else if (f->eth->h_proto == ETH_P_BE_IPV6)
		why = parse_ipv6(f);
	else
		return DROP_NOT_IP;
	if (why)
		return why;
	return as_fragment(f->p, parse_l4(f));
}

#endif
