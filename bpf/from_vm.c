//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* A frame from a VM: tcx ingress of its tap. */
#include "deliver.h"
#include "hook.h"
#include "neigh.h"
#include "trap.h"
#include "vxlan.h"

/* What becomes of a frame that nobody refused. */
enum todo { TODO_TRAP, TODO_ANSWER_ARP, TODO_ANSWER_PING, TODO_IMDS, TODO_LOCAL, TODO_WIRE };

struct sent {
	struct frame f;
	__u32 id;
	const struct port *port;
	enum todo todo;
	enum trap_kind kind; /* if it is trapped */
	struct arp *arp;     /* if it is ARP */
	struct mapping via;  /* if it leaves the port for another one */
	const struct port *to; /* if that one is here */
	__u32 to_id;
	__u32 mtu; /* what it was too big for; 0 if nobody is to be told */
};

static __always_inline enum drop_reason check_size(struct sent *s, __u32 mtu, enum drop_reason why)
{
	if (packet_len(&s->f) <= mtu)
		return DROP_NONE;
	if (wants_too_big(&s->f))
		s->mtu = mtu;
	return why;
}

static __always_inline enum drop_reason decide_way(struct sent *s)
{
	enum drop_reason why;
	struct addr next;

	why = find_route(s->port, s->f.ip->daddr, &next);
	if (why)
		return why;
	why = find_mapping(s->port->vni, &next, &s->via);
	if (why)
		return why;
	if (!is_own_pa(as_v4(&s->via.pa))) {
		s->todo = TODO_WIRE;
		return check_size(s, path_mtu(s->port), DROP_TOO_BIG);
	}
	s->todo = TODO_LOCAL;
	why = find_local(s->port->vni, s->via.mac, &s->to_id, &s->to);
	if (why)
		return why;
	why = admit(&s->f, s->to);
	if (why)
		return why;
	return check_size(s, s->to->mtu, DROP_TO_TOO_BIG);
}

static __always_inline bool is_ping(const struct frame *f)
{
	const struct icmp *icmp = f->l4;

	return f->ip->protocol == IPPROTO_ICMP && icmp && (void *)(icmp + 1) <= f->rest.end &&
	       icmp->type == ICMP_ECHO && !icmp->code;
}

static __always_inline enum drop_reason decide_ip(struct sent *s)
{
	enum drop_reason why = parse_ipv4(&s->f);

	if (why)
		return why;
	if (is_dhcp(&s->f)) {
		s->todo = TODO_TRAP;
		s->kind = TRAP_DHCP;
		return DROP_NONE;
	}
	if (is_link_local(s->f.ip->daddr)) {
		s->todo = TODO_IMDS;
		return check_imds_request(&s->f, s->port);
	}
	why = check_source_ca(&s->f, s->port);
	if (why)
		return why;
	why = check_unicast(&s->f, s->port);
	if (why)
		return why;
	if (is_v4(&s->port->gateway, s->f.ip->daddr)) {
		s->todo = TODO_ANSWER_PING;
		return is_ping(&s->f) ? DROP_NONE : DROP_TO_GATEWAY;
	}
	if (s->port->flags & PORT_ISOLATED)
		return DROP_ISOLATED;
	return decide_way(s);
}

static __always_inline enum drop_reason decide_arp(struct sent *s)
{
	bool asked = false;
	enum drop_reason why = read_arp(&s->f, s->port, &s->arp, &asked);

	s->todo = asked ? TODO_ANSWER_ARP : TODO_TRAP;
	s->kind = TRAP_ARP_REPLY;
	return why;
}

static __always_inline enum drop_reason decide(struct sent *s, __u32 tap, bool tagged)
{
	enum drop_reason why = find_sender(tap, &s->id, &s->port);

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
		return decide_arp(s);
	if (s->f.eth->h_proto == ETH_P_BE_IP)
		return decide_ip(s);
	return DROP_NOT_IP;
}

static __always_inline enum drop_reason trap_frame(struct __sk_buff *skb, const struct sent *s)
{
	__u32 len = s->f.len;
	struct trap *t;
	enum drop_reason why = open_trap(s->id, s->port, s->kind, len, &t);

	if (why)
		return why;
	if (!len || len > TRAP_FRAME || bpf_skb_load_bytes(skb, 0, t->frame, len)) {
		bpf_ringbuf_discard(t, 0);
		return DROP_TRAP_SIZE;
	}
	bpf_ringbuf_submit(t, 0);
	return DROP_NONE;
}

