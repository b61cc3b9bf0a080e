/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What the hooks share, and only they: the context and its verdicts. */
#ifndef HOOK_H
#define HOOK_H

#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

#include "drop.h"
#include "parse.h"

/* The longest that parse_ip reads: an ICMPv6 error, its packet and the one it quotes both fragments. */
#define VM_HEADERS (ETH_HLEN + 2 * (40 + 8) + 8 + 8)
/* The same behind the outer headers over IPv6. */
#define WIRE_HEADERS (ETH_HLEN + 56 + VM_HEADERS)

static __always_inline struct cursor all_of(struct __sk_buff *skb)
{
	return (struct cursor){
		.pos = (void *)(long)skb->data,
		.end = (void *)(long)skb->data_end,
	};
}

/*
 * Sends a frame to a port. Through a veth it goes to the other end at once: one
 * queue and one softirq less. The stack takes it there as it is, so its protocol
 * must be right already, which isn't so if the underlay's family was another; and
 * it must be for that end, which Linux before 6.12 doesn't see to by itself.
 */
static __always_inline int send_to_device(struct __sk_buff *skb, const struct port *port, bool v6)
{
	if (!(port->flags & PORT_PEER) || skb->protocol != (v6 ? ETH_P_BE_IPV6 : ETH_P_BE_IP))
		return bpf_redirect(port->ifindex, 0);
	if (skb->pkt_type != PACKET_HOST && bpf_skb_change_type(skb, PACKET_HOST))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(port->ifindex, 0);
}

/* Takes up the frame; as much of its first `headers` bytes as there is can be read. */
static __always_inline struct frame open_frame(struct __sk_buff *skb, __u32 headers)
{
	__u32 linear = skb->data_end - skb->data;

	if (linear < headers && linear < skb->len)
		bpf_skb_pull_data(skb, skb->len < headers ? skb->len : headers);
	return (struct frame){
		.rest = all_of(skb),
		.len = skb->len,
		.gso = skb->gso_size,
	};
}

/* The packet that a hook fills in, empty. NULL can't be, but the verifier wants to hear it. */
static __always_inline struct packet *open_packet(bool trace)
{
	struct packet *p = packet_at_hand();

	if (!p)
		return NULL;
	p->id = p->to_id = p->mtu = 0;
	p->way = WAY_NONE;
	p->fragment = WHOLE;
	p->natted = p->reset = p->known = p->climbs = p->owned = 0;
	p->flow_in = p->flow_out = FLOW_NOT_ASKED;
	p->rule_in = p->rule_out = RULE_NONE;
	p->trace = trace;
	return p;
}

/* A frame of the agent's own, put through the programs to see what would become of it. */
static __always_inline bool is_trace(const struct __sk_buff *skb)
{
	return config.trace_mark && skb->mark == config.trace_mark;
}

/* Hands what is known of a traced frame to the agent. */
static __always_inline void close_packet(const struct packet *p)
{
	__u32 zero = 0;

	if (p->trace)
		bpf_map_update_elem(&traced, &zero, p, BPF_ANY);
}

#endif
