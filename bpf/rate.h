/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Token buckets (GCRA: a bucket holds when the next frame is due). Pacing by
 * departure time would need a queueing discipline that keeps it on each device;
 * a tap has none, and a policer costs no queue and no memory.
 */
#ifndef RATE_H
#define RATE_H

#include "maps.h"
#include "parse.h"

/*
 * Takes cost ns from a bucket that may run burst ns ahead. Two CPUs that spend
 * at once may share a token; no lock is worth that.
 */
static __always_inline bool take_from(__u64 *due, __u64 now, __u64 cost, __u64 burst)
{
	__u64 next;

	if (!due)
		return false;
	next = *due > now ? *due : now;
	if (next - now > burst)
		return false;
	*due = next + cost;
	return true;
}

static __always_inline bool spend_at(__u32 id, enum bucket kind, __u64 now, __u64 cost, __u64 burst)
{
	__u32 slot = id * BUCKETS + kind;

	return take_from(bpf_map_lookup_elem(&buckets, &slot), now, cost, burst);
}

/* Whether a logged port may tell of one more flow that was refused. */
static __always_inline bool spend_denied(__u32 id, __u64 now)
{
	return take_from(bpf_map_lookup_elem(&denied_buckets, &id), now, DENIED_INTERVAL, DENIED_BURST);
}

/* A trace spends nothing: it goes where a frame in its turn would go. */
static __always_inline bool spend(const struct packet *p, __u32 id, enum bucket kind, __u64 interval,
				  __u64 burst)
{
	return p->trace || spend_at(id, kind, bpf_ktime_get_ns(), interval, burst);
}

static __always_inline __u32 l4_header(const struct packet *p)
{
	return p->proto == IPPROTO_TCP ? sizeof(struct tcphdr) + p->options_len
				       : sizeof(struct udphdr);
}

/* How many packets a frame is on a wire: each has p->gso bytes behind its headers. */
static __always_inline __u32 segments_of(const struct packet *p)
{
	__u32 header = l4_header(p);

	if (!p->gso || p->payload <= header)
		return 1;
	return (p->payload - header + p->gso - 1) / p->gso;
}

/* How many bytes they are there, with the Ethernet header: all but the first repeat theirs. */
static __always_inline __u32 wire_bytes(const struct packet *p, __u32 segments)
{
	return p->len + (segments - 1) * (ETH_HLEN + p->header + l4_header(p));
}

/* Whether a frame, as what it becomes on a wire, keeps to the rate. */
static __always_inline bool keeps(const struct rate *r, __u32 id, enum bucket bytes,
				  enum bucket packets, const struct packet *p)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 segments = segments_of(p);

	if (r->packet_cost &&
	    !spend_at(id, packets, now, r->packet_cost * segments >> 16, r->packet_burst))
		return false;
	return !r->byte_cost || spend_at(id, bytes, now, r->byte_cost * wire_bytes(p, segments) >> 16, r->byte_burst);
}

static __always_inline enum drop_reason check_rate_from(const struct packet *p, __u32 id,
							const struct port *port)
{
	const struct limits_row *l;

	if (!(port->flags & PORT_LIMITED) || p->trace)
		return DROP_NONE;
	l = bpf_map_lookup_elem(&port_limits, &id);
	if (!l || keeps(&l->from, id, BUCKET_FROM_BYTES, BUCKET_FROM_PACKETS, p))
		return DROP_NONE;
	return DROP_RATE_FROM;
}

static __always_inline enum drop_reason check_rate_to(const struct packet *p, __u32 id,
						      const struct port *port)
{
	const struct limits_row *l;

	if (!(port->flags & PORT_LIMITED) || p->trace)
		return DROP_NONE;
	l = bpf_map_lookup_elem(&port_limits, &id);
	if (!l || keeps(&l->to, id, BUCKET_TO_BYTES, BUCKET_TO_PACKETS, p))
		return DROP_NONE;
	return DROP_RATE_TO;
}

#endif
