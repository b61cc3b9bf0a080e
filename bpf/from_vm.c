//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* A frame from a VM: tcx ingress of its tap. */
#include "capture.h"
#include "deliver.h"
#include "hook.h"
#include "nat.h"
#include "neigh.h"
#include "reset.h"
#include "trap.h"
#include "vxlan.h"

struct sent {
	struct frame f;
	const struct port *port;
	const struct port *to; /* the one that gets it, if it is here */
};

/* On this host the receiver's checks are made at once. */
static __always_inline enum drop_reason decide_local(struct sent *s)
{
	struct packet *p = s->f.p;
	enum drop_reason why;

	p->todo = TODO_LOCAL;
	why = find_local(p->vni, p->mac, &p->to_id, &s->to);
	if (why)
		return why;
	why = admit(&s->f, s->to);
	if (why)
		return why;
	why = check_size(&s->f, s->to->mtu, DROP_TO_TOO_BIG);
	if (why)
		return why;
	return permit(&s->f, p->to_id, s->to, true);
}

static __always_inline enum drop_reason decide_way(struct sent *s)
{
	struct packet *p = s->f.p;

	if (p->natted) {
		p->dst = p->nat;
		p->dport = p->nat_port;
	}
	if (p->here)
		return decide_local(s);
	p->todo = TODO_WIRE;
	return check_size(&s->f, path_mtu(s->port), DROP_TOO_BIG);
}

static __always_inline bool is_ping(const struct packet *p)
{
	return !p->icmp_code && p->fragment == WHOLE &&
	       (p->v6 ? p->proto == NEXT_ICMPV6 && p->icmp_type == ICMPV6_ECHO
		      : p->proto == IPPROTO_ICMP && p->icmp_type == ICMP_ECHO);
}

/* What the VM says to the gateway itself: a ping, or the answer to the host's health probe. */
static __always_inline enum drop_reason decide_gateway(struct packet *p)
{
	if (is_ping(p)) {
		p->todo = TODO_ANSWER;
		return may_answer(p);
	}
	if (p->proto == IPPROTO_TCP && p->fragment == WHOLE &&
	    (p->tcp_flags & TCP_RST || (p->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK))) {
		p->todo = TODO_TRAP;
		p->kind = TRAP_PROBE;
		return DROP_NONE;
	}
	return DROP_TO_GATEWAY;
}

