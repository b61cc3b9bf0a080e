/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* How much a TCP connection puts into a packet: it learns that from the SYNs. */
#ifndef MSS_H
#define MSS_H

#include "hook.h"

enum { TCP_OPT_END, TCP_OPT_NOP, TCP_OPT_MSS };

/*
 * Finds the maximum segment size among a SYN's options (RFC 9293, 3.7.1): returns
 * where its value stands in p->options, or -1. A function of its own, so that
 * the verifier walks the options once.
 */
__noinline int find_mss(const struct packet *p)
{
	__u32 at = 0;

	if (!p)
		return -1;
	for (int i = 0; i < 12; i++) {
		__u8 kind, len;

		if (at + 4 > p->options_len || at > sizeof(p->options) - 4)
			return -1;
		kind = p->options[at];
		len = p->options[at + 1];
		if (kind == TCP_OPT_END)
			return -1;
		if (kind == TCP_OPT_MSS)
			return len == 4 ? at + 2 : -1;
		at += kind == TCP_OPT_NOP ? 1 : len;
		if (kind != TCP_OPT_NOP && len < 2)
			return -1;
	}
	return -1;
}

/* What a segment may be so that its packet fits mtu. */
static __always_inline __u32 mss_of(const struct packet *p, __u32 mtu)
{
	return mtu - (p->v6 ? 40 : 20) - sizeof(struct tcphdr);
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

#endif
