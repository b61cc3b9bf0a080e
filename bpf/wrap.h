/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Puts a frame into the outer headers, and those on their way to the next hop. */
#ifndef WRAP_H
#define WRAP_H

#include "hook.h"
#include "vxlan.h"

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

static __always_inline enum drop_reason write_outer(struct __sk_buff *skb, const struct port *port,
						    const struct packet *p, __u32 inner, __u32 hash,
						    struct ethhdr **eth)
{
	__u32 len = inner + sizeof(struct tunnel) - ETH_HLEN;
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
		write_outer6(ip6, port, p, len, hash);
	else if (ip4)
		write_outer4(ip4, port, p, len);
	else
		return DROP_NO_ROOM;
	write_tunnel(t, port, p, inner, hash);
	(*eth)->h_proto = config.underlay6 ? ETH_P_BE_IPV6 : ETH_P_BE_IP;
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

#endif
