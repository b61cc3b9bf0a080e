/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The outer headers (RFC 7348), written and read. An underlay is IPv4 or IPv6:
 * config says which before the program is loaded, so that the other half of each
 * branch isn't there.
 */
#ifndef VXLAN_H
#define VXLAN_H

#include "csum.h"
#include "hash.h"
#include "mtu.h"
#include "route.h"

#define VXLAN_PORT bpf_htons(4789)
#define VXLAN_VALID bpf_htonl(0x08000000) /* the I flag; all other bits are reserved */
#define ECN_MASK 3
#define ECN_ECT1 1
#define ECN_ECT0 2
#define ECN_CE 3

/* What follows the outer IP header. */
struct tunnel {
	struct udphdr udp;
	__be32 flags;
	__be32 vni; /* upper 24 bits */
	struct ethhdr eth;
} __attribute__((packed));

/* Where the outer headers of a received frame stand. */
struct outer {
	void *ip;
	struct tunnel *tunnel;
	__u8 tos;
};

/* Over what makes a flow: spreads flows over paths and queues. A fragment's ports don't count. */
static __always_inline __u32 flow_hash(const struct packet *p)
{
	__u32 ports = p->fragment == WHOLE ? (__u32)p->sport << 16 | p->dport : 0;
	__u32 h = mix(ports ^ p->proto, as_v4(&p->src));

	h = mix(h, as_v4(&p->dst) * 0x9e3779b1);
	if (p->v6)
		h = mix(h, *(const __u32 *)(p->src.b + 8) ^ *(const __u32 *)(p->dst.b + 8));
	h *= 0xc2b2ae35;
	return h ^ h >> 16;
}

/* The dynamic range (RFC 7348, 5), so that no hash meets a service. */
static __always_inline __be16 source_port(__u32 hash)
{
	return bpf_htons(0xc000 | (hash & 0x3fff));
}

/* ECN is copied out (RFC 6040, normal mode), DSCP isn't: it is the operator's. */
static __always_inline void write_outer4(struct iphdr *ip, const struct port *port,
					 const struct packet *p, __u32 len)
{
	*ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tos = p->tos & ECN_MASK,
		.tot_len = bpf_htons(sizeof(*ip) + len),
		.frag_off = IP_DF_BE,
		.ttl = 64,
		.protocol = IPPROTO_UDP,
		.saddr = as_v4(&port->pa),
		.daddr = as_v4(&p->pa),
	};
	ip->check = csum(ip, sizeof(*ip));
}

/* The flow label carries the hash as the source port does (RFC 6438). */
static __always_inline void write_outer6(struct ipv6hdr *ip, const struct port *port,
					 const struct packet *p, __u32 len, __u32 hash)
{
	*ip = (struct ipv6hdr){
		.version = 6,
		.flow_lbl = { (p->tos & ECN_MASK) << 4 | (hash >> 16 & 0xf), hash >> 8, hash },
		.payload_len = bpf_htons(len),
		.nexthdr = IPPROTO_UDP,
		.hop_limit = 64,
	};
	__builtin_memcpy(&ip->saddr, &port->pa, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &p->pa, sizeof(ip->daddr));
}

/*
 * The inner destination is the mapping's MAC: the receiver finds the port by it.
 * The inner source stays the port's own: a plain VTEP learns from it and a
 * capture names the sender. The guest sees the gateway instead, see deliver.h.
 * No UDP checksum: RFC 7348, 5 and RFC 6935 (over IPv6) allow it for tunnels.
 */
static __always_inline void write_tunnel(struct tunnel *t, const struct port *port,
					 const struct packet *p, __u32 inner_len, __u32 hash)
{
	t->udp = (struct udphdr){
		.source = source_port(hash),
		.dest = VXLAN_PORT,
		.len = bpf_htons(inner_len + sizeof(*t) - sizeof(t->eth)),
	};
	t->flags = VXLAN_VALID;
	t->vni = bpf_htonl(p->vni << 8);
	copy_mac(t->eth.h_dest, p->mac);
	copy_mac(t->eth.h_source, port->mac);
	t->eth.h_proto = p->v6 ? ETH_P_BE_IPV6 : ETH_P_BE_IP;
}

static __always_inline bool is_vxlan(struct cursor *c)
{
	__be16 *ports = take(c, 4);

	return ports && ports[1] == VXLAN_PORT;
}

static __always_inline bool is_for_us4(struct cursor *c)
{
	struct iphdr *ip = take(c, sizeof(*ip));
	struct addr dst, host;

	if (!ip || ip->protocol != IPPROTO_UDP)
		return false;
	set_v4(&dst, ip->daddr);
	if (!is_own_pa(&dst))
		return false;
	/*
	 * Later fragments have no ports: those for a PA can be nothing else, those
	 * for the host are its own business.
	 */
	copy_const_addr(&host, &config.host);
	if (ip->frag_off & IP_OFFSET_BE)
		return !same_addr(&dst, &host);
	return ip->ihl >= 5 && take(c, ip->ihl * 4 - sizeof(*ip)) && is_vxlan(c);
}

static __always_inline bool is_for_us6(struct cursor *c)
{
	struct ipv6hdr *ip = take(c, sizeof(*ip));
	struct fragment_header *h;
	struct addr dst, host;

	if (!ip)
		return false;
	set_v6(&dst, &ip->daddr);
	if (!is_own_pa(&dst))
		return false;
	if (ip->nexthdr != NEXT_FRAGMENT)
		return ip->nexthdr == IPPROTO_UDP && is_vxlan(c);
	h = take(c, sizeof(*h));
	if (!h || h->next != IPPROTO_UDP)
		return false;
	copy_const_addr(&host, &config.host);
	return bpf_ntohs(h->offset) & 0xfff8 ? !same_addr(&dst, &host) : is_vxlan(c);
}

