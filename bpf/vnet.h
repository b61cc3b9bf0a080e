/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The contract between the datapath and Go: every struct that both sides see,
 * here, in reason.h and in record.h.
 * Sizes are fixed and padding has a name. Addresses are 16 bytes in network
 * order, IPv4 as ::ffff:a.b.c.d, so that IPv6 needs no other key. Numbers are
 * in host order (little endian) unless their type says __be.
 *
 * Whoever changes a struct, an enum value or the meaning of a field raises
 * CONTRACT: Go then refuses the maps that an older agent left pinned.
 */
#ifndef VNET_H
#define VNET_H

#include <linux/types.h>

#include "reason.h"

enum limits {
	CONTRACT = 4,
	MAX_PORTS = 16384,  /* port ids 1..16382; 14 bits in marks and IMDS addresses */
	MAX_CAS = 4,
	MAX_NEXT_HOPS = 4096,
	MAX_PEERS = 65536,  /* underlay prefixes that mappings lead to; 16 bits in a mapping */
	MAX_RULES = 1000,   /* of one port and direction */
	TRAP_FRAME = 1532,  /* bytes of a trapped frame; a longer one is refused */
	SNAP = 256,	    /* bytes of a captured frame */
};

/* An address, in network order; IPv4 as ::ffff:a.b.c.d. All zero: none. */
struct addr {
	__u8 b[16];
} __attribute__((aligned(8)));

enum port_flag {
	PORT_OPEN = 1,		/* frames may pass; without it everything is dropped by name */
	PORT_ISOLATED = 2,	/* DHCP, ARP and ND for the gateway, and IMDS only */
	PORT_TIMED = 4,		/* keep port_times */
	PORT_ROUTER = 8,	/* a gateway VM: may send from and receive for any address */
	PORT_RULES = 16,	/* has security rules; without it everything passes */
	PORT_CAPTURED = 32,	/* its frames are copied into the captures ring */
	PORT_FLOW_LOG = 64,	/* its flows are told in the flow_events ring */
	PORT_DRAINING = 128,	/* new flows are refused */
	PORT_STRICT = 256,	/* TCP without a flow row is refused: the port came here by a swap */
	PORT_RESET = 512,	/* ... and answered with a reset */
	PORT_LIMITED = 1024,	/* see limits */
	PORT_XDP = 2048,	/* its device takes frames that XDP redirects: a tap */
	PORT_PEER = 4096,	/* its device is a veth whose other end is in another namespace */
};

/* A contiguous piece of the rules map, in the order of decision. */
struct rule_list {
	__u32 base;
	__u32 count;		/* 0..MAX_RULES */
};

/* One port in one network: everything a frame's way depends on. */
struct port {
	__u64 epoch;
	struct addr pa;		/* source of its outer frames */
	struct addr ca[MAX_CAS];/* its addresses; unused ones are zero */
	struct addr mask[MAX_CAS]; /* of each CA's subnet, as of 16 bytes */
	struct addr gateway;	/* IPv4 gateway */
	struct addr gateway6;	/* the gateway's IPv6 link-local address */
	__u32 vni;		/* 24 bits */
	__u32 ifindex;		/* of its tap; 0: there is no such port */
	enum port_flag flags;
	__u16 mtu;		/* bytes of the guest's IP packets */
	__u8 mac[6];
	__u32 generation;	/* of the rules: flows judged by another one are judged again */
	struct rule_list in;
	struct rule_list out;
	__u32 tenant;		/* whose ports share tenant_flows: a hash of its name; 0: no one's */
};

/*
 * A port's old and new row. Go writes the row that isn't active, then flips
 * `active`: a frame sees the whole old row or the whole new one.
 */
struct port_slot {
	__u32 active;		/* 0 or 1 */
	__u32 pad;
	struct port row[2];
};

struct local_key {
	__u32 vni;
	__u8 mac[6];
	__u8 pad[2];
};

struct mapping_key {
	__u32 vni;
	__u32 pad;		/* zero */
	struct addr ca;
};

/*
 * Where a CA is reached: the PA is offset after the base of a peer. check is a
 * hash of the key, because the kernel may reuse the element for another key
 * while a frame reads it; what a torn read lets through is refused by the
 * receiver, who knows VNI, MAC and CA.
 */
struct mapping {
	__u8 mac[6];
	__u16 peer;		/* index into peers; 0: this host */
	__u16 offset;
	__u16 pad;
	__u32 check;
};

/* An underlay prefix, or a single address, that mappings lead to. */
struct peer {
	struct addr base;
	__u32 next_hop;		/* index into next_hops; 0: let the kernel find it */
	__u8 bits;		/* length of the prefix, as of 16 bytes */
	__u8 used;		/* 1: this row is taken */
	__u8 pad[2];
};

