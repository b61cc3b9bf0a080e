/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* From bytes to headers. Nothing here trusts a length that a guest wrote. */
#ifndef PARSE_H
#define PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>

#include "vnet.h"

#define ETH_P_BE_IP bpf_htons(ETH_P_IP)
#define ETH_P_BE_ARP bpf_htons(ETH_P_ARP)
#define IP_DF_BE bpf_htons(0x4000)
#define IP_FRAGMENT_BE bpf_htons(0x3fff) /* more fragments, or an offset */
#define IP_OFFSET_BE bpf_htons(0x1fff)
#define IPV4(a, b, c, d) bpf_htonl((__u32)(a) << 24 | (b) << 16 | (c) << 8 | (d))

/* The part of a frame that hasn't been read yet. */
struct cursor {
	void *pos;
	void *end;
};

/* A frame as a hook hands it to the stages. */
struct frame {
	struct cursor rest;
	__u32 len;	    /* all of it, with the Ethernet header, bytes */
	__u32 gso;	    /* payload bytes of each segment; 0: it is one packet */
	struct ethhdr *eth;
	struct iphdr *ip;
	void *l4;	    /* where the transport header starts; NULL in a fragment */
	__be16 sport;	    /* 0 unless TCP or UDP */
	__be16 dport;
};

/* Returns the next size bytes, or NULL if they aren't there. */
static __always_inline void *take(struct cursor *c, __u32 size)
{
	void *head = c->pos;

	if (head + size > c->end)
		return NULL;
	c->pos = head + size;
	return head;
}

static __always_inline enum drop_reason parse_eth(struct frame *f)
{
	f->eth = take(&f->rest, sizeof(*f->eth));
	if (!f->eth)
		return DROP_TRUNCATED;
	if (f->eth->h_proto == bpf_htons(ETH_P_8021Q) || f->eth->h_proto == bpf_htons(ETH_P_8021AD))
		return DROP_VLAN;
	return DROP_NONE;
}

static __always_inline void parse_ports(struct frame *f)
{
	__be16 *ports;

	if (f->ip->frag_off & IP_FRAGMENT_BE)
		return;
	f->l4 = f->rest.pos;
	if (f->ip->protocol != IPPROTO_TCP && f->ip->protocol != IPPROTO_UDP)
		return;
	ports = take(&f->rest, 4);
	if (!ports)
		return;
	f->sport = ports[0];
	f->dport = ports[1];
}

/* Reads an IPv4 header and the ports behind it. */
static __always_inline enum drop_reason parse_ipv4(struct frame *f)
{
	__u32 header, total;

	f->ip = take(&f->rest, sizeof(*f->ip));
	if (!f->ip)
		return DROP_TRUNCATED;
	header = f->ip->ihl * 4;
	total = bpf_ntohs(f->ip->tot_len);
	if (f->ip->version != 4 || header < sizeof(*f->ip) || total < header ||
	    total > f->len - ETH_HLEN)
		return DROP_BAD_IP;
	if (!take(&f->rest, header - sizeof(*f->ip)))
		return DROP_TRUNCATED;
	parse_ports(f);
	return DROP_NONE;
}

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	return *(const __u32 *)a == *(const __u32 *)b &&
	       *(const __u16 *)(a + 4) == *(const __u16 *)(b + 4);
}

static __always_inline void copy_mac(__u8 *to, const __u8 *from)
{
	*(__u32 *)to = *(const __u32 *)from;
	*(__u16 *)(to + 4) = *(const __u16 *)(from + 4);
}

/* copy_mac from config, which is volatile. */
static __always_inline void copy_const_mac(__u8 *to, const volatile __u8 *from)
{
#pragma unroll
	for (int i = 0; i < 6; i++)
		to[i] = from[i];
}

/* The upper and lower half of ::ffff:a.b.c.d, as a little-endian machine reads them. */
static __always_inline void set_v4(struct addr *a, __be32 v4)
{
	*(__u64 *)a->b = 0;
	*(__u64 *)(a->b + 8) = (__u64)v4 << 32 | 0xffff0000;
}

static __always_inline bool is_v4(const struct addr *a, __be32 v4)
{
	return *(const __u64 *)a->b == 0 &&
	       *(const __u64 *)(a->b + 8) == ((__u64)v4 << 32 | 0xffff0000);
}

/* The last four bytes, which are the address if it is IPv4; 0 if a is none. */
static __always_inline __be32 as_v4(const struct addr *a)
{
	return *(const __be32 *)(a->b + 12);
}

static __always_inline bool same_addr(const struct addr *a, const struct addr *b)
{
	return *(const __u64 *)a->b == *(const __u64 *)b->b &&
	       *(const __u64 *)(a->b + 8) == *(const __u64 *)(b->b + 8);
}

#endif
