/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * How large a packet may be. A redirect of a packet that is too big vanishes in
 * the kernel without a trace, so it is refused here, by name, and a sender that
 * asked for it (DF) is told by the gateway (RFC 1191).
 */
#ifndef MTU_H
#define MTU_H

#include <linux/tcp.h>

#include "csum.h"
#include "maps.h"
#include "parse.h"

#define VXLAN_OVERHEAD 50 /* outer IPv4, UDP, VXLAN, inner Ethernet */
#define ICMP_QUOTE 28	  /* bytes quoted behind the quoted IP header */

/* RFC 792; linux/icmp.h brings in the C library's sockets. */
struct icmp {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be16 unused; /* the echo identifier, or zero */
	__be16 mtu;    /* RFC 1191; the echo sequence number */
};

enum icmp_type { ICMP_ECHO_REPLY = 0, ICMP_UNREACHABLE = 3, ICMP_ECHO = 8 };
enum { ICMP_FRAG_NEEDED = 4 };

/* Returns the IP bytes of the largest packet that f becomes on a wire. */
static __always_inline __u32 packet_len(const struct frame *f)
{
	__u32 header = f->ip->ihl * 4;
	const struct tcphdr *tcp = f->l4;

	if (!f->gso)
		return f->len - ETH_HLEN;
	if (f->ip->protocol != IPPROTO_TCP)
		return header + 8 + f->gso;
	if (!tcp || (void *)(tcp + 1) > f->rest.end)
		return f->len; /* a superpacket without a TCP header: refuse it */
	return header + tcp->doff * 4 + f->gso;
}

/* What the sender's network and the underlay both take, bytes of IP packet. */
static __always_inline __u32 path_mtu(const struct port *port)
{
	__u32 under = config.underlay_mtu - VXLAN_OVERHEAD;

	return port->mtu < under ? port->mtu : under;
}

/* Only a first fragment with DF, without options, that isn't ICMP itself (RFC 1122, 3.2.2). */
static __always_inline bool wants_too_big(const struct frame *f)
{
	return f->ip->frag_off & IP_DF_BE && !(f->ip->frag_off & IP_OFFSET_BE) &&
	       f->ip->ihl == 5 &&
	       (f->ip->protocol != IPPROTO_ICMP ||
		(f->l4 && f->l4 + 1 <= f->rest.end && *(__u8 *)f->l4 == ICMP_ECHO));
}

/* "Fragmentation needed" in front of the packet it is about. */
struct too_big {
	struct iphdr ip;
	struct icmp icmp;
	struct iphdr quoted;
	__u8 quote[ICMP_QUOTE];
};

/* Fills in the headers before quoted; the frame was cut and grown for it. */
static __always_inline void write_too_big(struct too_big *m, const struct port *port, __u32 mtu)
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

#endif
