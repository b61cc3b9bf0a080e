/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Where flows are kept. Everybody else knows one kind of key. */
#ifndef FLOW_TABLE_H
#define FLOW_TABLE_H

#include "maps.h"
#include "parse.h"

static __always_inline struct flow_key4 narrow(const struct flow_key *k)
{
	return (struct flow_key4){
		.remote = as_v4(&k->remote),
		.local = as_v4(&k->local),
		.rport = k->rport,
		.lport = k->lport,
		.port_id = k->port_id,
		.proto = k->proto,
	};
}

/*
 * The lines of assembly keep clang from making one call of two: with either of
 * two maps the kernel can't make it a direct one, which costs 25 ns.
 */
static __always_inline struct flow *find_flow(const struct flow_key *k, bool v6)
{
	struct flow_key4 k4;
	struct flow *flow;

	if (v6) {
		flow = bpf_map_lookup_elem(&flows, k);
		asm volatile("%0 = %0" : "+r"(flow));
	} else {
		k4 = narrow(k);
		flow = bpf_map_lookup_elem(&flows4, &k4);
		asm volatile("" : "+r"(flow));
	}
	return flow;
}

static __always_inline void put_flow(const struct flow_key *k, bool v6, const struct flow *row)
{
	struct flow_key4 k4;

	if (v6) {
		bpf_map_update_elem(&flows, k, row, BPF_ANY);
		return;
	}
	k4 = narrow(k);
	bpf_map_update_elem(&flows4, &k4, row, BPF_ANY);
}

static __always_inline void delete_flow(const struct flow_key *k, bool v6)
{
	struct flow_key4 k4;

	if (v6) {
		bpf_map_delete_elem(&flows, k);
		return;
	}
	k4 = narrow(k);
	bpf_map_delete_elem(&flows4, &k4);
}

#endif
