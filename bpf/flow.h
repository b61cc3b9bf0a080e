/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Connections, as each port sees its own: who began, what the rules said, where
 * a service led. A row is worth something only in the epoch that wrote it, so a
 * port that changes networks starts with none, at once. The rules are asked for
 * the first packet, and again when they have changed.
 */
#ifndef FLOW_H
#define FLOW_H

#include "flow_age.h"
#include "flow_log.h"
#include "flow_table.h"
#include "fragment.h"
#include "lb.h"
#include "rate.h"
#include "rules.h"
#include "way.h"

static __always_inline void make_key(struct packet *p, __u32 id, bool inbound)
{
	struct flow_key *k = &p->key;

	k->remote = inbound ? p->src : p->dst;
	k->local = inbound ? p->dst : p->src;
	k->rport = inbound ? p->sport : p->dport;
	k->lport = inbound ? p->dport : p->sport;
	k->port_id = id;
	k->proto = p->proto;
	k->pad = 0;
}

/*
 * The flow that speaks for a packet, NULL if none does. Of ICMP only echoes are
 * flows: nothing else has a number by which its answer is known. And a flow speaks
 * for the requests of the end that began it only.
 */
static __always_inline struct flow *flow_of(const struct packet *p, bool inbound)
{
	struct flow *flow;

	if (is_icmp(p) && !is_echo(p) && p->fragment != LATER_FRAGMENT)
		return NULL;
	flow = find_flow(&p->key, p->v6);
	return flow && is_echo_request(p) && inbound != !!(flow->flags & FLOW_INBOUND) ? NULL : flow;
}

static __always_inline void tally_flow(struct flow *flow, const struct packet *p, bool inbound)
{
	struct flow_count *n = inbound ? &flow->to : &flow->from;

	n->packets += segments_of(p);
	n->bytes += p->len;
}

/* A service's flow has two rows, one a direction: they live and end together. */
static __always_inline void touch_twin(const struct packet *p, const struct flow *flow, __u8 flags,
				       __u32 now)
{
	struct flow_key key = p->key;
	struct flow *twin;

	key.remote = flow->nat;
	key.rport = flow->nat_port;
	twin = find_flow(&key, p->v6);
	if (!twin || twin->epoch != flow->epoch)
		return;
	twin->seen = now;
	twin->flags |= flags & (FLOW_ANSWERED | FLOW_CLOSING | FLOW_RESET);
}

/* Notes that a packet of the flow has passed. */
static __always_inline void touch(struct flow *flow, const struct packet *p, bool inbound, __u32 now)
{
	__u8 flags = flow->flags;
	bool newer = flow->seen != now;

	if (p->trace)
		return;
	if (newer)
		flow->seen = now;
	if (inbound != !!(flags & FLOW_INBOUND))
		flags |= FLOW_ANSWERED;
	if (p->proto == IPPROTO_TCP) {
		if (p->tcp_flags & TCP_ACK)
			flow->acked[inbound] = p->ack;
		if (p->tcp_flags & TCP_FIN)
			flags |= FLOW_CLOSING;
		if (p->tcp_flags & TCP_RST)
			flags |= FLOW_RESET;
	}
	newer |= flags != flow->flags;
	if (newer && flags & (FLOW_SERVICE | FLOW_BACKEND))
		touch_twin(p, flow, flags, now);
	if (flags != flow->flags)
		flow->flags = flags;
	tally_flow(flow, p, inbound);
}

/* Whether a budget has room. Without an agent that counts it binds nobody. */
static __always_inline bool has_room(const struct flow_budget *b, __u32 quota, __u64 now)
{
	const __u64 *last;
	__u32 zero = 0;

	if (b->rows < quota)
		return true;
	last = bpf_map_lookup_elem(&swept, &zero);
	return !last || *last + SWEEP_STALE * config.second <= now;
}

/*
 * Takes a flow off the budgets of the port and of its tenant. The agent's next
 * count puts right what two CPUs blur.
 */
