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
/* Azure's wire server: where cloud-init reports that it is ready. */
#define WIRE_SERVER IPV4(168, 63, 129, 16)
#define IMDS_PORT bpf_htons(80)
#define LINK_LOCAL_NET IPV4(169, 254, 0, 0)
#define LINK_LOCAL_MASK IPV4(255, 255, 0, 0)

/* fd00:ec2::254 */
static __always_inline bool is_imds6(const struct addr *a)
{
	return high(a) == bpf_cpu_to_be64(0xfd000ec200000000) && low(a) == bpf_cpu_to_be64(0x254);
}

/* What a guest says to, and hears from, its host alone. */
static __always_inline bool is_metadata(const struct addr *a, bool v6)
{
	if (v6)
		return is_imds6(a);
	return as_v4(a) == WIRE_SERVER || (as_v4(a) & LINK_LOCAL_MASK) == LINK_LOCAL_NET;
}

/*
 * IPv4: 240.0.0.0/4, 14 bits of port id, 14 of epoch. IPv6: fd52:5047::/32, the
 * port id in bytes 6 and 7, the epoch in the last 8.
 */
static __always_inline void imds_caller(struct addr *a, bool v6, __u32 id, __u64 epoch)
{
	if (v6) {
		*(__u64 *)a->b = bpf_cpu_to_be64(0xfd52504700000000 | (id & 0x3fff));
		*(__u64 *)(a->b + 8) = bpf_cpu_to_be64(epoch);
		return;
	}
	set_v4(a, bpf_htonl(0xf0000000 | (id & 0x3fff) << 14 | (epoch & 0x3fff)));
}

/* Reads a caller back: the port, and whether epoch is of the port's. */
static __always_inline __u32 caller_port(const struct addr *a, bool v6)
{
	if (v6)
		return bpf_be64_to_cpu(high(a)) >> 16 == 0xfd5250470000
			       ? bpf_be64_to_cpu(high(a)) & 0x3fff
			       : 0;
	return bpf_ntohl(as_v4(a)) >> 28 == 0xf ? bpf_ntohl(as_v4(a)) >> 14 & 0x3fff : 0;
}

static __always_inline bool caller_is(const struct addr *a, bool v6, __u64 epoch)
{
	if (v6)
		return bpf_be64_to_cpu(low(a)) == epoch;
	return (bpf_ntohl(as_v4(a)) & 0x3fff) == (epoch & 0x3fff);
}

/* The first CA of the family: the way back knows a port, not which of its CAs. */
static __always_inline const struct addr *first_ca(const struct port *port, bool v6)
{
#pragma unroll
	for (int i = 0; i < MAX_CAS; i++) {
		const struct addr *ca = &port->ca[i];
		bool is_six = high(ca) || (__u32)low(ca) != 0xffff0000;

		if (!is_none(ca) && is_six == v6)
			return ca;
	}
	return NULL;
}

static __always_inline enum drop_reason check_imds_request(const struct packet *p,
							   const struct port *port)
{
	const struct addr *ca = first_ca(port, p->v6);

	if (p->proto != IPPROTO_TCP || p->dport != IMDS_PORT || p->fragment != WHOLE ||
	    (!p->v6 && as_v4(&p->dst) != IMDS_ADDRESS && as_v4(&p->dst) != WIRE_SERVER))
		return DROP_IMDS_OTHER;
	return ca && same_addr(ca, &p->src) ? DROP_NONE : DROP_IMDS_SOURCE;
}

static __always_inline enum drop_reason check_imds_reply(const struct packet *p)
{
	bool ours = p->v6 ? is_imds6(&p->src)
			  : as_v4(&p->src) == IMDS_ADDRESS || as_v4(&p->src) == WIRE_SERVER;

	if (!ours || p->proto != IPPROTO_TCP || p->sport != IMDS_PORT || !caller_port(&p->dst, p->v6))
		return DROP_NOT_METADATA;
	return DROP_NONE;
}

#endif
