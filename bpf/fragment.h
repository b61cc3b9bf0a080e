/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Fragments: the first one has the ports, the others share its fate. One whose
 * first hasn't passed, or that would write over it, is refused: a firewall that
 * guesses can be walked around (RFC 1858, RFC 5722).
 */
#ifndef FRAGMENT_H
#define FRAGMENT_H

#include "maps.h"
#include "parse.h"

static __always_inline void fragment_key_of(const struct packet *p, __u32 id, bool inbound,
					    struct fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->src = p->src;
	key->dst = p->dst;
	key->port_id = id;
	key->id = p->fragment_id;
	key->proto = p->proto;
	key->inbound = inbound;
}

/* Gives a later fragment the ports of its first. */
static __always_inline enum drop_reason match_fragment(struct packet *p, __u32 id,
						       const struct port *port, bool inbound)
{
	const struct fragment *first;
	struct fragment_key key;

	if (p->fragment == WHOLE)
		return DROP_NONE;
	/* Nothing may end beyond the largest packet (ping of death). */
	if (p->offset + p->payload > 0xffff)
		return DROP_BAD_IP;
	if (p->fragment == FIRST_FRAGMENT)
		return DROP_NONE;
	fragment_key_of(p, id, inbound, &key);
	first = bpf_map_lookup_elem(&fragments, &key);
	if (!first || first->epoch != port->epoch)
		return DROP_FRAGMENT_LOST;
	if (p->offset < first->first_len)
		return DROP_FRAGMENT_OVERLAP;
	p->sport = first->sport;
	p->dport = first->dport;
	return DROP_NONE;
}

/* Remembers a first fragment that has passed. */
static __always_inline void keep_fragment(const struct packet *p, __u32 id, const struct port *port,
					  bool inbound)
{
	struct fragment row = {
		.sport = p->sport, .dport = p->dport, .first_len = p->payload, .epoch = port->epoch,
	};
	struct fragment_key key;

	if (p->fragment != FIRST_FRAGMENT || p->trace)
		return;
	fragment_key_of(p, id, inbound, &key);
	bpf_map_update_elem(&fragments, &key, &row, BPF_ANY);
}

#endif
