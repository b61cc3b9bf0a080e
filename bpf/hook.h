/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What the hooks share, and only they: the context and its verdicts. */
#ifndef HOOK_H
#define HOOK_H

#include <linux/pkt_cls.h>

#include "drop.h"
#include "parse.h"

/* Ethernet, the longest IP header, and a TCP header without options. */
#define VM_HEADERS (ETH_HLEN + 60 + 20)
/* The outer headers without options, then the same. */
#define WIRE_HEADERS (ETH_HLEN + 36 + VM_HEADERS)

static __always_inline struct cursor all_of(struct __sk_buff *skb)
{
	return (struct cursor){
		.pos = (void *)(long)skb->data,
		.end = (void *)(long)skb->data_end,
	};
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

#endif
