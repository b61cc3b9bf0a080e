/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * ARP (RFC 826) and neighbour discovery (RFC 4861) for a network without
 * broadcast: the gateway answers for every other address of the subnet, so a
 * guest's neighbours never change.
 */
#ifndef NEIGH_H
#define NEIGH_H

#include "csum.h"
#include "imds.h"
#include "rate.h"
#include "route.h"
#include "spoof.h"

struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 op;
	__u8 sender_mac[6];
	__be32 sender;
	__u8 target_mac[6];
	__be32 target;
} __attribute__((packed));

enum arp_op { ARP_REQUEST = 1, ARP_REPLY = 2 };

/* RFC 4861, 4.3 and 4.4, with one link-layer address option. */
struct nd {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be32 flags; /* of an advertisement */
	struct in6_addr target;
	__u8 option;
	__u8 option_len; /* in 8 bytes */
	__u8 mac[6];
};

enum nd_type { ND_RS = 133, ND_RA, ND_NS, ND_NA, ND_REDIRECT };
enum { ND_SOURCE_MAC = 1, ND_TARGET_MAC = 2 };
#define ND_ROUTER bpf_htonl(0x80000000)
#define ND_SOLICITED bpf_htonl(0x40000000)
#define ND_OVERRIDE bpf_htonl(0x20000000)

/*
 * A probe has no sender yet (RFC 5227). It dies, by name: an answer would tell a
 * guest that the address it was just given is taken. The same keeps RFC 4436
 * from concluding that the guest is still in its old network.
 */
static __always_inline enum drop_reason check_arp_sender(const struct arp *arp, struct packet *p,
							 const struct port *port)
{
	if (!same_mac(arp->sender_mac, port->mac))
		return DROP_SPOOFED_ARP;
	if (!arp->sender)
		return DROP_ARP_PROBE;
	set_v4(&p->src, arp->sender);
	set_v4(&p->dst, arp->target);
	/* A gateway VM asks by the address that the packet in question comes from. */
	return has_ca(port, &p->src) || port->flags & PORT_ROUTER ? DROP_NONE : DROP_SPOOFED_ARP;
}

static __always_inline enum drop_reason check_arp_target(const struct packet *p,
							 const struct port *port)
{
	if (has_ca(port, &p->dst))
		return DROP_ARP_OWN;
	if (same_addr(&port->gateway, &p->dst) || as_v4(&p->dst) == IMDS_ADDRESS)
		return DROP_NONE;
	if (port->flags & PORT_ISOLATED || !on_subnet(port, &p->dst))
		return DROP_ARP_STRANGER;
	return DROP_NONE;
}

/* What the gateway answers costs the host something: one port can't have it all. */
static __always_inline enum drop_reason may_answer(const struct packet *p)
{
	return spend(p, p->id, BUCKET_ANSWER, config.answer_interval, config.answer_burst)
		       ? DROP_NONE
		       : DROP_ANSWER_RATE;
}

/* Reads an ARP packet: a request is for the gateway to answer, a reply is for the agent. */
static __always_inline enum drop_reason read_arp(struct frame *f, const struct port *port)
{
	struct arp *arp = take(&f->rest, sizeof(*arp));
	struct packet *p = f->p;
	enum drop_reason why;

	if (!arp)
		return DROP_TRUNCATED;
	f->l4 = arp;
	p->v6 = 0;
	p->way = arp->op == bpf_htons(ARP_REQUEST) ? WAY_ANSWER : WAY_TRAP;
	p->kind = TRAP_ARP_REPLY;
	if (arp->hardware != bpf_htons(1) || arp->protocol != ETH_P_BE_IP ||
	    arp->hardware_len != 6 || arp->protocol_len != 4 ||
	    (p->way == WAY_TRAP && arp->op != bpf_htons(ARP_REPLY)))
		return DROP_BAD_ARP;
	why = check_arp_sender(arp, p, port);
	if (why)
		return why;
	if (p->way == WAY_TRAP)
		return same_addr(&port->gateway, &p->dst) ? DROP_NONE : DROP_ARP_UNASKED;
	why = check_arp_target(p, port);
	return why ? why : may_answer(p);
}

/* Turns a request into the gateway's reply, in place. */
static __always_inline void answer_arp(struct ethhdr *eth, struct arp *arp)
{
	__be32 asked_for = arp->target;

	copy_mac(eth->h_dest, eth->h_source);
	copy_const_mac(eth->h_source, config.gateway_mac);
	arp->op = bpf_htons(ARP_REPLY);
	arp->target = arp->sender;
	arp->sender = asked_for;
	copy_mac(arp->target_mac, arp->sender_mac);
	copy_const_mac(arp->sender_mac, config.gateway_mac);
}

static __always_inline bool is_nd(const struct packet *p)
{
	return p->v6 && p->proto == NEXT_ICMPV6 && p->icmp_type >= ND_RS &&
	       p->icmp_type <= ND_REDIRECT;
}

/* As a source of neighbour discovery: one of its CAs, or its own affair. */
static __always_inline bool may_speak(const struct packet *p, const struct port *port)
{
	return is_link_scope(&p->src) || has_ca(port, &p->src) || port->flags & PORT_ROUTER;
}

