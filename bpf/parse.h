/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * From bytes to headers, and from headers to what is known of a packet. Behind
 * this page there is one way for both families. Nothing trusts a length that a
 * guest wrote.
 */
#ifndef PARSE_H
#define PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"

#define ETH_P_BE_IP bpf_htons(ETH_P_IP)
#define ETH_P_BE_IPV6 bpf_htons(ETH_P_IPV6)
#define ETH_P_BE_ARP bpf_htons(ETH_P_ARP)
#define IP_DF_BE bpf_htons(0x4000)
#define IP_MORE_BE bpf_htons(0x2000)
#define IP_FRAGMENT_BE bpf_htons(0x3fff) /* more fragments, or an offset */
#define IP_OFFSET_BE bpf_htons(0x1fff)
#define IPV4(a, b, c, d) bpf_htonl((__u32)(a) << 24 | (b) << 16 | (c) << 8 | (d))
#define NEXT_HOP_BY_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_ICMPV6 58
#define NEXT_DESTINATION 60
#define NEXT_MOBILITY 135
#define PROTO_SCTP 132

enum tcp_flag { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };

/* The part of a frame that hasn't been read yet. */
struct cursor {
	void *pos;
	void *end;
};

/* A frame as a hook hands it to the stages: where its headers are. */
struct frame {
	struct cursor rest;
	__u32 len; /* all of it, with the Ethernet header, bytes */
	__u32 gso; /* payload bytes of each segment; 0: it is one packet */
	struct ethhdr *eth;
	void *ip; /* struct iphdr or struct ipv6hdr: packet.v6 says which */
	void *l4; /* where the transport header starts; NULL in a later fragment */
	struct packet *p;
};

/* RFC 8200, 4.5 */
struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* in 8 bytes, 3 flag bits: the last says that more follow */
	__be32 id;
};

/* RFC 792, RFC 4443; linux/icmp.h brings in the C library's sockets. */
struct icmp {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be16 id;  /* of an echo */
	__be16 mtu; /* RFC 1191; the echo sequence number */
};

/*
 * Whether min <= len <= max, len a __u64 variable. The comparisons are kept apart:
 * of "len - min <= max - min", to which clang folds them, and of "len != 0", Linux
 * 6.1 learns nothing about len.
 */
#define WITHIN(len, min, max)                                                                      \
	({                                                                                         \
		barrier_var(len);                                                                  \
		(len) <= (max) && ({ barrier_var(len); (len) >= (min); });                         \
	})

/* Returns the next size bytes, or NULL if they aren't there. */
static __always_inline void *take(struct cursor *c, __u32 size)
{
	void *head = c->pos;

	if (head + size > c->end)
		return NULL;
	c->pos = head + size;
	return head;
}

/* Returns the IP header again, size bytes of it, or NULL if the frame has none. */
static __always_inline void *ip_header(const struct frame *f, __u32 size)
{
	return f->ip && f->ip + size <= f->rest.end ? f->ip : NULL;
}

static __always_inline enum drop_reason parse_eth(struct frame *f)
{
	f->eth = take(&f->rest, sizeof(*f->eth));
	if (!f->eth)
		return DROP_TRUNCATED;
	if (f->eth->h_proto == bpf_htons(ETH_P_8021Q) || f->eth->h_proto == bpf_htons(ETH_P_8021AD))
		return DROP_VLAN;
	return DROP_NONE;
}

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	return *(const __u32 *)a == *(const __u32 *)b &&
	       *(const __u16 *)(a + 4) == *(const __u16 *)(b + 4);
}

static __always_inline void copy_mac(__u8 *to, const __u8 *from)
{
	*(__u32 *)to = *(const __u32 *)from;
	*(__u16 *)(to + 4) = *(const __u16 *)(from + 4);
}

/* copy_mac from config, which is volatile. */
static __always_inline void copy_const_mac(__u8 *to, const volatile __u8 *from)
{
#pragma unroll
	for (int i = 0; i < 6; i++)
		to[i] = from[i];
}

/* The halves of an address, as a little-endian machine reads them. */
static __always_inline __u64 high(const struct addr *a)
{
	return *(const __u64 *)a->b;
}

static __always_inline __u64 low(const struct addr *a)
{
	return *(const __u64 *)(a->b + 8);
}

/* ::ffff:a.b.c.d */
static __always_inline void set_v4(struct addr *a, __be32 v4)
{
	*(__u64 *)a->b = 0;
	*(__u64 *)(a->b + 8) = (__u64)v4 << 32 | 0xffff0000;
}

/* Addresses in a packet are aligned to 4 bytes at best. */
static __always_inline void set_v6(struct addr *a, const void *wire)
{
	__builtin_memcpy(a, wire, sizeof(*a));
}

static __always_inline bool is_v4(const struct addr *a, __be32 v4)
{
	return !high(a) && low(a) == ((__u64)v4 << 32 | 0xffff0000);
}

/* The last four bytes, which are the address if it is IPv4; 0 if a is none. */
static __always_inline __be32 as_v4(const struct addr *a)
{
	return *(const __be32 *)(a->b + 12);
}

static __always_inline bool same_addr(const struct addr *a, const struct addr *b)
{
	return high(a) == high(b) && low(a) == low(b);
}

static __always_inline bool is_none(const struct addr *a)
{
	return !(high(a) | low(a));
}

/* config is volatile: its addresses are read by halves. */
static __always_inline void copy_const_addr(struct addr *to, const volatile struct addr *from)
{
	*(__u64 *)to->b = *(const volatile __u64 *)from->b;
	*(__u64 *)(to->b + 8) = *(const volatile __u64 *)(from->b + 8);
}

/* fe80::/10 (RFC 4291, 2.5.6) */
static __always_inline bool is_link_scope(const struct addr *a)
{
	return a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80;
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
