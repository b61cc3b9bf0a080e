//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * A frame that from_wire sent up: tcx ingress of the VXLAN device. The kernel has
 * taken its outer headers off, which leaves a plain frame, merged or not.
 */
#include "answer_wire.h"
#include "hand_over.h"

/* Notes by which addresses of the underlay the frame came. */
static __always_inline void read_tunnel(struct packet *p, const struct bpf_tunnel_key *tunnel)
{
	if (config.underlay6)
		set_v6(&p->outer_src, tunnel->remote_ipv6);
	else
		set_v4(&p->outer_src, bpf_htonl(tunnel->remote_ipv4));
}

/* The row may have changed since the mark was set, so what the mark promised is looked up again. */
static __always_inline enum drop_reason check_marked(struct __sk_buff *skb, struct received *r)
{
	struct bpf_tunnel_key tunnel;
	struct packet *p = r->f.p;
	enum drop_reason why;

	if ((skb->mark & ~(MARK_PORT | MARK_NAT | MARK_RESET)) != MARK_UP ||
	    bpf_skb_get_tunnel_key(skb, &tunnel, sizeof(tunnel),
				   config.underlay6 ? BPF_F_TUNINFO_IPV6 : 0))
		return DROP_UNMARKED;
	read_tunnel(p, &tunnel);
	p->id = skb->mark & MARK_PORT;
	r->port = find_port(p->id);
	why = as_inner(parse_eth(&r->f));
	if (why)
		return why;
	copy_mac(p->from_mac, r->f.eth->h_source);
	why = as_inner(parse_ip(&r->f));
	if (why)
		return why;
	if (!r->port || !r->port->ifindex || r->port->vni != tunnel.tunnel_id ||
	    !same_mac(r->port->mac, r->f.eth->h_dest))
		return DROP_CHANGED;
	why = admit(&r->f, r->port);
	if (!why && skb->mark & MARK_RESET) {
		p->reset = takes_reset(p);
		return DROP_MIDSTREAM;
	}
	return why ? why : check_size(&r->f, r->port->mtu, DROP_TO_TOO_BIG);
}

/* Answers a frame that was refused: the same way as any other goes to that host. */
static __always_inline int answer_marked(struct __sk_buff *skb, struct received *r)
{
	struct packet *p = r->f.p;
	struct ethhdr *eth;
	__u8 mac[6];

	skb->mark = 0;
	p->next_hop = 0;
	p->vni = r->port->vni;
	if (!vouch(r->port) ||
	    bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_source), mac, sizeof(mac)) ||
	    !write_answer(skb, r, mac, &eth))
		return TC_ACT_SHOT;
	return send_by_next_hop(eth, p->next_hop);
}

/* What from_wire found about services, once more: the row may be gone by now. */
static __always_inline enum drop_reason translate_marked(struct __sk_buff *skb, struct received *r)
{
	struct packet *p = r->f.p;
	const struct flow *flow;
	enum drop_reason why = match_fragment(p, p->id, r->port, true);

	if (why)
		return why;
	make_key(p, p->id, true);
	flow = find_flow(&p->key, p->v6);
	if (!flow || flow->epoch != r->port->epoch || !(flow->flags & FLOW_BACKEND))
		return DROP_CHANGED;
	p->nat = flow->nat;
	p->nat_port = flow->nat_port;
	return translate(skb, &r->f);
}

SEC("tcx/ingress")
int from_vxlan(struct __sk_buff *skb)
{
	struct received r = { .f = open_frame(skb, VM_HEADERS) };
	struct packet *p = open_packet(false);
	int verdict = TC_ACT_SHOT;
	enum drop_reason why;

	if (!p)
		return TC_ACT_SHOT;
	r.f.p = p;
	why = check_marked(skb, &r);
	if (!why && skb->mark & MARK_NAT)
		why = translate_marked(skb, &r);
	if (!why) {
		skb->mark = 0;
		why = hand_over(skb, &r, &verdict);
	}
	if (why && r.port && (p->mtu || p->reset)) /* from_wire has captured it */
		verdict = answer_marked(skb, &r);
	else if (why)
		show_drop(skb, r.port, POINT_DROP, why);
	count(p, why);
	return verdict;
}