/* An option that names another link-layer address than the port's is a lie. */
static __always_inline enum drop_reason check_nd_option(const struct nd *nd, const struct frame *f,
							const struct port *port)
{
	if (f->p->payload < sizeof(*nd))
		return DROP_NONE;
	if ((void *)(nd + 1) > f->rest.end)
		return DROP_TRUNCATED;
	if (nd->option != ND_SOURCE_MAC && nd->option != ND_TARGET_MAC)
		return DROP_NONE;
	if (nd->option_len != 1)
		return DROP_BAD_ND;
	return same_mac(nd->mac, port->mac) ? DROP_NONE : DROP_SPOOFED_ND;
}

static __always_inline enum drop_reason check_solicitation(struct packet *p,
							   const struct port *port)
{
	if (has_ca(port, &p->next))
		return DROP_ND_OWN;
	if (same_addr(&port->gateway6, &p->next) || is_imds6(&p->next))
		return may_answer(p);
	if (port->flags & PORT_ISOLATED || is_link_scope(&p->next) || !on_subnet(port, &p->next))
		return DROP_ND_STRANGER;
	return may_answer(p);
}

/* RFC 4861, 7.1: what every node checks. p->next becomes the target. */
static __always_inline enum drop_reason read_target(struct frame *f, const struct port *port)
{
	const struct nd *nd = f->l4;
	struct packet *p = f->p;

	if (!nd || p->payload < 24 || f->l4 + 24 > f->rest.end)
		return DROP_TRUNCATED;
	set_v6(&p->next, &nd->target);
	if (nd->code || p->next.b[0] == 0xff)
		return DROP_BAD_ND;
	if (!is_none(&p->src) && !may_speak(p, port))
		return DROP_SPOOFED_ND;
	return check_nd_option(nd, f, port);
}

/*
 * Neighbour discovery from a VM. Duplicate address detection dies by name, as
 * an ARP probe does: nobody may answer it, and so the address is free.
 */
static __always_inline enum drop_reason read_nd(struct frame *f, const struct port *port)
{
	struct packet *p = f->p;
	const struct ipv6hdr *ip = ip_header(f, sizeof(*ip));
	enum drop_reason why;

	/* Not in fragments, be it a single one (RFC 6980). */
	if (!ip || ip->hop_limit != 255 || p->header != sizeof(*ip))
		return DROP_BAD_ND;
	switch (p->icmp_type) {
	case ND_RS:
		p->way = WAY_TRAP;
		p->kind = TRAP_ROUTER_SOLICIT;
		return is_none(&p->src) || may_speak(p, port) ? DROP_NONE : DROP_SPOOFED_ND;
	case ND_NS:
		why = read_target(f, port);
		if (why)
			return why;
		p->way = WAY_ANSWER;
		return is_none(&p->src) ? DROP_ND_PROBE : check_solicitation(p, port);
	case ND_NA:
		why = read_target(f, port);
		if (why)
			return why;
		p->way = WAY_TRAP;
		p->kind = TRAP_NEIGH_ADVERT;
		if (!has_ca(port, &p->next) && !is_link_scope(&p->next))
			return DROP_SPOOFED_ND;
		return same_addr(&port->gateway6, &p->dst) ? DROP_NONE : DROP_ND_UNASKED;
	default:
		return DROP_ROGUE_RA;
	}
}

/* An ICMPv6 checksum covers both addresses, too (RFC 8200, 8.1). len is known at compile time. */
static __always_inline __u16 csum_icmpv6(const void *addrs, const void *icmp, __u32 len)
{
	__u32 sum = csum_add(0, addrs, 32);

	sum += bpf_htons(len);
	sum += bpf_htons(NEXT_ICMPV6);
	return csum_fold(csum_add(sum, icmp, len));
}

/* The gateway's advertisement, written over a solicitation whose frame has the room. */
struct nd_answer {
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct nd nd;
} __attribute__((packed));

static __always_inline void write_nd_answer(struct nd_answer *a, const struct packet *p,
					    const struct port *port)
{
	copy_mac(a->eth.h_dest, port->mac);
	copy_const_mac(a->eth.h_source, config.gateway_mac);
	a->ip.payload_len = bpf_htons(sizeof(a->nd));
	a->ip.hop_limit = 255;
	__builtin_memcpy(&a->ip.saddr, &p->next, sizeof(p->next));
	__builtin_memcpy(&a->ip.daddr, &p->src, sizeof(p->src));
	a->nd.type = ND_NA;
	a->nd.code = 0;
	a->nd.checksum = 0;
	a->nd.flags = ND_SOLICITED | ND_OVERRIDE;
	if (same_addr(&p->next, &port->gateway6))
		a->nd.flags |= ND_ROUTER;
	__builtin_memcpy(&a->nd.target, &p->next, sizeof(p->next));
	a->nd.option = ND_TARGET_MAC;
	a->nd.option_len = 1;
	copy_const_mac(a->nd.mac, config.gateway_mac);
	a->nd.checksum = csum_icmpv6((void *)a + ETH_HLEN + 8, &a->nd, sizeof(a->nd));
}

#endif