/* Whether a frame of the uplink is VXLAN for one of our PAs or for the host. */
static __always_inline bool is_for_us(const struct cursor *all)
{
	struct cursor c = *all;
	struct ethhdr *eth = take(&c, sizeof(*eth));

	if (!eth)
		return false;
	if (config.underlay6)
		return eth->h_proto == ETH_P_BE_IPV6 && is_for_us6(&c);
	return eth->h_proto == ETH_P_BE_IP && is_for_us4(&c);
}

static __always_inline enum drop_reason read_outer4(struct frame *f, struct outer *o, __u32 *len)
{
	struct iphdr *ip = take(&f->rest, sizeof(*ip));
	__u32 total;

	if (!ip)
		return DROP_OUTER_BAD;
	if (ip->frag_off & IP_FRAGMENT_BE)
		return DROP_OUTER_FRAGMENT;
	total = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || ip->ihl != 5 || total < sizeof(*ip))
		return DROP_OUTER_BAD;
	set_v4(&f->p->outer_src, ip->saddr);
	set_v4(&f->p->outer_dst, ip->daddr);
	o->ip = ip;
	o->tos = ip->tos;
	*len = total - sizeof(*ip);
	return DROP_NONE;
}

static __always_inline enum drop_reason read_outer6(struct frame *f, struct outer *o, __u32 *len)
{
	struct ipv6hdr *ip = take(&f->rest, sizeof(*ip));

	if (!ip || ip->version != 6)
		return DROP_OUTER_BAD;
	if (ip->nexthdr == NEXT_FRAGMENT)
		return DROP_OUTER_FRAGMENT;
	set_v6(&f->p->outer_src, &ip->saddr);
	set_v6(&f->p->outer_dst, &ip->daddr);
	o->ip = ip;
	o->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	*len = bpf_ntohs(ip->payload_len);
	return DROP_NONE;
}

/* Takes the outer headers off f: addresses and VNI go into the packet. */
static __always_inline enum drop_reason read_outer(struct frame *f, struct outer *o)
{
	struct ethhdr *eth = take(&f->rest, sizeof(*eth));
	enum drop_reason why;
	struct tunnel *t;
	__u32 len;

	if (!eth)
		return DROP_OUTER_BAD;
	why = config.underlay6 ? read_outer6(f, o, &len) : read_outer4(f, o, &len);
	if (why)
		return why;
	t = take(&f->rest, sizeof(*t));
	if (!t || len > f->len || len < sizeof(*t) || bpf_ntohs(t->udp.len) != len ||
	    ETH_HLEN + OVERHEAD - sizeof(*t) + len > f->len)
		return DROP_OUTER_BAD;
	if (t->flags != VXLAN_VALID || t->vni & bpf_htonl(0xff))
		return DROP_VXLAN_FLAGS;
	o->tunnel = t;
	f->p->vni = bpf_ntohl(t->vni) >> 8;
	copy_mac(f->p->from_mac, t->eth.h_source);
	f->eth = &t->eth;
	f->len -= OVERHEAD;
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
	case DROP_NOT_IP:
		return DROP_INNER_NOT_IP;
	default:
		return why;
	}
}

static __always_inline void write_ecn4(struct iphdr *ip, __u8 ecn)
{
	__u8 was = ip->tos, tos = (was & ~ECN_MASK) | ecn;

	ip->tos = tos;
	csum_replace16(&ip->check, bpf_htons(was), bpf_htons(tos));
}

static __always_inline void write_ecn6(struct ipv6hdr *ip, __u8 ecn)
{
	ip->flow_lbl[0] = (ip->flow_lbl[0] & ~(ECN_MASK << 4)) | ecn << 4;
}

/* Who isn't ECN-capable can be told of congestion by a loss only (RFC 6040, 4.2). */
static __always_inline bool is_congested(const struct packet *p, __u8 outer_tos)
{
	return (outer_tos & ECN_MASK) == ECN_CE && !(p->tos & ECN_MASK);
}

/* Whether the underlay has said more than the inner header does: CE, or ECT(1) of ECT(0). */
static __always_inline bool alters_ecn(const struct packet *p, __u8 outer_tos)
{
	__u8 outer = outer_tos & ECN_MASK, inner = p->tos & ECN_MASK;

	return outer == ECN_CE ? inner != ECN_CE : outer == ECN_ECT1 && inner == ECN_ECT0;
}

/* What routers of the underlay have marked is told to the inner receiver (RFC 6040, 4.2). */
static __always_inline enum drop_reason merge_ecn(struct frame *f, __u8 outer_tos)
{
	struct packet *p = f->p;
	void *ip;

	if (!alters_ecn(p, outer_tos))
		return DROP_NONE;
	if (is_congested(p, outer_tos))
		return DROP_ECN;
	ip = ip_header(f, sizeof(struct iphdr));
	if (!ip)
		return DROP_INNER_TRUNCATED;
	if (p->v6)
		write_ecn6(ip, outer_tos & ECN_MASK);
	else
		write_ecn4(ip, outer_tos & ECN_MASK);
	return DROP_NONE;
}

#endif
