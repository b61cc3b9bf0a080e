/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * ARP (RFC 826) for a network without broadcast: the gateway answers for every
 * other address of the subnet, so a guest's neighbours never change.
 */
#ifndef NEIGH_H
#define NEIGH_H

#include "imds.h"
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

/*
 * A probe has no sender yet (RFC 5227). It dies, by name: an answer would tell a
 * guest that the address it was just given is taken. The same keeps RFC 4436
 * from concluding that the guest is still in its old network.
 */
static __always_inline enum drop_reason check_arp_sender(const struct arp *arp,
							 const struct port *port)
{
	if (!same_mac(arp->sender_mac, port->mac))
		return DROP_SPOOFED_ARP;
	if (!arp->sender)
		return DROP_ARP_PROBE;
	if (!has_ca(port, arp->sender))
		return DROP_SPOOFED_ARP;
	return DROP_NONE;
}

static __always_inline enum drop_reason check_arp_target(__be32 target, const struct port *port)
{
	if (has_ca(port, target))
		return DROP_ARP_OWN;
	if (is_v4(&port->gateway, target) || target == IMDS_ADDRESS)
		return DROP_NONE;
	if (port->flags & PORT_ISOLATED || !on_subnet(port, target))
		return DROP_ARP_STRANGER;
	return DROP_NONE;
}

/* Reads an ARP packet. *asked: it wants an answer; else it is one, for the agent. */
static __always_inline enum drop_reason read_arp(struct frame *f, const struct port *port,
						 struct arp **out, bool *asked)
{
	struct arp *arp = take(&f->rest, sizeof(*arp));
	enum drop_reason why;

	if (!arp)
		return DROP_TRUNCATED;
	*out = arp;
	*asked = arp->op == bpf_htons(ARP_REQUEST);
	if (arp->hardware != bpf_htons(1) || arp->protocol != ETH_P_BE_IP ||
	    arp->hardware_len != 6 || arp->protocol_len != 4 ||
	    (!*asked && arp->op != bpf_htons(ARP_REPLY)))
		return DROP_BAD_ARP;
	why = check_arp_sender(arp, port);
	if (why)
		return why;
	if (*asked)
		return check_arp_target(arp->target, port);
	return is_v4(&port->gateway, arp->target) ? DROP_NONE : DROP_ARP_UNASKED;
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

#endif
