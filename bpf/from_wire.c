//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* A frame from the underlay: tcx ingress of the uplink. */
#include "answer_wire.h"
#include "hand_over.h"

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
	skb->mark = MARK_UP | (p->natted ? MARK_NAT : 0) | (p->reset ? MARK_RESET : 0) | p->id;
	p->way = WAY_UP;
	return TC_ACT_UNSPEC;
}

/*
 * Sends up a frame that the kernel lets nobody cut or fill up, since it knows it to be
 * a tunnel's: merged ones, and those of a host on the same machine. The VXLAN device
 * makes plain frames of them.
 */
static __always_inline bool climb(struct __sk_buff *skb, struct received *r, int *verdict)
{
	struct frame f = { .rest = all_of(skb), .len = skb->len, .p = r->f.p };

	r->f = f;
	if (f.p->trace || read_outer(&r->f, &r->outer))
		return false;
	*verdict = send_up(skb, r);
	return true;
}

/* The kernel leaves no less behind than a header of the underlay's family. */
#define LEAST_INNER (ETH_HLEN + sizeof(struct ipv6hdr))

static __always_inline bool is_small(__u32 inner)
{
	return config.underlay6 && inner < LEAST_INNER;
}

/* A packet that is smaller is filled up, to be cut by take_off. */
static __always_inline bool fill_up(struct __sk_buff *skb, __u32 inner)
{
	return !is_small(inner) || !bpf_skb_change_tail(skb, OVERHEAD + LEAST_INNER, 0);
}

/* Takes the outer headers off. */
static __always_inline bool take_off(struct __sk_buff *skb, __u32 inner, __u64 flags)
{
	if (bpf_skb_adjust_room(skb, -(__s32)OVERHEAD, BPF_ADJ_ROOM_MAC, flags))
		return false;
	return !is_small(inner) || !bpf_skb_change_tail(skb, inner, 0);
}

/* Those behind a frame that goes up take the same way, see goes_up. */
static __always_inline void lead_up(const struct packet *p)
{
	struct flow *flow = find_flow(&p->key, p->v6);
	__u32 now = bpf_jiffies64();

	if (flow)
		flow->aggregated = now ? now : 1;
}

static __always_inline enum drop_reason unwrap(struct __sk_buff *skb, struct received *r,
					       bool *climbs, int *verdict)
{
	enum drop_reason why = merge_ecn(&r->f, r->outer.tos);
	__u32 inner = r->f.len;

	if (why)
		return why;
	if (!fill_up(skb, inner)) {
		lead_up(r->f.p);
		*climbs = climb(skb, r, verdict);
		return *climbs ? DROP_NONE : DROP_NO_ROOM;
	}
	if (!take_off(skb, inner, r->f.gso ? config.decap_flags : 0))
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
 * Answers a frame that was refused, by the router that brought it. One that can't be
 * cut goes up, and is refused and answered there.
 */
static __always_inline int answer_refused(struct __sk_buff *skb, struct received *r, bool *climbs)
{
	__u32 inner = skb->len - OVERHEAD;
	int verdict = TC_ACT_SHOT;
	struct ethhdr *eth;
	__u8 mac[6];

	if (bpf_skb_change_tail(skb, skb->len, 0)) {
		*climbs = climb(skb, r, &verdict);
		return verdict;
	}
	if (bpf_skb_load_bytes(skb, OVERHEAD + offsetof(struct ethhdr, h_source), mac, sizeof(mac)) ||
	    !fill_up(skb, inner) || !take_off(skb, inner, r->f.gso ? config.decap_flags : 0) ||
	    !write_answer(skb, r, mac, &eth))
		return TC_ACT_SHOT;
	copy_mac(mac, eth->h_dest);
	copy_mac(eth->h_dest, eth->h_source);
	copy_mac(eth->h_source, mac);
	return bpf_redirect(config.uplink, 0);
}

/* The flow of a frame to which from_nic has given a number, NULL if it has none. */
static __always_inline struct flow *numbered_flow(const struct __sk_buff *skb,
						  const struct received *r, __u8 *number)
{
	const __u32 *meta = (void *)(long)skb->data_meta;
	const struct packet *p = r->f.p;

	if (!r->port || !(r->port->flags & PORT_XDP) || p->flow_in != FLOW_KNOWN ||
	    (void *)(meta + 1) > (void *)(long)skb->data)
		return NULL;
	*number = *meta;
	return find_flow(&p->key, p->v6);
}

#define VLAN_ID 0xfff

/*
 * A tag of VLAN 0 says a priority and no VLAN (802.1Q): the kernel would take it off
 * behind this hook. Of any other VLAN a frame is none of ours.
 */
static __always_inline bool untag(struct __sk_buff *skb, struct frame *f)
{
	if (!skb->vlan_present)
		return true;
	if (skb->vlan_tci & VLAN_ID || bpf_skb_vlan_pop(skb))
		return false;
	*f = open_frame(skb, WIRE_HEADERS);
	return true;
}

/* Frames that aren't ours go on as if we weren't there; those sent up are counted there. */
SEC("tcx/ingress")
int from_wire(struct __sk_buff *skb)
{
	struct received r = { .f = open_frame(skb, WIRE_HEADERS) };
	struct packet *p = open_packet(is_trace(skb));
	bool climbs;
	int verdict = TC_ACT_SHOT;
	enum drop_reason why;
	struct flow *numbered;
	__u8 number = 0;

	if (!p || skb->pkt_type || !is_for_us(&r.f.rest) || !untag(skb, &r.f))
		return TC_ACT_UNSPEC;
	r.f.p = p;
	why = examine(&r);
	numbered = numbered_flow(skb, &r, &number);
	if (r.port && is_captured(p, r.port))
		capture(skb, p->id, POINT_FROM_WIRE, DROP_NONE);
	climbs = !why && p->climbs && !config.decap_flags;
	if (climbs)
		verdict = send_up(skb, &r);
	else if (!why)
		why = unwrap(skb, &r, &climbs, &verdict);
	if (why)
		show_drop(skb, r.port, POINT_DROP, why);
	if (why && r.port && (p->mtu || p->reset))
		verdict = answer_refused(skb, &r, &climbs);
	if (numbered) /* those behind it may be redirected */
		numbered->arrived = number;
	if (!climbs)
		count(p, why);
	close_packet(p);
	return verdict;
}
