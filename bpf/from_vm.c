//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* A frame from a VM: tcx ingress of its tap. */
#include "answer.h"
#include "capture.h"
#include "mss.h"
#include "quote.h"
#include "trap.h"
#include "wrap.h"

struct sent {
	struct frame f;
	const struct port *port;
	const struct port *to; /* the one that gets it, if it is here */
};

/*
 * Says to the receiver who sent the packet, as the outer headers would. A router's
 * source, and one of a peer network, it looks up as if it had come by the wire.
 */
static __always_inline void introduce(struct sent *s)
{
	struct packet *p = s->f.p;

	p->owned &= p->id != p->to_id && s->port->vni == s->to->vni;
	if (p->owned)
		return;
	p->outer_src = s->port->pa;
	copy_mac(p->from_mac, s->port->mac);
}

/* On this host the receiver's checks are made at once. */
static __always_inline enum drop_reason decide_local(struct sent *s)
{
	struct packet *p = s->f.p;
	enum drop_reason why;

	p->way = WAY_LOCAL;
	why = find_local(p->vni, p->mac, &p->to_id, &s->to);
	if (why)
		return why;
	why = admit(&s->f, s->to);
	if (why)
		return why;
	why = check_size(&s->f, s->to->mtu, DROP_TO_TOO_BIG);
	if (why)
		return why;
	introduce(s);
	why = permit(&s->f, p->to_id, s->to, true);
	if (p->trace && !p->owned) { /* it holds the way back by now, and tells the way there */
		p->next = p->dst;
		find_way(s->port);
	}
	return why;
}

static __always_inline enum drop_reason decide_way(struct sent *s)
{
	struct packet *p = s->f.p;

	if (p->natted) {
		p->dst = p->nat;
		if (!p->quotes)
			p->dport = p->nat_port;
	}
	if (p->here)
		return decide_local(s);
	p->way = WAY_WIRE;
	return check_size(&s->f, path_mtu(s->port), DROP_TOO_BIG);
}

/* What is the host's own business, whatever address a guest has by now. */
static __always_inline bool is_host_business(struct packet *p)
{
	p->way = WAY_TRAP;
	if (is_dhcp(p)) {
		p->kind = TRAP_DHCP;
		return true;
	}
	if (is_dhcpv6(p) && is_link_scope(&p->src)) {
		p->kind = TRAP_DHCPV6;
		return true;
	}
	p->way = WAY_NONE;
	return false;
}

static __always_inline enum drop_reason decide_ip(struct sent *s)
{
	enum drop_reason why = parse_ip(&s->f);
	struct packet *p = s->f.p;

	if (why)
		return why;
	if (is_host_business(p))
		return DROP_NONE;
	if (is_rogue_dhcp(p))
		return DROP_ROGUE_DHCP;
	if (is_nd(p))
		return read_nd(&s->f, s->port);
	if (is_metadata(&p->dst, p->v6)) {
		p->way = WAY_IMDS;
		return check_imds_request(p, s->port);
	}
	why = check_source_ca(p, s->port);
	if (why)
		return why;
	why = check_unicast(&s->f, s->port);
	if (why)
		return why;
	if (same_addr(&p->dst, p->v6 ? &s->port->gateway6 : &s->port->gateway))
		return decide_gateway(p);
	if (s->port->flags & PORT_ISOLATED)
		return DROP_ISOLATED;
	why = permit(&s->f, p->id, s->port, false);
	return why ? why : decide_way(s);
}

static __always_inline enum drop_reason decide(struct sent *s, __u32 tap, bool tagged)
{
	enum drop_reason why = find_sender(s->f.p, tap, &s->port);

	if (why)
		return why;
	/* The kernel moves a tag out of the frame: what is left looks like plain IPv4. */
	if (tagged)
		return DROP_VLAN;
	why = parse_eth(&s->f);
	if (why)
		return why;
	why = check_source_mac(&s->f, s->port);
	if (why)
		return why;
	if (s->f.eth->h_proto == ETH_P_BE_ARP)
		return read_arp(&s->f, s->port);
	return decide_ip(s);
}

static __always_inline enum drop_reason trap_frame(struct __sk_buff *skb, const struct sent *s)
{
	const struct packet *p = s->f.p;
	__u64 len = s->f.len;
	enum drop_reason why;
	struct trap *t;

	if (p->trace)
		return DROP_NONE;
	why = open_trap(p, s->port, len, &t);
	if (why)
		return why;
	if (!WITHIN(len, ETH_HLEN, TRAP_FRAME) || bpf_skb_load_bytes(skb, 0, t->frame, len)) {
		bpf_ringbuf_discard(t, 0);
		return DROP_TRAP_SIZE;
	}
	bpf_ringbuf_submit(t, 0);
	return DROP_NONE;
}

/* Finds the headers again: the helpers that write may have moved the frame. */
static __always_inline enum drop_reason reopen(struct __sk_buff *skb, struct sent *s)
{
	s->f.rest = all_of(skb);
	return parse_eth(&s->f) || parse_ip(&s->f) ? DROP_TRUNCATED : DROP_NONE;
}

