//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* A frame from the host's metadata service: tcx egress of the imds device. */
#include "capture.h"
#include "deliver.h"
#include "hook.h"
#include "imds.h"
#include "nat.h"

struct reply {
	struct frame f;
	const struct port *port;
};

static __always_inline enum drop_reason read_reply(struct reply *r)
{
	struct packet *p = r->f.p;
	const struct addr *ca;

	if (parse_eth(&r->f) || parse_ip(&r->f) || check_imds_reply(p))
		return DROP_NOT_METADATA;
	p->id = caller_port(&p->dst, p->v6);
	r->port = find_port(p->id);
	if (!r->port || !r->port->ifindex || !caller_is(&p->dst, p->v6, r->port->epoch))
		return DROP_STALE_EPOCH;
	if (!(r->port->flags & PORT_OPEN))
		return DROP_TO_CLOSED;
	ca = first_ca(r->port, p->v6);
	if (!ca)
		return DROP_STALE_EPOCH;
	p->nat = *ca;
	return packet_len(&r->f) > r->port->mtu ? DROP_TO_TOO_BIG : DROP_NONE;
}

static __always_inline enum drop_reason send_reply(struct __sk_buff *skb, struct reply *r,
						   int *verdict)
{
	struct packet *p = r->f.p;

	write_delivery(r->f.eth, r->port, p->v6);
	if (rewrite(skb, &r->f, END_DESTINATION, &p->nat, 0))
		return DROP_NOT_METADATA;
	tally_to(p, p->id, r->f.len);
	if (is_captured(p, r->port))
		capture(skb, p->id, POINT_TO_VM, DROP_NONE);
	*verdict = bpf_redirect(r->port->ifindex, 0);
	return DROP_NONE;
}

SEC("tcx/egress")
int from_host(struct __sk_buff *skb)
{
	struct reply r = { .f = open_frame(skb, VM_HEADERS) };
	struct packet *p = open_packet(false);
	int verdict = TC_ACT_SHOT;
	enum drop_reason why;

	if (!p)
		return TC_ACT_SHOT;
	r.f.p = p;
	why = read_reply(&r);
	if (!why)
		why = send_reply(skb, &r, &verdict);
	if (why)
		show_drop(skb, r.port, POINT_DROP, why);
	count(p, why);
	return verdict;
}
