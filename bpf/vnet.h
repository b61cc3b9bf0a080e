/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The contract between the datapath and Go: every struct that both sides see.
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

enum limits {
	CONTRACT = 1,
	MAX_PORTS = 4096,   /* port ids 1..4094; 12 bits in marks and IMDS addresses */
	MAX_CAS = 4,
	MAX_NEXT_HOPS = 4096,
	TRAP_FRAME = 1532,  /* bytes of a trapped frame; a longer one is refused */
};

/* Why a frame was dropped. Append only: the value is a metrics label. */
enum drop_reason {
	DROP_NONE,		/* not a drop; slot 0 counts frames delivered, sent or answered */
	/* a frame from a VM, in the order of the checks */
	DROP_NO_PORT,		/* no port owns the tap it came from */
	DROP_CLOSED,		/* its port is closed: not set up yet, or going away */
	DROP_VLAN,		/* it carries a VLAN tag */
	DROP_TRUNCATED,		/* a header runs past its end */
	DROP_SPOOFED_MAC,	/* its source MAC isn't the port's */
	DROP_NOT_IP,		/* neither IPv4 nor ARP */
	DROP_BAD_IP,		/* IP version, header length or total length is wrong */
	DROP_BAD_ARP,		/* not an ARP request or reply for IPv4 over Ethernet */
	DROP_SPOOFED_ARP,	/* ARP sender isn't the port's MAC and one of its CAs */
	DROP_ARP_PROBE,		/* ARP probe (RFC 5227): a guest asks whether an address is free */
	DROP_ARP_OWN,		/* ARP request for the sender's own CA (an announcement) */
	DROP_ARP_STRANGER,	/* ARP request for an address that the gateway doesn't answer for */
	DROP_ARP_UNASKED,	/* ARP reply that the gateway didn't ask for */
	DROP_TRAP_RATE,		/* the port traps more frames than its token bucket allows */
	DROP_TRAP_FULL,		/* the trap ring is full: is the agent alive? */
	DROP_TRAP_SIZE,		/* a frame to trap is longer than TRAP_FRAME */
	DROP_IMDS_SOURCE,	/* metadata request from an address that isn't the port's first CA */
	DROP_IMDS_OTHER,	/* to 169.254.0.0/16, but not a metadata request */
	DROP_SPOOFED_CA,	/* its source isn't one of the port's CAs */
	DROP_BROADCAST,		/* to a broadcast address */
	DROP_MULTICAST,		/* to a multicast address */
	DROP_ISOLATED,		/* from a pooled VM, to something else than DHCP and IMDS */
	DROP_TO_GATEWAY,	/* to the gateway's address, but not a ping */
	DROP_NO_ROUTE,		/* outside the subnet, and no route leads there */
	DROP_NO_MAPPING,	/* no PA is known for (VNI, destination CA) */
	DROP_TOO_BIG,		/* larger than the way to the destination takes */
	DROP_NO_ROOM,		/* the kernel could not grow or shrink the frame */
	/* a frame from the underlay */
	DROP_OUTER_BAD,		/* outer IP options or lengths that don't fit the frame */
	DROP_OUTER_FRAGMENT,	/* a fragment of an outer packet */
	DROP_VXLAN_FLAGS,	/* VXLAN flags other than "VNI valid", or reserved bits */
	DROP_INNER_TRUNCATED,	/* an inner header runs past the end of the frame */
	DROP_INNER_NOT_IP,	/* inner frame isn't IPv4 */
	DROP_INNER_BAD_IP,	/* inner IP version, header length or total length is wrong */
	DROP_WRONG_PA,		/* outer destination isn't the port's PA */
	DROP_WRONG_SOURCE,	/* the inner source's mapping names another PA than the outer source */
	DROP_UNKNOWN_SOURCE,	/* inner source has no mapping, outer source is no registered host */
	DROP_UNRESOLVED_RATE,	/* too many frames from sources without a mapping */
	DROP_ECN,		/* congestion was marked on a packet that isn't ECN-capable (RFC 6040) */
	DROP_UNMARKED,		/* came up the VXLAN device without having passed from_wire */
	DROP_CHANGED,		/* its port changed networks while it went up the VXLAN device */
	/* a frame to a port, from the underlay or from the same host */
	DROP_NOT_LOCAL,		/* (VNI, destination MAC) is no port of this host */
	DROP_TO_CLOSED,		/* the port is closed */
	DROP_TO_ISOLATED,	/* the port is a pooled VM's */
	DROP_WRONG_CA,		/* the destination isn't one of the port's CAs */
	DROP_TO_TOO_BIG,	/* larger than the port's MTU */
	/* a frame from the host's metadata service */
	DROP_NOT_METADATA,	/* not a reply of the metadata service */
	DROP_STALE_EPOCH,	/* the reply is for a network that the port has left */
	DROP_MAX,		/* number of reasons; not a reason */
};

