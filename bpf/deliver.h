/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The last checks before a tap, whoever the frame comes from, and the books. */
#ifndef DELIVER_H
#define DELIVER_H

#include "flow.h"
#include "mtu.h"
#include "spoof.h"

/* locals trails behind a flip; the row is the truth. */
static __always_inline bool is_local(const struct port *port, __u32 vni, const __u8 *mac)
{
	return port && port->ifindex && port->vni == vni && same_mac(port->mac, mac);
}

/* Neighbours in a network differ in the MAC's last bytes, most of all. */
static __always_inline __u32 local_slot(__u32 vni, const __u8 *mac)
{
	return MAX_PORTS + ((*(const __u32 *)(mac + 2) ^ vni) * 0x9e3779b1 >> 18);
}

/* Finds the port that a frame to (vni, mac) is for. */
static __always_inline enum drop_reason find_local(__u32 vni, const __u8 *mac, __u32 *id,
						   const struct port **port)
{
	__u32 slot = local_slot(vni, mac), *found, *shortcut = bpf_map_lookup_elem(&shortcuts, &slot);
	struct local_key key = { .vni = vni };

	if (shortcut) {
		*id = *shortcut;
		*port = find_port(*id);
		if (is_local(*port, vni, mac))
			return DROP_NONE;
	}
	*id = 0;
	copy_mac(key.mac, mac);
	found = bpf_map_lookup_elem(&locals, &key);
	if (!found)
		return DROP_NOT_LOCAL;
	*id = *found;
	*port = find_port(*id);
	if (!is_local(*port, vni, mac))
		return DROP_NOT_LOCAL;
	if (shortcut)
		*shortcut = *id;
	return DROP_NONE;
}

/* Whether the port takes frames, and frames for this address. */
static __always_inline enum drop_reason admit(const struct frame *f, const struct port *port)
{
	if (!(port->flags & PORT_OPEN))
		return DROP_TO_CLOSED;
	if (port->flags & PORT_ISOLATED)
		return DROP_TO_ISOLATED;
	if (!has_ca(port, &f->p->dst) && !(port->flags & PORT_ROUTER))
		return DROP_WRONG_CA;
	return DROP_NONE;
}

/* Whether the port's rules and limits let it in, or out. */
static __always_inline enum drop_reason permit(const struct frame *f, __u32 id,
					       const struct port *port, bool inbound)
{
	f->p->len = f->len;
	f->p->gso = f->gso;
	return judge(port, id, inbound);
}

/* What a guest sees of any peer is the gateway: the neighbour that its ARP knows. */
static __always_inline void write_delivery(struct ethhdr *eth, const struct port *port, bool v6)
{
	copy_mac(eth->h_dest, port->mac);
	copy_const_mac(eth->h_source, config.gateway_mac);
	eth->h_proto = v6 ? ETH_P_BE_IPV6 : ETH_P_BE_IP;
}

/* A frame of the old epoch may come by on another CPU after the flip: it moves `before`. */
static __always_inline void stamp(struct times *t, __u64 epoch)
{
	__u64 now = bpf_ktime_get_ns();

	if (epoch < t->epoch) {
		t->before = now;
		return;
	}
	if (epoch > t->epoch) {
		t->before = t->last;
		t->first = now;
		t->epoch = epoch;
	}
	t->last = now;
}

static __always_inline void account_from(const struct packet *p, const struct port *port, __u32 len)
{
	struct tally *n = bpf_map_lookup_elem(&port_counters, &p->id);
	struct timing *times;

	if (p->trace)
		return;
	if (n) {
		n->from_packets++;
		n->from_bytes += len;
	}
	if (!(port->flags & PORT_TIMED))
		return;
	times = bpf_map_lookup_elem(&port_times, &p->id);
	if (times)
		stamp(&times->from, port->epoch);
}

static __always_inline void tally_to(const struct packet *p, __u32 id, __u32 len)
{
	struct tally *n = bpf_map_lookup_elem(&port_counters, &id);

	if (!n || p->trace)
		return;
	n->to_packets++;
	n->to_bytes += len;
}

/* Metadata replies are tallied only: they don't show that the network is back. */
static __always_inline void account_to(const struct packet *p, __u32 id, const struct port *port,
				       __u32 len)
{
	struct timing *times;

	tally_to(p, id, len);
	if (!(port->flags & PORT_TIMED) || p->trace)
		return;
	times = bpf_map_lookup_elem(&port_times, &id);
	if (times)
		stamp(&times->to, port->epoch);
}

#endif
