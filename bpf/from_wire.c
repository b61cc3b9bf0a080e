//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* A frame from the underlay: tcx ingress of the uplink and of the VXLAN device. */
#include "deliver.h"
#include "flow.h"
#include "hook.h"
#include "trap.h"
#include "vxlan.h"

/* skb->mark of a frame that from_wire has checked and sent up; the port id is in the rest. */
#define MARK_UP 0x5eb70000
#define MARK_PORT 0x0fff

struct received {
	struct frame f;
	struct outer *outer;
	__u32 id;
	const struct port *port;
};

static __always_inline bool is_registered(__be32 pa)
{
	struct host_key key = { .prefixlen = 128, .pa = { [10] = 0xff, [11] = 0xff } };

	__builtin_memcpy(key.pa + 12, &pa, sizeof(pa));
	return bpf_map_lookup_elem(&hosts, &key);
}

/*
 * The way back must lead to where the frame came from. A source that nobody has
 * told us of yet is believed for a while if a registered host vouches for it.
 */
static __always_inline enum drop_reason check_source(const struct received *r)
{
	__be32 from = r->outer->ip.saddr;
	struct tally *n;
	struct mapping back;
	struct addr next;

	if (!find_route(r->port, r->f.ip->saddr, &next) &&
	    !find_mapping(r->port->vni, &next, &back))
		return is_v4(&back.pa, from) ? DROP_NONE : DROP_WRONG_SOURCE;
	if (!is_registered(from))
		return DROP_UNKNOWN_SOURCE;
	if (!spend(r->id, BUCKET_UNRESOLVED, config.unresolved_interval, config.unresolved_burst))
		return DROP_UNRESOLVED_RATE;
	n = bpf_map_lookup_elem(&port_counters, &r->id);
	if (n)
		n->unresolved++;
	return DROP_NONE;
}

static __always_inline enum drop_reason read_inner(struct received *r)
{
	if (r->f.eth->h_proto != ETH_P_BE_IP)
		return DROP_INNER_NOT_IP;
	return as_inner(parse_ipv4(&r->f));
}

static __always_inline enum drop_reason examine(struct received *r)
{
	enum drop_reason why = read_outer(&r->f, &r->outer);
	__u32 vni;

	if (why)
		return why;
	why = read_inner(r);
	if (why)
		return why;
	vni = bpf_ntohl(r->outer->vxlan.vni) >> 8;
	why = find_local(vni, r->f.eth->h_dest, &r->id, &r->port);
	if (why)
		return why;
	if (!is_v4(&r->port->pa, r->outer->ip.daddr))
		return DROP_WRONG_PA;
	why = admit(&r->f, r->port);
	if (why)
		return why;
	return check_source(r);
}

/*
 * Sends a frame up the stack to the VXLAN device. No PA is an address of this
 * host, so the outer destination becomes one that is. The UDP checksum goes,
 * as it covers the address; none is fine for VXLAN over IPv4 (RFC 7348, 5).
 */
static __always_inline int send_up(struct __sk_buff *skb, struct received *r)
{
	struct outer *o = r->outer;

	csum_replace32(&o->ip.check, o->ip.daddr, config.host);
	o->ip.daddr = config.host;
	o->udp.check = 0;
	skb->mark = MARK_UP | r->id;
	return TC_ACT_UNSPEC;
}

static __always_inline enum drop_reason unwrap(struct __sk_buff *skb, struct received *r,
					       int *verdict)
{
	enum drop_reason why = merge_ecn(r->f.ip, r->outer->ip.tos);
	struct cursor c;
	struct ethhdr *eth;

	if (why)
		return why;
	if (bpf_skb_adjust_room(skb, -VXLAN_OVERHEAD, BPF_ADJ_ROOM_MAC, 0))
		return DROP_NO_ROOM;
	c = all_of(skb);
	eth = take(&c, sizeof(*eth));
	if (!eth)
		return DROP_NO_ROOM;
	write_delivery(eth, r->port);
	account_to(r->id, r->port, r->f.len);
	*verdict = bpf_redirect(r->port->ifindex, 0);
	return DROP_NONE;
}

/* Frames that aren't ours go on as if we weren't there; those sent up are counted there. */
SEC("tcx/ingress")
int from_wire(struct __sk_buff *skb)
{
	struct received r = { .f = open_frame(skb, WIRE_HEADERS) };
	int verdict = TC_ACT_SHOT;
	enum drop_reason why;

	if (skb->vlan_present || skb->pkt_type || !is_for_us(&r.f.rest))
		return TC_ACT_UNSPEC;
	why = examine(&r);
	if (!why && goes_up(&r.f, r.id, r.port))
		return send_up(skb, &r);
	if (!why)
		why = unwrap(skb, &r, &verdict);
	count(why, r.id);
	return verdict;
}

/* The row may have changed since the mark was set, so what the mark promised is looked up again. */
static __always_inline enum drop_reason check_marked(struct __sk_buff *skb, struct received *r)
{
	struct bpf_tunnel_key tunnel;
	enum drop_reason why;

	if ((skb->mark & ~MARK_PORT) != MARK_UP ||
	    bpf_skb_get_tunnel_key(skb, &tunnel, sizeof(tunnel), 0))
		return DROP_UNMARKED;
	r->id = skb->mark & MARK_PORT;
	r->port = find_port(r->id);
	why = as_inner(parse_eth(&r->f));
	if (why)
		return why;
	why = read_inner(r);
	if (why)
		return why;
	if (!r->port || !r->port->ifindex || r->port->vni != tunnel.tunnel_id ||
	    !same_mac(r->port->mac, r->f.eth->h_dest))
		return DROP_CHANGED;
	return admit(&r->f, r->port);
}

SEC("tcx/ingress")
int from_vxlan(struct __sk_buff *skb)
{
	struct received r = { .f = open_frame(skb, VM_HEADERS) };
	enum drop_reason why = check_marked(skb, &r);
	int verdict = TC_ACT_SHOT;

	if (!why) {
		write_delivery(r.f.eth, r.port);
		account_to(r.id, r.port, r.f.len);
		skb->mark = 0;
		verdict = bpf_redirect(r.port->ifindex, 0);
	}
	count(why, r.id);
	return verdict;
}
