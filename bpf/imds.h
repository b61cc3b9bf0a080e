/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The metadata service. A guest's address says nothing in it, since networks
 * overlap: the source becomes a host-local one made of port and epoch, which
 * the service reads back as the caller's identity. A flip makes a new one, so
 * that a connection of the old epoch can't read the next document.
 */
#ifndef IMDS_H
#define IMDS_H

#include "maps.h"
#include "parse.h"

#define IMDS_ADDRESS IPV4(169, 254, 169, 254)
#define IMDS_PORT bpf_htons(80)
#define LINK_LOCAL_NET IPV4(169, 254, 0, 0)
#define LINK_LOCAL_MASK IPV4(255, 255, 0, 0)

/* 240.0.0.0/4: the class bits, 12 bits of port id, 16 of epoch. */
static __always_inline __be32 imds_caller(__u32 id, __u64 epoch)
{
	return bpf_htonl(0xf0000000 | (id & 0xfff) << 16 | (epoch & 0xffff));
}

static __always_inline bool is_link_local(__be32 dst)
{
	return (dst & LINK_LOCAL_MASK) == LINK_LOCAL_NET;
}

/*
 * Only the first CA may ask: the way back knows a port, not which of its CAs.
 */
static __always_inline enum drop_reason check_imds_request(const struct frame *f,
							   const struct port *port)
{
	if (f->ip->daddr != IMDS_ADDRESS || f->ip->protocol != IPPROTO_TCP ||
	    f->dport != IMDS_PORT)
		return DROP_IMDS_OTHER;
	return is_v4(&port->ca[0], f->ip->saddr) ? DROP_NONE : DROP_IMDS_SOURCE;
}

static __always_inline enum drop_reason check_imds_reply(const struct frame *f)
{
	if (f->ip->saddr != IMDS_ADDRESS || f->ip->protocol != IPPROTO_TCP ||
	    f->sport != IMDS_PORT || bpf_ntohl(f->ip->daddr) >> 28 != 0xf)
		return DROP_NOT_METADATA;
	return DROP_NONE;
}

#endif
