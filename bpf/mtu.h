/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * How large a packet may be. A redirect of a packet that is too big vanishes in
 * the kernel without a trace, so it is refused here, by name, and the sender is
 * told by the gateway (RFC 1191, RFC 4443 3.2).
 */
#ifndef MTU_H
#define MTU_H

#include "csum.h"
#include "hook.h"
#include "neigh.h"

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

	if (p->fragment == LATER_FRAGMENT)
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

/* How much of the packet in question is kept, and how much room its answer needs before it. */
static __always_inline __u32 too_big_quote(const struct packet *p)
{
	return (p->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + ICMP_QUOTE;
}

static __always_inline __u32 too_big_header(const struct packet *p)
{
	return p->v6 ? offsetof(struct too_big6, quoted) : offsetof(struct too_big4, quoted);
}

/* Fills in the headers before quoted; the frame was cut and grown for it. from: who says it. */
static __always_inline void write_too_big4(struct too_big4 *m, const struct addr *from, __u32 mtu)
{
	m->ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.ttl = 64,
		.protocol = IPPROTO_ICMP,
		.tot_len = bpf_htons(sizeof(*m)),
		.saddr = as_v4(from),
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

static __always_inline void write_too_big6(struct too_big6 *m, const struct addr *from, __u32 mtu)
{
	m->ip = (struct ipv6hdr){
		.version = 6,
		.payload_len = bpf_htons(sizeof(*m) - sizeof(m->ip)),
		.nexthdr = NEXT_ICMPV6,
		.hop_limit = 64,
		.daddr = m->quoted.saddr,
	};
	__builtin_memcpy(&m->ip.saddr, from, sizeof(m->ip.saddr));
	m->type = ICMPV6_TOO_BIG;
	m->code = 0;
	m->checksum = 0;
	m->mtu = bpf_htonl(mtu);
	m->checksum = csum_icmpv6(&m->ip.saddr, &m->type, sizeof(*m) - sizeof(m->ip));
}

/* Writes the answer at c, behind whose room the packet in question stands. */
static __always_inline bool write_too_big(struct cursor *c, const struct packet *p,
					  const struct addr *from)
{
	if (p->v6) {
		struct too_big6 *m = take(c, sizeof(*m));

		if (m)
			write_too_big6(m, from, p->mtu);
		return m;
	} else {
		struct too_big4 *m = take(c, sizeof(*m));

		if (m)
			write_too_big4(m, from, p->mtu);
		return m;
	}
}

/*
 * Turns a packet that is too big into the word about it, said by `from`. A checksum
 * that the guest left unfinished stays so inside the quote; receivers don't look at it
 * there. Whether it could be done. A function of its own: see capture.
 */
__noinline int turn_too_big(struct __sk_buff *skb, const struct addr *from)
{
	struct packet *p = packet_at_hand();
	struct cursor c;

	if (!p || !from || bpf_skb_change_tail(skb, ETH_HLEN + too_big_quote(p), 0) ||
	    bpf_skb_adjust_room(skb, too_big_header(p), BPF_ADJ_ROOM_MAC, 0))
		return false;
	c = all_of(skb);
	return take(&c, ETH_HLEN) && write_too_big(&c, p, from);
}

#endif