/* What is the host's own business, whatever address a guest has by now. */
static __always_inline bool is_host_business(struct packet *p)
{
	p->todo = TODO_TRAP;
	if (is_dhcp(p)) {
		p->kind = TRAP_DHCP;
		return true;
	}
	if (is_dhcpv6(p) && is_link_scope(&p->src)) {
		p->kind = TRAP_DHCPV6;
		return true;
	}
	p->todo = TODO_NONE;
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
	if (is_metadata(p)) {
		p->todo = TODO_IMDS;
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

/* Turns an echo request into its reply: the addresses change places, which no checksum sees. */
static __always_inline enum drop_reason answer_ping(struct __sk_buff *skb, struct frame *f)
{
	struct icmp *icmp = f->l4;
	struct packet *p = f->p;

	if (!icmp || (void *)(icmp + 1) > f->rest.end)
		return DROP_TRUNCATED;
	if (p->v6) {
		struct ipv6hdr *ip = ip_header(f, sizeof(*ip));

		if (!ip)
			return DROP_TRUNCATED;
		__builtin_memcpy(&ip->saddr, &p->dst, sizeof(p->dst));
		__builtin_memcpy(&ip->daddr, &p->src, sizeof(p->src));
		icmp->type = ICMPV6_ECHO_REPLY;
		csum_replace16(&icmp->checksum, bpf_htons(ICMPV6_ECHO << 8),
			       bpf_htons(ICMPV6_ECHO_REPLY << 8));
	} else {
		struct iphdr *ip = ip_header(f, sizeof(*ip));

		if (!ip)
			return DROP_TRUNCATED;
		ip->saddr = as_v4(&p->dst);
		ip->daddr = as_v4(&p->src);
		icmp->type = ICMP_ECHO_REPLY;
		csum_replace16(&icmp->checksum, bpf_htons(ICMP_ECHO << 8),
			       bpf_htons(ICMP_ECHO_REPLY << 8));
	}
	copy_mac(f->eth->h_dest, f->eth->h_source);
	copy_const_mac(f->eth->h_source, config.gateway_mac);
	return DROP_NONE;
}

static __always_inline enum drop_reason answer_nd(struct __sk_buff *skb, struct sent *s)
{
	struct nd_answer *a;
	struct cursor c;

	if (bpf_skb_change_tail(skb, sizeof(*a), 0))
		return DROP_NO_ROOM;
	c = all_of(skb);
	a = take(&c, sizeof(*a));
	if (!a)
		return DROP_NO_ROOM;
	write_nd_answer(a, s->f.p, s->port);
	return DROP_NONE;
}

static __always_inline enum drop_reason answer(struct __sk_buff *skb, struct sent *s, __u32 tap,
						 int *verdict)
{
	struct arp *arp = s->f.l4;
	enum drop_reason why = DROP_NONE;

	if (s->f.eth->h_proto == ETH_P_BE_ARP) {
		if (!arp || (void *)(arp + 1) > s->f.rest.end)
			return DROP_TRUNCATED;
		answer_arp(s->f.eth, arp);
	} else if (is_nd(s->f.p)) {
		why = answer_nd(skb, s);
	} else {
		why = answer_ping(skb, &s->f);
	}
	if (!why)
		*verdict = bpf_redirect(tap, 0);
	return why;
}

static __always_inline enum drop_reason send_to_imds(struct __sk_buff *skb, struct sent *s,
						     int *verdict)
{
	struct packet *p = s->f.p;

	imds_caller(&p->nat, p->v6, p->id, s->port->epoch);
	copy_const_mac(s->f.eth->h_dest, config.imds_mac);
	if (rewrite(skb, &s->f, END_SOURCE, &p->nat, 0))
		return DROP_TRUNCATED;
	*verdict = bpf_redirect(config.imds, BPF_F_INGRESS);
	return DROP_NONE;
}

/* Makes a SYN offer no more than the way can carry. */
static __always_inline enum drop_reason clamp_mss(struct __sk_buff *skb, struct packet *p, __u32 mtu)
{
	__u32 tcp = ETH_HLEN + p->header;
	__u64 len = p->options_len;
	__be16 offered, fits = bpf_htons(mss_of(p, mtu));
	int at;

	if (!(p->tcp_flags & TCP_SYN) || p->fragment != WHOLE || !WITHIN(len, 4, sizeof(p->options)))
		return DROP_NONE;
	if (bpf_skb_load_bytes(skb, tcp + sizeof(struct tcphdr), p->options, len))
		return DROP_TRUNCATED;
	at = find_mss(p);
	if (at < 0 || at > sizeof(p->options) - sizeof(offered))
		return DROP_NONE;
	offered = bpf_htons(p->options[at] << 8 | p->options[at + 1]);
	if (bpf_ntohs(offered) <= mss_of(p, mtu))
		return DROP_NONE;
	if (bpf_skb_store_bytes(skb, tcp + sizeof(struct tcphdr) + at, &fits, sizeof(fits), 0))
		return DROP_TRUNCATED;
	if (at & 1) { /* its bytes are halves of two words of the checksum */
		offered = __builtin_bswap16(offered);
		fits = __builtin_bswap16(fits);
	}
	if (bpf_l4_csum_replace(skb, tcp + offsetof(struct tcphdr, check), offered, fits, sizeof(fits)))
		return DROP_TRUNCATED;
	return DROP_NONE;
}

/* Writes what a service, or a path's size, changes in the packet itself. */
static __always_inline enum drop_reason mend(struct __sk_buff *skb, struct sent *s, __u32 mtu)
{
	struct packet *p = s->f.p;
	enum drop_reason why = clamp_mss(skb, p, mtu);

	if (why || !p->natted)
		return why;
	/* The helpers above may have moved the frame: find its headers again. */
	s->f.rest = all_of(skb);
	if (parse_eth(&s->f) || parse_ip(&s->f))
		return DROP_TRUNCATED;
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
		capture(skb, p, p->to_id, POINT_TO_VM, DROP_NONE);
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
	(BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) |                         \
	 BPF_F_ADJ_ROOM_ENCAP_L2_ETH)

/*
 * A segment size stays as the guest chose it (FIXED_GSO), since check_size has
 * made sure that it fits: shrunk, each burst would end in a short segment, and
 * for UDP the kernel refuses to shrink.
 */
static __always_inline bool make_room(struct __sk_buff *skb, __u32 gso)
{
	__u64 flags = ENCAP_FLAGS | (gso ? BPF_F_ADJ_ROOM_FIXED_GSO : 0);

	if (config.underlay6)
		return !bpf_skb_adjust_room(skb, OVERHEAD6, BPF_ADJ_ROOM_MAC,
					    flags | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6);
	return !bpf_skb_adjust_room(skb, OVERHEAD4, BPF_ADJ_ROOM_MAC,
				    flags | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
}

static __always_inline enum drop_reason write_outer(struct __sk_buff *skb, struct sent *s, __u32 hash,
						    struct ethhdr **eth)
{
	__u32 inner = s->f.len, len = inner + sizeof(struct tunnel) - ETH_HLEN;
	struct cursor c = all_of(skb);
	struct ipv6hdr *ip6 = NULL;
	struct iphdr *ip4 = NULL;
	struct tunnel *t;

	*eth = take(&c, sizeof(**eth));
	if (config.underlay6)
		ip6 = take(&c, sizeof(*ip6));
	else
		ip4 = take(&c, sizeof(*ip4));
	t = take(&c, sizeof(*t));
	if (!*eth || !t)
		return DROP_NO_ROOM;
	if (ip6)
		write_outer6(ip6, s->port, s->f.p, len, hash);
	else if (ip4)
		write_outer4(ip4, s->port, s->f.p, len);
	else
		return DROP_NO_ROOM;
	write_tunnel(t, s->port, s->f.p, inner, hash);
	(*eth)->h_proto = config.underlay6 ? ETH_P_BE_IPV6 : ETH_P_BE_IP;
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
	why = write_outer(skb, s, flow_hash(p), &eth);
	if (why)
		return why;
	*verdict = send_by_next_hop(eth, p->next_hop);
	if (is_captured(p, s->port))
		capture(skb, p, p->id, POINT_TO_WIRE, DROP_NONE);
	return DROP_NONE;
}

/*
 * Turns a packet that is too big into the gateway's word about it. A checksum
 * that the guest left unfinished stays so inside the quote; receivers don't
 * look at it there.
 */
static __always_inline int tell_too_big(struct __sk_buff *skb, const struct sent *s, __u32 tap)
{
	const struct packet *p = s->f.p;
	struct ethhdr *eth;
	struct cursor c;

	if (p->v6) {
		struct too_big6 *m;

		if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(m->quoted) + ICMP_QUOTE, 0) ||
		    bpf_skb_adjust_room(skb, offsetof(struct too_big6, quoted), BPF_ADJ_ROOM_MAC, 0))
			return TC_ACT_SHOT;
		c = all_of(skb);
		eth = take(&c, sizeof(*eth));
		m = take(&c, sizeof(*m));
		if (!eth || !m)
			return TC_ACT_SHOT;
		write_too_big6(m, s->port, p->mtu);
	} else {
		struct too_big4 *m;

		if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(m->quoted) + ICMP_QUOTE, 0) ||
		    bpf_skb_adjust_room(skb, offsetof(struct too_big4, quoted), BPF_ADJ_ROOM_MAC, 0))
			return TC_ACT_SHOT;
		c = all_of(skb);
		eth = take(&c, sizeof(*eth));
		m = take(&c, sizeof(*m));
		if (!eth || !m)
			return TC_ACT_SHOT;
		write_too_big4(m, s->port, p->mtu);
	}
	write_delivery(eth, s->port, p->v6);
	return bpf_redirect(tap, 0);
}