static __always_inline bool afford_flow(const struct packet *p, __u32 id, const struct port *port,
					bool inbound, __u64 now)
{
	struct flow_budget *own = bpf_map_lookup_elem(&flow_budgets, &id), *all;
	__u32 tenant = port->tenant;

	if (!own || !has_room(own, own->quota ? own->quota : config.flow_quota, now))
		return false;
	all = bpf_map_lookup_elem(&tenant_flows, &tenant);
	if (all) {
		if (!has_room(all, all->quota, now))
			return false;
		__sync_fetch_and_add(&all->rows, p->natted == FLOW_SERVICE && !inbound ? 2 : 1);
	}
	__sync_fetch_and_add(&own->rows, 1);
	return true;
}

/* No driver hands XDP fewer bytes in one buffer. */
#define XDP_LINEAR 1536

/* Whether the flow took the long way lately, so that it must go on to. */
static __always_inline bool was_aggregated(const struct flow *flow, __u32 now)
{
	return flow->aggregated && since_tick(now, flow->aggregated) <= (__u32)config.flow_idle;
}

/*
 * Which of two ways a frame from the wire takes. GRO'd frames must go up the
 * kernel's VXLAN device: it alone takes the tunnel's GSO state off, without
 * which a tap cuts every superpacket in software. Small frames are faster when
 * this program takes the outer headers off. But the VXLAN device queues, so a
 * small frame of the same flow would overtake: a flow that was aggregated keeps
 * to that way until it has been idle for config.flow_idle.
 */
static __always_inline bool goes_up(const struct packet *p, const struct port *port,
				    struct flow *flow, __u32 now)
{
	bool up = p->gso || was_aggregated(flow, now);

	/* XDP lets frames of several buffers go on: the small ones behind them must, too. */
	if (!p->trace && (up || (port->flags & PORT_XDP && p->len > XDP_LINEAR &&
			       p->proto != IPPROTO_TCP)))
		flow->aggregated = now ? now : 1;
	return up;
}

/* Writes the row that turns a backend's answers into the service's: p->row, the other way round. */
static __always_inline void remember_backend(struct packet *p)
{
	struct flow_key key = p->key;

	key.remote = p->nat;
	key.rport = p->nat_port;
	p->row.flags = FLOW_BACKEND;
	p->row.nat = p->dst;
	p->row.nat_port = p->dport;
	put_flow(&key, p->v6, &p->row);
}

static __always_inline enum drop_reason remember(struct packet *p, __u32 id, const struct port *port,
						 bool inbound, __s32 rule, __u64 now, __u32 since)
{
	struct flow *flow, *row = &p->row;

	if (!afford_flow(p, id, port, inbound, now))
		return DROP_FLOW_QUOTA;
	__builtin_memset(row, 0, sizeof(*row));
	row->epoch = port->epoch;
	row->began = bpf_ktime_get_ns();
	row->seen = now;
	row->generation = port->generation;
	row->rule = rule;
	row->flags = inbound ? FLOW_INBOUND : 0;
	if (port->flags & PORT_FLOW_LOG) {
		flow = find_flow(&p->key, p->v6);
		if (flow)
			tell_end(p, port, flow, now);
	}
	row->arrived = ~row->passed; /* frames behind this one may have passed from_nic already */
	if (p->natted == FLOW_SERVICE && !inbound) {
		row->flags = FLOW_SERVICE;
		row->nat = p->nat;
		row->nat_port = p->nat_port;
		row->backend = p->backend;
	}
	keep_way(row, p, port, inbound, since);
	put_flow(&p->key, p->v6, row);
	if (row->flags & FLOW_SERVICE)
		remember_backend(p);
	flow = find_flow(&p->key, p->v6);
	if (!flow)
		return DROP_NONE;
	touch(flow, p, inbound, now);
	if (inbound)
		p->climbs = goes_up(p, port, flow, now);
	return DROP_NONE;
}

