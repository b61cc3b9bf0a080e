//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* A frame from the underlay: tcx ingress of the uplink and of the VXLAN device. */
#include "capture.h"
#include "deliver.h"
#include "hook.h"
#include "nat.h"
#include "received.h"
#include "reset.h"

/* skb->mark of a frame that from_wire has checked and sent up; the port id is in the rest. */
#define MARK_UP 0x5eb70000
#define MARK_NAT 0x8000
#define MARK_PORT 0x3fff

/*
 * Sends a frame up the stack to the VXLAN device. No PA is an address of this
 * host, so the outer destination becomes one that is. The UDP checksum goes,
 * as it covers the address; none is fine for VXLAN (RFC 7348, 5; RFC 6935).
 */
static __always_inline int send_up(struct __sk_buff *skb, struct received *r)
{
	struct packet *p = r->f.p;
	struct addr host;

	copy_const_addr(&host, &config.host);
	if (config.underlay6) {
		struct ipv6hdr *ip = r->outer.ip;

		__builtin_memcpy(&ip->daddr, &host, sizeof(host));
	} else {
		struct iphdr *ip = r->outer.ip;

		csum_replace32(&ip->check, ip->daddr, as_v4(&host));
		ip->daddr = as_v4(&host);
	}
	r->outer.tunnel->udp.check = 0;
	skb->mark = MARK_UP | (p->natted ? MARK_NAT : 0) | p->id;
	p->way = WAY_UP;
	return TC_ACT_UNSPEC;
}

/* The answer of a backend becomes the service's. */
static __always_inline enum drop_reason translate(struct __sk_buff *skb, struct frame *f)
{
	struct packet *p = f->p;

	f->rest = all_of(skb);
	if (parse_eth(f))
		return DROP_INNER_TRUNCATED;
	/* Unwrapped, it still has the outer Ethernet header: the room was made behind that. */
	f->eth->h_proto = p->v6 ? ETH_P_BE_IPV6 : ETH_P_BE_IP;
	if (parse_ip(f) || rewrite(skb, f, END_SOURCE, &p->nat, p->nat_port))
		return DROP_INNER_TRUNCATED;
	return DROP_NONE;
}

static __always_inline enum drop_reason hand_over(struct __sk_buff *skb, struct received *r,
						  int *verdict)
{
	struct packet *p = r->f.p;
	struct cursor c = all_of(skb);
	struct ethhdr *eth = take(&c, sizeof(*eth));

	if (!eth)
		return DROP_NO_ROOM;
	write_delivery(eth, r->port, p->v6);
	account_to(p, p->id, r->port, r->f.len);
	if (is_captured(p, r->port))
		capture(skb, p, p->id, POINT_TO_VM, DROP_NONE);
	p->to_id = p->id;
	*verdict = bpf_redirect(r->port->ifindex, 0);
	return DROP_NONE;
}

/*
 * Takes the outer headers off. The kernel leaves no less behind than a header of
 * the underlay's family: a smaller packet is filled up, and cut afterwards.
 */
static __always_inline bool take_off(struct __sk_buff *skb, __u32 inner, __u64 flags)
{
	__u32 least = ETH_HLEN + sizeof(struct ipv6hdr);
	bool small = config.underlay6 && inner < least;

	if (small && bpf_skb_change_tail(skb, OVERHEAD + least, 0))
		return false;
	if (bpf_skb_adjust_room(skb, -(__s32)OVERHEAD, BPF_ADJ_ROOM_MAC, flags))
		return false;
	return !small || !bpf_skb_change_tail(skb, inner, 0);
}

static __always_inline enum drop_reason unwrap(struct __sk_buff *skb, struct received *r,
					       int *verdict)
{
	enum drop_reason why = merge_ecn(&r->f, r->outer.tos);

	if (why)
		return why;
	if (!take_off(skb, r->f.len, r->f.gso ? config.decap_flags : 0))
		return DROP_NO_ROOM;
	r->f.p->way = WAY_DELIVER;
	if (r->f.p->natted) {
		why = translate(skb, &r->f);
		if (why)
			return why;
	}
	return hand_over(skb, r, verdict);
}

/*
 * Turns a segment that no connection knows into a reset, and sends it back the
 * way it came: to the router that brought it.
 */