static __always_inline int answer_ping(struct __sk_buff *skb, struct frame *f)
{
	struct icmp *icmp = f->l4;
	__be32 asked = f->ip->daddr;

	if (!icmp || (void *)(icmp + 1) > f->rest.end)
		return TC_ACT_SHOT;
	csum_replace16(&icmp->checksum, bpf_htons(ICMP_ECHO << 8), bpf_htons(ICMP_ECHO_REPLY << 8));
	icmp->type = ICMP_ECHO_REPLY;
	f->ip->daddr = f->ip->saddr;
	f->ip->saddr = asked;
	copy_mac(f->eth->h_dest, f->eth->h_source);
	copy_const_mac(f->eth->h_source, config.gateway_mac);
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline enum drop_reason send_to_imds(struct __sk_buff *skb, struct sent *s,
						     int *verdict)
{
	__be32 ca = s->f.ip->saddr, caller = imds_caller(s->id, s->port->epoch);
	__u32 l4 = ETH_HLEN + s->f.ip->ihl * 4;

	csum_replace32(&s->f.ip->check, ca, caller);
	s->f.ip->saddr = caller;
	copy_const_mac(s->f.eth->h_dest, config.imds_mac);
	/* The helper, because the guest may have left the checksum to us to finish. */
	if (bpf_l4_csum_replace(skb, l4 + offsetof(struct tcphdr, check), ca, caller,
				BPF_F_PSEUDO_HDR | sizeof(caller)))
		return DROP_TRUNCATED;
	*verdict = bpf_redirect(config.imds, BPF_F_INGRESS);
	return DROP_NONE;
}

static __always_inline enum drop_reason send_to_port(struct sent *s, int *verdict)
{
	write_delivery(s->f.eth, s->to);
	account_to(s->to_id, s->to, s->f.len);
	*verdict = bpf_redirect(s->to->ifindex, 0);
	return DROP_NONE;
}

/* Sends by the agent's next hop, or by the kernel's tables if that one is old or missing. */
static __always_inline int send_by_next_hop(struct ethhdr *eth, __u32 index)
{
	const struct next_hop *hop = bpf_map_lookup_elem(&next_hops, &index);

	if (!hop || !hop->ifindex || hop->refreshed + config.next_hop_age < bpf_jiffies64())
		return bpf_redirect_neigh(config.uplink, NULL, 0, 0);
	copy_mac(eth->h_dest, hop->dst);
	copy_mac(eth->h_source, hop->src);
	return bpf_redirect(hop->ifindex, 0);
}

#define ENCAP_FLAGS                                                                                \
	(BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |                              \
	 BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH)

/*
 * A segment size stays as the guest chose it (FIXED_GSO), since check_size has
 * made sure that it fits: shrunk, each burst would end in a short segment, and
 * for UDP the kernel refuses to shrink.
 */
static __always_inline enum drop_reason send_to_wire(struct __sk_buff *skb, struct sent *s,
						     int *verdict)
{
	__be16 sport = source_port(flow_hash(&s->f));
	__u8 tos = s->f.ip->tos;
	struct cursor c;
	struct ethhdr *eth;
	struct outer *o;

	if (s->f.len + sizeof(*o) > 0xffff) /* the outer total length can't say it */
		return DROP_TOO_BIG;
	if (bpf_skb_adjust_room(skb, VXLAN_OVERHEAD, BPF_ADJ_ROOM_MAC,
				ENCAP_FLAGS | (s->f.gso ? BPF_F_ADJ_ROOM_FIXED_GSO : 0)))
		return DROP_NO_ROOM;
	c = all_of(skb);
	eth = take(&c, sizeof(*eth));
	o = take(&c, sizeof(*o) + sizeof(struct ethhdr));
	if (!eth || !o)
		return DROP_NO_ROOM;
	write_outer(o, s->port, &s->via, s->f.len, tos, sport);
	eth->h_proto = ETH_P_BE_IP;
	*verdict = send_by_next_hop(eth, s->via.next_hop);
	return DROP_NONE;
}

/*
 * Turns a packet that is too big into the gateway's word about it. A checksum
 * that the guest left unfinished stays so inside the quote; receivers don't
 * look at it there.
 */
static __always_inline int tell_too_big(struct __sk_buff *skb, const struct sent *s)
{
	struct cursor c;
	struct ethhdr *eth;
	struct too_big *m;

	if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(m->quoted) + ICMP_QUOTE, 0) ||
	    bpf_skb_adjust_room(skb, sizeof(m->ip) + sizeof(m->icmp), BPF_ADJ_ROOM_MAC, 0))
		return TC_ACT_SHOT;
	c = all_of(skb);
	eth = take(&c, sizeof(*eth));
	m = take(&c, sizeof(*m));
	if (!eth || !m)
		return TC_ACT_SHOT;
	write_too_big(m, s->port, s->mtu);
	write_delivery(eth, s->port);
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline enum drop_reason act(struct __sk_buff *skb, struct sent *s, int *verdict)
{
	switch (s->todo) {
	case TODO_TRAP:
		return trap_frame(skb, s);
	case TODO_ANSWER_ARP:
		answer_arp(s->f.eth, s->arp);
		*verdict = bpf_redirect(skb->ifindex, 0);
		return DROP_NONE;
	case TODO_ANSWER_PING:
		*verdict = answer_ping(skb, &s->f);
		return DROP_NONE;
	case TODO_IMDS:
		return send_to_imds(skb, s, verdict);
	case TODO_LOCAL:
		return send_to_port(s, verdict);
	default:
		return send_to_wire(skb, s, verdict);
	}
}

SEC("tcx/ingress")
int from_vm(struct __sk_buff *skb)
{
	struct sent s = { .f = open_frame(skb, VM_HEADERS) };
	enum drop_reason why = decide(&s, skb->ifindex, skb->vlan_present);
	int verdict = TC_ACT_SHOT;

	if (!why)
		why = act(skb, &s, &verdict);
	if (!why && !(s.todo == TODO_TRAP && s.kind == TRAP_DHCP))
		account_from(s.id, s.port, s.f.len);
	if (why && s.mtu)
		verdict = tell_too_big(skb, &s);
	count(why, s.id);
	return verdict;
}