/*
 * An error about a flow belongs to it (RFC 5508, 4): what it quotes went the other
 * way, and it goes to whoever sent that. NULL if it is about none.
 */
static __always_inline const struct flow *related_flow(struct packet *p, __u32 id,
						       const struct port *port, bool inbound,
						       __u32 now)
{
	struct flow_key *k = &p->key;
	const struct flow *flow;

	if (!p->quotes || !same_addr(&p->dst, &p->quoted.local))
		return NULL;
	k->local = inbound ? p->quoted.local : p->quoted.remote;
	k->remote = inbound ? p->quoted.remote : p->quoted.local;
	k->lport = inbound ? p->quoted.lport : p->quoted.rport;
	k->rport = inbound ? p->quoted.rport : p->quoted.lport;
	k->proto = p->quoted.proto;
	k->port_id = id;
	flow = find_flow(k, p->v6);
	if (!flow || flow->epoch != port->epoch ||
	    since_tick(now, flow->seen) > timeout_of(flow, k->proto) * (__u32)config.second)
		return NULL;
	return flow;
}

/* An error about a service's flow: to the backend, or from it, as if from the service. */
static __always_inline void follow_error(struct packet *p, const struct flow *flow, bool inbound)
{
	__u8 natted = flow->flags & (inbound ? FLOW_BACKEND : FLOW_SERVICE);

	if (!natted)
		return;
	p->natted = natted;
	p->nat = flow->nat;
	p->nat_port = flow->nat_port;
	if (!inbound) { /* a backend on this host is asked by what it will see */
		p->quoted.local = flow->nat;
		p->quoted.lport = flow->nat_port;
	}
}

/* Whether a segment can be turned into the reset that answers it: no piece of one, and none itself. */
static __always_inline bool takes_reset(const struct packet *p)
{
	return p->proto == IPPROTO_TCP && !(p->tcp_flags & TCP_RST) && p->fragment == WHOLE &&
	       p->header <= sizeof(struct ipv6hdr);
}

/* The first packet of a flow, or one whose flow has been forgotten. */
static __always_inline enum drop_reason begin(struct packet *p, __u32 id, const struct port *port,
					      bool inbound, __u64 now, __u32 since, __s32 *rule)
{
	enum drop_reason why = inbound ? find_way_of(p, port, true) : DROP_NONE;
	const struct flow *about;

	if (why)
		return why;
	p->climbs = p->gso != 0;
	about = related_flow(p, id, port, inbound, now);
	if (about) {
		follow_error(p, about, inbound);
		*(inbound ? &p->flow_in : &p->flow_out) = FLOW_RELATED;
		return inbound ? DROP_NONE : find_way_of(p, port, false);
	}
	make_key(p, id, inbound);
	if (p->proto == IPPROTO_TCP && !(p->tcp_flags & TCP_SYN) && port->flags & PORT_STRICT) {
		p->reset = port->flags & PORT_RESET && takes_reset(p);
		return DROP_MIDSTREAM;
	}
	if (port->flags & PORT_DRAINING)
		return DROP_DRAINING;
	why = classify(p, port, inbound, p->icmp_type, rule);
	if (!why && !inbound)
		why = choose_backend(p, port);
	if (!why && !inbound)
		why = find_way_of(p, port, false);
	if (!why && is_icmp(p) && !is_echo_request(p))
		return DROP_NONE;
	if (!why && !p->trace)
		why = remember(p, id, port, inbound, *rule, now, since);
	tell_start(p, port, inbound, why, *rule);
	return why;
}

