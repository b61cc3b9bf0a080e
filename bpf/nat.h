/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Writes one end of a packet anew, with its checksums: for services and for metadata. */
#ifndef NAT_H
#define NAT_H

#include "csum.h"
#include "parse.h"

enum end { END_SOURCE, END_DESTINATION };

/* Where an end's address stands in an IP header. */
static __always_inline __u32 ip_end(bool v6, enum end end)
{
	if (v6)
		return end == END_SOURCE ? offsetof(struct ipv6hdr, saddr) : offsetof(struct ipv6hdr, daddr);
	return end == END_SOURCE ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr);
}

static __always_inline void write_addr4(struct iphdr *ip, enum end end, const struct addr *to,
					struct addr *from)
{
	__be32 *at = end == END_SOURCE ? &ip->saddr : &ip->daddr;

	set_v4(from, *at);
	csum_replace32(&ip->check, *at, as_v4(to));
	*at = as_v4(to);
}

static __always_inline void write_addr6(struct ipv6hdr *ip, enum end end, const struct addr *to,
					struct addr *from)
{
	void *at = end == END_SOURCE ? &ip->saddr : &ip->daddr;

	set_v6(from, at);
	__builtin_memcpy(at, to, sizeof(*to));
}

/* Where the checksum stands in a transport header that covers the addresses; 0: in none. */
static __always_inline __u32 checksum_at(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
		return offsetof(struct udphdr, check);
	case NEXT_ICMPV6:
		return offsetof(struct icmp, checksum);
	default:
		return 0;
	}
}

/*
 * By the helper, because a guest may have left its checksum to a device to
 * finish. All pointers into the frame are void afterwards.
 */
static __always_inline int fix_checksum(struct __sk_buff *skb, const struct packet *p,
					const struct addr *from, const struct addr *to,
					__be16 old_port, __be16 new_port)
{
	__u32 at = checksum_at(p->proto), udp = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__s64 diff;

	if (!at || p->fragment == LATER_FRAGMENT)
		return 0;
	at += ETH_HLEN + p->header;
	if (old_port != new_port &&
	    bpf_l4_csum_replace(skb, at, old_port, new_port, udp | sizeof(new_port)))
		return -1;
	diff = bpf_csum_diff((__be32 *)from, sizeof(*from), (__be32 *)to, sizeof(*to), 0);
	return bpf_l4_csum_replace(skb, at, 0, diff, udp | BPF_F_PSEUDO_HDR);
}

/*
 * Each family with a check of its own: of one that p->v6 chose the size for, Linux
 * 6.1 doesn't know any more which it was when it comes to the address.
 */
static __always_inline bool write_addr(const struct frame *f, enum end end, const struct addr *to,
				       struct addr *from)
{
	void *ip;

	if (f->p->v6) {
		ip = ip_header(f, sizeof(struct ipv6hdr));
		if (!ip)
			return false;
		write_addr6(ip, end, to, from);
		return true;
	}
	ip = ip_header(f, sizeof(struct iphdr));
	if (!ip)
		return false;
	write_addr4(ip, end, to, from);
	return true;
}

/* Makes one end of the packet in skb `to` and port, unless port is 0. f: its headers. */
static __always_inline int rewrite(struct __sk_buff *skb, struct frame *f, enum end end,
				   const struct addr *to, __be16 port)
{
	struct packet *p = f->p;
	__be16 *at = (__be16 *)f->l4 + (end == END_DESTINATION), old = 0;
	struct addr from;

	if (!write_addr(f, end, to, &from))
		return -1;
	if (port && p->fragment != LATER_FRAGMENT) {
		if (!f->l4 || (void *)(at + 1) > f->rest.end)
			return -1;
		old = *at;
		*at = port;
	}
	return fix_checksum(skb, p, &from, to, old, port ? port : old);
}

#endif