/* An address, in network order; IPv4 as ::ffff:a.b.c.d. All zero: none. */
struct addr {
	__u8 b[16];
} __attribute__((aligned(8)));

enum port_flag {
	PORT_OPEN = 1,		/* frames may pass; without it everything is dropped by name */
	PORT_ISOLATED = 2,	/* DHCP, ARP for the gateway and IMDS only */
	PORT_TIMED = 4,		/* keep port_times */
	PORT_ROUTER = 8,	/* a gateway VM: may send from and receive for any address */
};

/* One port in one network: everything a frame's way depends on. */
struct port {
	__u64 epoch;
	struct addr pa;		/* source of its outer frames */
	struct addr ca[MAX_CAS];/* its addresses; unused ones are zero */
	struct addr gateway;	/* IPv4 gateway of the subnet of ca[0] */
	__u32 vni;		/* 24 bits */
	__u32 ifindex;		/* of its tap; 0: there is no such port */
	enum port_flag flags;
	__u16 mtu;		/* bytes of the guest's IP packets */
	__u8 bits;		/* length of the subnet's IPv4 prefix, 0..32 */
	__u8 pad;
	__u8 mac[6];
	__u8 pad2[2];
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
 * Where a CA is reached. key repeats the key, because the kernel may reuse the
 * element for another key while a frame reads it: read the rest first, key last.
 */
struct mapping {
	struct mapping_key key;
	struct addr pa;
	__u64 epoch;
	__u32 next_hop;		/* index into next_hops; 0: let the kernel find it */
	__u8 mac[6];
	__u8 pad[6];
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
	struct addr next_hop;	/* a CA of the same network; zero: the destination itself (on-link) */
};

struct flow_key {
	struct addr src;
	struct addr dst;
	__u32 port_id;
	__be16 sport;
	__be16 dport;
	__u32 proto;
	__u32 pad;		/* zero */
};

struct flow {
	__u64 aggregated;	/* when its last frame went up; ticks */
	__u64 epoch;		/* of the port then: older rows count for nothing */
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

enum trap_kind {
	TRAP_DHCP = 1,		/* UDP 68 -> 67, whatever its source address */
	TRAP_ARP_REPLY = 2,	/* the current CA answers the gateway's ARP request */
};

struct trap {
	__u32 port_id;
	enum trap_kind kind;
	__u64 epoch;		/* of the port when it was trapped */
	__u32 len;		/* bytes of frame that are valid */
	__u8 frame[TRAP_FRAME];
};

/*
 * Set by Go before load; constant afterwards. A tick is a jiffy: the program
 * reads that clock for nothing, and only the program compares it.
 */
struct settings {
	__u64 flow_idle;	/* ticks after which an aggregated flow may take the short way again */
	__u64 next_hop_age;	/* ticks after which a next hop isn't trusted */
	__u64 trap_interval;	/* ns per trapped frame of a port */
	__u64 trap_burst;	/* ns that a port's traps may run ahead */
	__u64 unresolved_interval;
	__u64 unresolved_burst;
	__u32 uplink;		/* ifindex */
	__u32 imds;		/* ifindex */
	__be32 host;		/* the host's own underlay address */
	__be32 pa_net;		/* PA prefix of this host */
	__be32 pa_mask;
	__u32 underlay_mtu;
	__u8 gateway_mac[6];
	__u8 imds_mac[6];
	__u32 pad;
};

#endif
