/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The names under which frames are refused: what operators see, and Go prints. */
#ifndef REASON_H
#define REASON_H

/* Why a frame was dropped. Append only: the value is a metrics label. */
enum drop_reason {
	DROP_NONE,		/* not a drop; slot 0 counts frames delivered, sent or answered */
	/* a frame from a VM, in the order of the checks */
	DROP_NO_PORT,		/* no port owns the tap it came from */
	DROP_CLOSED,		/* its port is closed: not set up yet, or going away */
	DROP_VLAN,		/* it carries a VLAN tag */
	DROP_TRUNCATED,		/* a header runs past its end */
	DROP_SPOOFED_MAC,	/* its source MAC isn't the port's */
	DROP_NOT_IP,		/* neither IPv4, IPv6 nor ARP */
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
	DROP_TO_GATEWAY,	/* to the gateway's address, but neither a ping nor neighbour discovery */
	DROP_NO_ROUTE,		/* outside the subnet, and no route leads there */
	DROP_NO_MAPPING,	/* no PA is known for (VNI, destination CA) */
	DROP_TOO_BIG,		/* larger than the way to the destination takes */
	DROP_NO_ROOM,		/* the kernel could not grow or shrink the frame */
	/* a frame from the underlay */
	DROP_OUTER_BAD,		/* outer IP options or lengths that don't fit the frame */
	DROP_OUTER_FRAGMENT,	/* a fragment of an outer packet */
	DROP_VXLAN_FLAGS,	/* VXLAN flags other than "VNI valid", or reserved bits */
	DROP_INNER_TRUNCATED,	/* an inner header runs past the end of the frame */
	DROP_INNER_NOT_IP,	/* inner frame is neither IPv4 nor IPv6 */
	DROP_INNER_BAD_IP,	/* inner IP version, header length or total length is wrong */
	DROP_WRONG_PA,		/* outer destination isn't the port's PA */
	DROP_WRONG_SOURCE,	/* from elsewhere than where its source is by the directory, or from an address that only the host or the receiver has */
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
	/* since contract 2: of both directions */
	DROP_IP_OPTIONS,	/* IPv4 options, or an IPv6 extension header that isn't Fragment */
	DROP_BAD_L4,		/* a transport header that is cut off, or whose length lies */
	DROP_FRAGMENT_TINY,	/* a first fragment without its whole transport header (RFC 1858) */
	DROP_FRAGMENT_OVERLAP,	/* a fragment that would write over the first one (RFC 1858, 5722) */
	DROP_FRAGMENT_LOST,	/* a later fragment whose first one hasn't passed here */
	DROP_RULE_OUT,		/* a rule denies what the VM sends */
	DROP_RULE_IN,		/* a rule denies what the VM would get */
	DROP_NO_RULE_IN,	/* the VM has rules, and none allows this in */
	DROP_FLOW_QUOTA,	/* the port, or its tenant on this host, has as many flows as it may */
	DROP_DRAINING,		/* a new connection of a port that is about to leave its network */
	DROP_MIDSTREAM,		/* a TCP segment of a connection that began before the port was here */
	DROP_RATE_FROM,		/* the VM sends more than its limit */
	DROP_RATE_TO,		/* the VM gets more than its limit */
	DROP_ANSWER_RATE,	/* more ARP, ND and pings than the gateway answers one port */
	DROP_NO_BACKEND,	/* to a service that has no backend to give */
	DROP_DEAD_BACKEND,	/* its connection's backend has died or gone */
	DROP_SERVICE_CLASH,	/* straight to a backend by the ports of a connection through the service */
	/* IPv6 from a VM */
	DROP_BAD_ND,		/* neighbour discovery that isn't well-formed (RFC 4861, 7.1) */
	DROP_SPOOFED_ND,	/* its source or link-layer address isn't the port's */
	DROP_ND_PROBE,		/* duplicate address detection (RFC 4862): nobody may answer */
	DROP_ND_OWN,		/* it asks for its own address */
	DROP_ND_STRANGER,	/* it asks for an address that the gateway doesn't answer for */
	DROP_ND_UNASKED,	/* a neighbour advertisement that the gateway didn't ask for */
	DROP_ROGUE_RA,		/* a router advertisement or redirect from a VM */
	DROP_ROGUE_DHCP,	/* a DHCP server's message from a VM */
	DROP_LINK_SCOPE,	/* an IPv6 link-local address, to or from anything but the gateway */
	DROP_MAX,		/* number of reasons; not a reason */
};

#endif
