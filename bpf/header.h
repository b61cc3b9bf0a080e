/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What frames are read and written with: cursors, MACs, addresses. */
#ifndef HEADER_H
#define HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"

#define ETH_P_BE_IP bpf_htons(ETH_P_IP)
#define ETH_P_BE_IPV6 bpf_htons(ETH_P_IPV6)
#define ETH_P_BE_ARP bpf_htons(ETH_P_ARP)
#define IP_DF_BE bpf_htons(0x4000)
#define IP_MORE_BE bpf_htons(0x2000)
#define IP_FRAGMENT_BE bpf_htons(0x3fff) /* more fragments, or an offset */
#define IP_OFFSET_BE bpf_htons(0x1fff)
#define IPV4(a, b, c, d) bpf_htonl((__u32)(a) << 24 | (b) << 16 | (c) << 8 | (d))
#define NEXT_HOP_BY_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_ICMPV6 58
#define NEXT_DESTINATION 60
#define NEXT_MOBILITY 135
#define PROTO_SCTP 132

enum tcp_flag { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };

/* The part of a frame that hasn't been read yet. */
struct cursor {
	void *pos;
	void *end;
};

/* A frame as a hook hands it to the stages: where its headers are. */
struct frame {
	struct cursor rest;
	__u32 len; /* all of it, with the Ethernet header, bytes */
	__u32 gso; /* payload bytes of each segment; 0: it is one packet */
	struct ethhdr *eth;
	void *ip; /* struct iphdr or struct ipv6hdr: packet.v6 says which */
	void *l4; /* where the transport header starts; NULL in a later fragment */
	struct packet *p;
};

/* RFC 8200, 4.5 */
struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* in 8 bytes, 3 flag bits: the last says that more follow */
	__be32 id;
};

/* RFC 792, RFC 4443; linux/icmp.h brings in the C library's sockets. */
struct icmp {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be16 id;  /* of an echo */
	__be16 mtu; /* RFC 1191; the echo sequence number */
};

/*
 * Whether min <= len <= max, len a __u64 variable. The comparisons are kept apart:
 * of "len - min <= max - min", to which clang folds them, and of "len != 0", Linux
 * 6.1 learns nothing about len.
 */
#define WITHIN(len, min, max)                                                                      \
	({                                                                                         \
		barrier_var(len);                                                                  \
		(len) <= (max) && ({ barrier_var(len); (len) >= (min); });                         \
	})

/* Returns the next size bytes, or NULL if they aren't there. */
static __always_inline void *take(struct cursor *c, __u32 size)
{
	void *head = c->pos;

	if (head + size > c->end)
		return NULL;
	c->pos = head + size;
	return head;
}

/* Returns the IP header again, size bytes of it, or NULL if the frame has none. */
static __always_inline void *ip_header(const struct frame *f, __u32 size)
{
	return f->ip && f->ip + size <= f->rest.end ? f->ip : NULL;
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

/* The halves of an address, as a little-endian machine reads them. */
static __always_inline __u64 high(const struct addr *a)
{
	return *(const __u64 *)a->b;
}

static __always_inline __u64 low(const struct addr *a)
{
	return *(const __u64 *)(a->b + 8);
}

/* ::ffff:a.b.c.d */
static __always_inline void set_v4(struct addr *a, __be32 v4)
{
	*(__u64 *)a->b = 0;
	*(__u64 *)(a->b + 8) = (__u64)v4 << 32 | 0xffff0000;
}

/* Addresses in a packet are aligned to 4 bytes at best. */
static __always_inline void set_v6(struct addr *a, const void *wire)
{
	__builtin_memcpy(a, wire, sizeof(*a));
}

static __always_inline bool is_v4(const struct addr *a, __be32 v4)
{
	return !high(a) && low(a) == ((__u64)v4 << 32 | 0xffff0000);
}

/* The last four bytes, which are the address if it is IPv4; 0 if a is none. */
static __always_inline __be32 as_v4(const struct addr *a)
{
	return *(const __be32 *)(a->b + 12);
}

static __always_inline bool same_addr(const struct addr *a, const struct addr *b)
{
	return high(a) == high(b) && low(a) == low(b);
}

static __always_inline bool is_none(const struct addr *a)
{
	return !(high(a) | low(a));
}

/* config is volatile: its addresses are read by halves. */
static __always_inline void copy_const_addr(struct addr *to, const volatile struct addr *from)
{
	*(__u64 *)to->b = *(const volatile __u64 *)from->b;
	*(__u64 *)(to->b + 8) = *(const volatile __u64 *)(from->b + 8);
}

/* fe80::/10 (RFC 4291, 2.5.6) */
static __always_inline bool is_link_scope(const struct addr *a)
{
	return a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80;
}

#endif
