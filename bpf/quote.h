/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * An ICMP error about a service's connection names the other end in what it
 * quotes (RFC 5508, 4): the client knows the service, the backend itself.
 */
#ifndef QUOTE_H
#define QUOTE_H

#include "nat.h"

/* Makes the address at `at` p->nat; was: what it has been. */
static __always_inline bool put_nat(struct __sk_buff *skb, const struct packet *p, __u32 at,
				    struct addr *was)
{
	__be32 v4 = 0;

	if (p->v6)
		return !bpf_skb_load_bytes(skb, at, was, sizeof(*was)) &&
		       !bpf_skb_store_bytes(skb, at, &p->nat, sizeof(p->nat), 0);
	if (bpf_skb_load_bytes(skb, at, &v4, sizeof(v4)))
		return false;
	set_v4(was, v4);
	v4 = as_v4(&p->nat);
	return !bpf_skb_store_bytes(skb, at, &v4, sizeof(v4), 0);
}

/* Writes two bytes of the quote; the checksum of the error, at sum, follows. */
static __always_inline bool put_quoted(struct __sk_buff *skb, __u32 at, __u32 sum, __be16 was, __be16 is)
{
	return was == is || (!bpf_skb_store_bytes(skb, at, &is, sizeof(is), 0) &&
			     !bpf_l4_csum_replace(skb, sum, was, is, sizeof(is)));
}

/* A checksum of what has changed by diff (RFC 1624). */
static __always_inline __u16 changed(__u16 check, __u32 diff)
{
	return csum_fold((__u16)~check + (diff & 0xffff) + (diff >> 16));
}

/* The quoted IP header has a checksum in IPv4 only. */
static __always_inline bool mend_quoted_ip(struct __sk_buff *skb, __u32 ip, __u32 sum, __u32 diff)
{
	__u32 at = ip + offsetof(struct iphdr, check);
	__u16 check;

	return !bpf_skb_load_bytes(skb, at, &check, sizeof(check)) &&
	       put_quoted(skb, at, sum, check, changed(check, diff));
}

/* Its port, and the checksum of its transport header if the quote goes that far and it has one. */
static __always_inline bool mend_quoted_l4(struct __sk_buff *skb, const struct packet *p, __u32 l4,
					   enum end end, __u32 sum, __u32 diff)
{
	__u32 at = l4 + 2 * (end == END_DESTINATION), check_at = checksum_at(p->quoted.proto);
	bool udp = p->quoted.proto == IPPROTO_UDP;
	__u16 check, mended;
	__be16 port;

	if (bpf_skb_load_bytes(skb, at, &port, sizeof(port)) ||
	    !put_quoted(skb, at, sum, port, p->nat_port))
		return false;
	at = l4 + check_at;
	if (!check_at || bpf_skb_load_bytes(skb, at, &check, sizeof(check)) || (udp && !check))
		return true;
	mended = changed(changed(check, diff), (__u16)~port + p->nat_port);
	return put_quoted(skb, at, sum, check, udp && !mended ? 0xffff : mended);
}

/* The packet itself: to the backend, or from it. Another router's word stays its own. */
static __always_inline bool mend_error(struct __sk_buff *skb, const struct packet *p, enum end end,
				       __u32 sum)
{
	__u32 at = ETH_HLEN + ip_end(p->v6, end);
	struct addr was;
	__s64 diff;

	if (!put_nat(skb, p, at, &was))
		return false;
	if (!p->v6)
		return !bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check),
					    as_v4(&was), as_v4(&p->nat), sizeof(__be32));
	diff = bpf_csum_diff((__be32 *)&was, sizeof(was), (__be32 *)&p->nat, sizeof(p->nat), 0);
	return !bpf_l4_csum_replace(skb, sum, 0, diff, BPF_F_PSEUDO_HDR);
}

/*
 * Translates the error in skb, whose packet is at hand and natted; 0 if it could.
 * A function of its own, so that its variables have a stack of their own.
 */
__noinline int translate_error(struct __sk_buff *skb)
{
	struct packet *p = packet_at_hand();
	enum end quoted, outer;
	struct addr was;
	__u32 sum, ip;
	__s64 diff;

	if (!p)
		return -1;
	sum = ETH_HLEN + p->header + offsetof(struct icmp, checksum);
	ip = ETH_HLEN + p->header + sizeof(struct icmp);
	quoted = p->natted == FLOW_BACKEND ? END_DESTINATION : END_SOURCE;
	outer = p->natted == FLOW_BACKEND ? END_SOURCE : END_DESTINATION;
	if (!put_nat(skb, p, ip + ip_end(p->v6, quoted), &was))
		return -1;
	diff = bpf_csum_diff((__be32 *)&was, sizeof(was), (__be32 *)&p->nat, sizeof(p->nat), 0);
	if (bpf_l4_csum_replace(skb, sum, 0, diff, 0) ||
	    (!p->v6 && !mend_quoted_ip(skb, ip, sum, diff)) ||
	    !mend_quoted_l4(skb, p, ip + p->quotes, quoted, sum, diff))
		return -1;
	if (outer == END_SOURCE && !same_addr(&p->src, &was))
		return 0;
	return mend_error(skb, p, outer, sum) ? 0 : -1;
}

#endif