/* The security groups of a CA, a bit each. */
struct members {
	__u64 groups;
};

/* A neighbour on the underlay. Too old, or ifindex 0: the kernel's tables are asked. */
struct next_hop {
	__u64 refreshed;	/* ticks; written by refresh_next_hop */
	__u32 ifindex;		/* of the uplink */
	__u8 dst[6];
	__u8 src[6];
};

/* What Go hands to refresh_next_hop. */
struct next_hop_refresh {
	__u32 index;		/* into next_hops */
	__u32 pad;
	struct next_hop hop;	/* but for refreshed */
};

/* What note_sweep reads and tells. */
struct sweep {
	__u64 now;		/* out: ticks */
	__u64 second;		/* out: ticks */
	__u32 done;		/* in: 1 if the flows have been counted */
	__u32 pad;
};

struct host_key {
	__u32 prefixlen;	/* 0..128 */
	__u8 pa[16];
};

struct route_key {
	__u32 prefixlen;	/* 32 for the VNI + 0..128 */
	__u32 vni;
	struct addr dst;
};

struct route {
	struct addr next_hop;	/* a CA of the same network; zero: the destination itself */
	__u32 vni;		/* the peer network that the destination is in; 0: the same */
	__u32 pad;
};

/*
 * A line of a security group, made for a comparison without branches: the
 * verifier follows a thousand of them. What a line doesn't ask for, its masks hide.
 */
struct rule {
	struct addr remote;	/* masked */
	struct addr mask;
	__u64 groups;		/* the other end is in one of them; GROUP_ANY: whoever it is */
	__u32 kind;		/* what it is about, see struct question; masked */
	__u32 kind_mask;
	__u32 id;		/* the agent's name for it */
	__u16 min_port;		/* destination ports, host order */
	__u16 ports;		/* how many after min_port match, too; 0xffff: all */
	__u32 deny;
	__u32 pad;
};

/* Everybody is in the group of the highest bit. */
#define GROUP_ANY (1ULL << 63)

enum kind_shift { KIND_PROTO = 0, KIND_ICMP_TYPE = 8, KIND_FAMILY = 16 };

/* A flow as its port sees it, whoever began it. For ICMP echo both ports are the identifier. */
struct flow_key {
	struct addr remote;
	struct addr local;
	__be16 rport;
	__be16 lport;
	__u16 port_id;
	__u8 proto;
	__u8 pad;		/* zero */
};

/* The same of IPv4: with its row it takes three lines of the cache, where 40 bytes take four. */
struct flow_key4 {
	__be32 remote;
	__be32 local;
	__be16 rport;
	__be16 lport;
	__u16 port_id;
	__u8 proto;
	__u8 pad;		/* zero */
};

enum flow_flag {
	FLOW_INBOUND = 1,	/* the other end began it */
	FLOW_ANSWERED = 2,	/* both ends have spoken */
	FLOW_CLOSING = 4,	/* TCP: a FIN has passed */
	FLOW_RESET = 8,		/* TCP: a reset has passed */
	FLOW_SERVICE = 16,	/* to a service: nat is the backend that it goes to */
	FLOW_BACKEND = 32,	/* its answers: nat is the service that they come from */
};

/* How long an idle flow is remembered, in seconds (RFC 5382, RFC 4787, RFC 5508). */
enum flow_timeout {
	TCP_OPEN = 7440,
	TCP_OPENING = 60,
	TCP_CLOSING = 120,
	TCP_GONE = 10,
	OTHER_ANSWERED = 300,
	OTHER_OPENING = 60,
	/* After it an agent counts as dead, and budgets as unknown. */
	SWEEP_STALE = 60,
};

/* Refused flows that a logged port tells of: 1,000 a second, and as many at once; ns. */
enum denied_rate {
	DENIED_INTERVAL = 1000000,
	DENIED_BURST = 1000000000,
};

struct flow_count {
	__u64 packets;		/* as on a wire */
	__u64 bytes;		/* Ethernet */
};

/*
 * What every packet reads stands in the first 64 bytes, which are one line of the
 * cache for IPv4. The way is what find_way found, or for a flow from the wire the
 * PA that its source was found behind; it is good while nothing of the directory
 * has changed since.
 */