/* Tells the VM that its connection leads nowhere any more. */
static __always_inline int answer_reset(struct __sk_buff *skb, const struct sent *s, __u32 tap)
{
	const struct packet *p = s->f.p;
	struct ethhdr *eth;
	struct cursor c;

	if (bpf_skb_change_tail(skb, ETH_HLEN + reset_len(p), 0))
		return TC_ACT_SHOT;
	c = all_of(skb);
	eth = take(&c, sizeof(*eth));
	if (!eth || !write_reset(&c, p))
		return TC_ACT_SHOT;
	write_delivery(eth, s->port, p->v6);
	return bpf_redirect(tap, 0);
}

static __always_inline enum drop_reason act(struct __sk_buff *skb, struct sent *s, __u32 tap,
					    int *verdict)
{
	switch (s->f.p->todo) {
	case TODO_TRAP:
		return trap_frame(skb, s);
	case TODO_ANSWER:
		return answer(skb, s, tap, verdict);
	case TODO_IMDS:
		return send_to_imds(skb, s, verdict);
	case TODO_LOCAL:
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
	return p->todo != TODO_TRAP || p->kind == TRAP_ARP_REPLY || p->kind == TRAP_NEIGH_ADVERT ||
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
		capture(skb, p, p->id, POINT_FROM_VM, DROP_NONE);
	if (!why)
		why = act(skb, &s, tap, &verdict);
	if (!why && shows_guest(p))
		account_from(p, s.port, s.f.len);
	if (why && is_watched(p, s.port))
		capture(skb, p, p->id, POINT_DROP, why);
	if (why && s.to && is_watched(p, s.to))
		capture(skb, p, p->to_id, POINT_DROP_TO, why);
	if (why && s.port && p->mtu)
		verdict = tell_too_big(skb, &s, tap);
	else if (why && s.port && p->reset)
		verdict = answer_reset(skb, &s, tap);
	count(p, why);
	close_packet(p);
	return verdict;
}
