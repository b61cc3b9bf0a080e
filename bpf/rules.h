/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Security groups: the first line that matches decides. Only the first packet
 * of a flow comes here, so that a plain scan of the lines is enough: two
 * nanoseconds a line.
 */
#ifndef RULES_H
#define RULES_H

#include "maps.h"
#include "parse.h"

/* 0 if the line is about the question. One word, no branch. */
static __always_inline __u64 differs(const struct rule *r, const struct question *q)
{
	__u64 common = r->groups & q->groups;
	__u64 diff = (high(&q->remote) & high(&r->mask)) ^ high(&r->remote);

	diff |= (low(&q->remote) & low(&r->mask)) ^ low(&r->remote);
	diff |= (q->kind ^ r->kind) & r->kind_mask;
	diff |= ((__s64)r->ports - (__u16)(q->port - r->min_port)) >> 63;
	diff |= ~(__s64)(common | -common) >> 63;
	return diff;
}

/* A list that is being gone through. */
struct scan {
	const struct question *q;
	__u32 base, end; /* lines */
	int found;	 /* -1: none yet */
};

#define LINES_A_CALL 16

/* Looks at the next lines; 1: that was all. */
static long look_on(__u32 call, struct scan *s)
{
	__u32 index = s->base + call * LINES_A_CALL, end = s->end;
	const struct question *q = s->q;

#pragma unroll
	for (int i = 0; i < LINES_A_CALL; i++, index++) {
		const struct rule *r;

		if (index >= end)
			return 1;
		r = bpf_map_lookup_elem(&rules, &index);
		if (!r)
			return 1;
		if (!differs(r, q)) {
			s->found = index;
			return 1;
		}
	}
	return 0;
}

/*
 * Returns the index of the first rule that matches, or -1. A function of its own,
 * whose loop is a helper's: the verifier walks its body once a program, and not once a
 * line.
 */
__noinline int first_match(const struct question *q, __u32 base, __u32 count)
{
	struct scan s = { .q = q, .base = base, .end = base + count, .found = -1 };

	if (q)
		bpf_loop((MAX_RULES + LINES_A_CALL - 1) / LINES_A_CALL, look_on, &s, 0);
	return s.found;
}

static __always_inline __u64 groups_of(__u32 vni, const struct addr *ca)
{
	struct mapping_key key = { .vni = vni, .ca = *ca };
	const struct members *m = bpf_map_lookup_elem(&members, &key);

	return m ? m->groups : 0;
}

static __always_inline void ask(struct question *q, const struct port *port,
				const struct flow_key *key, bool inbound, __u8 icmp_type)
{
	bool v4 = !high(&key->remote) && (__u32)low(&key->remote) == 0xffff0000;

	q->remote = key->remote;
	q->groups = groups_of(port->vni, &key->remote) | GROUP_ANY;
	q->kind = (__u32)key->proto << KIND_PROTO | (__u32)icmp_type << KIND_ICMP_TYPE |
		  (v4 ? 4 : 6) << KIND_FAMILY;
	q->port = bpf_ntohs(inbound ? key->lport : key->rport);
}

/*
 * Judges the flow of p->key by its port's rules. *id is the rule that did it. The
 * question stands in the packet: the programs' stack is small.
 */
static __always_inline enum drop_reason classify(struct packet *p, const struct port *port,
						 bool inbound, __u8 icmp_type, __s32 *id)
{
	const struct rule_list *list = inbound ? &port->in : &port->out;
	const struct rule *r;
	__u32 index;
	int found;

	*id = RULE_NONE;
	if (!(port->flags & PORT_RULES))
		return DROP_NONE;
	*id = RULE_DEFAULT;
	ask(&p->question, port, &p->key, inbound, icmp_type);
	found = first_match(&p->question, list->base, list->count);
	if (found < 0)
		return inbound ? DROP_NO_RULE_IN : DROP_NONE;
	index = found;
	r = bpf_map_lookup_elem(&rules, &index);
	if (!r)
		return inbound ? DROP_NO_RULE_IN : DROP_NONE;
	*id = r->id;
	if (!r->deny)
		return DROP_NONE;
	return inbound ? DROP_RULE_IN : DROP_RULE_OUT;
}

#endif
