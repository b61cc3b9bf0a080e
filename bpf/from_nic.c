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
 * Looks no further than it must: what goes on to from_wire is judged there, once.
 * A frame of several buffers is longer than what can be read here, and so goes on.
 */
static __always_inline bool may_redirect(struct received *r)
{
	struct packet *p = r->f.p;
	const struct flow *flow;
	__u32 now = bpf_jiffies64();

	if (read_outer(&r->f, &r->outer) || parse_ip(&r->f) || p->proto == IPPROTO_TCP ||
	    p->fragment != WHOLE || is_error(p))
		return false;
	if (find_local(p->vni, r->f.eth->h_dest, &p->id, &r->port))
		return false;
	if (!(r->port->flags & PORT_XDP) || r->port->flags & (PORT_CAPTURED | PORT_ISOLATED))
		return false;
	if ((r->outer.tos & ECN_MASK) == ECN_CE || packet_len(&r->f) > r->port->mtu)
		return false;
	make_key(p, p->id, true);
	flow = find_flow(&p->key, p->v6);
	/* New flows, and those that a service turns, are rare: let one place begin them. */
	return flow && is_alive(flow, r->port, p, now) &&
	       flow->generation == r->port->generation &&
	       !(flow->flags & (FLOW_SERVICE | FLOW_BACKEND)) && !was_aggregated(flow, now);
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

SEC("xdp")
int from_nic(struct xdp_md *ctx)
{
	struct received r = {
		.f = {
			.rest = { .pos = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end },
			.len = ctx->data_end - ctx->data,
		},
	};
	struct packet *p = open_packet(false);
	int verdict = XDP_DROP;
	enum drop_reason why;

	if (!p)
		return XDP_PASS;
	r.f.p = p;
	if (!is_ours(&r.f) || !may_redirect(&r))
		return XDP_PASS;
	why = take_in(&r);
	if (!why)
		why = unwrap_xdp(ctx, &r, &verdict);
	if (why && is_watched(p, r.port))
		capture_xdp(ctx, p, why);
	count(p, why);
	return verdict;
}
