/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * How large a packet may be. A redirect of a packet that is too big vanishes in
 * the kernel without a trace, so it is refused here, by name, and the sender is
 * told by the gateway (RFC 1191, RFC 4443 3.2).
 */
#ifndef MTU_H
#define MTU_H

#include "csum.h"
#include "maps.h"
#include "neigh.h"
#include "parse.h"

#define OVERHEAD4 50 /* outer IPv4, UDP, VXLAN, inner Ethernet */
#define OVERHEAD6 70
#define OVERHEAD (config.underlay6 ? OVERHEAD6 : OVERHEAD4)
#define ICMP_QUOTE 28 /* bytes quoted behind the quoted IP header */

enum icmp_type { ICMP_ECHO_REPLY = 0, ICMP_UNREACHABLE = 3, ICMP_ECHO = 8 };
enum { ICMP_FRAG_NEEDED = 4 };
enum icmpv6_type { ICMPV6_TOO_BIG = 2, ICMPV6_ECHO = 128, ICMPV6_ECHO_REPLY = 129 };

/* Returns the IP bytes of the largest packet that f becomes on a wire. */
static __always_inline __u32 packet_len(const struct frame *f)
{
	const struct packet *p = f->p;
	const struct tcphdr *tcp = f->l4;

	if (!f->gso)
		return f->len - ETH_HLEN;
	if (p->proto != IPPROTO_TCP)
		return p->header + 8 + f->gso;
	if (!tcp || (void *)(tcp + 1) > f->rest.end)
		return f->len; /* a superpacket without a TCP header: refuse it */
	return p->header + tcp->doff * 4 + f->gso;
}

/* What the sender's network and the underlay both take, bytes of IP packet. */
static __always_inline __u32 path_mtu(const struct port *port)
{
	__u32 under = config.underlay_mtu - OVERHEAD;

	return port->mtu < under ? port->mtu : under;
}

/* Who asked for it: DF, or IPv6; never an answer to an error (RFC 1122, 3.2.2). */
static __always_inline bool wants_too_big(const struct frame *f)
{
	const struct packet *p = f->p;
	const struct iphdr *ip = ip_header(f, sizeof(*ip));

	if (p->fragment == LATER_FRAGMENT || p->header > 40)
		return false;
	if (p->v6)
		return p->proto != NEXT_ICMPV6 || p->icmp_type >= ICMPV6_ECHO;
	return ip && ip->frag_off & IP_DF_BE &&
	       (p->proto != IPPROTO_ICMP || p->icmp_type == ICMP_ECHO);
}

static __always_inline enum drop_reason check_size(const struct frame *f, __u32 mtu,
						   enum drop_reason why)
{
	if (packet_len(f) <= mtu)
		return DROP_NONE;
	if (wants_too_big(f))
		f->p->mtu = mtu;
	return why;
}

/* "Fragmentation needed" in front of the packet it is about. */
struct too_big4 {
	struct iphdr ip;
	struct icmp icmp;
	struct iphdr quoted;
	__u8 quote[ICMP_QUOTE];
};

struct too_big6 {
	struct ipv6hdr ip;
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be32 mtu;
	struct ipv6hdr quoted;
	__u8 quote[ICMP_QUOTE];
};

/* Fills in the headers before quoted; the frame was cut and grown for it. */
static __always_inline void write_too_big4(struct too_big4 *m, const struct port *port, __u32 mtu)
{
	m->ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.ttl = 64,
		.protocol = IPPROTO_ICMP,
		.tot_len = bpf_htons(sizeof(*m)),
		.saddr = as_v4(&port->gateway),
		.daddr = m->quoted.saddr,
	};
	m->ip.check = csum(&m->ip, sizeof(m->ip));
	m->icmp = (struct icmp){
		.type = ICMP_UNREACHABLE,
		.code = ICMP_FRAG_NEEDED,
		.mtu = bpf_htons(mtu),
	};
	m->icmp.checksum = csum(&m->icmp, sizeof(*m) - sizeof(m->ip));
}

static __always_inline void write_too_big6(struct too_big6 *m, const struct port *port, __u32 mtu)
{
	m->ip = (struct ipv6hdr){
		.version = 6,
		.payload_len = bpf_htons(sizeof(*m) - sizeof(m->ip)),
		.nexthdr = NEXT_ICMPV6,
		.hop_limit = 64,
		.daddr = m->quoted.saddr,
	};
	__builtin_memcpy(&m->ip.saddr, &port->gateway6, sizeof(m->ip.saddr));
	m->type = ICMPV6_TOO_BIG;
	m->code = 0;
	m->checksum = 0;
	m->mtu = bpf_htonl(mtu);
	m->checksum = csum_icmpv6(&m->ip.saddr, &m->type, sizeof(*m) - sizeof(m->ip));
}

#endif
