//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* A frame from the host's metadata service: tcx egress of the imds device. */
#include "deliver.h"
#include "hook.h"
#include "imds.h"

struct reply {
	struct frame f;
	__u32 id;
	const struct port *port;
};

static __always_inline enum drop_reason read_reply(struct reply *r)
{
	__u32 caller;

	if (parse_eth(&r->f) || r->f.eth->h_proto != ETH_P_BE_IP || parse_ipv4(&r->f) ||
	    check_imds_reply(&r->f))
		return DROP_NOT_METADATA;
	caller = bpf_ntohl(r->f.ip->daddr);
	r->id = caller >> 16 & 0xfff;
	r->port = find_port(r->id);
	if (!r->port || !r->port->ifindex || (r->port->epoch & 0xffff) != (caller & 0xffff))
		return DROP_STALE_EPOCH;
	if (!(r->port->flags & PORT_OPEN))
		return DROP_TO_CLOSED;
	return packet_len(&r->f) > r->port->mtu ? DROP_TO_TOO_BIG : DROP_NONE;
}

static __always_inline enum drop_reason send_reply(struct __sk_buff *skb, struct reply *r,
						   int *verdict)
{
	__be32 caller = r->f.ip->daddr, ca = as_v4(&r->port->ca[0]);
	__u32 l4 = ETH_HLEN + r->f.ip->ihl * 4;

	csum_replace32(&r->f.ip->check, caller, ca);
	r->f.ip->daddr = ca;
	write_delivery(r->f.eth, r->port);
	if (bpf_l4_csum_replace(skb, l4 + offsetof(struct tcphdr, check), caller, ca,
				BPF_F_PSEUDO_HDR | sizeof(ca)))
		return DROP_NOT_METADATA;
	tally_to(r->id, r->f.len);
	*verdict = bpf_redirect(r->port->ifindex, 0);
	return DROP_NONE;
}

SEC("tcx/egress")
int from_host(struct __sk_buff *skb)
{
	struct reply r = { .f = open_frame(skb, VM_HEADERS) };
	enum drop_reason why = read_reply(&r);
	int verdict = TC_ACT_SHOT;

	if (!why)
		why = send_reply(skb, &r, &verdict);
	count(why, r.id);
	return verdict;
}