struct flow {
	__u64 epoch;		/* of the port then: older rows count for nothing */
	__u32 way_since;	/* of the directory when the way was found, the low half; 0: none is known */
	__u32 seen;		/* ticks, the low half */
	__u32 aggregated;	/* when its last merged frame went up; ticks, 0: never */
	__u32 generation;	/* of the rules that judged it */
	__s32 rule;		/* that allowed it: an id, or RULE_* */
	__u32 vni;		/* the way */
	__u8 mac[6];
	__u16 next_hop;
	__u8 here;
	__u8 flags;		/* enum flow_flag */
	__be16 nat_port;
	__u16 backend;		/* index into backends, with FLOW_SERVICE */
	__u8 passed;		/* the number of the last frame that from_nic let go on */
	__u8 arrived;		/* ... and that from_wire has seen: if it's another, some are on their way */
	struct addr pa;		/* ... of the way */
	struct flow_count from;	/* what the local end sent */
	struct flow_count to;
	__u32 acked[2];		/* TCP: the last number that the local end, the other end acknowledged */
	struct addr nat;
	__u64 began;		/* CLOCK_MONOTONIC, ns */
};

enum rule_id {
	RULE_DEFAULT = -1,	/* no rule matched */
	RULE_NONE = -2,		/* the port has no rules */
};

/* How many flows a port or a tenant has, and may have. The agent counts anew now and then. */
struct flow_budget {
	__u32 rows;
	__u32 quota;		/* 0 of a port: config.flow_quota */
};

/* Fragments after the first have no ports: they share the fate of the first. */
struct fragment_key {
	struct addr src;
	struct addr dst;
	__u32 port_id;
	__u32 id;
	__u8 proto;
	__u8 inbound;
	__u8 pad[6];
};

struct fragment {
	__be16 sport;
	__be16 dport;
	__u32 first_len;	/* bytes of payload that the first fragment carried */
	__u64 epoch;
};

struct service_key {
	struct addr vip;
	__u32 vni;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

enum service_flag {
	SERVICE_AFFINITY = 1,	/* by the client's address only */
};

/* Slots base..base+mask lead to its backends; the table is filled by rendezvous hashing. */
struct service {
	__u32 base;
	__u32 mask;		/* a power of 2, less 1 */
	enum service_flag flags;
	__u32 pad;
};

enum backend_flag {
	BACKEND_USED = 1,
	BACKEND_DEAD = 2,
};

struct backend {
	struct addr ca;
	__be16 port;
	__u16 pad;
	enum backend_flag flags;	/* and from bit 8 the VNI, for Go alone */
};

/* A bound in one direction: what a byte and a packet cost, in time. 0: no bound. */
struct rate {
	__u64 byte_cost;	/* ns << 16 */
	__u64 byte_burst;	/* ns that it may run ahead */
	__u64 packet_cost;	/* ns << 16 */
	__u64 packet_burst;
};

struct limits_row {
	struct rate from;
	struct rate to;
};

struct tally {
	__u64 from_packets;	/* accepted from the VM; a GSO frame counts once */
	__u64 from_bytes;	/* Ethernet bytes */
	__u64 to_packets;	/* delivered to the VM */
	__u64 to_bytes;
	__u64 drops;		/* refused from or to the VM, for any reason */
	__u64 unresolved;	/* delivered although their source has no mapping yet */
};

/*
 * One direction of a port while PORT_TIMED is set. CLOCK_MONOTONIC, ns; 0: none.
 * first - before is the blackout around the last change of epoch.
 */
struct times {
	__u64 epoch;		/* that first and last belong to */
	__u64 before;		/* last frame under the epoch before */
	__u64 first;		/* first frame under this epoch */
	__u64 last;		/* last frame under this epoch */
};

struct timing {
	struct times from;	/* the VM's own frames from its current CA, ARP included */
	struct times to;	/* frames delivered to it */
};

/*
 * Set by Go before load; constant afterwards. A tick is a jiffy: the program
 * reads that clock for nothing, and only the program compares it.
 */
struct settings {
	__u64 flow_idle;	/* ticks after which an aggregated flow may take the short way again */
	__u64 next_hop_age;	/* ticks after which a next hop isn't trusted */
	__u64 second;		/* ticks */
	__u64 trap_interval;	/* ns per trapped frame of a port */
	__u64 trap_burst;	/* ns that a port's traps may run ahead */
	__u64 unresolved_interval;
	__u64 unresolved_burst;
	__u64 answer_interval;
	__u64 answer_burst;
	__u64 decap_flags;	/* of bpf_skb_adjust_room, for merged frames; 0: the kernel has none */
	struct addr host;	/* the host's own underlay address */
	struct addr pa_net;	/* PA prefix of this host */
	struct addr pa_mask;
	__u32 uplink;		/* ifindex */
	__u32 imds;		/* ifindex */
	__u32 underlay_mtu;
	__u32 underlay6;	/* 1: the underlay is IPv6 */
	__u32 trace_mark;	/* a frame with this mark is a trace; 0: there are none */
	__u32 flow_quota;	/* of a port that has none of its own */
	__u8 gateway_mac[6];
	__u8 imds_mac[6];
	__u8 uplink_mac[6];
	__u8 pad[6];
};

#endif
