/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What the rings carry to the agent: frames that it answers, copies, and the news of flows. */
#ifndef RECORD_H
#define RECORD_H

#include "vnet.h"

enum trap_kind {
	TRAP_DHCP = 1,		/* UDP 68 -> 67, whatever its source address */
	TRAP_ARP_REPLY = 2,	/* the current CA answers the gateway's ARP request */
	TRAP_DHCPV6 = 3,	/* UDP 546 -> 547, from a link-local address */
	TRAP_ROUTER_SOLICIT = 4,
	TRAP_NEIGH_ADVERT = 5,	/* one of the port's CAs answers the gateway's solicitation */
	TRAP_PROBE = 6,		/* TCP to the gateway: the answer to the host's health probe */
};

struct trap {
	__u32 port_id;
	enum trap_kind kind;
	__u64 epoch;		/* of the port when it was trapped */
	__u32 len;		/* bytes of frame that are valid */
	__u8 frame[TRAP_FRAME];
};

enum capture_point {
	POINT_FROM_VM = 1,	/* as the VM sent it */
	POINT_TO_VM = 2,	/* as the VM gets it */
	POINT_FROM_WIRE = 3,	/* with its outer headers */
	POINT_TO_WIRE = 4,
	POINT_DROP = 5,		/* as it was when it was refused */
	POINT_DROP_TO = 6,	/* the same, for the port of this host that was to get it */
};

struct captured {
	__u64 time;		/* CLOCK_MONOTONIC, ns */
	__u32 port_id;
	enum drop_reason reason;/* of POINT_DROP and POINT_DROP_TO */
	enum capture_point point;
	__u32 len;		/* of the whole frame */
	__u32 snapped;		/* bytes of frame that are valid */
	__u8 frame[SNAP];
	__u32 sender;		/* of POINT_DROP_TO: the port that sent it */
};

enum flow_event_kind {
	FLOW_STARTED = 1,
	FLOW_DENIED = 2,
	FLOW_ENDED = 3,		/* before a sweep found it: its row has been taken away */
};

struct flow_event {
	__u64 time;		/* CLOCK_MONOTONIC, ns */
	__u64 epoch;
	__u64 began;		/* of FLOW_ENDED, by the same clock */
	struct flow_count passed; /* of FLOW_ENDED: both directions; else the frame */
	struct flow_key key;
	enum flow_event_kind kind;
	enum drop_reason reason;/* of FLOW_DENIED */
	__s32 rule;
	__u32 inbound;
};

/* What a ring was too full for. */
struct lost {
	__u64 captures;
	__u64 flow_events;
};

#endif