/* The host's stack can't be told how large the guest's packets may be: its SYN must say it. */
static __always_inline enum drop_reason send_to_imds(struct __sk_buff *skb, struct sent *s,
						     int *verdict)
{
	struct packet *p = s->f.p;
	enum drop_reason why = clamp_mss(skb, p, s->port->mtu);

	if (why)
		return why;
	why = reopen(skb, s);
	if (why)
		return why;
	imds_caller(&p->nat, p->v6, p->id, s->port->epoch);
	copy_const_mac(s->f.eth->h_dest, config.imds_mac);
	if (rewrite(skb, &s->f, END_SOURCE, &p->nat, 0))
		return DROP_TRUNCATED;
	*verdict = bpf_redirect(config.imds, BPF_F_INGRESS);
	return DROP_NONE;
}

/* Writes what a service, or a path's size, changes in the packet itself. */
static __always_inline enum drop_reason mend(struct __sk_buff *skb, struct sent *s, __u32 mtu)
{
	struct packet *p = s->f.p;
	enum drop_reason why = clamp_mss(skb, p, mtu);

	if (why || !p->natted)
		return why;
	if (p->quotes)
		return translate_error(skb) ? DROP_TRUNCATED : DROP_NONE;
	why = reopen(skb, s);
	if (why)
		return why;
	if (rewrite(skb, &s->f, p->natted & FLOW_SERVICE ? END_DESTINATION : END_SOURCE, &p->nat,
		    p->nat_port))
		return DROP_TRUNCATED;
	return DROP_NONE;
}

static __always_inline enum drop_reason send_to_port(struct __sk_buff *skb, struct sent *s,
						     int *verdict)
{
	struct packet *p = s->f.p;
	enum drop_reason why;
	struct ethhdr *eth;
	struct cursor c;

	if (!s->to)
		return DROP_NOT_LOCAL;
	why = mend(skb, s, s->to->mtu);
	if (why)
		return why;
	c = all_of(skb);
	eth = take(&c, sizeof(*eth));
	if (!eth)
		return DROP_NO_ROOM;
	write_delivery(eth, s->to, p->v6);
	account_to(p, p->to_id, s->to, s->f.len);
	if (is_captured(p, s->to))
		capture(skb, p->to_id, POINT_TO_VM, DROP_NONE);
	*verdict = send_to_device(skb, s->to, p->v6);
	return DROP_NONE;
}

static __always_inline enum drop_reason send_to_wire(struct __sk_buff *skb, struct sent *s,
						     int *verdict)
{
	struct packet *p = s->f.p;
	enum drop_reason why = mend(skb, s, path_mtu(s->port));
	struct ethhdr *eth;

	if (why)
		return why;
	if (s->f.len + OVERHEAD6 > 0xffff) /* the outer length can't say it */
		return DROP_TOO_BIG;
	if (!make_room(skb, s->f.gso))
		return DROP_NO_ROOM;
	why = write_outer(skb, s->port, p, s->f.len, flow_hash(p), &eth);
	if (why)
		return why;
	*verdict = send_by_next_hop(eth, p->next_hop);
	if (is_captured(p, s->port))
		capture(skb, p->id, POINT_TO_WIRE, DROP_NONE);
	return DROP_NONE;
}

static __always_inline enum drop_reason act(struct __sk_buff *skb, struct sent *s, __u32 tap,
					    int *verdict)
{
	switch (s->f.p->way) {
	case WAY_TRAP:
		return trap_frame(skb, s);
	case WAY_ANSWER:
		return answer(skb, &s->f, s->port, tap, verdict);
	case WAY_IMDS:
		return send_to_imds(skb, s, verdict);
	case WAY_LOCAL:
		return send_to_port(skb, s, verdict);
	default:
		return send_to_wire(skb, s, verdict);
	}
}

/*
 * DHCP, and neighbour discovery by a link-local address, come from a guest that
 * may have no address of the network yet: they don't show that it is there.
 */
static __always_inline bool shows_guest(const struct packet *p)
{
	if (p->v6 && is_link_scope(&p->src))
		return false;
	return p->way != WAY_TRAP || p->kind == TRAP_ARP_REPLY || p->kind == TRAP_NEIGH_ADVERT ||
	       p->kind == TRAP_PROBE;
}

SEC("tcx/ingress")
int from_vm(struct __sk_buff *skb)
{
	struct sent s = { .f = open_frame(skb, VM_HEADERS) };
	struct packet *p = open_packet(is_trace(skb));
	__u32 tap = *(volatile __u32 *)&skb->ifindex; /* once: its address must not be kept */
	int verdict = TC_ACT_SHOT;
	enum drop_reason why;

	if (!p)
		return TC_ACT_SHOT;
	s.f.p = p;
	why = decide(&s, tap, skb->vlan_present);
	if (s.port && is_captured(p, s.port))
		capture(skb, p->id, POINT_FROM_VM, DROP_NONE);
	if (!why)
		why = act(skb, &s, tap, &verdict);
	if (!why && shows_guest(p))
		account_from(p, s.port, s.f.len);
	if (why)
		show_drop(skb, s.port, POINT_DROP, why);
	if (why && s.to)
		show_drop(skb, s.to, POINT_DROP_TO, why);
	if (why && s.port && p->mtu)
		verdict = tell_too_big(skb, p, s.port, tap);
	else if (why && s.port && p->reset)
		verdict = answer_reset(skb, p, s.port, tap);
	count(p, why);
	close_packet(p);
	return verdict;
}