/* The rules have changed: a flow that they wouldn't let begin any more ends. */
static __always_inline enum drop_reason judge_again(struct packet *p, __u32 id,
						    const struct port *port, bool inbound,
						    __u32 now, struct flow *flow)
{
	__u8 echo = p->v6 ? 128 : 8;
	enum drop_reason why;
	__s32 rule;

	if (flow->flags & FLOW_BACKEND) { /* the rules know the service */
		p->key.remote = flow->nat;
		p->key.rport = flow->nat_port;
	}
	why = classify(p, port, flow->flags & FLOW_INBOUND, echo, &rule);
	make_key(p, id, inbound);
	if (!p->trace && why) {
		tell_end(p, port, flow, now);
		tell_start(p, port, flow->flags & FLOW_INBOUND, why, rule);
		delete_flow(&p->key, p->v6);
	}
	if (!p->trace && !why) {
		flow->generation = port->generation;
		flow->rule = rule;
	}
	return why;
}

/* Takes over what the flow's row says of services. */
static __always_inline enum drop_reason follow_service(struct packet *p, const struct port *port,
						       const struct flow *flow, bool inbound,
						       __u32 now)
{
	if (flow->flags & FLOW_SERVICE && !inbound) {
		if (!has_backend(flow)) {
			p->reset = takes_reset(p);
			if (!p->trace) {
				tell_end(p, port, flow, now);
				delete_flow(&p->key, p->v6);
			}
			return DROP_DEAD_BACKEND;
		}
	} else if (flow->flags & FLOW_BACKEND) {
		if (!inbound)
			return DROP_SERVICE_CLASH;
	} else {
		return DROP_NONE;
	}
	p->natted = flow->flags & (FLOW_SERVICE | FLOW_BACKEND);
	p->nat = flow->nat;
	p->nat_port = flow->nat_port;
	p->backend = flow->backend;
	return DROP_NONE;
}

/* A packet of a flow that the port knows. */
static __always_inline enum drop_reason go_on(struct packet *p, __u32 id, const struct port *port,
					      bool inbound, __u32 now, __u32 since,
					      struct flow *flow)
{
	enum drop_reason why = DROP_NONE;

	if (flow->generation != port->generation)
		why = judge_again(p, id, port, inbound, now, flow);
	if (!why)
		why = follow_service(p, port, flow, inbound, now);
	if (!why && !knows_way(p, flow, inbound, since)) {
		why = find_way_of(p, port, inbound);
		if (!why)
			keep_way(flow, p, port, inbound, since);
	}
	if (why)
		return why;
	touch(flow, p, inbound, now);
	if (inbound)
		p->climbs = goes_up(p, port, flow, now);
	return DROP_NONE;
}

static __always_inline enum drop_reason judge_flow(struct packet *p, __u32 id,
						   const struct port *port, bool inbound)
{
	__s32 *rule = inbound ? &p->rule_in : &p->rule_out;
	__u64 now = bpf_jiffies64();
	__u32 since = directory_now();
	struct flow *flow;

	make_key(p, id, inbound);
	flow = flow_of(p, inbound);
	*(inbound ? &p->flow_in : &p->flow_out) = flow ? FLOW_KNOWN : FLOW_NEW;
	if (!flow || !is_alive(flow, port, p, now))
		return begin(p, id, port, inbound, now, since, rule);
	*rule = flow->rule;
	return go_on(p, id, port, inbound, now, since, flow);
}

/*
 * Judges a packet at one port: by its rate, by its flow, or as the first of one.
 * Returns an enum drop_reason. A function of its own, so that the verifier walks
 * it once a program and not once for each way that leads here.
 */
__noinline int judge(const struct port *port, __u32 id, __u32 inbound)
{
	struct packet *p = packet_at_hand();
	enum drop_reason why;
	__u8 natted;

	if (!p || !port)
		return DROP_CLOSED;
	natted = p->natted;
	why = inbound ? DROP_NONE : check_rate_from(p, id, port);
	if (!why)
		why = match_fragment(p, id, port, inbound);
	if (!why)
		why = judge_flow(p, id, port, inbound);
	if (!why && natted && p->natted != natted)
		why = DROP_SERVICE_CLASH;
	if (!why && inbound)
		why = check_rate_to(p, id, port);
	if (!why)
		keep_fragment(p, id, port, inbound);
	return why;
}

#endif
