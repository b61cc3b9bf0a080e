/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The outer headers (RFC 7348), written and read. */
#ifndef VXLAN_H
#define VXLAN_H

#include <linux/udp.h>

#include "csum.h"
#include "mtu.h"
#include "route.h"

#define VXLAN_PORT bpf_htons(4789)
#define VXLAN_VALID bpf_htonl(0x08000000) /* the I flag; all other bits are reserved */
#define ECN_MASK 3
#define ECN_CE 3

struct vxlan {
	__be32 flags;
	__be32 vni; /* upper 24 bits */
};

/* What stands between the outer and the inner Ethernet header. */
struct outer {
	struct iphdr ip;
	struct udphdr udp;
	struct vxlan vxlan;
};

/* Murmur's finalizer, over what makes a flow: spreads flows over paths and queues. */
static __always_inline __u32 flow_hash(const struct frame *f)
{
	__u32 h = f->ip->saddr ^ (f->ip->daddr * 0x9e3779b1);

	h ^= (__u32)f->sport << 16 | f->dport;
	h ^= f->ip->protocol;
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	return h ^ h >> 16;
}

/* The dynamic range (RFC 7348, 5), so that no hash meets a service. */
static __always_inline __be16 source_port(__u32 hash)
{
	return bpf_htons(0xc000 | (hash & 0x3fff));
}

/* ECN is copied out (RFC 6040, normal mode), DSCP isn't: it is the operator's. */
static __always_inline void write_outer_ip(struct outer *o, const struct port *port, __be32 dst,
					   __u32 inner_len, __u8 tos)
{
	o->ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tos = tos & ECN_MASK,
		.tot_len = bpf_htons(inner_len + sizeof(*o)),
		.frag_off = IP_DF_BE,
		.ttl = 64,
		.protocol = IPPROTO_UDP,
		.saddr = as_v4(&port->pa),
		.daddr = dst,
	};
	o->ip.check = csum(&o->ip, sizeof(o->ip));
}

/*
 * The inner destination is the mapping's MAC: the receiver finds the port by it.
 * The inner source stays the port's own: a plain VTEP learns from it and a
 * capture names the sender. The guest sees the gateway instead, see deliver.h.
 */
static __always_inline void write_outer(struct outer *o, const struct port *port,
					const struct mapping *to, __u32 inner_len, __u8 tos,
					__be16 sport)
{
	struct ethhdr *inner = (void *)(o + 1);

	write_outer_ip(o, port, as_v4(&to->pa), inner_len, tos);
	o->udp = (struct udphdr){
		.source = sport,
		.dest = VXLAN_PORT,
		.len = bpf_htons(inner_len + sizeof(o->udp) + sizeof(o->vxlan)),
	};
	o->vxlan = (struct vxlan){ .flags = VXLAN_VALID, .vni = bpf_htonl(port->vni << 8) };
	copy_mac(inner->h_dest, to->mac);
	copy_mac(inner->h_source, port->mac);
	inner->h_proto = ETH_P_BE_IP;
}

/*
 * Whether a frame of the uplink is VXLAN for one of our PAs or for the host.
 * Later fragments have no ports: those for a PA can be nothing else, those for
 * the host are its own business.
 */
static __always_inline bool is_for_us(const struct cursor *all)
{
	struct cursor c = *all;
	struct ethhdr *eth = take(&c, sizeof(*eth));
	struct iphdr *ip = take(&c, sizeof(*ip));
	__be16 *ports;

	if (!eth || !ip || eth->h_proto != ETH_P_BE_IP || ip->protocol != IPPROTO_UDP ||
	    !is_own_pa(ip->daddr))
		return false;
	if (ip->frag_off & IP_OFFSET_BE)
		return ip->daddr != config.host;
	if (ip->ihl < 5 || !take(&c, ip->ihl * 4 - sizeof(*ip)))
		return false;
	ports = take(&c, 4);
	return ports && ports[1] == VXLAN_PORT;
}

/* Takes the outer headers off f. */
static __always_inline enum drop_reason read_outer(struct frame *f, struct outer **out)
{
	struct ethhdr *eth = take(&f->rest, sizeof(*eth));
	struct outer *o = take(&f->rest, sizeof(*o));
	struct ethhdr *inner = take(&f->rest, sizeof(*inner));
	__u32 total;

	if (!eth || !o || !inner)
		return DROP_OUTER_BAD;
	if (o->ip.frag_off & IP_FRAGMENT_BE)
		return DROP_OUTER_FRAGMENT;
	total = bpf_ntohs(o->ip.tot_len);
	if (o->ip.version != 4 || o->ip.ihl != 5 || total > f->len - ETH_HLEN ||
	    total < sizeof(*o) + sizeof(*inner) || bpf_ntohs(o->udp.len) != total - sizeof(o->ip))
		return DROP_OUTER_BAD;
	if (o->vxlan.flags != VXLAN_VALID || o->vxlan.vni & bpf_htonl(0xff))
		return DROP_VXLAN_FLAGS;
	f->eth = inner;
	f->len -= VXLAN_OVERHEAD;
	*out = o;
	return DROP_NONE;
}

/* The drop of an inner header has its own name: the VM's own are another cause. */
static __always_inline enum drop_reason as_inner(enum drop_reason why)
{
	switch (why) {
	case DROP_TRUNCATED:
		return DROP_INNER_TRUNCATED;
	case DROP_BAD_IP:
		return DROP_INNER_BAD_IP;
	default:
		return why;
	}
}

/* Congestion seen on the underlay is told to the inner receiver (RFC 6040, 4.2). */
static __always_inline enum drop_reason merge_ecn(struct iphdr *inner, __u8 outer_tos)
{
	__u8 tos = inner->tos;

	if ((outer_tos & ECN_MASK) != ECN_CE || (tos & ECN_MASK) == ECN_CE)
		return DROP_NONE;
	if (!(tos & ECN_MASK))
		return DROP_ECN;
	inner->tos = tos | ECN_CE;
	csum_replace16(&inner->check, bpf_htons(tos), bpf_htons(tos | ECN_CE));
	return DROP_NONE;
}

#endif
