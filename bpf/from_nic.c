//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * A frame from the underlay, before the kernel has made anything of it: XDP of
 * an uplink whose driver can. Small packets go straight into their tap; what
 * GRO may merge, and whatever needs more than cutting off the outer headers,
 * goes on to from_wire.
 */
#include "hook.h"
#include "received.h"

static __always_inline bool is_ours(const struct frame *f)
{
	const struct ethhdr *eth = f->rest.pos;
	__u8 mac[6];

	copy_const_mac(mac, config.uplink_mac);
	return (void *)(eth + 1) <= f->rest.end && same_mac(eth->h_dest, mac) && is_for_us(&f->rest);
}

/*
 * The flow of a frame of a kind that is redirected. New flows, and those that a
 * service turns, are rare: let one place begin them.
 */
static __always_inline struct flow *known_flow(struct received *r, __u32 now)
{
	struct packet *p = r->f.p;
	struct flow *flow;

	if (read_outer(&r->f, &r->outer) || parse_ip(&r->f) || p->proto == IPPROTO_TCP)
		return NULL;
	if (find_local(p->vni, r->f.eth->h_dest, &p->id, &r->port) || !(r->port->flags & PORT_XDP))
		return NULL;
	make_key(p, p->id, true);
	flow = flow_of(p, true);
	return flow && is_alive(flow, r->port, p, now) &&
	       !(flow->flags & (FLOW_SERVICE | FLOW_BACKEND)) ? flow : NULL;
}

/* Whether nothing is left to do but to cut the outer headers off: what goes on is judged there. */
static __always_inline bool is_plain(const struct received *r, const struct flow *flow, __u32 linear)
{
	const struct packet *p = r->f.p;

	return p->fragment == WHOLE && !(r->port->flags & (PORT_CAPTURED | PORT_ISOLATED)) &&
	       !alters_ecn(p, r->outer.tos) && packet_len(&r->f) <= r->port->mtu &&
	       flow->generation == r->port->generation && OVERHEAD + r->f.len <= linear;
}

/*
 * Lets a frame of a known flow go on to from_wire. The kernel may gather it with
 * others first, so none of its flow may be redirected before it is there: it takes
 * a number along, and from_wire says which came last. What climbs goes on as it is,
 * since frames with different numbers aren't merged.
 */
static __always_inline void go_on_with(struct xdp_md *ctx, struct flow *flow, __u32 now)
{
	__u32 *number;

	if (was_aggregated(flow, now)) {
		flow->aggregated = now ? now : 1;
		return;
	}
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*number)))
		return;
	number = (void *)(long)ctx->data_meta;
	if ((void *)(number + 1) > (void *)(long)ctx->data)
		return;
	*number = ++flow->passed;
}

static __always_inline enum drop_reason take_in(struct received *r)
{
	struct packet *p = r->f.p;
	enum drop_reason why;

	if (!same_addr(&r->port->pa, &p->outer_dst))
		return DROP_WRONG_PA;
	why = admit(&r->f, r->port);
	if (why)
		return why;
	why = check_scope(p);
	if (why)
		return why;
	return permit(&r->f, p->id, r->port, true);
}

static __always_inline enum drop_reason unwrap_xdp(struct xdp_md *ctx, struct received *r,
						   int *verdict)
{
	struct packet *p = r->f.p;
	struct ethhdr *eth;

	if (bpf_xdp_adjust_head(ctx, OVERHEAD))
		return DROP_NO_ROOM;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return DROP_NO_ROOM;
	write_delivery(eth, r->port, p->v6);
	account_to(p, p->id, r->port, r->f.len);
	*verdict = bpf_redirect(r->port->ifindex, 0);
	return DROP_NONE;
}

SEC("xdp.frags")
int from_nic(struct xdp_md *ctx)
{
	__u32 now = bpf_jiffies64(), linear = ctx->data_end - ctx->data;
	struct received r = {
		.f = {
			.rest = { .pos = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end },
			.len = bpf_xdp_get_buff_len(ctx),
		},
	};
	struct packet *p = open_packet(false);
	int verdict = XDP_DROP;
	enum drop_reason why;
	struct flow *flow;

	if (!p)
		return XDP_PASS;
	r.f.p = p;
	if (!is_ours(&r.f))
		return XDP_PASS;
	flow = known_flow(&r, now);
	if (!flow)
		return XDP_PASS;
	if (flow->passed != flow->arrived || was_aggregated(flow, now) || !is_plain(&r, flow, linear)) {
		go_on_with(ctx, flow, now);
		return XDP_PASS;
	}
	why = take_in(&r);
	if (!why)
		why = unwrap_xdp(ctx, &r, &verdict);
	if (why && is_watched(p, r.port))
		capture_xdp(ctx, p, why);
	count(p, why);
	return verdict;
}