static __always_inline int answer_reset_by_wire(struct __sk_buff *skb, struct received *r,
						const __u32 device)
{
	struct packet *p = r->f.p;
	__u32 inner = ETH_HLEN + reset_len(p), len = inner + sizeof(struct tunnel) - ETH_HLEN;
	struct cursor c;
	struct ethhdr *eth;
	struct tunnel *t;
	__u8 mac[6];

	if (bpf_skb_change_tail(skb, OVERHEAD + inner, 0))
		return TC_ACT_SHOT;
	c = all_of(skb);
	eth = take(&c, sizeof(*eth));
	if (!eth)
		return TC_ACT_SHOT;
	copy_mac(mac, eth->h_dest);
	copy_mac(eth->h_dest, eth->h_source);
	copy_mac(eth->h_source, mac);
	p->pa = p->outer_src;
	p->tos = 0;
	if (config.underlay6) {
		struct ipv6hdr *ip = take(&c, sizeof(*ip));

		if (!ip)
			return TC_ACT_SHOT;
		write_outer6(ip, r->port, p, len, flow_hash(p));
	} else {
		struct iphdr *ip = take(&c, sizeof(*ip));

		if (!ip)
			return TC_ACT_SHOT;
		write_outer4(ip, r->port, p, len);
	}
	t = take(&c, sizeof(*t));
	if (!t)
		return TC_ACT_SHOT;
	copy_mac(p->mac, t->eth.h_source);
	write_tunnel(t, r->port, p, inner, flow_hash(p));
	if (!write_reset(&c, p))
		return TC_ACT_SHOT;
	return bpf_redirect(device, 0);
}

/* Frames that aren't ours go on as if we weren't there; those sent up are counted there. */
SEC("tcx/ingress")
int from_wire(struct __sk_buff *skb)
{
	struct received r = { .f = open_frame(skb, WIRE_HEADERS) };
	struct packet *p = open_packet(is_trace(skb));
	int verdict = TC_ACT_SHOT;
	enum drop_reason why;

	if (!p || skb->vlan_present || skb->pkt_type || !is_for_us(&r.f.rest))
		return TC_ACT_UNSPEC;
	r.f.p = p;
	why = examine(&r);
	if (r.port && is_captured(p, r.port))
		capture(skb, p, p->id, POINT_FROM_WIRE, DROP_NONE);
	if (!why && p->climbs && !config.decap_flags) {
		verdict = send_up(skb, &r);
		close_packet(p);
		return verdict;
	}
	if (!why)
		why = unwrap(skb, &r, &verdict);
	if (why && is_watched(p, r.port))
		capture(skb, p, p->id, POINT_DROP, why);
	if (why && p->reset && r.port)
		verdict = answer_reset_by_wire(skb, &r, config.uplink);
	count(p, why);
	close_packet(p);
	return verdict;
}

/* The row may have changed since the mark was set, so what the mark promised is looked up again. */
static __always_inline enum drop_reason check_marked(struct __sk_buff *skb, struct received *r)
{
	struct bpf_tunnel_key tunnel;
	struct packet *p = r->f.p;
	enum drop_reason why;

	if ((skb->mark & ~(MARK_PORT | MARK_NAT)) != MARK_UP ||
	    bpf_skb_get_tunnel_key(skb, &tunnel, sizeof(tunnel),
				   config.underlay6 ? BPF_F_TUNINFO_IPV6 : 0))
		return DROP_UNMARKED;
	p->id = skb->mark & MARK_PORT;
	r->port = find_port(p->id);
	why = as_inner(parse_eth(&r->f));
	if (why)
		return why;
	why = as_inner(parse_ip(&r->f));
	if (why)
		return why;
	if (!r->port || !r->port->ifindex || r->port->vni != tunnel.tunnel_id ||
	    !same_mac(r->port->mac, r->f.eth->h_dest))
		return DROP_CHANGED;
	why = admit(&r->f, r->port);
	return why ? why : check_size(&r->f, r->port->mtu, DROP_TO_TOO_BIG);
}

/* What from_wire found about services, once more: the row may be gone by now. */
static __always_inline enum drop_reason translate_marked(struct __sk_buff *skb, struct received *r)
{
	struct packet *p = r->f.p;
	const struct flow *flow;

	make_key(p, p->id, true);
	flow = bpf_map_lookup_elem(&flows, &p->key);
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
	if (why && is_watched(p, r.port))
		capture(skb, p, p->id, POINT_DROP, why);
	count(p, why);
	return verdict;
}
