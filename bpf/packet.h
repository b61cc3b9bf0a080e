/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What is known of the frame at hand. Go reads it back after a trace. */
#ifndef PACKET_H
#define PACKET_H

#include "record.h"

/* Where a frame goes if nobody refuses it. */
enum way {
	WAY_NONE,
	WAY_TRAP,
	WAY_ANSWER,		/* the gateway answers: ARP, ND, ping */
	WAY_IMDS,
	WAY_LOCAL,		/* to another port of this host */
	WAY_WIRE,
	WAY_DELIVER,		/* from the wire to its port */
	WAY_UP,		/* from the wire to the VXLAN device */
	WAY_NOT_OURS,
};

/* What rules ask of the first packet of a flow. */
struct question {
	struct addr remote;
	__u64 groups;	/* that remote is in, GROUP_ANY among them */
	__u32 kind;	/* protocol, ICMP type, family (4 or 6): see enum kind_shift */
	__u16 port;	/* destination, host order */
	__u16 pad;
};

enum fragment_kind { WHOLE, FIRST_FRAGMENT, LATER_FRAGMENT };

/*
 * What is known of the frame at hand: no pointers into it, so that it may stand
 * in a map. A trace reads it back when the program has run.
 */
struct packet {
	struct addr src;
	struct addr dst;
	struct addr next;	/* the CA that it is routed to */
	struct addr pa;		/* of that CA */
	struct addr outer_src;	/* from the wire: the PAs that it came by */
	struct addr outer_dst;
	struct addr nat;	/* what its destination (to the wire) or source (to a VM) becomes */
	struct question question;
	struct flow_key quoted;	/* of the packet that an ICMP error is about, as it was sent: local is its source */
	struct flow row;	/* as a new flow begins */
	struct flow_key key;	/* at the port of this hook; then, on the same host, at the other's */
	__u32 id;		/* the port of this hook; 0: not known */
	__u32 to_id;		/* the port of this host that gets it; 0: none */
	__u32 vni;		/* of the network that it is carried in */
	__u32 next_hop;
	__u32 len;		/* bytes of the frame, without outer headers */
	__u32 gso;		/* payload bytes of each segment; 0: it is one packet */
	__u32 seq;
	__u32 ack;
	__u32 fragment_id;
	__u32 payload;		/* bytes behind the IP headers, as said there */
	__u32 offset;		/* of a fragment */
	__u32 backend;
	__u32 mtu;		/* what it was too big for; 0: nobody is to be told */
	__s32 rule_out;
	__s32 rule_in;
	enum drop_reason why;
	enum way way;
	enum trap_kind kind;
	__be16 sport;
	__be16 dport;
	__be16 nat_port;
	__u16 header;		/* bytes of IP headers */
	__u8 mac[6];		/* of the next port */
	__u8 from_mac[6];	/* of the port that sent it, as its host says */
	__u8 proto;
	__u8 tos;
	__u8 v6;
	__u8 fragment;		/* enum fragment_kind */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 trace;		/* look only: count nothing, change nothing */
	__u8 flow_out;		/* enum flow_seen at the sender's port */
	__u8 flow_in;		/* ... at the receiver's */
	__u8 natted;		/* nat and nat_port are to be written */
	__u8 reset;		/* the sender is to be told by a TCP reset */
	__u8 known;		/* the outer source is what the directory says */
	__u8 quotes;		/* quoted is filled in; bytes of its IP header, with what extends it, or 0 */
	__u8 climbs;		/* it must go up the VXLAN device */
	__u8 here;		/* next is on this host */
	__u8 options_len;	/* of TCP's options; those of a SYN are in options */
	__u8 owned;		/* src is an address of the port of this host that sent it */
	__u8 pad[2];
	__u8 options[40];
};

enum flow_seen { FLOW_NOT_ASKED, FLOW_NEW, FLOW_KNOWN, FLOW_RELATED };

#endif
