//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Load for the benchmarks: a generator of small frames, a sink, a wire without owners. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define SINK_PORT 9000
#define FLOWS 1024 /* a power of two */
#define HEADERS (sizeof(struct ethhdr) + sizeof(struct iphdr) + sizeof(struct udphdr))

enum counter { GENERATED, RECEIVED, COUNTERS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, COUNTERS);
} counters SEC(".maps");

const volatile __u32 out;	/* ifindex that generated frames leave by */
const volatile __u8 head[HEADERS];

/* Live frames are recycled as the last hop left them: every header is written anew. */
SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u8 *p = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct udphdr *udp = (void *)p + sizeof(struct ethhdr) + sizeof(struct iphdr);
	__u32 key = GENERATED;
	__u64 *n = bpf_map_lookup_elem(&counters, &key);

	if (!n || p + HEADERS > end)
		return XDP_DROP;
#pragma unroll
	for (int i = 0; i < HEADERS; i++)
		p[i] = head[i];
	udp->source = bpf_htons(10000 + (((__u32)*n * 0x9e3779b1) >> 8) % FLOWS);
	(*n)++;
	return bpf_redirect(out, 0);
}

SEC("tcx/ingress")
int sink(struct __sk_buff *skb)
{
	void *p = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = p + sizeof(struct ethhdr);
	struct udphdr *udp = (void *)(ip + 1);
	__u32 key = RECEIVED;
	__u64 *n;

	if (p + HEADERS > end || ip->protocol != IPPROTO_UDP || udp->dest != bpf_htons(SINK_PORT))
		return TC_ACT_UNSPEC;
	n = bpf_map_lookup_elem(&counters, &key);
	if (n)
		(*n)++;
	return TC_ACT_SHOT;
}

/*
 * On the way out of the sender's uplink: a clone has no owner. A veth would carry
 * the tap's socket across on the last segment of a GSO packet, which breaks GRO on
 * the other side; no real wire carries it.
 */
SEC("tcx/egress")
int disown(struct __sk_buff *skb)
{
	if (!skb->sk || !skb->gso_size)
		return TC_ACT_UNSPEC;
	bpf_clone_redirect(skb, skb->ifindex, 0);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
