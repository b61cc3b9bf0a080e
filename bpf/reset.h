/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * A TCP reset in answer to a segment that has nowhere to go (RFC 9293, 3.10.7.1),
 * written over the segment itself once the frame has been cut behind its headers.
 */
#ifndef RESET_H
#define RESET_H

#include "csum.h"
#include "hook.h"

struct reset4 {
	struct iphdr ip;
	struct tcphdr tcp;
};

struct reset6 {
	struct ipv6hdr ip;
	struct tcphdr tcp;
};

/* Bytes of the answer's IP packet. */
static __always_inline __u32 reset_len(const struct packet *p)
{
	return p->v6 ? sizeof(struct reset6) : sizeof(struct reset4);
}

/* Sequence numbers that the other end believes: its own word, or one behind what it sent. */
static __always_inline void write_reset_tcp(struct tcphdr *tcp, const struct packet *p)
{
	__be16 sport = tcp->dest, dport = tcp->source;
	__u32 sent = p->payload - tcp->doff * 4 + !!(p->tcp_flags & TCP_SYN) +
		     !!(p->tcp_flags & TCP_FIN);
	bool acked = p->tcp_flags & TCP_ACK;

	*tcp = (struct tcphdr){
		.source = sport,
		.dest = dport,
		.seq = acked ? bpf_htonl(p->ack) : 0,
		.ack_seq = acked ? 0 : bpf_htonl(p->seq + sent),
		.doff = 5,
		.rst = 1,
		.ack = !acked,
	};
}

static __always_inline __u16 csum_tcp(const void *addrs, __u32 addrs_len, const struct tcphdr *tcp)
{
	__u32 sum = csum_add(0, addrs, addrs_len);

	sum += bpf_htons(IPPROTO_TCP);
	sum += bpf_htons(sizeof(*tcp));
	return csum_fold(csum_add(sum, tcp, sizeof(*tcp)));
}

static __always_inline void write_reset4(struct reset4 *r, const struct packet *p)
{
	__be32 src = r->ip.daddr, dst = r->ip.saddr;

	write_reset_tcp(&r->tcp, p);
	r->ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.ttl = 64,
		.protocol = IPPROTO_TCP,
		.tot_len = bpf_htons(sizeof(*r)),
		.frag_off = IP_DF_BE,
		.saddr = src,
		.daddr = dst,
	};
	r->ip.check = csum(&r->ip, sizeof(r->ip));
	r->tcp.check = csum_tcp(&r->ip.saddr, 8, &r->tcp);
}

static __always_inline void write_reset6(struct reset6 *r, const struct packet *p)
{
	struct in6_addr src = r->ip.daddr, dst = r->ip.saddr;

	write_reset_tcp(&r->tcp, p);
	r->ip = (struct ipv6hdr){
		.version = 6,
		.payload_len = bpf_htons(sizeof(r->tcp)),
		.nexthdr = IPPROTO_TCP,
		.hop_limit = 64,
		.saddr = src,
		.daddr = dst,
	};
	r->tcp.check = csum_tcp(&r->ip.saddr, 32, &r->tcp);
}

/* Writes the answer at c, whose next bytes are the segment's IP header. */
static __always_inline bool write_reset(struct cursor *c, const struct packet *p)
{
	if (p->v6) {
		struct reset6 *r = take(c, sizeof(*r));

		if (r)
			write_reset6(r, p);
		return r;
	} else {
		struct reset4 *r = take(c, sizeof(*r));

		if (r)
			write_reset4(r, p);
		return r;
	}
}

/* Turns a segment into the reset that answers it, if it can. A function of its own: see capture. */
__noinline int turn_reset(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();
	struct cursor c;

	if (!p || bpf_skb_change_tail(skb, ETH_HLEN + reset_len(p), 0))
		return false;
	c = all_of(skb);
	return take(&c, ETH_HLEN) && write_reset(&c, p);
}

#endif
